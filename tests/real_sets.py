"""Small set of scenes in every format that a SPEC can name, written by its own library."""

import io
import json
import logging
import tarfile
from pathlib import Path
from typing import NamedTuple

from edje_jax.cli.edje import main
from edje_jax.scenes.shapes import Shapes

COUNT = 24


class Scene(NamedTuple):
    """An image's number, its PNG, and its captions."""

    number: int
    png: bytes
    captions: tuple[str, ...]

    @property
    def file(self) -> str:
        """A name for its file."""
        return f"{self.number:04d}.png"


def scenes(count: int = COUNT) -> list[Scene]:
    """Scenes with two captions each."""
    source, made = Shapes("train"), []
    for i in range(count):
        stream = io.BytesIO()
        source.image(i).save(stream, "PNG")
        captions = (*source.captions(i), f"scene number {i}")[:2]
        made.append(Scene(i, stream.getvalue(), captions))
    return made


def write_every_format(folder: Path) -> dict[str, str]:
    """{kind: SPEC} of the same scenes in each."""
    made = scenes()
    specs = {kind: write(folder / kind, made) for kind, write in WRITERS.items()}
    out = folder / "arrayrecord"
    assert main(["data", "pack", specs["blip"], "--out", str(out), "--shard-size", "10"]) == 0
    return {**specs, "arrayrecord": f"arrayrecord:{out}/*.array_record"}


def write_blip(folder: Path, made: list[Scene]) -> str:
    """A JSON beside its images."""
    _write_images(folder, made)
    entries = [
        {"image": scene.file, "image_id": scene.number, "caption": scene.captions} for scene in made
    ]
    (folder / "all.json").write_text(json.dumps(entries))
    return f"blip:{folder / 'all.json'}"


def write_karpathy(folder: Path, made: list[Scene]) -> str:
    """The set as "train" and "restval", and its first image as "test" too."""
    _write_images(folder / "val2014", made)

    def entry(scene: Scene, split: str, **more: int) -> dict:
        sentences = [{"raw": text, "tokens": text.split()} for text in scene.captions]
        return {
            "filepath": "val2014", "filename": scene.file, "split": split, "sentences": sentences,
            "imgid": 1000 + scene.number, "cocoid": scene.number, **more,
        }  # fmt: skip

    images = [entry(s, "restval" if s.number % 3 == 0 else "train") for s in made]
    images.append(entry(made[0], "test", cocoid=99))
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return f"karpathy:{folder / 'dataset_coco.json'}#train"


def write_tfds(folder: Path, made: list[Scene]) -> str:
    """Features, name and config of `coco_captions`."""
    import numpy as np
    import tensorflow_datasets as tfds

    class CocoCaptions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """The set under its real name."""

        __module__ = "coco_captions"  # Of a package, TFDS looks for more files
        VERSION = tfds.core.Version("1.1.0")
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="2014", version=VERSION),)

        def _info(self):
            captions = tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()})
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(encoding_format="jpeg"),
                        "image/filename": tfds.features.Text(),
                        "image/id": np.int64,
                        "captions": captions,
                    }
                ),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for scene in made:
                texts = [{"id": i, "text": text} for i, text in enumerate(scene.captions)]
                yield scene.number, {
                    "image": io.BytesIO(scene.png), "image/filename": scene.file,
                    "image/id": scene.number, "captions": texts,
                }  # fmt: skip

    logging.getLogger("absl").setLevel(logging.ERROR)
    builder = CocoCaptions(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return f"tfds:{builder.data_dir}#train"


def write_webdataset(folder: Path, made: list[Scene]) -> str:
    """Two tars laid out as img2dataset does, with both captions in the JSON."""
    folder.mkdir(parents=True)
    for shard, part in enumerate((made[:16], made[16:])):
        samples = []
        for scene in part:
            facts = {"caption": scene.captions, "image_id": scene.number, "status": "success"}
            key = f"{shard:05d}{scene.number:04d}"
            samples += [(f"{key}.png", scene.png), (f"{key}.json", json.dumps(facts).encode())]
        write_tar(folder / f"{shard:05d}.tar", samples)
    return f"webdataset:{folder}/{{00000..00001}}.tar"


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    """A tar of (name, content)."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_parquet(folder: Path, made: list[Scene]) -> str:
    """Columns as the hub's Flickr30k has them, in row groups of five; its last row is "val"."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    more = made[0]._replace(number=99)
    for shard, part in enumerate((made[:7], [*made[7:], more])):
        table = pa.table(
            {
                "image": [{"bytes": scene.png, "path": scene.file} for scene in part],
                "caption": [list(scene.captions) for scene in part],
                "img_id": [scene.number for scene in part],
                "split": ["val" if scene is more else "train" for scene in part],
            }
        )
        pq.write_table(table, folder / f"train-{shard:05d}.parquet", row_group_size=5)
    return f"parquet:{folder}/*.parquet#train"


def _write_images(folder: Path, made: list[Scene]) -> None:
    folder.mkdir(parents=True)
    for scene in made:
        (folder / scene.file).write_bytes(scene.png)


WRITERS = {
    "blip": write_blip,
    "karpathy": write_karpathy,
    "tfds": write_tfds,
    "webdataset": write_webdataset,
    "parquet": write_parquet,
}
