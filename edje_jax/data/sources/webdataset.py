"""The `webdataset:` source: tars as img2dataset writes them, read where they lie.

    00000.tar: 000000000.jpg, 000000000.txt, 000000000.json, 000000001.jpg, ...

Members whose path is the same up to the first dot of the name are one sample; where all of them
have more dots, as `a.b.jpg` and `a.b.txt`, up to the last one. Its image is the first with an
ending of an image, else of a video, else the first whose bytes are an image's. The caption is the
`.txt`, else (or if that is empty) "caption" in the `.json` (a string or a list). Nothing is
unpacked: an index of byte offsets (`tar_index`) gives random access, so that shuffling is over all
tars.
"""

import logging
from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image

from edje_jax.config.frames import FrameSampling
from edje_jax.data.frames import middle_frame, read_frames, require_av
from edje_jax.data.images import BadImage
from edje_jax.data.metadata import scalars
from edje_jax.data.sources.captioned import Captioned, merge_records, pack_captions
from edje_jax.data.sources.matching import matching_files, short_names
from edje_jax.data.sources.packed import PackedStrings, concatenate_offsets
from edje_jax.data.sources.passed_over import PassedOver
from edje_jax.data.sources.tar_index import TarIndex, index_of
from edje_jax.data.sources.tar_texts import Member, read_facts
from edje_jax.data.sources.texts import printable
from edje_jax.data.stamps import file_stamp
from edje_jax.types import Scalar

log = logging.getLogger(__name__)


class WebDataset(Captioned):
    """Samples of many tars, in the order of the pattern.

    An image's id is "image_id" of its `.json`, else "sha256" or "url", which img2dataset writes,
    else tar and key, as in `00000/000000012`. Samples of one id are one image with all their
    captions and the metadata of the first. A sample without an image raises `BadImage` when it is
    read; texts that are none are dropped (`caption_faults`).

    Raises:
        FileNotFoundError: the pattern fits no tar.
        ValueError: a tar is truncated or broken, or no sample is in any; the message says where.
    """

    def __init__(self, pattern: str):
        self.tars = matching_files(pattern, ".tar")
        self._stamps = [file_stamp(tar) for tar in self.tars]
        indices = [index_of(tar) for tar in self.tars]
        if not any(len(index.size) for index in indices):
            raise ValueError(f"{pattern}: no sample in these tars, such as 000.jpg with 000.txt")
        self.passed_over = PassedOver.sum_of(index.passed_over for index in indices)
        if self.passed_over.total:
            log.info("%s: %s", pattern, self.passed_over)
        self._tar = np.repeat(np.arange(len(indices)), [len(index.size) for index in indices])
        self._offset = np.concatenate([index.offset for index in indices])
        self._size = np.concatenate([index.size for index in indices])
        self._json = np.concatenate([index.json for index in indices])
        self._is_video = np.concatenate([index.is_video for index in indices])
        if self._is_video.any():
            require_av()
        self._keys = PackedStrings.concatenated([index.keys for index in indices])
        ids = _ids(self.tars, indices)
        captions = PackedStrings.concatenated([index.captions for index in indices])
        starts = concatenate_offsets([index.starts for index in indices])
        super().__init__(pattern, ids, captions, starts, self._faults_of(indices))
        # Most sets name every image once, and are not copied.
        if len({ids[i] for i in range(len(ids))}) < len(ids):
            self._merge()

    def stamp(self, index: int) -> str:
        """The tar's size and modification time, and where the image lies in it."""
        stamp = self._stamps[self._tar[self._checked(index)]]
        return f"{stamp}-{self._offset[index]}-{self._size[index]}"

    def metadata(self, index: int) -> Mapping[str, Scalar]:
        """Texts, numbers and truth values in the sample's `.json`, which is read for them.

        Raises:
            BadImage: the tar cannot be read.
        """
        offset, size = self._json[self._checked(index)].tolist()
        if offset < 0:
            return {}
        try:
            with open(self.tars[self._tar[index]], "rb") as file:
                facts = read_facts(file, Member("", "json", offset, size))
        except OSError as error:
            raise BadImage(f"{self.describe(index)}: cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError):  # `caption_faults` tells
            return {}
        return scalars(facts, ("caption", "image_id"))

    def encoded(self, index: int) -> bytes:
        """The image's bytes in the tar; `BadImage` if there are none."""
        size = int(self._size[self._checked(index)])
        if size < 0:
            raise BadImage(f"{self.describe(index)}: the sample has no image")
        try:
            with open(self.tars[self._tar[index]], "rb") as file:
                file.seek(self._offset[index])
                data = file.read(size)
        except OSError as error:
            raise BadImage(f"{self.describe(index)}: cannot be read ({error.strerror})") from error
        if len(data) < size:
            raise BadImage(f"{self.describe(index)}: the tar ends within the image")
        return data

    def is_video(self, index: int) -> bool:
        """Whether the sample is a video."""
        return bool(self._is_video[self._checked(index)])

    def frames(self, index: int, sampling: FrameSampling) -> Iterator[Image.Image]:
        """Frames of a video; `BadImage` if it cannot be read."""
        return read_frames(self.encoded(index), sampling, self.describe(index))

    def image(self, index: int) -> Image.Image:
        """The image, or the frame in the middle of the video; `BadImage` if it cannot be read."""
        if self.is_video(index):
            return middle_frame(self.encoded(index), self.describe(index))
        return super().image(index)

    def describe(self, index: int) -> str:
        """Tar and key of an image, for messages."""
        return f"{self.tars[self._tar[self._checked(index)]]}: {printable(self._keys[index])}"

    def _faults_of(self, indices: list[TarIndex]) -> dict[int, str]:
        """{sample: what is wrong with its texts, and where}."""
        faults = PackedStrings.concatenated([index.faults for index in indices])
        _, ends = faults.to_arrays()
        return {
            row: f"{self.tars[self._tar[row]]}: {printable(self._keys[row])}: {faults[row]}"
            for row in np.flatnonzero(np.diff(ends)).tolist()
        }

    def _merge(self) -> None:
        count = range(len(self))
        found = merge_records(map(self.image_id, count), map(self.captions, count), self._faults)
        for name in ("_tar", "_offset", "_size", "_json", "_is_video"):
            setattr(self, name, getattr(self, name)[found.rows])
        self._keys = PackedStrings(self._keys[row] for row in found.rows)
        ids, texts = PackedStrings(found.ids), pack_captions(found.captions)
        super().__init__(self.name, ids, *texts, found.faults, joined=found.joined)


def _ids(tars: list[str], indices: list[TarIndex]) -> PackedStrings:
    # Two sets have the same keys.
    parts = [
        PackedStrings(
            index.ids[i] or f"{name}/{printable(index.keys[i])}" for i in range(len(index.keys))
        )
        for name, index in zip(short_names(tars), indices, strict=True)
    ]
    return PackedStrings.concatenated(parts)
