"""The `tfds:` source: a prepared TensorFlow Datasets set in ArrayRecord files, without TensorFlow.

`tfds:coco_captions#test` is looked for below TFDS_DATA_DIR (by default `~/tensorflow_datasets`);
`tfds:/folder/coco_captions/2014/1.1.0#test` is that very set.
"""

import difflib
import hashlib
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edje_jax.data.images import BadImage, decode
from edje_jax.data.sources.captioned import lines_of
from edje_jax.data.sources.texts import (
    CAPTIONS,
    IMAGE_FIELDS,
    first_named,
    in_a_line,
    listed,
    printable,
    usable,
)
from edje_jax.data.stamps import file_stamp
from edje_jax.types import BadRecord

IDS = ("image/id", "image_id", "id", "image/filename", "filename")
"""Features that tell images apart, the best first."""
KEPT = 1 << 16
"""Images whose id and captions a process keeps after reading them."""


class Tfds:
    """The records of one split; reading a caption reads its record, and one that is no text is
    dropped (`caption_faults`).

    Args:
        name: `NAME[/CONFIG][:VERSION]`, or the folder of one prepared version.
        split: a split, or a part of one as TFDS writes it, such as `train[:10%]`.

    Raises:
        ImportError: tensorflow-datasets is not installed.
        FileNotFoundError: the set has not been prepared.
        ValueError: it is not in ArrayRecord files, has no such split, or no image with captions.
    """

    bad: Sequence[BadRecord] = ()

    def __init__(self, name: str, split: str):
        self.folder, self.split, self._by_lines = _folder(name), split, False
        self._stamp = _folder_stamp(self.folder)
        builder = _builder(self.folder)
        _check_split(self.folder, builder.info.splits, split)
        self._image, self._captions, self._id = _features(self.folder, builder.info.features)
        try:
            self._count = len(self._records())
        except Exception as error:  # The library raises several kinds
            raise ValueError(
                f"{self.folder}#{split}: cannot be read ({in_a_line(error)}); prepare it anew"
            ) from error

    def __len__(self) -> int:
        return self._count

    def image_id(self, index: int) -> str:
        """The record's id, else (or if it is damaged) split and number."""
        return self._metadata(index)[0]

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of the record; none if it is damaged."""
        captions = self._metadata(index)[1]
        return tuple(lines_of(captions)) if self._by_lines else captions

    def split_lines(self) -> None:
        """Make every line of a text a caption of its own; blank ones are none."""
        self._by_lines = True

    def caption_faults(self, index: int) -> str:
        """Faults of the captions that are left out of an image; "" if there are none."""
        fault = self._metadata(index)[2]
        return fault and f"{self._describe(index)}: {fault}"

    def stamp(self, index: int) -> str:
        """Sizes and modification times of the set's files, and the record's number."""
        return self._stamp and f"{self._stamp}-{self._checked(index)}"

    def encoded(self, index: int) -> bytes:
        """The image's file, as TFDS keeps it; `BadImage` if the shard is damaged."""
        return self._record(index)[self._image]

    def image(self, index: int) -> Image.Image:
        """The image, upright and RGB; `BadImage` if it cannot be read."""
        return decode(self.encoded(index), self._describe(index))

    def _describe(self, index: int) -> str:
        return f"{self.folder}#{self.split}: record {index}"

    def _metadata(self, index: int) -> tuple[str, tuple[str, ...], str]:
        return _read_metadata(self, self._checked(index))

    def _record(self, index: int) -> dict[str, Any]:
        records = self._records()
        try:
            return records[self._checked(index)]
        except IndexError:
            raise
        except Exception as error:  # The library raises several kinds
            raise BadImage(
                f"{self._describe(index)} cannot be read ({in_a_line(error)})"
            ) from error

    def _records(self) -> Sequence[dict[str, Any]]:
        return _opened(self.folder, self.split, self._image)

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}#{self.split} has {len(self)} images, not {index}")
        return index

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tfds) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.folder, self.split))


