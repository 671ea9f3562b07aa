"""The one reader of images in order: decoded ahead, in threads or in worker processes.

`read_images` gives pixels, batch by batch, and `read_frames` those of videos; `read_batches` gives
whatever a function makes of each record (a size, a hash, pixels with a thumbnail); `in_order` is
the pool of threads below all. Each holds a bounded number of images, and may begin at any batch.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Bool, Int, UInt8

from edje_jax.config.frames import FrameSampling
from edje_jax.config.model import ImageRecipe
from edje_jax.data.bad_records import BadRecords, caption_faults
from edje_jax.data.frames import record_frames
from edje_jax.data.images import BadImage, record_pixels
from edje_jax.data.prefetch import prefetch
from edje_jax.types import Frames, Source

AHEAD = 256
"""Most images that are read before they are asked for."""
THREADS = min(32, (os.cpu_count() or 1) + 1)
"""Threads that decode; Pillow holds no lock while it does."""
PIECE = 32
"""Records that a thread reads one after the other: neighbours may share work, such as a scene."""
PIECES_AHEAD = max(AHEAD // PIECE, THREADS + 1)
"""Pieces that are read before they are asked for: one for each thread, and one more."""
BATCH = 256
"""Images of a batch, for readers that need no other number."""

Records = Sequence[int] | Int[np.ndarray, " n"]
"""Indices of a source."""
Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class ReadBatch(Generic[Value]):
    """Values of a batch of records, those that could be read."""

    records: list[int]
    values: list[Value]
    bad: dict[int, str]
    """{record that could not be read: reason}."""


@dataclass(frozen=True)
class FrameBatch:
    """Resized frames of a batch of records, those that could be read."""

    records: list[int]
    frames: UInt8[np.ndarray, "n f s s 3"]
    """Frames in the order in which they are shown, then black where a record has no more."""
    present: Bool[np.ndarray, "n f"]
    """Whether there is such a frame; each record has one at least."""
    bad: dict[int, str]
    """{record that could not be read: reason}."""

    @property
    def images(self) -> Frames:
        """Frames as a model takes them."""
        return Frames(self.frames, self.present)


@dataclass(frozen=True)
class ImageBatch:
    """Resized images of a batch of records, those that could be read."""

    records: list[int]
    images: UInt8[np.ndarray, "n s s 3"]
    bad: dict[int, str]
    """{record that could not be read: reason}."""


def in_order(
    read: Callable[[Key], Value], keys: Iterable[Key], ahead: int = AHEAD
) -> Generator[Value, None, None]:
    """`read` of each key, in the order of the keys, computed in threads.

    At most `ahead` results wait to be taken; keys are asked for as results are taken. Whatever
    `read` raises is raised in its place.
    """
    waiting: deque[Future[Value]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for key in keys:
                if len(waiting) == ahead:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(read, key))
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def or_bad(read: Callable[[Key], Value], key: Key) -> Value | BadImage:
    """`read` of a key, or the `BadImage` that it raises, without what its traceback holds."""
    try:
        return read(key)
    except BadImage as error:
        return BadImage(str(error))


def read_batches(
    read: Callable[[int], Value], batches: Sequence[Records], workers: int = 0, piece: int = PIECE
) -> Generator[ReadBatch[Value], None, None]:
    """`read` of each record, batch by batch, in order.

    Args:
        read: raises `BadImage` for a record that cannot be read; picklable where there are workers.
        batches: the records of each batch. A reader that starts later, or reads a part of the
            work, is given fewer.
        workers: processes to read in, a batch at a time; 0 reads in threads of this one.
        piece: records that a thread reads one after the other.
    """
    if workers:
        yield from prefetch(_Batches(read, batches), 0, workers)
        return
    records = (record for batch in batches for record in map(int, batch))
    pieces = iter(lambda: list(islice(records, piece)), [])
    with closing(in_order(partial(_read_piece, read), pieces, PIECES_AHEAD)) as read_pieces:
        found = chain.from_iterable(read_pieces)
        for batch in batches:
            yield _sorted_out(batch, islice(found, len(batch)))


def _read_piece(read: Callable[[int], Value], piece: Sequence[int]) -> list[Value | BadImage]:
    return [or_bad(read, record) for record in piece]


@dataclass(frozen=True)
class _Batches(Generic[Value]):
    """Random access to the batches of `read_batches`, for worker processes."""

    read: Callable[[int], Value]
    batches: Sequence[Records]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> ReadBatch[Value]:
        batch = self.batches[index]
        return _sorted_out(batch, (or_bad(self.read, int(record)) for record in batch))


def _sorted_out(batch: Records, found: Iterable[Value | BadImage]) -> ReadBatch[Value]:
    """Values of a batch's records, apart from the reasons of records that have none."""
    out = ReadBatch[Value]([], [], {})
    for record, value in zip(map(int, batch), found, strict=True):
        if isinstance(value, BadImage):
            out.bad[record] = str(value)
        else:
            out.records.append(record)
            out.values.append(value)
    return out


