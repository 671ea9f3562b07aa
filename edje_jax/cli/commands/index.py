"""Command `edje index`: build and look after an index."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import tyro

from edje_jax.cli.commands.search import CacheOptions, IndexStageName, On
from edje_jax.cli.commands.subcommand import subcommand
from edje_jax.config.model import EmbeddingDtype, InferencePrecision, TokenDtype

if TYPE_CHECKING:
    from edje_jax.index.files import IndexFiles


@dataclass(frozen=True)
class IndexBuild(CacheOptions):
    """Encode images into an index that can be searched; resumes where it stopped.

    Run again after the set changed, it encodes what is new or changed and takes up other captions;
    it names images that are gone, and --prune drops them. Images that were removed with `edje index
    remove` stay out. What cannot be read goes into rejected.csv.

    Examples:
        edje index build runs/coco/model photos/ --out photos.index
        edje index build runs/coco/model blip:captions.json --out coco.index --token-dtype int8
        edje index build runs/coco/model blip:photos.json --out photos.index --metadata year license
        edje index build runs/coco/model photos/ --out photos.index --shard 0/4      # of 4 machines
        edje index build runs/coco/model photos/ --out /shared/photos.index --on ray
        edje index build runs/coco/model photos/ --out s3://bucket/photos.index
    """

    model: tyro.conf.Positional[str]
    """Model folder, training workdir or hub id."""
    images: tyro.conf.Positional[str]
    """Folder of images, or a SPEC such as blip:captions.json, whose captions are indexed too."""
    out: str
    """Folder of the index, or its URL."""
    token_dtype: TokenDtype = "bfloat16"
    """Data type of stored tokens: 2 bytes a number, 1 or a half."""
    embedding_dtype: EmbeddingDtype = "float32"
    """Data type of stored embeddings, of images and captions: 4 bytes a number, 2 or 1."""
    encoder_precision: InferencePrecision = "auto"
    """Precision of the backbone and the adapter; auto is float32 on a CPU, and bfloat16 on other
    devices."""
    metadata: tuple[str, ...] | None = None
    """Names of values of the SPEC that are kept, for --where (default: as the index has it, or
    none)."""
    shard: str | None = None
    """i/n: build the i-th of n shares (from 0); the last to finish completes the index (default:
    the share of this process in an MPI, Slurm or torchrun job, or else all)."""
    on: On | None = None
    """Cluster that encodes, on all its accelerators: ray, the Ray cluster of RAY_ADDRESS or of this
    machine, or ray://HOST:PORT (default: this process). All of its machines have to see the model,
    the images and the index under these paths."""
    workers: int = 0
    """Processes that decode images; 0 uses threads of this one."""
    image_root: str | None = None
    """Folder that a SPEC's relative image paths start from (default: the JSON's own)."""
    max_bad: float = 1.0
    """Share of the set's records that may be bad: unreadable images, unusable captions. If no image
    can be read, the build fails anyway."""
    prune: bool = False
    """Drop images that are no longer in the set; without it, they keep answering."""
    restore: bool = False
    """Take images in again that were removed with `edje index remove`."""
    first_stage: IndexStageName | None = None
    """First stage to build as well, once the index is complete (default: a search that asks for one
    builds it)."""
    bits: int | None = None
    """Length of the codes that it compares (default: the longest)."""

    def run(self) -> None:
        from edje_jax.cli.index import build, build_first_stage, check_first_stage
        from edje_jax.index.build import BuildOptions

        check_first_stage(self.model, self.first_stage, self.bits)
        options = BuildOptions(
            self.token_dtype, self.embedding_dtype, self.metadata,
            workers=self.workers, max_bad=self.max_bad, prune=self.prune, restore=self.restore,
        )  # fmt: skip
        out = _files(self.out, self)
        is_complete = build(
            self.model, self.images, out, options, self.shard, self.image_root, self.on,
            self.encoder_precision,
        )  # fmt: skip
        if self.first_stage and is_complete:
            build_first_stage(out, self.first_stage, self.bits)


@dataclass(frozen=True)
class IndexFirstStage(CacheOptions):
    """Build a first stage from what an index stores and keep it there, or extend one.

    A search that asks for a first stage which is not there builds it too, and takes that long.
    Images that are added later are searched one by one until this command has run again. One that
    was killed goes on where it was stored last.

    Examples:
        edje index first-stage photos.index faiss-hnsw
        edje index first-stage photos.index faiss-binary-ivf --bits 256
    """

    index: tyro.conf.Positional[str]
    """Folder of the index, or its URL."""
    name: tyro.conf.Positional[IndexStageName]
    """First stage to build."""
    bits: int | None = None
    """Length of the codes that it compares (default: the longest)."""

    def run(self) -> None:
        from edje_jax.cli.index import build_first_stage

        build_first_stage(_files(self.index, self), self.name, self.bits)


@dataclass(frozen=True)
class IndexInfo(CacheOptions):
    """Say what an index holds, in how many bytes, and which model made it.

    Examples:
        edje index info photos.index
    """

    index: tyro.conf.Positional[str]
    """Folder of the index, or its URL."""

    def run(self) -> None:
        from edje_jax.cli.index import info

        info(_files(self.index, self))


@dataclass(frozen=True)
class IndexVerify(CacheOptions):
    """Check every file of an index against its checksum; exit code 1 if one differs.

    Examples:
        edje index verify photos.index
    """

    index: tyro.conf.Positional[str]
    """Folder of the index, or its URL."""

    def run(self) -> None:
        from edje_jax.cli.index import verify

        verify(_files(self.index, self))


@dataclass(frozen=True)
class IndexRemove(CacheOptions):
    """Take images out of an index; `edje index compact` gives their room back.

    Builds leave them out from then on; `edje index build --restore` takes them in again.

    Examples:
        edje index remove photos.index 2019/cat.jpg 2019/dog.jpg
    """

    index: tyro.conf.Positional[str]
    """Folder of the index, or its URL."""
    ids: tyro.conf.Positional[tuple[str, ...]]
    """Ids of the images."""

    def run(self) -> None:
        from edje_jax.cli.index import remove

        remove(_files(self.index, self), self.ids)


@dataclass(frozen=True)
class IndexCompact(CacheOptions):
    """Leave out removed, changed and dropped images for good, and merge small shards.

    An index that an older version wrote is brought up to date. Nothing is encoded again.

    Examples:
        edje index compact photos.index
    """

    index: tyro.conf.Positional[str]
    """Folder of the index, or its URL."""

    def run(self) -> None:
        from edje_jax.cli.index import compact

        compact(_files(self.index, self))


INDEX = (
    subcommand("build", IndexBuild)
    | subcommand("first-stage", IndexFirstStage)
    | subcommand("info", IndexInfo)
    | subcommand("verify", IndexVerify)
    | subcommand("remove", IndexRemove)
    | subcommand("compact", IndexCompact)
)


def _files(index: str, options: CacheOptions) -> "IndexFiles":
    from edje_jax.index.files import files_of

    return files_of(index, options.cache, options.cache_gigabytes)


@dataclass(frozen=True)
class Index:
    """Build and look after an index of images."""

    command: tyro.conf.OmitSubcommandPrefixes[INDEX]  # type: ignore[valid-type]

    def run(self) -> None:
        self.command.run()
