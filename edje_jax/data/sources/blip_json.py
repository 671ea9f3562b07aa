"""The `blip:` source: a JSON list of images or videos and captions, as BLIP's annotations are.

    [{"image": "val2014/1.jpg", "caption": "two dogs", "image_id": "coco_1"}, ...]

"caption" is a string (training files) or a list of strings (evaluation files). An entry with
"video" in the place of "image" is of a video. JSON Lines, one such object a line, is read alike.
Other keys with a text, a number or a truth value are metadata.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from edje_jax.config.frames import FrameSampling
from edje_jax.data.frames import middle_frame, read_frames, require_av
from edje_jax.data.images import read_file
from edje_jax.data.metadata import scalars
from edje_jax.data.sources.captioned import Captioned, pack_captions
from edje_jax.data.sources.packed import PackedMetadata, PackedStrings
from edje_jax.data.sources.texts import (
    json_kind,
    path_fault,
    printable,
    read_json,
    refuse_if_none,
    shown,
    text_fault,
    usable,
)
from edje_jax.data.stamps import file_stamp
from edje_jax.types import BadRecord, Scalar

_EXAMPLE = '{"image": "1.jpg", "caption": "two dogs"}'
_FIELDS = ("image", "caption", "image_id", "video")
"""Keys that are no metadata."""


class BlipJson(Captioned):
    """Images named by a JSON list, relative to its folder or to `image_root`.

    A video (an entry with "video" and no "image") is an image of several frames.
    Entries with the same "image" or the same "image_id" are one image with all their captions:
    it stands where the first of them does, and has that entry's file, id and metadata. Without
    "image_id" an image's id is its "image" as written. An entry that names no image is left out
    (`bad`), a caption that is no text is dropped (`caption_faults`). Image files are opened on
    reading only: one that is missing raises `BadImage` then.

    Raises:
        FileNotFoundError: no such JSON file.
        ValueError: it is not such a list, or no entry names an image; the message names the file,
            the place and the remedy.
    """

    def __init__(
        self, path: str | os.PathLike[str], image_root: str | os.PathLike[str] | None = None
    ):
        file = os.path.expanduser(path)
        self.image_root = os.path.expanduser(image_root or os.path.dirname(file))
        found = _read(file)
        self._images = PackedStrings(found.images)
        self._videos = frozenset(found.videos)
        if self._videos:
            require_av()
        self._metadata = PackedMetadata(found.metadata)
        ids, texts = PackedStrings(found.ids), pack_captions(found.captions)
        super().__init__(file, ids, *texts, found.faults, found.bad, found.joined)

    def path(self, index: int) -> str:
        """Path of the image's file."""
        return os.path.join(self.image_root, self._images[self._checked(index)])

    def metadata(self, index: int) -> Mapping[str, Scalar]:
        """Further keys of the image's first entry."""
        return self._metadata[self._checked(index)]

    def stamp(self, index: int) -> str:
        """The file's size and modification time."""
        return file_stamp(self.path(index))

    def encoded(self, index: int) -> bytes:
        """The image's file; `BadImage` if it cannot be read."""
        return read_file(self.path(index))

    def is_video(self, index: int) -> bool:
        """Whether the entry names a video."""
        return self._checked(index) in self._videos

    def frames(self, index: int, sampling: FrameSampling) -> Iterator[Image.Image]:
        """Frames of a video; `BadImage` if it cannot be read."""
        return read_frames(self.path(index), sampling)

    def image(self, index: int) -> Image.Image:
        """The image, or the frame in the middle of the video; `BadImage` if it cannot be read."""
        return middle_frame(self.path(index)) if self.is_video(index) else super().image(index)

    def describe(self, index: int) -> str:
        """Path of the image's file, for messages."""
        return self.path(index)


