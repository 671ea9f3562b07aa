"""Candidates that other libraries hand over as documents, ranked by their images in one call."""

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from edje_jax.config.model import ImageRecipe
from edje_jax.data.base64_data import ADDRESS, decode, is_data_uri
from edje_jax.data.decoders import PREFIX, may_be_image
from edje_jax.data.image_reader import cut_into, read_batches, stack_images
from edje_jax.data.images import BadImage, image_pixels
from edje_jax.evaluation.scores import add_cosines, probability
from edje_jax.index.image_index import ImageIndex
from edje_jax.index.store import check_model
from edje_jax.models.token_formats import unpack
from edje_jax.search.inputs import as_text
from edje_jax.search.reranker import Reranker

log = logging.getLogger(__name__)

WithoutImage = Literal["error", "last", "drop"]
"""Treatment of documents without an image that can be read: an error that names them, a place
behind the ranked ones, or none at all. The latter two are told in the log."""


class Candidate(NamedTuple):
    """Document of another library, as far as ranking goes."""

    name: str
    """Name in messages, such as documents[3]."""
    image: Any
    """A path, the bytes of a file, a PIL image, uint8 [H, W, 3], base64 or a data: URI; None if
    there is none."""
    id: str | None = None
    """Id of the image in an index."""


class CandidateScore(NamedTuple):
    """Scores of a candidate; None if it has no image."""

    place: int
    """Place among the candidates that were given."""
    score: float | None = None
    """From 0 to 1; the probability of a match if the model is calibrated."""
    logit: float | None = None
    """Match logit, before calibration."""


@dataclass(frozen=True)
class CandidateRanker:
    """Model that ranks candidates, and the index that holds some of their images.

    Images of the index are not read or encoded again: their stored tokens count, whatever image the
    candidate brings along.

    Raises:
        BadStore: the index was built with another model.
    """

    reranker: Reranker
    index: ImageIndex | None = None
    without_image: WithoutImage = "error"

    def __post_init__(self):
        if self.index is not None:
            check_model(self.index.store, self.reranker.stamp)
        if self.without_image not in ("error", "last", "drop"):
            raise ValueError(f"without_image={self.without_image!r}; give error, last or drop")

    def rank(
        self, query: str, candidates: Sequence[Candidate], top_k: int | None = None
    ) -> list[CandidateScore]:
        """Candidates by falling score, the best `top_k`; equal scores keep the order given.

        Raises:
            BadImage: images are missing or cannot be read, and `without_image` is "error".
            ValueError: `query` is no string, or `top_k` is below 1.
        """
        query = as_text(query, "query")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k}; give a number from 1 on, or None for all")
        rows = self._rows(candidates)
        pixels, bad = _read_images(candidates, set(rows), self.reranker.config.image)
        self._tell(candidates, bad)
        places = [*rows, *pixels]
        encoded = self._encoded(list(rows.values()), list(pixels.values()))
        logits, combined = self._score(query, *encoded)
        scores = probability(combined, self.reranker.calibration)
        order = np.lexsort((np.array(places), -combined))
        ranked = [CandidateScore(places[i], float(scores[i]), float(logits[i])) for i in order]
        if self.without_image == "last":
            ranked += map(CandidateScore, sorted(bad))
        return ranked[:top_k]

    def _rows(self, candidates: Sequence[Candidate]) -> dict[int, int]:
        """Place of each candidate whose id is in the index -> image of the index."""
        if self.index is None:
            return {}
        asked = [(place, one.id) for place, one in enumerate(candidates) if one.id is not None]
        images = self.index.store.image_of_id.find([str(id) for _, id in asked])
        found = zip(asked, images.tolist(), strict=True)
        return {place: image for (place, _), image in found if image >= 0}

    def _tell(self, candidates: Sequence[Candidate], bad: dict[int, str]) -> None:
        """Raise an error that names the candidates without an image, or log them."""
        told = "; ".join(f"{candidates[place].name}: {reason}" for place, reason in bad.items())
        if bad and self.without_image == "error":
            raise BadImage(f"{told} (without_image='last' or 'drop' goes on without)")
        if bad:
            log.warning("%d documents not ranked (%s): %s", len(bad), self.without_image, told)

    def _encoded(
        self, rows: list[int], pixels: list[UInt8[np.ndarray, "s s 3"]]
    ) -> tuple[Float32[np.ndarray, "n m d"], Float32[np.ndarray, "n e"]]:
        """Tokens and embeddings of images of the index, then of others."""
        tokens, embeddings = [], []
        if self.index is not None and rows:
            stored = unpack(self.index.tokens[np.array(rows)])
            tokens.append(np.asarray(stored, np.float32))
            embeddings.append(self.index.store.embeddings[np.array(rows)])
        if pixels or not rows:
            images = stack_images(pixels, self.reranker.config.image)
            encoded = self.reranker.runtime.encode_images(images)
            tokens.append(encoded.tokens)
            embeddings.append(encoded.embeddings)
        return np.concatenate(tokens), np.concatenate(embeddings)

    def _score(
        self,
        query: str,
        tokens: Float32[np.ndarray, "n m d"],
        embeddings: Float32[np.ndarray, "n e"],
    ) -> tuple[Float32[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
        """Match logits, and these with the cosine of the first stage mixed in, as the model was
        tuned."""
        reranker, weight = self.reranker, self.reranker.calibration.similarity_weight
        if not (reranker.config.similarity_prior or weight):
            logits = reranker.score_matrix([query], tokens)[0]
            return logits, logits
        known = reranker.embed_texts([query]) @ embeddings.T
        logits = reranker.score_matrix([query], tokens, known)[0]
        return logits, add_cosines(logits, known[0], weight)


def _read_images(
    candidates: Sequence[Candidate], stored: set[int], recipe: ImageRecipe
) -> tuple[dict[int, UInt8[np.ndarray, "s s 3"]], dict[int, str]]:
    """Places of candidates that are not `stored` -> resized images, and -> why there is none."""
    places = [place for place in range(len(candidates)) if place not in stored]
    pixels: dict[int, np.ndarray] = {}
    bad: dict[int, str] = {}
    for batch in read_batches(lambda i: read_image(candidates[i].image, recipe), cut_into(places)):
        pixels |= zip(batch.records, batch.values, strict=True)
        bad |= batch.bad
    return pixels, bad


def read_image(image: Any, recipe: ImageRecipe) -> UInt8[np.ndarray, "s s 3"]:
    """Image of a candidate as the backbone takes it, but for `normalise`.

    Raises:
        BadImage: there is none, it cannot be read, or it is an address.
    """
    if image is None:
        raise BadImage("no image")
    try:
        return image_pixels(_content(image) if isinstance(image, str) else image, recipe)
    except TypeError as error:
        raise BadImage(str(error)) from error


def _content(text: str) -> str | bytes:
    """Path of a file that is there, or what base64 stands for."""
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    if ADDRESS.match(text):
        raise BadImage(f"{shown}: addresses are not fetched; download the image first")
    if os.path.exists(os.path.expanduser(text)):
        return text
    with suppress(ValueError):
        data = decode(text)
        if is_data_uri(text) or may_be_image(data[:PREFIX]):
            return data
    raise BadImage(f"{shown}: no such file, and no base64 of an image")
