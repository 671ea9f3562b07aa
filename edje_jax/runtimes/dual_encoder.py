"""The backbone alone behind plain array functions: first-stage embeddings and their recalls."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, PyTree, UInt8

from edje_jax.config.model import BackboneConfig, ImageRecipe
from edje_jax.data.bad_records import BadRecords, left_out
from edje_jax.data.buckets import batches
from edje_jax.data.image_reader import read_gallery
from edje_jax.data.images import normalise
from edje_jax.data.text import BackboneTokenizer
from edje_jax.evaluation.measures import measure_ranks
from edje_jax.evaluation.retrieval import Gallery, base_ranking
from edje_jax.models.towers import DualTower
from edje_jax.runtimes.base import IMAGE_BATCH
from edje_jax.types import Source
from edje_jax.weights.families.registry import make_backbone

IMAGE_BATCHES = (1, 8, IMAGE_BATCH)
TEXT_BATCHES = (1, 16, 128)


@dataclass(frozen=True)
class DualEncoder:
    """A backbone and its tokenizer. Cheap to make: compiled programs are shared."""

    config: BackboneConfig
    image: ImageRecipe
    params: PyTree
    tokenizer: BackboneTokenizer
    dtype: jax.typing.DTypeLike = jnp.float32
    """Compute dtype."""

    @property
    def model(self) -> DualTower:
        """The dual encoder as a pure function of its parameters."""
        return make_backbone(self.config, self.dtype)

    def embed_images(self, images: UInt8[np.ndarray, "n s s 3"]) -> Float32[np.ndarray, "n e"]:
        """Unit-length embeddings of resized images."""
        out = np.empty((len(images), self.config.text.projection_size), np.float32)
        for rows, count in batches(np.arange(len(images)), IMAGE_BATCHES):
            embeddings = _embed_images(self.model, self.image, self.params, images[rows])
            out[rows[:count]] = embeddings[:count]
        return out

    def embed_texts(self, captions: Sequence[str]) -> Float32[np.ndarray, "n e"]:
        """Unit-length embeddings of captions."""
        ids = self.tokenizer(captions)
        out = np.empty((len(ids), self.config.text.projection_size), np.float32)
        for rows, count in batches(np.arange(len(ids)), TEXT_BATCHES):
            out[rows[:count]] = _embed_texts(self.model, self.params, ids[rows])[:count]
        return out

    def evaluate(self, source: Source, max_bad: float) -> dict[str, dict[str, float]]:
        """{"t2i": {"R@1", "R@5", "R@10"}, "i2t": {...}}, in percent.

        Raises:
            TooManyBadRecords: more than `max_bad` of the records are bad.
        """
        record: list[int] = []
        parts = []
        bad = BadRecords.after(left_out(source), len(source), max_bad)
        for batch in read_gallery(source, self.image, bad):
            assert isinstance(batch.images, np.ndarray)  # No frames were asked for
            parts.append(self.embed_images(batch.images))
            record += batch.records
        ids = [source.image_id(i) for i in record]
        gallery = Gallery.of(ids, [source.captions(i) for i in record])
        images, texts = np.concatenate(parts), self.embed_texts(gallery.captions)
        owner, own = gallery.caption_image, np.arange(len(images), dtype=np.int32)
        return {
            "t2i": measure_ranks(base_ranking(texts, images, owner, own, 1).rank),
            "i2t": measure_ranks(base_ranking(images, texts, own, owner, 1).rank),
        }


@partial(jax.jit, static_argnums=(0, 1))
def _embed_images(model, recipe, params, images):
    return model.bind({"params": params}).encode_image(normalise(images, recipe)).embedding


@partial(jax.jit, static_argnums=0)
def _embed_texts(model, params, ids):
    return model.bind({"params": params}).encode_text(ids)
