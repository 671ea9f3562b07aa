"""The model folder as a sentence-transformers `CrossEncoder` over (text, image) pairs.

    model = CrossEncoder(FOLDER, trust_remote_code=True)
    model.rank("two dogs", ["dogs.jpg", "boat.jpg"])        # images: paths, PIL images,
    tokens = model[0].encode(["dogs.jpg", "boat.jpg"])      # or compressed tokens made before
    model.predict([("two dogs", tokens[0]), ("two dogs", tokens[1])])

An image that several pairs of a batch share is encoded once; tokens [m, d] skip the backbone. Of a
model of videos a document may also be a list of images, a video's frames in their order.
"""

import os
from typing import Any

import torch
from sentence_transformers.base.modules import InputModule
from torch import Tensor
from transformers.dynamic_module_utils import get_class_from_dynamic_module


class EdjeCrossEncoder(InputModule):
    """Pairs in, logits out as "scores": match logits, calibrated if the folder says how, so that
    their sigmoid, which `predict` and `rank` give, is the score."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **options) -> "EdjeCrossEncoder":
        """From a folder or hub id; `modeling_edje.py` lies beside this file."""
        kept = ("token", "cache_folder", "revision", "local_files_only")
        place = {name: options[name] for name in kept if options.get(name) is not None}
        place["cache_dir"] = place.pop("cache_folder", None)
        kind = get_class_from_dynamic_module("modeling_edje.EdjeModel", model_name_or_path, **place)
        return cls(kind.from_pretrained(model_name_or_path, **place).eval())

    @property
    def modalities(self) -> list:
        """A query is text; a document is an image."""
        return ["text", "image", ("text", "image")]

    @property
    def tokenizer(self) -> Any:
        """The joint encoder's."""
        return self.model.tokenizer

    @torch.inference_mode()
    def encode(self, images: list) -> Tensor:
        """Paths or PIL images, or lists of them -> compressed tokens [N, m, d]: documents to rank
        by later."""
        return self.model.encode_image(**self._pixels(images))

    def _pixels(self, images: list) -> dict[str, Tensor]:
        """Pixel values of images; of a model of videos also which frames are there."""
        if not self.model.config.video:
            return {"pixel_values": self.model.preprocess(images)}
        frames = [image if isinstance(image, list) else [image] for image in images]
        return self.model.preprocess_videos(frames)

    def preprocess(self, inputs, prompt: str | None = None, **_) -> dict[str, Tensor]:
        """(text, image) pairs -> ids, mask and compressed tokens.

        Raises:
            TypeError: a pair is not (text, image), or holds tokens where the score needs the
                image.
        """
        texts = [(prompt or "") + _text(query) for query, _ in inputs]
        documents = [_image(document) for _, document in inputs]
        with_cosines = bool(
            self.model.config.similarity_prior or self.model.calibration["similarity_weight"]
        )
        if with_cosines and any(_is_tokens(document) for document in documents):
            raise TypeError(
                "this model scores a pair with the first stage's cosine too: give images, not"
                " tokens, or set similarity_weight in its calibration.json to 0 if it has one"
            )
        images = {_key(d): d for d in documents if not _is_tokens(d)}
        made, embedded = self._encoded(images, with_cosines)
        tokens = [d if _is_tokens(d) else made[_key(d)] for d in documents]
        stacked = torch.stack([t.to(self.model.device, self.model.dtype) for t in tokens])
        features = {**self.model.tokenize(texts), "tokens": stacked}
        if with_cosines:
            vectors = torch.stack([embedded[_key(document)] for document in documents])
            with torch.inference_mode():
                features["similarity"] = (self.model.embed_text(texts) * vectors).sum(dim=1)
        return features

    @torch.inference_mode()
    def _encoded(self, images: dict, embed: bool) -> tuple[dict, dict]:
        """({key: compressed tokens}, {key: first-stage embedding, if asked for}) of images."""
        if not images:
            return {}, {}
        pixels = self._pixels(list(images.values()))
        tokens = self.model.encode_image(**pixels)
        vectors = self.model.embed_image(**pixels, tokens=tokens) if embed else []
        return dict(zip(images, tokens, strict=True)), dict(zip(images, vectors, strict=False))

    def forward(self, features: dict[str, Tensor], **_) -> dict[str, Tensor]:
        """Logits, before any activation."""
        # Pairs of one caption, as a ranking has them, read it once.
        texts = torch.stack([features["input_ids"], features["attention_mask"]], dim=1)
        texts, place = torch.unique(texts, dim=0, return_inverse=True)
        read = self.model.read_text(texts[:, 0], texts[:, 1])
        known = features.get("similarity")
        logits = self.model.score_read(*(x[place] for x in read), features["tokens"], known)
        if known is not None:
            logits = self.model.mixed(logits, known)
        return {**features, "scores": self.model.calibrated(logits)[:, None]}

    def save(self, output_path: str, *args, **kwargs) -> None:
        """
        Raises:
            NotImplementedError: always; a model folder is written by edje_jax.
        """
        raise NotImplementedError("copy the model folder, or write one with `edje convert`")


def _text(query: Any) -> str:
    if isinstance(query, dict) and set(query) == {"text"}:
        query = query["text"]
    if not isinstance(query, str):
        raise TypeError(f"a pair is (text, image); its first half is a {type(query).__name__}")
    return query


def _image(document: Any) -> Any:
    """Out of {"image": ...}; paths and PIL images otherwise."""
    if isinstance(document, dict) and set(document) == {"image"}:
        document = document["image"]
    return document


def _is_tokens(document: Any) -> bool:
    return isinstance(document, Tensor) and document.ndim == 2


def _key(document: Any) -> Any:
    """Equal for documents that are the same image."""
    return os.fspath(document) if isinstance(document, str | os.PathLike) else id(document)
