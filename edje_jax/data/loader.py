"""Sources -> training batches, in worker threads or processes, through grain.

Batch t is a pure function of (source, config, seed, t). Resuming therefore means starting at
another t, whatever the number of workers, and an unreadable image leaves an invalid row
instead of moving every later one.
"""

import zlib
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar, cast

import grain
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from edje_jax.config.frames import FrameSampling
from edje_jax.config.model import ImageRecipe
from edje_jax.config.run import DataConfig
from edje_jax.data.bad_records import BadRecords, caption_faults
from edje_jax.data.buckets import bucket, lengths_up_to
from edje_jax.data.feature_cache import Caption, FeatureCache
from edje_jax.data.images import BadImage, decode_record, frames_of, random_crop, resize
from edje_jax.data.prefetch import Reader, prefetch
from edje_jax.data.text import BackboneTokenizer, JointTokenizer, canonicalise
from edje_jax.types import Batch, Frames, Source

_CROPS = 1
"""Random stream of the crops, apart from that of the captions."""

BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class RowRecipe:
    """Tools that make a row of a batch from a record."""

    image: ImageRecipe
    backbone_tokenizer: BackboneTokenizer
    joint_tokenizer: JointTokenizer | None = None
    extra_labels: Callable[[int], np.ndarray] | None = None
    """(record) -> what a task wants to know of its image besides captions, an array of one shape;
    picklable. The batch carries them as its `extra_labels`."""
    frames: FrameSampling | None = None
    """Frames that are read of videos; None for a model of images."""


@dataclass(frozen=True)
class TrainingBatches:
    """Random access to the batches of a run: `reader[t]` is (batch, {bad image: reason}).

    An epoch visits every record once, with one of its captions drawn at random; one without a
    caption, or with one that its source had to leave out, counts as bad. `block_size` neighbours
    stay together in the shuffle, as each other's hard negatives; where that does not divide the
    set, the rest of it ends every epoch.
    """

    source: Source
    recipe: RowRecipe
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
            record = shuffled_block(blocks, self.seed, epoch * blocks + number) * block + within
        else:
            record = place
        pick = np.random.default_rng([self.seed, epoch, record])
        return Caption(record, int(pick.integers(max(len(self.source.captions(record)), 1))))

    def _batch(self, everyone: list[Caption], first: int) -> tuple[Batch, dict[str, str]]:
        """Batch of the captions at position `first` and after it."""
        source, recipe, extra = self.source, self.recipe, self.recipe.extra_labels
        own = part_of(len(everyone), self.process)
        rows = everyone[own]
        records = [row.record for row in rows]
        images = features = None
        if self.features:
            features, valid = self.features.rows(rows)
            unreadable = "unreadable when its features were made"
            bad = {i: unreadable for i, good in zip(records, valid, strict=True) if not good}
        else:
            read = self._frames if recipe.frames else self._images
            images, valid, bad = read(records, first + own.start)
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
            backbone_ids=self._backbone_ids(captions[own]),
            joint_ids=self._joint_ids(captions)[own],
            image_ids=identities(source.image_id(record) for record in records),
            caption_ids=identities(canonicalise(caption) for caption in captions[own]),
            valid=valid,
            features=features,
            extra_labels=np.stack(list(map(extra, records))) if extra else None,
        ), {source.image_id(record): reason for record, reason in bad.items()}

    def _images(
        self, records: list[int], first: int
    ) -> tuple[UInt8[np.ndarray, "b s s 3"], Bool[np.ndarray, " b"], dict[int, str]]:
        """(resized images, which could be read, {bad record: reason}) from position `first` on."""
        recipe = self.recipe.image
        images = np.zeros((len(records), recipe.size, recipe.size, 3), np.uint8)
        valid, bad = np.zeros(len(records), bool), {}
        for row, record in enumerate(records):
            try:
                image = decode_record(self.source, record, recipe)
            except BadImage as error:
                bad[record] = str(error)
                continue
            images[row] = resize(self._cropped(image, first + row), recipe)
            valid[row] = True
        return images, valid, bad

    def _frames(
        self, records: list[int], first: int
    ) -> tuple[Frames, Bool[np.ndarray, " b"], dict[int, str]]:
        """(resized frames, which videos could be read, {bad record: reason}), as `_images`; an
        image is a video of one frame."""
        recipe, sampling = self.recipe.image, self.recipe.frames
        assert sampling is not None
        shape = (len(records), sampling.frames, recipe.size, recipe.size, 3)
        frames = Frames(np.zeros(shape, np.uint8), np.zeros(shape[:2], bool))
        valid, bad = np.zeros(len(records), bool), {}
        for row, record in enumerate(records):
            try:
                for number, frame in enumerate(frames_of(self.source, record, sampling, recipe)):
                    frames.pixels[row, number] = resize(self._cropped(frame, first + row), recipe)
                    frames.present[row, number] = True
            except BadImage as error:
                frames.present[row] = False
                bad[record] = str(error)
                continue
            valid[row] = True
        return frames, valid, bad

    def _cropped(self, image: Image.Image, position: int) -> Image.Image:
        """Window of an image that is drawn for a position of the stream, by default all of it; the
        same one of all frames of a video, where they have one size."""
        if self.data.crop == 1:
            return image
        rng = np.random.default_rng([self.seed, position, _CROPS])
        return random_crop(image, self.data.crop, rng)

    def _caption(self, row: Caption) -> str:
        """Caption of a row; an empty one where the image has none."""
        captions = self.source.captions(row.record)
        return captions[row.number] if captions else ""

    def _backbone_ids(self, captions: list[str]) -> np.ndarray:
        """int32 [B, L]; [B, 0] where features are kept, those of captions among them."""
        if self.features:
            return np.zeros((len(captions), 0), np.int32)
        return self.recipe.backbone_tokenizer(captions)

    def _joint_ids(self, captions: list[str]) -> np.ndarray:
        """int32 [B, T], T the bucket of the longest caption: short captions make short batches,
        unless the config wants the full length.

        Takes the captions of the whole batch, as all processes must come to the same T.
        """
        tokenizer = self.recipe.joint_tokenizer
        if tokenizer is None:
            return np.zeros((len(captions), 0), np.int32)
        ids = tokenizer(captions)
        if self.data.full_length:
            return ids
        longest = int((ids != tokenizer.pad_id).sum(axis=1).max())
        return ids[:, : bucket(longest, lengths_up_to(tokenizer.max_length))]


