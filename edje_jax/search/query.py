"""Queries of several parts: a text, texts that must not match, an image to resemble."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from edje_jax.first_stage.packing import unpack
from edje_jax.index.image_index import ImageIndex
from edje_jax.runtimes.base import Embedded, Runtime
from edje_jax.search.inputs import ItemLike, as_text, decode_items

CAPTIONS = 5
"""Most captions of an image of the index that are asked for in its place."""


@dataclass(frozen=True, eq=False)
class Query:
    """Query of several parts, wherever a text is taken.

        Query("a dog", negatives=["on a beach", "a cat"])
        Query("a dog in snow", image="dog.jpg", image_weight=0.3)
        Query(like="00012")

    A query of a text alone gives what the text gives.
    """

    text: str = ""
    negatives: Sequence[str] = ()
    """Texts that the image must not match; a single one may be given as it is, and empty ones are
    passed over."""
    image: ItemLike | None = None
    """Image to resemble, or a video where the model reads videos (`Reranker.encode_images`)."""
    like: str | None = None
    """Id of an image of the index to resemble, which is left out of the results. Its captions are
    asked for too, where it has some."""
    image_weight: float = 0.5
    """Weight of the image beside the text, from 0 to 1."""

    def __post_init__(self):
        negatives = [self.negatives] if isinstance(self.negatives, str) else self.negatives
        checked = tuple(as_text(one, f"negatives[{i}]") for i, one in enumerate(negatives))
        object.__setattr__(self, "text", as_text(self.text, "text"))
        # Forms send what is left empty.
        object.__setattr__(self, "negatives", tuple(one for one in checked if one.strip()))
        if self.image is not None and self.like is not None:
            raise ValueError("image and like: give one, an image or the id of one in the index")
        if not (self.text or self.has_image):
            raise ValueError("a query needs a text or an image; negatives alone find nothing")
        if not 0 <= self.image_weight <= 1:
            raise ValueError(f"image_weight {self.image_weight}: it lies from 0 to 1")

    @property
    def has_image(self) -> bool:
        """Whether there is an image to resemble."""
        return self.image is not None or self.like is not None

    @property
    def is_text(self) -> bool:
        """Whether there is a text and nothing else."""
        return not (self.negatives or self.has_image)


def as_query(query: Any, name: str) -> str | Query:
    """A query of several parts, or a text where there is nothing else.

    Raises:
        ValueError: it is neither; the message calls it `name`.
    """
    if not isinstance(query, Query):
        return as_text(query, name)
    return query.text if query.is_text else query


def as_text_alone(query: Any, name: str) -> str:
    """Text of a query that has no other parts, as a second model takes it.

    Raises:
        ValueError: there are other parts, or it is no text; the message calls it `name`.
    """
    text = as_query(query, name)
    if isinstance(text, Query):
        raise ValueError(f"{name} has other parts than a text, which a second model does not read")
    return text


@dataclass(frozen=True)
class ReadQuery:
    """Query whose image has been encoded, or looked up."""

    query: Query
    image: Embedded | None = None
    """Embedding and projection of the one image; None if there is none."""
    number: int | None = None
    """Number of the image in the index, for one that was named by its id."""
    captions: tuple[str, ...] = ()
    """Captions of that image."""

    @property
    def texts(self) -> list[str]:
        """The text if there is one, then negatives, then captions."""
        query = self.query
        return [*filter(None, [query.text]), *query.negatives, *self.captions]


def read_query(query: Query, runtime: Runtime, index: ImageIndex | None = None) -> ReadQuery:
    """Encode the image of a query, or look it up in the index.

    Raises:
        BadImage: the image cannot be read.
        ValueError: there is no image of that id, or no index.
    """
    if query.image is not None:
        pixels = decode_items([query.image], runtime.config, ["the image of the query"])
        encoded = runtime.encode_images(pixels)
        return ReadQuery(query, Embedded(encoded.embeddings, encoded.projections))
    if query.like is None:
        return ReadQuery(query)
    if index is None:
        raise ValueError(f"like {query.like!r}: there is no index here; give the image itself")
    if (number := index.store.image_of_id.get(query.like)) is None:
        raise ValueError(f"like {query.like!r}: no image of the index has this id")
    captions = tuple(index.store.row(number).captions[:CAPTIONS])
    return ReadQuery(query, stored_images(index, np.array([number])), number, captions)


def stored_images(index: ImageIndex, images: Int[np.ndarray, " n"]) -> Embedded:
    """Embeddings of indexed images, and their codes in the place of projections, by which
    candidates keep the order of their Hamming distances."""
    codes: Float32[np.ndarray, "n bits"] = np.zeros((len(images), 0), np.float32)
    if index.bits is not None:
        codes = unpack(index.codes("embeddings")[images]).astype(np.float32)
    return Embedded(index.store.embeddings[images], codes)