@dataclass
class _Found:
    """The images of a list so far, in the order of their first entries."""

    images: list[str] = field(default_factory=list)
    videos: list[int] = field(default_factory=list)
    """Numbers of the images that are videos."""
    ids: list[str] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    metadata: list[Mapping[str, Scalar]] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)
    bad: list[BadRecord] = field(default_factory=list)
    joined: int = 0
    by_image: dict[str, int] = field(default_factory=dict)
    by_id: dict[str, int] = field(default_factory=dict)

    def take(self, entry: Any, where: str) -> None:
        """Take an entry in, to its image if that is there.

        Raises:
            ValueError: it names no image, or two different ones.
        """
        image = _image(entry)
        image_id = _image_id(entry, image)
        rows = {
            row for row in (self.by_image.get(image), self.by_id.get(image_id)) if row is not None
        }
        if len(rows) == 2:
            raise ValueError(
                f'"{image}" and image_id "{image_id}" belong to two different images in earlier'
                " entries; correct one of them"
            )
        row = rows.pop() if rows else len(self.images)
        if row == len(self.images):
            self.images.append(image)
            if "image" not in entry:
                self.videos.append(row)
            self.ids.append(image_id)
            self.captions.append([])
            self.metadata.append(scalars(entry, _FIELDS))
        else:
            self.joined += 1
        self.by_image.setdefault(image, row)
        self.by_id.setdefault(image_id, row)
        captions, fault = _captions(entry)
        self.captions[row].extend(captions)
        if fault:
            before = f"{self.faults[row]}; " if row in self.faults else ""
            self.faults[row] = f"{before}{where}: {fault}"


def _read(path: str) -> _Found:
    found = _Found()
    for index, entry in enumerate(_read_list(path)):
        where = f"{path}: entry {index}"
        try:
            found.take(entry, where)
        except ValueError as error:
            found.bad.append(BadRecord(where, printable(str(error))))
    refuse_if_none(path, len(found.images), found.bad)
    return found


def _read_list(path: str) -> list[Any]:
    if os.path.isdir(path):
        raise ValueError(f"{path}: a folder, not a JSON file; for its images use folder:{path}")
    try:
        entries = read_json(path, f"one list, [{_EXAMPLE}, ...]")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file; blip: takes a JSON list") from error
    if isinstance(entries, dict) and ("image" in entries or "video" in entries):
        entries = [entries]  # JSON Lines of one line
    if not isinstance(entries, list):
        raise ValueError(
            f"{path}: holds a JSON {json_kind(entries)}, not a list; expected [{_EXAMPLE}, ...]"
        )
    if not entries:
        raise ValueError(f"{path}: the list is empty; give at least one {_EXAMPLE}")
    return entries


def _image(entry: Any) -> str:
    if isinstance(entry, ValueError):  # A line that is no JSON
        raise entry
    if not isinstance(entry, dict):
        raise ValueError(f"a {json_kind(entry)}, not an object; expected {_EXAMPLE}")
    image = entry.get("image")
    url = image if isinstance(image, str) and "://" in image else entry.get("url")
    if isinstance(url, str) and (image is None or image == url):
        raise ValueError(
            f"names a URL ({url[:300]}), not a file, and nothing is downloaded here; "
            f"download the images first and list them as {_EXAMPLE}. Lists of URLs, as BLIP's for"
            " pre-training are, img2dataset downloads into tars, which webdataset: reads"
        )
    if "image" not in entry and "video" in entry:
        if fault := path_fault(video := entry["video"]):
            raise ValueError(f'"video" {fault}; give a video file')
        return str(video)
    if "image" not in entry:
        raise ValueError(f'"image" is missing; give an image file: {_EXAMPLE}')
    if fault := path_fault(image):
        raise ValueError(f'"image" {fault}; give an image file: {_EXAMPLE}')
    return str(image)


def _image_id(entry: dict[str, Any], image: str) -> str:
    image_id = entry.get("image_id")
    if image_id is None:
        return image
    is_number = isinstance(image_id, int) and not isinstance(image_id, bool)
    if not is_number and (fault := text_fault(image_id)):
        raise ValueError(f'"image_id" {fault}; give a string or a whole number, or leave it out')
    return str(image_id)


def _captions(entry: dict[str, Any]) -> tuple[list[str], str]:
    """(captions that can be used, what is wrong with the others)."""
    caption = entry.get("caption")
    captions = [caption] if isinstance(caption, str) else caption
    if isinstance(captions, list) and captions:
        return usable(captions)
    told = shown(caption) if "caption" in entry else "missing"
    return [], f'"caption" is {told}; give a string or a list of strings'