def part_of(rows: int, process: tuple[int, int]) -> slice:
    """Rows of a batch that one process reads: the i-th of n equal parts for process (i, n)."""
    part, parts = process
    return slice(part * rows // parts, (part + 1) * rows // parts)


def iterate(
    reader: Reader[tuple[BatchT, dict[str, str]]], start: int, bad: BadRecords, workers: int = 0
) -> Generator[BatchT, None, None]:
    """Batches `start`, `start + 1`, ... of a reader whose items are (batch, {bad image: reason}),
    prepared ahead; bad images are handed to `bad`.

    Raises:
        TooManyBadRecords: see `BadRecords`.
    """
    for batch, reasons in prefetch(reader, start, workers):
        bad.add(reasons)
        yield batch


@lru_cache(maxsize=4)
def endless_order(blocks: int, seed: int) -> Sequence[int]:
    """Endless shuffle of the blocks, each epoch in its own order, without a list in memory."""
    return cast(Sequence[int], grain.MapDataset.range(blocks).seed(seed).shuffle().repeat())


@lru_cache(maxsize=64)
def shuffled_block(blocks: int, seed: int, place: int) -> int:
    """Block at a place of the endless shuffle; its records, which come one after another, ask for
    the same."""
    return endless_order(blocks, seed)[place]


def identities(names: Iterable[str]) -> np.ndarray:
    """Hash names to int32: equal for equal names."""
    return np.array(
        [zlib.crc32(name.encode("utf-8", "surrogatepass")) for name in names], np.uint32
    ).view(np.int32)