@lru_cache(maxsize=KEPT)
def _read_metadata(source: Tfds, index: int) -> tuple[str, tuple[str, ...], str]:
    """(id, captions, what is wrong with others): asked for more often than the image beside them.

    A damaged record has its place for an id and no captions: one must not end a run of millions.
    """
    place = f"{source.split}/{index}"
    try:
        record = source._record(index)
    except BadImage:
        return place, (), ""
    image_id = _text(record[source._id]) if source._id else place
    good, fault = usable(listed(_plain(record[source._captions])))
    return image_id or place, tuple(good), fault


@lru_cache(maxsize=8)
def _opened(folder: str, split: str, image: str) -> Sequence[dict[str, Any]]:
    """The records, images undecoded; opened once in each process."""
    import tensorflow_datasets as tfds

    source = _builder(folder).as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
    return source  # type: ignore[return-value]


def _builder(folder: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # The library raises several kinds
        raise ValueError(
            f"{folder}: not a whole set ({in_a_line(error)}); prepare it anew"
        ) from error
    formats = {str(form.value) for form in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise ValueError(
            f"{folder}: kept as {', '.join(formats)}, which allows no random access; prepare it"
            f" anew: tfds build {builder.name} --file_format=array_record"
        )
    return builder


def _folder(name: str) -> str:
    try:
        from tensorflow_datasets.core import read_only_builder, registered
    except ImportError as error:
        raise ImportError(f"tfds: needs more ({error}); pip install 'edje-jax[tfds]'") from error
    folder = Path(name).expanduser()
    if (folder / "dataset_info.json").exists():
        return str(folder)
    if folder.is_absolute() or name.startswith((".", "~")):
        raise FileNotFoundError(
            f"{folder}: no dataset_info.json in it; name the folder of one version, such as"
            " coco_captions/2014/1.1.0"
        )
    where = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=os.path.expanduser(where))
    except registered.DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"{name}: no such set below {where} (TFDS_DATA_DIR says where); prepare it with"
            f" `tfds build {name} --file_format=array_record`, or name its folder"
        ) from error
    except Exception as error:  # The library raises several kinds
        raise ValueError(
            f"{name}: cannot be looked for ({in_a_line(error)}); write NAME[/CONFIG][:VERSION], or"
            " name a folder"
        ) from error
    return str(builder.data_dir)


def _folder_stamp(folder: str) -> str:
    """Stamp of all files in a folder; "" for a remote folder."""
    if "://" in folder:
        return ""
    stamps = sorted(f"{file.name} {file_stamp(file.path)}" for file in os.scandir(folder))
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:32]


def _check_split(folder: str, splits: Any, split: str) -> None:
    name = re.match(r"\w*", split)[0]  # type: ignore[index]
    if name not in splits:
        near = difflib.get_close_matches(name, splits, n=1)
        guess = f'did you mean "#{near[0]}"? ' if near else ""
        raise ValueError(f'{folder}: no split "{split}"; {guess}There are {", ".join(splits)}')


def _features(folder: str, features: Any) -> tuple[str, str, str]:
    """Names of (image, captions, id or "")."""
    import tensorflow_datasets as tfds

    images = [name for name, kind in features.items() if isinstance(kind, tfds.features.Image)]
    image = first_named(IMAGE_FIELDS, images) or next(iter(images), "")
    captions = first_named(CAPTIONS, features)
    if not image or not captions:
        raise ValueError(
            f"{folder}: needs an image and captions; its features are {', '.join(features)}."
            f" Captions are looked for as {', '.join(CAPTIONS)}"
        )
    return image, captions, first_named(IDS, features)


def _text(value: Any) -> str:
    """An id, printable."""
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
    return printable(text)


def _plain(value: Any) -> Any:
    """A feature in Python's own lists and values."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
