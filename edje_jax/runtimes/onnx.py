"""The runtime of ONNX Runtime: pairs are scored by it on CPUs, and all else is done by JAX."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from edje_jax.config.model import EdjeConfig, InferencePrecision
from edje_jax.models.token_formats import PackedTokens, unpack
from edje_jax.runtimes.base import Embedded, Encoded, TokenTable, required_cosines
from edje_jax.runtimes.dual_encoder import TEXT_BATCHES
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.runtimes.onnx_export import Export
from edje_jax.system.processors import usable_cores
from edje_jax.types import Frames
from edje_jax.weights.folder import Model

PRECISIONS = ("auto", "float32", "int8")
"""Precisions of scoring; "auto" is float32."""
GATHERED = 256
"""Pairs whose tokens are gathered at once."""

T = TypeVar("T")

Inputs = dict[str, np.ndarray]
"""Inputs of a graph by name."""


@dataclass(frozen=True)
class OnnxRuntime:
    """A model whose pairs ONNX Runtime scores: see `edje_jax.runtimes.base.Runtime`.

    Every pair is a call of its own, on one of as many threads as there are cores. So no row is
    padding, or of a frame that a video does not have, threads do not wait for each other within a
    call, and a logit depends on nothing but its pair, in int8 too. Larger batches hardly take less
    time of a core.
    """

    offline: JaxRuntime
    """Runtime that encodes images and embeds texts."""
    export: Export
    """Graphs of the online part, made when they are first asked for."""

    @classmethod
    def of(
        cls,
        model: Model,
        precision: InferencePrecision = "auto",
        encoder_precision: InferencePrecision | None = None,
    ) -> "OnnxRuntime":
        """Prepare a model that was loaded.

        Args:
            precision: that of scoring.
            encoder_precision: that of encoding images, which JAX does (default: `precision`, but
                "auto" for int8).

        Raises:
            ValueError: ONNX Runtime does not score in that precision.
            ModuleNotFoundError: it is not installed; the message says how to get it.
        """
        if precision not in PRECISIONS:
            raise ValueError(
                f"precision {precision!r}: the runtime onnx has {', '.join(PRECISIONS)}; take one"
                " of these, or the runtime jax"
            )
        try:
            import_module("onnxruntime")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"the runtime onnx needs more ({error}): pip install 'edje-jax[onnx]'"
            ) from error
        offline = JaxRuntime.of(
            model, "auto" if precision == "int8" else precision, encoder_precision
        )
        return cls(offline, Export.of(model, "int8" if precision == "int8" else "float32"))

    @property
    def config(self) -> EdjeConfig:
        """Shapes of every part."""
        return self.offline.config

    def fingerprint(self) -> str:
        """32 hex digits over every parameter and shape of the model."""
        return self.offline.fingerprint()

    def count_parameters(self) -> dict[str, int]:
        """{"offline", "online"}: parameters of the part that encodes images and of the one that
        scores."""
        return self.offline.count_parameters()

    @property
    def joint_tokenizer(self) -> Callable[[Sequence[str]], Int[np.ndarray, "t l"]]:
        """Tokenizer of the joint encoder."""
        return self.offline.joint_tokenizer

    # --- images and texts, by JAX -----------------------------------------------------------------

    def encode_images(self, images: UInt8[np.ndarray, "n s s 3"] | Frames) -> Encoded:
        """Compressed tokens, embeddings and projections of resized images, or of videos, all
        float32."""
        return self.offline.encode_images(images)

    def encode_pixels(self, pixel_values: Float32[np.ndarray, "n s s 3"]) -> Encoded:
        """As `encode_images`, of pixels that are normalised already."""
        return self.offline.encode_pixels(pixel_values)

    def encode_each(
        self, batches: Iterable[T], images: Callable[[T], UInt8[np.ndarray, "b s s 3"] | Frames]
    ) -> Iterator[tuple[T, Encoded]]:
        """Yield each batch with its images encoded, in order."""
        return self.offline.encode_each(batches, images)

    def embed_texts(self, captions: Sequence[str]) -> Float32[np.ndarray, "n e"]:
        """First-stage embeddings of texts, unit length."""
        return self.offline.embed_texts(captions)

    def encode_texts(self, captions: Sequence[str]) -> Embedded:
        """First-stage embeddings of texts, and the projections that codes are made of."""
        return self.offline.encode_texts(captions)

    # --- pairs, by ONNX Runtime -------------------------------------------------------------------

    def score_pairs(
        self,
        ids: Int[np.ndarray, "t l"],
        tokens: TokenTable,
        text_index: Int[np.ndarray, " p"],
        image_index: Int[np.ndarray, " p"],
        similarities: Float[np.ndarray, " p"] | None = None,
    ) -> Float32[np.ndarray, " p"]:
        """Match logits of the pairs (ids[text_index], tokens[image_index]).

        Each caption is read once; of `tokens` only the rows asked for are.

        Raises:
            ValueError: the model has a similarity prior, and there are no cosines.
        """
        cosines, run = required_cosines(self.config, similarities), self._pairs.run
        logits = np.empty(len(text_index), np.float32)
        texts: dict[int, Inputs] = {}
        by_caption = np.argsort(text_index, kind="stable")
        for start in range(0, len(by_caption), GATHERED):
            pairs = by_caption[start : start + GATHERED]
            texts = self._read(ids, np.unique(text_index[pairs]).tolist(), texts)
            gathered = _as_float32(tokens[image_index[pairs]])
            calls = [
                {**texts[caption], "tokens": self._present(gathered[i : i + 1])}
                for i, caption in enumerate(text_index[pairs].tolist())
            ]
            if cosines is not None:
                for call, cosine in zip(calls, cosines[pairs, None], strict=True):
                    call["similarities"] = cosine
            scored = self._threads.map(lambda call: run(["logits"], call)[0], calls)
            logits[pairs] = np.concatenate(list(scored))
        return logits

    def _present(self, tokens: Float32[np.ndarray, "1 m d"]) -> Float32[np.ndarray, "1 r d"]:
        """Rows of the frames that a video has; all of an image."""
        if not self.config.may_miss_frames:
            return tokens
        return tokens[:, : max(int(tokens[0].any(axis=-1).sum()), 1)]

    def _read(
        self, ids: Int[np.ndarray, "t l"], captions: list[int], texts: dict[int, Inputs]
    ) -> dict[int, Inputs]:
        """Captions as pairs take them, by their rows in `ids`: `text`, which is computed before
        they meet images, and of a captioner `ids`. `texts` are some that were read before."""
        config, pad = self.config, self.config.joint_encoder.pad_token_id
        run = self._text.run if config.encodes_captions or not config.captioner else None

        def read(caption: int) -> Inputs:
            length = max(int((ids[caption] != pad).sum()), 1)
            own = {"ids": ids[caption, :length][None].astype(np.int64)}
            text = {"text": run(["text"], own)[0]} if run else {}
            return {**own, **text} if config.captioner else text

        unread = [caption for caption in captions if caption not in texts]
        known = {caption: texts[caption] for caption in captions if caption in texts}
        return known | dict(zip(unread, self._threads.map(read, unread), strict=True))

    @cached_property
    def _text(self) -> Any:
        return self.export.session("text")

    @cached_property
    def _pairs(self) -> Any:
        return self.export.session("pairs")

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(usable_cores(), "onnx")

    def warm(self, tokens: TokenTable) -> None:
        """Make what scoring of `tokens` needs, and compile the embedding of texts."""
        one = np.zeros(1, np.int64)
        self.score_pairs(np.ones((1, 2), np.int32), tokens, one, one, np.zeros(1))
        for size in TEXT_BATCHES:
            self.embed_texts(["warm"] * size)

    def warm_images(self) -> None:
        """Compile whatever encoding of images will need."""
        self.offline.warm_images()


def _as_float32(tokens: Any) -> Float32[np.ndarray, "b m d"]:
    """Gathered tokens in the form that the graph takes, whatever they are stored as."""
    plain = unpack(tokens) if isinstance(tokens, PackedTokens) else tokens
    return np.asarray(plain, np.float32)
