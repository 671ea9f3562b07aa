"""The one pass of a frozen backbone over a set, kept for all epochs and for other runs."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, PyTree, UInt8

from edje_jax.config.frames import FrameSampling
from edje_jax.config.model import BackboneConfig, ImageRecipe
from edje_jax.config.run import DataConfig
from edje_jax.data.bad_records import BadRecords, left_out
from edje_jax.data.feature_cache import FeatureCache, FeatureCacheWriter, check, dataset_stamp
from edje_jax.data.image_reader import ImageBatch, read_frames, read_images
from edje_jax.data.images import normalise_all
from edje_jax.data.loader import part_of
from edje_jax.data.text import BackboneTokenizer
from edje_jax.models.frames import encode_vision
from edje_jax.models.towers import DualTower
from edje_jax.system.files import read_json
from edje_jax.training.processes import is_first, part_of_this_process, wait_for_all
from edje_jax.training.sharding import Devices, rows_of_this_process
from edje_jax.types import Frames, Source
from edje_jax.weights.backbone import Backbone
from edje_jax.weights.model_stamp import params_fingerprint

log = logging.getLogger(__name__)

NOTE_EVERY = 64
"""Batches of work that a killed run may lose. Counted, not timed, as every process has to stop at
the same ones."""


@dataclasses.dataclass(frozen=True)
class FeaturePass:
    """A frozen backbone on a run's devices, and the set it is to be run over."""

    source: Source
    data: DataConfig
    backbone: Backbone
    tokenizer: BackboneTokenizer
    model: DualTower
    """The backbone as a pure function of its parameters."""
    params: PyTree[jax.Array]
    devices: Devices
    dtype: jax.typing.DTypeLike
    """Data type in which vision tokens are computed and kept."""
    sampling: FrameSampling | None = None
    """Frames of videos whose features are kept; None for a model of images."""

    def ensure_cache(self) -> FeatureCache:
        """The cache at `data.cache_features`, made first, or made complete, if it has to be.

        A run of many processes needs a disk that all of them see.

        Raises:
            OtherFeatures: the folder keeps features of something else.
            TooManyBadRecords: see `BadRecords`.
            OSError: the disk cannot hold it.
        """
        assert self.data.cache_features is not None
        folder = Path(self.data.cache_features)
        of_set, first = dataset_stamp(self.source)
        stamp = {
            "set": of_set,
            "backbone": params_fingerprint(self.backbone.params),
            "vision_tokens": _vision_tokens(self.backbone.config),
            "preprocessing": self.backbone.image.to_dict(),
            "dtype": jnp.dtype(self.dtype).name,
            # Left out for images: their caches keep the stamps of before there were videos.
            **({"frames": dataclasses.asdict(self.sampling)} if self.sampling else {}),
        }
        if (folder / "manifest.json").exists():
            check(folder, stamp, read_json(folder / "manifest.json")["stamp"])
            log.info("%s: features of %d images are there", folder, len(self.source))
        else:
            tables = self._tables(len(self.source), int(first[-1]))
            self._make(FeatureCacheWriter(folder, stamp, *tables), first)
        return FeatureCache(folder)

    def _tables(self, images: int, captions: int):
        config = self.backbone.config
        width, tokens = config.token_width, config.num_vision_tokens
        shared = config.text.projection_size
        frames = (self.sampling.frames,) if self.sampling else ()
        shapes = {
            "vision_tokens": (images, *frames, tokens, width),
            "image_embeddings": (images, shared),
            "text_embeddings": (captions, shared),
        }
        dtypes = dict.fromkeys(shapes, "float32") | {"vision_tokens": jnp.dtype(self.dtype).name}
        return shapes, dtypes

    def _make(self, cache: FeatureCacheWriter, first: np.ndarray) -> None:
        if is_first():
            cache.begin(first)
        wait_for_all("features")
        done = cache.progress()
        log.info(
            "%s: keeping features of %d images, %.1f GB",
            cache.folder, len(self.source), cache.size / 1e9,
        )  # fmt: skip
        for kind, work in (
            ("pictures", self._images(cache, done["pictures"])),
            ("captions", self._captions(cache, done["captions"], first)),
        ):
            total, began, begun = cache.total(kind), time.monotonic(), done[kind]
            for number, reached in enumerate(work, start=1):
                done[kind] = min(reached, total)
                if number % NOTE_EVERY and reached < total:
                    continue
                # None may be noted that another process has not written.
                wait_for_all("rows")
                if is_first():
                    cache.save_progress(done)
                rate = (done[kind] - begun) / max(time.monotonic() - began, 1e-9)
                left = (total - done[kind]) / max(rate, 1e-9)
                log.info(
                    "%s %d/%d · %.0f a second · %d:%02d left",
                    {"pictures": "images"}.get(kind, kind), done[kind], total, rate,
                    left // 60, left % 60,
                )  # fmt: skip
        # Not before all have come here: a folder with a manifest is a whole one.
        wait_for_all("rows written")
        if is_first():
            cache.finish()
        wait_for_all("features whole")

    def _images(self, cache: FeatureCacheWriter, start: int) -> Iterator[int]:
        """Write images from `start` on; how many are done, now and then."""
        size, total = self.data.batch_size, len(self.source)
        own, starts = part_of(size, part_of_this_process()), range(start, total, size)
        batches = [range(at + own.start, min(at + own.stop, total)) for at in starts]
        encode = self.devices.jit(
            partial(_encode_images, self.model, self.backbone.image),
            out_shardings=self.devices.rows,
        )

        def write(at: int, valid: np.ndarray, made: tuple[jax.Array, jax.Array]) -> int:
            rows = max(min(own.stop, total - at) - own.start, 0)
            tokens, embeddings = (rows_of_this_process(x)[:rows] for x in made)
            embeddings = np.where(valid[:rows, None], embeddings, np.nan)
            cache.write("vision_tokens", at + own.start, tokens)
            cache.write("image_embeddings", at + own.start, embeddings)
            return at + size

        yield from _one_behind(
            (partial(write, at, valid), encode(self.params, self.devices.batch(images)))
            for at, (images, valid) in zip(
                starts, self._padded_images(batches, own.stop - own.start), strict=True
            )
        )

    def _padded_images(
        self, batches: list[range], rows: int
    ) -> Iterator[tuple[UInt8[np.ndarray, "b s s 3"] | Frames, Bool[np.ndarray, " b"]]]:
        """(images or videos, which could be read) of each batch, filled up to so many rows."""
        recipe = self.backbone.image
        bad = BadRecords.after(left_out(self.source), len(self.source), self.data.max_bad)
        workers, size = self.data.workers, (recipe.size, recipe.size, 3)
        if self.sampling:
            reader = read_frames(self.source, self.sampling, recipe, batches, workers)
            size = (self.sampling.frames, *size)
        else:
            reader = read_images(self.source, recipe, batches, workers)
        for records, batch in zip(batches, reader, strict=True):
            bad.add({self.source.image_id(i): reason for i, reason in batch.bad.items()})
            images = np.zeros((rows, *size), np.uint8)
            valid, own = np.zeros(rows, bool), [i - records.start for i in batch.records]
            valid[own] = True
            if isinstance(batch, ImageBatch):
                images[own] = batch.images
                yield images, valid
            else:
                images[own] = batch.frames
                present = np.zeros(images.shape[:2], bool)
                present[own] = batch.present
                yield Frames(images, present), valid

    def _captions(self, cache: FeatureCacheWriter, start: int, first: np.ndarray) -> Iterator[int]:
        """Write captions from `start` on; how many are done, now and then."""
        size, total = self.data.batch_size, int(first[-1])
        own = part_of(size, part_of_this_process())
        encode = self.devices.jit(
            partial(_encode_texts, self.model), out_shardings=self.devices.rows
        )

        def write(at: int, made: jax.Array) -> int:
            rows = max(min(own.stop, total - at) - own.start, 0)
            cache.write("text_embeddings", at + own.start, rows_of_this_process(made)[:rows])
            return at + size

        def texts(at: int) -> list[str]:
            numbers = np.minimum(np.arange(at + own.start, at + own.stop), total - 1)
            records = np.searchsorted(first, numbers, "right") - 1
            # A source may make or read its captions anew at every call.
            captions = {int(record): self.source.captions(int(record)) for record in set(records)}
            return [
                captions[int(record)][int(number - first[record])]
                for record, number in zip(records, numbers, strict=True)
            ]

        yield from _one_behind(
            (partial(write, at), encode(self.params, self.devices.batch(self.tokenizer(texts(at)))))
            for at in range(start, total, size)
        )


def _one_behind(made: Iterator[tuple[Callable[..., int], object]]) -> Iterator[int]:
    """Call each function with what was made for it while the device works on the next."""
    before = None
    for pair in made:
        if before:
            yield before[0](before[1])
        before = pair
    if before:
        yield before[0](before[1])


def _encode_images(
    model: DualTower, recipe: ImageRecipe, params: PyTree, images: jax.Array | Frames
):
    image = encode_vision(model.bind({"params": params}), normalise_all(images, recipe))
    return image.tokens, image.embedding


def _encode_texts(model: DualTower, params: PyTree, ids: jax.Array) -> jax.Array:
    return model.bind({"params": params}).encode_text(ids)


def _vision_tokens(config: BackboneConfig) -> dict[str, Any]:
    """Stamp of the vision tokens; earlier layers only where there are some, so that caches of
    before they could be asked for keep their stamps."""
    stamp = dataclasses.asdict(config)
    earlier = list(stamp.pop("earlier_layers"))
    return stamp | ({"earlier_layers": earlier} if earlier else {})
