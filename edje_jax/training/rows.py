"""Rows of a batch as the losses read them, and the counts that means over a batch divide by."""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from edje_jax.training.losses.listwise import lists_of, teaches
from edje_jax.training.negatives import Negatives, Pairs

Tree = TypeVar("Tree")


class Rows(NamedTuple):
    """Inputs of the losses for some rows of a batch, apart from parameters and images."""

    index: Int[Array, " r"]
    """Indices of the rows in the batch."""
    ids: Int[Array, "r t"]
    """Captions in the joint encoder's tokens."""
    masked: Bool[Array, "r t"]
    """Tokens that masked LM hides."""
    valid: Bool[Array, " r"]
    text_embeddings: Float[Array, "r e"]
    """Captions' embeddings by the backbone, which text recovery predicts."""
    negatives: Negatives
    similarities: Pairs | None = None
    """The backbone's cosines of the rows' pairs, where a model has a similarity prior."""
    vision_tokens: Float[Array, "r *f n w"] | None = None
    """Vision tokens of the rows' own images or videos, where a term reads them."""
    targets: dict[str, PyTree] | None = None
    """A teacher's outputs for the rows, by the term that follows them (`losses.term`)."""


class Counts(NamedTuple):
    """Divisors of the means over a whole batch."""

    rows: Int[Array, ""]
    auxiliary_rows: Int[Array, ""]
    """Rows that text recovery takes."""
    masked: Int[Array, ""]
    """Tokens that masked LM hides, in the same rows."""
    images: Int[Array, ""]
    """Negative images that can be used."""
    captions: Int[Array, ""]
    """Negative captions that can be used."""
    lists: Int[Array, ""]
    """Lists of candidates, of captions and of images, that have a negative."""
    predicted: Int[Array, ""]
    """Tokens that a captioner predicts in one direction."""
    auxiliary_predicted: Int[Array, ""]
    """Tokens that it predicts in the rows that auxiliary terms take."""

    @classmethod
    def of(cls, rows: Rows, pad: int, auxiliary_stride: int = 1) -> "Counts":
        """Count a whole batch, of captions padded with `pad`."""
        own, images, captions = rows.negatives.usable_of(rows.valid)
        some = every_nth(rows, auxiliary_stride)
        return cls(
            jnp.sum(own),
            jnp.sum(some.valid),
            jnp.sum(some.masked),
            jnp.sum(images),
            jnp.sum(captions),
            jnp.sum(teaches(lists_of(own, images, captions))),
            _predicted(rows, pad),
            _predicted(some, pad),
        )


def _predicted(rows: Rows, pad: int) -> Int[Array, ""]:
    return jnp.sum((rows.ids[:, 1:] != pad) & rows.valid[:, None])


def every_nth(rows: Tree, stride: int) -> Tree:
    """Take every `stride`-th row, from the first.

    Rows of a chunk, and those of a device, are a multiple of the stride: all chunks together take
    what the whole batch would, and nothing is sent between devices.
    """
    return rows if stride == 1 else jax.tree.map(lambda leaf: leaf[::stride], rows)
