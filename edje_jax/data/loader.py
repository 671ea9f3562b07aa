"""Sources -> training batches, in worker threads or processes, through grain.

Batch t is a pure function of (source, config, seed, t). Resuming therefore means starting at
another t, whatever the number of workers, and an unreadable picture leaves an invalid row
instead of moving every later one.
"""

import signal
import zlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeVar, cast

import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, UInt8
from PIL import Image

from edje_jax.config.model import ImageRecipe
from edje_jax.config.run import DataConfig
from edje_jax.data.bad_pictures import BadPictures, caption_faults
from edje_jax.data.buckets import bucket, lengths_up_to
from edje_jax.data.feature_cache import Caption, FeatureCache
from edje_jax.data.images import BadImage, image_of, random_crop, resize
from edje_jax.data.text import BackboneTokenizer, JointTokenizer, canonicalise
from edje_jax.types import Batch, PatchLabelled, Source

_CROPS = 1
"""Tells the draws of windows from those of captions."""


@dataclass(frozen=True)
class Encoder:
    """How a record becomes a row of a batch."""

    image: ImageRecipe
    backbone_tokenizer: BackboneTokenizer
    joint_tokenizer: JointTokenizer | None = None
    patch_grid: int = 0
    """Side of the grid of patch labels to ask the source for; 0 for none."""


@dataclass(frozen=True)
class TrainingBatches:
    """Random access to the batches of a run: `reader[t]` is (batch, {bad picture: reason}).

    An epoch visits every record once, with one of its captions drawn at random; one without a
    caption, or with one that its source had to leave out, counts as bad. `block_size` neighbours
    stay together in the shuffle, as each other's hard negatives; where that does not divide the
    set, the rest of it ends every epoch.
    """

    source: Source
    encoder: Encoder
    data: DataConfig
    seed: int
    steps: int
    process: tuple[int, int] = (0, 1)
    """(i, n): of each batch the i-th of n equal parts, which is what one process reads. Together
    they are the batch that one alone would read."""
    features: FeatureCache | None = None
    """Backbone features of the source, read instead of its images."""

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[Batch, dict[str, str]]:
        first = index * self.data.batch_size
        positions = range(first, first + self.data.batch_size)
        return self._batch([self._record(position) for position in positions], first)

    def _record(self, position: int) -> Caption:
        """Caption at a position of the endless shuffled stream."""
        total, block = len(self.source), min(self.data.block_size, len(self.source))
        epoch, place = divmod(position, total)
        blocks = total // block
        if place < blocks * block:
            number, within = divmod(place, block)
            record = _order(blocks, self.seed)[epoch * blocks + number] * block + within
        else:
            record = place
        pick = np.random.default_rng([self.seed, epoch, record])
        return Caption(record, int(pick.integers(max(len(self.source.captions(record)), 1))))

    def _batch(self, everyone: list[Caption], first: int) -> tuple[Batch, dict[str, str]]:
        """The rows from position `first` on."""
        source, encoder = self.source, self.encoder
        own = part_of(len(everyone), self.process)
        rows = everyone[own]
        records = [row.record for row in rows]
        images = features = None
        if self.features:
            features, valid = self.features.rows(rows)
            unreadable = "unreadable when its features were made"
            bad = {i: unreadable for i, good in zip(records, valid, strict=True) if not good}
        else:
            images, valid, bad = read(source, records, encoder.image, self._crop(first + own.start))
        captions = [self._caption(row) for row in everyone]
        for row, record in enumerate(records):
            fault = caption_faults(source, record)
            if not captions[own][row]:
                valid[row] = False
                fault = fault or "has no caption"
            if fault:
                bad.setdefault(record, fault)
        return Batch(
            images=images,
            backbone_ids=encoder.backbone_tokenizer(captions[own]),
            joint_ids=self._joint_ids(captions)[own],
            image_ids=_identities(source.image_id(record) for record in records),
            caption_ids=_identities(canonicalise(caption) for caption in captions[own]),
            valid=valid,
            patch_labels=self._patch_labels(records),
            features=features,
        ), {source.image_id(record): reason for record, reason in bad.items()}

    def _crop(self, first: int) -> Callable[[int, Image.Image], Image.Image] | None:
        """(row, picture) -> the window of it that stands at position `first` + row."""
        if self.data.crop == 1:
            return None

        def crop(row: int, image: Image.Image) -> Image.Image:
            rng = np.random.default_rng([self.seed, first + row, _CROPS])
            return random_crop(image, self.data.crop, rng)

        return crop

    def _caption(self, row: Caption) -> str:
        """A row's caption; of a picture that has none, an empty one."""
        captions = self.source.captions(row.record)
        return captions[row.number] if captions else ""

    def _joint_ids(self, captions: list[str]) -> np.ndarray:
        """int32 [B, T], T the bucket of the longest caption: short captions make short batches,
        unless the config wants the full length.

        Of the whole batch, as all processes must come to the same T.
        """
        tokenizer = self.encoder.joint_tokenizer
        if tokenizer is None:
            return np.zeros((len(captions), 0), np.int32)
        ids = tokenizer(captions)
        if self.data.full_length:
            return ids
        longest = int((ids != tokenizer.pad_id).sum(axis=1).max())
        return ids[:, : bucket(longest, lengths_up_to(tokenizer.max_length))]

    def _patch_labels(self, indices: list[int]) -> np.ndarray | None:
        grid, source = self.encoder.patch_grid, self.source
        if not grid or not isinstance(source, PatchLabelled):
            return None
        return np.stack([source.patch_labels(index, grid) for index in indices])


