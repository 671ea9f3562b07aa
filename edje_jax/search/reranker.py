"""`Reranker`: the model as users hold it. Pictures, texts, and the scores between them."""

import os
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Float32

from edje_jax.config.model import EdjeConfig, Precision
from edje_jax.data.images import ImageLike
from edje_jax.data.text import BackboneTokenizer, JointTokenizer
from edje_jax.index.image_index import ImageIndex
from edje_jax.index.store import check_model
from edje_jax.runtimes.devices import compute_dtype, log_devices
from edje_jax.runtimes.jax import Encoded, Engine
from edje_jax.runtimes.round_robin import default_devices
from edje_jax.search.cascade import search_images, search_texts
from edje_jax.search.inputs import Pair, as_pairs, as_text, as_texts, as_tokens, read_images
from edje_jax.search.results import listed, sigmoid
from edje_jax.weights.folder import Model, load_model
from edje_jax.weights.mapping import to_device
from edje_jax.weights.model_stamp import model_fingerprint, model_stamp

Tokens = Float[Array, "n m d"] | Float[np.ndarray, "n m d"] | Iterable[Float[np.ndarray, "m d"]]
"""Compressed tokens of several images."""


class Reranker:
    """Scores texts against pictures that were encoded once.

        reranker = Reranker.from_pretrained("runs/demo/model")
        tokens = reranker.encode_images(["dogs.jpg", "boat.jpg"])
        reranker.score_matrix(["two dogs", "a boat"], tokens)

    Images may be paths, PIL images, file contents or uint8 [H, W, 3]; texts, images and pairs come
    in any iterable, which is read once: lists, generators, `zip`, arrays, columns of a data frame.
    Scores are raw match logits, float32; `predict` and `rank` give their sigmoid. Texts and pairs
    are padded to a few fixed shapes, so that calls of any size reuse the same compiled programs.
    """

    def __init__(self, model: Model, precision: Precision = "auto"):
        config = model.config
        text = config.backbone.text
        dtype = compute_dtype(precision)
        log_devices(dtype, len(default_devices()))
        params, backbone_params = to_device((model.params, model.backbone.params))
        self.engine = Engine(
            config,
            params,
            backbone_params,
            JointTokenizer(model.tokenizer, config.max_text_length),
            BackboneTokenizer(
                model.backbone.folder, text.max_position_embeddings, text.pad_token_id
            ),
            dtype,
        )
        self.source = model.source

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], *, precision: Precision = "auto"
    ) -> "Reranker":
        """Load a model folder, a training workdir, or a hub id.

        Raises:
            FileNotFoundError, ValueError, BadWeights, WeightMismatch: see `load_model`.
        """
        return cls(load_model(os.fspath(name)), precision)

    @property
    def config(self) -> EdjeConfig:
        """Shapes of every part."""
        return self.engine.config

    # --- offline ----------------------------------------------------------------------------------

    def encode_images(
        self,
        images: Iterable[ImageLike] | None = None,
        *,
        pixel_values: Float32[np.ndarray, "n s s 3"] | None = None,
        dtype: jax.typing.DTypeLike = np.float32,
    ) -> Float[np.ndarray, "n m d"]:
        """Compressed tokens of pictures, or of pixels that are normalised already; after the
        deferred layers, where the model has any.

        Raises:
            BadImage: an image cannot be read; the message says which.
            ValueError: a single image, pixels of another shape than the model takes, or neither or
                both given.
        """
        return self._encode(images, pixel_values).tokens.astype(dtype)

    def embed_images(
        self,
        images: Iterable[ImageLike] | None = None,
        *,
        pixel_values: Float32[np.ndarray, "n s s 3"] | None = None,
    ) -> Float32[np.ndarray, "n e"]:
        """First-stage embeddings, unit length."""
        return self._encode(images, pixel_values).embeddings

    def embed_texts(self, texts: Iterable[str]) -> Float32[np.ndarray, "n e"]:
        """First-stage embeddings, unit length; their products with pictures' are cosines."""
        return self.engine.embed_texts(as_texts(texts))

    # --- online -----------------------------------------------------------------------------------

    def score(self, texts: Iterable[str], tokens: Tokens) -> Float32[np.ndarray, " n"]:
        """Match logits, pair by pair.

        Raises:
            ValueError: there are not as many texts as images, or the tokens are another model's.
        """
        texts, stored = as_texts(texts), self._tokens(tokens)
        if len(texts) != len(stored):
            raise ValueError(
                f"score takes pairs: {len(texts)} texts for {len(stored)} pictures; for every text"
                " against every picture use score_matrix"
            )
        rows = np.arange(len(texts))
        return self._score(texts, stored, rows, rows)

    def score_matrix(self, texts: Iterable[str], tokens: Tokens) -> Float32[np.ndarray, "t n"]:
        """Match logits of every text against every image."""
        texts, stored = as_texts(texts), self._tokens(tokens)
        shape = (len(texts), len(stored))
        text_index, image_index = (index.reshape(-1) for index in np.indices(shape))
        return self._score(texts, stored, text_index, image_index).reshape(shape)

    def predict(
        self, pairs: Iterable[Pair] | Pair, *, raw_scores: bool = False
    ) -> Float32[np.ndarray, " n"] | np.float32:
        """Probability that each (text, image) pair matches, or its logit.

        A single pair gives a single number, as in sentence-transformers. An image that stands in
        several pairs is encoded once.

        Raises:
            BadImage: an image cannot be read; the message says of which pair.
            ValueError: something is no pair of a text and an image.
        """
        listed, single = as_pairs(pairs)
        images: list[ImageLike] = []
        place: dict[Any, int] = {}
        names, rows = [], []
        for i, (_, image) in enumerate(listed):
            key = os.fspath(image) if isinstance(image, str | os.PathLike) else id(image)
            if key not in place:
                place[key] = len(images)
                images.append(image)
                names.append("the image of the pair" if single else f"the image of pairs[{i}]")
            rows.append(place[key])
        pixels = read_images(images, self.config.image, names)
        tokens = self.engine.encode_images(pixels).tokens
        texts = [text for text, _ in listed]
        logits = self._score(texts, tokens, np.arange(len(texts)), np.array(rows, int))
        scores = logits if raw_scores else sigmoid(logits)
        return scores[0] if single else scores

    def rank(
        self, text: str, images: Iterable[ImageLike], *, top_k: int | None = None
    ) -> list[dict[str, Any]]:
        """Images by falling probability: [{"corpus_id", "score"}, ...].

        The form of sentence-transformers' `CrossEncoder.rank`. Ties keep the order given.

        Raises:
            BadImage: an image cannot be read; the message says which.
        """
        texts = [as_text(text, "text")]
        scores = sigmoid(self.score_matrix(texts, self.encode_images(images))[0])
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [{"corpus_id": int(i), "score": float(scores[i])} for i in order]

    def search(
        self, index: ImageIndex, queries: Iterable[str], *, k: int = 100, top_k: int = 10
    ) -> list[list[dict[str, Any]]]:
        """The pictures of an index that texts describe.

        For each query its k nearest by embedding are reranked; the best `top_k` come back as
        {"id", "score", "similarity", "base_rank"}: probability, cosine, and place (from 1) among
        the k before they were reranked. Equal scores keep the first stage's order.

        Raises:
            BadStore: the index was built with another model.
        """
        check_model(index.store, self.stamp)
        found, _ = search_images(self.engine, index, as_texts(queries), k)
        return [
            [
                {"id": index.store.row(int(picture)).id, **scores}
                for picture, scores in listed(one, top_k)
            ]
            for one in found
        ]

    def search_captions(
        self, index: ImageIndex, images: Iterable[ImageLike], *, k: int = 100, top_k: int = 10
    ) -> list[list[dict[str, Any]]]:
        """The captions of an index that describe pictures, as `search` has it, with "caption".

        "id" is the picture that the caption belongs to.

        Raises:
            BadStore: the index was built with another model.
            BadImage: a picture cannot be read.
            ValueError: the index has no captions.
        """
        check_model(index.store, self.stamp)
        encoded = self._encode(images, None)
        found, _ = search_texts(self.engine, index, encoded.tokens, encoded.embeddings, k)
        out = []
        for one in found:
            results = []
            for row, scores in listed(one, top_k):
                picture, caption = index.store.captions[row]
                results.append({"id": index.store.row(picture).id, "caption": caption, **scores})
            out.append(results)
        return out

    @property
    def stamp(self) -> dict[str, Any]:
        """The stamp of this model on an index: see `weights.model_stamp.model_stamp`."""
        return model_stamp(self.config, self.fingerprint, self.source)

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over every parameter and shape of the model."""
        params = jax.device_get((self.engine.params, self.engine.backbone_params))
        return model_fingerprint(self.config, params)

    def _encode(self, images, pixel_values) -> Encoded:
        if (images is None) == (pixel_values is None):
            raise ValueError("give either images or pixel_values")
        recipe = self.config.image
        if pixel_values is None:
            return self.engine.encode_images(read_images(images, recipe))
        if not hasattr(pixel_values, "shape"):
            pixel_values = list(pixel_values)
        pixel_values = np.asarray(pixel_values, np.float32)
        shape = (recipe.size, recipe.size, 3)
        if not pixel_values.size:
            pixel_values = pixel_values.reshape(0, *shape)
        if pixel_values.shape[1:] != shape:
            raise ValueError(
                f"pixel_values has shape {pixel_values.shape}; this model takes"
                f" [N, {recipe.size}, {recipe.size}, 3], channels last"
            )
        return self.engine.encode_pixels(pixel_values)

    def _tokens(self, tokens: Tokens) -> Any:
        return as_tokens(tokens, (self.config.num_tokens, self.config.joint_encoder.hidden_size))

    def _score(self, texts, tokens, text_index, image_index) -> np.ndarray:
        return self.engine.score_pairs(self._ids(tuple(texts)), tokens, text_index, image_index)

    def _ids(self, texts: tuple[str, ...]) -> np.ndarray:
        return self.engine.joint_tokenizer(texts)

    @cached_property
    def num_parameters(self) -> dict[str, int]:
        """Parameters of the part that runs offline and of the one that runs online.

        Deferred layers run in both, and are counted as online.
        """

        def count(tree: Any) -> int:
            return sum(leaf.size for leaf in jax.tree.leaves(tree))

        offline = count(self.engine.backbone_params) + count(self.engine.params["adapter"])
        return {"offline": offline, "online": count(self.engine.params["joint_encoder"])}
