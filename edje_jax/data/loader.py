"""Sources -> training batches, in worker threads or processes, through grain.

Batch t is a pure function of (source, config, seed, t). Resuming therefore means starting at
another t, whatever the number of workers, and an unreadable picture leaves an invalid row
instead of moving every later one.
"""

import signal
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import grain
import numpy as np
from absl import flags

from edje_jax.config import DataConfig, ImageRecipe
from edje_jax.data.bad_pictures import BadPictures
from edje_jax.data.buckets import bucket, lengths_up_to
from edje_jax.data.images import BadImage, resize
from edje_jax.data.text import BackboneTokenizer, JointTokenizer, canonicalise
from edje_jax.types import Batch, PatchLabelled, Source


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

    An epoch visits every picture once, with one of its captions drawn at random. `block_size`
    neighbours stay together in the shuffle, as each other's hard negatives.
    """

    source: Source
    encoder: Encoder
    data: DataConfig
    seed: int
    steps: int
    process: tuple[int, int] = (0, 1)
    """(i, n): of each batch the i-th of n equal parts, which is what one process reads. Together
    they are the batch that one alone would read."""

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[Batch, dict[str, str]]:
        first = index * self.data.batch_size
        positions = range(first, first + self.data.batch_size)
        return self._batch([self._record(position) for position in positions])

    def _record(self, position: int) -> tuple[int, str]:
        """(record, caption) at a position of the endless shuffled stream."""
        total, block = len(self.source), min(self.data.block_size, len(self.source))
        blocks = -(-total // block)
        epoch = position // (blocks * block)
        shuffled = _order(blocks, self.seed)[position // block]
        index = (shuffled * block + position % block) % total
        captions = self.source.captions(index)
        pick = np.random.default_rng([self.seed, epoch, index]).integers(len(captions))
        return index, captions[int(pick)]

    def _batch(self, everyone: list[tuple[int, str]]) -> tuple[Batch, dict[str, str]]:
        (part, parts), encoder = self.process, self.encoder
        own = slice(part * len(everyone) // parts, (part + 1) * len(everyone) // parts)
        rows = everyone[own]
        images = np.zeros((len(rows), encoder.image.size, encoder.image.size, 3), np.uint8)
        valid = np.ones(len(rows), bool)
        bad: dict[str, str] = {}
        for row, (index, _) in enumerate(rows):
            try:
                images[row] = resize(self.source.image(index), encoder.image)
            except BadImage as error:
                valid[row] = False
                bad[self.source.image_id(index)] = str(error)
        captions = [caption for _, caption in rows]
        return Batch(
            images=images,
            backbone_ids=encoder.backbone_tokenizer(captions),
            joint_ids=self._joint_ids([caption for _, caption in everyone])[own],
            image_ids=_identities(self.source.image_id(index) for index, _ in rows),
            caption_ids=_identities(canonicalise(caption) for caption in captions),
            valid=valid,
            patch_labels=self._patch_labels([index for index, _ in rows]),
        ), bad

    def _joint_ids(self, captions: list[str]) -> np.ndarray:
        """int32 [B, T], T the bucket of the longest caption: short captions make short batches.

        Of the whole batch, as all processes must come to the same T.
        """
        tokenizer = self.encoder.joint_tokenizer
        if tokenizer is None:
            return np.zeros((len(captions), 0), np.int32)
        ids = tokenizer(captions)
        longest = int((ids != tokenizer.pad_id).sum(axis=1).max())
        return ids[:, : bucket(longest, lengths_up_to(tokenizer.max_length))]

    def _patch_labels(self, indices: list[int]) -> np.ndarray | None:
        grid, source = self.encoder.patch_grid, self.source
        if not grid or not isinstance(source, PatchLabelled):
            return None
        return np.stack([source.patch_labels(index, grid) for index in indices])


def iterate(reader: TrainingBatches, start: int, bad: BadPictures) -> Iterator[Batch]:
    """Batches `start`, `start + 1`, ..., prepared ahead; bad pictures are handed to `bad`.

    Raises:
        TooManyBadPictures: see `BadPictures`.
    """
    dataset = grain.MapDataset.source(cast(Sequence, reader))[start:]
    workers = reader.data.workers
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
    return np.array([zlib.crc32(name.encode()) for name in names], np.uint32).view(np.int32)