@dataclass(frozen=True)
class PicturesInOrder:
    """A source's pictures from `start` on, once each: `reader[t]` is (uint8 [b, S, S, 3], bool [b]:
    which could be read, {bad picture: reason}), the last batch filled up with none."""

    source: Source
    image: ImageRecipe
    batch_size: int
    start: int
    process: tuple[int, int]
    """(i, n): as for `TrainingBatches`."""

    def __len__(self) -> int:
        return -(-(len(self.source) - self.start) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, str]]:
        own = part_of(self.batch_size, self.process)
        first = self.start + index * self.batch_size
        records = range(first + own.start, first + own.stop)
        images, valid, bad = read(self.source, records, self.image)
        return (images, valid), {self.source.image_id(i): reason for i, reason in bad.items()}


def read(
    source: Source,
    records: Sequence[int],
    recipe: ImageRecipe,
    crop: Callable[[int, Image.Image], Image.Image] | None = None,
) -> tuple[UInt8[np.ndarray, "b s s 3"], Bool[np.ndarray, " b"], dict[int, str]]:
    """(resized pictures, which could be read, {bad record: reason}); past the end there is none.

    `crop` makes of (row, picture) what is resized.
    """
    images = np.zeros((len(records), recipe.size, recipe.size, 3), np.uint8)
    valid = np.zeros(len(records), bool)
    bad: dict[int, str] = {}
    for row, record in enumerate(records):
        if record >= len(source):
            continue
        try:
            image = image_of(source, record, recipe)
            images[row] = resize(crop(row, image) if crop else image, recipe)
            valid[row] = True
        except BadImage as error:
            bad[record] = str(error)
    return images, valid, bad


def part_of(rows: int, process: tuple[int, int]) -> slice:
    """The rows of a batch that are one process's."""
    part, parts = process
    return slice(part * rows // parts, (part + 1) * rows // parts)


T = TypeVar("T")
Read = TypeVar("Read", covariant=True)


class Reader(Protocol[Read]):
    """Random access to batches: `reader[t]` is (batch, {bad image: reason})."""

    def __len__(self) -> int:
        """Batches."""
        ...

    def __getitem__(self, index: int) -> tuple[Read, dict[str, str]]:
        """Batch at `index`, and {bad image: reason}."""
        ...


def iterate(
    reader: Reader[T], start: int, bad: BadPictures, workers: int = 0
) -> Generator[T, None, None]:
    """Batches `start`, `start + 1`, ..., prepared ahead; bad pictures are handed to `bad`.

    Raises:
        TooManyBadPictures: see `BadPictures`.
    """
    dataset = grain.MapDataset.source(cast(Sequence, reader))[start:]
    if workers:
        # Grain reads its settings from flags, which nothing parses unless absl runs the program.
        flags.FLAGS.mark_as_parsed()
        stream = dataset.to_iter_dataset(
            grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        ).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
            worker_init_fn=_leave_interrupts,
        )
    else:
        stream = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    for batch, reasons in stream:
        bad.add(reasons)
        yield batch


def _leave_interrupts(worker: int, workers: int) -> None:
    """Ctrl-C reaches every process of a terminal; when to stop is the loop's to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@lru_cache(maxsize=4)
def _order(blocks: int, seed: int) -> Sequence[int]:
    """An endless shuffle of the blocks, each epoch in its own order, without a list in memory."""
    return cast(Sequence[int], grain.MapDataset.range(blocks).seed(seed).shuffle().repeat())


def _identities(names) -> np.ndarray:
    """int32 hashes: equal for equal names."""
    return np.array(
        [zlib.crc32(name.encode("utf-8", "surrogatepass")) for name in names], np.uint32
    ).view(np.int32)
