"""Command `edje data`: look at a set, and pack it."""

from dataclasses import dataclass

import tyro

from edje_jax.cli.commands.subcommand import subcommand


@dataclass(frozen=True)
class DataStat:
    """Count images and captions of a set, decode images, name those that cannot be read.

    Examples:
        edje data stat blip:train.json
        edje data stat "webdataset:cc3m/{00000..00331}.tar" --look-at 1000 --grid cc3m.png
        edje data stat "karpathy:dataset_coco.json#test" --image-root coco/
    """

    spec: tyro.conf.Positional[str]
    """SPEC of the set, as `kind:path[#split]`."""
    image_root: str | None = None
    """Folder that relative image paths start from (default: the JSON's own)."""
    look_at: int | None = None
    """Images to decode, spread over the set (default: all, as with 0)."""
    grid: str | None = None
    """File for a sheet of images with their captions, such as set.png (default: none)."""

    def run(self) -> None:
        from edje_jax.cli.data import stat

        stat(self.spec, self.image_root, self.look_at, self.grid)


@dataclass(frozen=True)
class DataPack:
    """Write a set as ArrayRecord shards, which read fast in any order; resumes where it stopped.

    What cannot be read goes into rejected.csv. Read the result as "arrayrecord:DIR/*.array_record".

    Examples:
        edje data pack blip:train.json --out packed/
        edje data pack "parquet:flickr30k/*.parquet#train" --out packed/ --shard-size 1000
    """

    spec: tyro.conf.Positional[str]
    """SPEC of the set, as `kind:path[#split]`."""
    out: str
    """Folder of the shards."""
    image_root: str | None = None
    """Folder that relative image paths start from (default: the JSON's own)."""
    shard_size: int = 2048
    """Images in a shard."""

    def run(self) -> None:
        from edje_jax.cli.data import pack

        pack(self.spec, self.out, self.image_root, self.shard_size)


DATA = subcommand("stat", DataStat) | subcommand("pack", DataPack)


@dataclass(frozen=True)
class Data:
    """Look at a set of images and captions, and pack it for training."""

    command: tyro.conf.OmitSubcommandPrefixes[DATA]  # type: ignore[valid-type]

    def run(self) -> None:
        self.command.run()