def read_images(
    source: Source, recipe: ImageRecipe, batches: Sequence[Records], workers: int = 0
) -> Iterator[ImageBatch]:
    """Resized images of a source, batch by batch, in order; see `read_batches`.

    A batch of which no image could be read has an array of none.
    """
    read = partial(record_pixels, source, recipe=recipe)
    for batch in read_batches(read, batches, workers):
        yield ImageBatch(batch.records, stack_images(batch.values, recipe), batch.bad)


def read_frames(
    source: Source,
    sampling: FrameSampling,
    recipe: ImageRecipe,
    batches: Sequence[Records],
    workers: int = 0,
) -> Iterator[FrameBatch]:
    """Resized frames of the items of a source, batch by batch, in order; see `read_batches`.

    A thread reads one record after the other, as a video takes long, and `PIECES_AHEAD` are read
    before they are asked for.
    """
    read = partial(record_frames, source, sampling=sampling, recipe=recipe)
    for batch in read_batches(read, batches, workers, piece=1):
        found = stack_frames(batch.values, sampling.frames, recipe)
        yield FrameBatch(batch.records, *found, batch.bad)


def read_gallery(
    source: Source,
    recipe: ImageRecipe,
    bad: BadRecords,
    records: range | None = None,
    sampling: FrameSampling | None = None,
) -> Iterator[ImageBatch | FrameBatch]:
    """Images of a set that is evaluated, all or some `records`, or with a `sampling` the frames of
    its videos; bad ones are handed to `bad`, and so are faults of captions. Batches without an
    image are left out.

    Raises:
        TooManyBadRecords: see `BadRecords`.
    """
    records = range(len(source)) if records is None else records
    batches = cut_into(records, max(BATCH // (sampling.frames if sampling else 1), 1))
    found: Iterator[ImageBatch | FrameBatch] = (
        read_frames(source, sampling, recipe, batches)
        if sampling
        else read_images(source, recipe, batches)
    )
    for wanted, batch in zip(batches, found, strict=True):
        reasons = {i: batch.bad.get(i) or caption_faults(source, i) for i in wanted}
        bad.add({source.image_id(i): reason for i, reason in reasons.items() if reason})
        if batch.records:
            yield batch


def cut_into(records: Records, size: int = BATCH) -> list[Records]:
    """Batches of `size` records, the last one of what is left."""
    return [records[start : start + size] for start in range(0, len(records), size)]


def stack_frames(
    videos: Sequence[UInt8[np.ndarray, "_ s s 3"]], frames: int, recipe: ImageRecipe
) -> Frames:
    """Stack the resized frames of videos, each of which has from one to `frames`; those that are
    not there are black."""
    shape = (len(videos), frames, recipe.size, recipe.size, 3)
    pixels, present = np.zeros(shape, np.uint8), np.zeros(shape[:2], bool)
    for row, found in enumerate(videos):
        pixels[row, : len(found)], present[row, : len(found)] = found, True
    return Frames(pixels, present)


def stack_images(
    images: Sequence[UInt8[np.ndarray, "s s 3"]], recipe: ImageRecipe
) -> UInt8[np.ndarray, "n s s 3"]:
    """Stack resized images to one array; an array of none if there are none."""
    return np.array(images, np.uint8).reshape(-1, recipe.size, recipe.size, 3)
