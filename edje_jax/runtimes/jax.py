"""The runtime of JAX: lists of any length in batches of a few fixed shapes, on every device."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int, PyTree, UInt8

from edje_jax.config.model import EdjeConfig, ImageRecipe, InferencePrecision
from edje_jax.data.buckets import batches, bucket, lengths_up_to
from edje_jax.data.text import BackboneTokenizer, JointTokenizer
from edje_jax.models.pair_scorer import PairScorer
from edje_jax.models.scorers import make_scorer
from edje_jax.models.towers import DualTower
from edje_jax.runtimes.base import Embedded, Encoded, TokenTable, required_cosines
from edje_jax.runtimes.device_params import DeviceParams, Parts
from edje_jax.runtimes.devices import Compute
from edje_jax.runtimes.dual_encoder import IMAGE_BATCHES, TEXT_BATCHES, DualEncoder
from edje_jax.runtimes.encoding import (
    Images,
    batch_sizes,
    check_images,
    count_images,
    encode_batch,
    take_images,
)
from edje_jax.runtimes.heads import heads_of_images, heads_of_texts
from edje_jax.runtimes.round_robin import default_devices, round_robin, sizes_within_share
from edje_jax.runtimes.scoring import (
    encode_captions,
    gather_rows,
    pair_batches,
    score,
    text_batches,
)
from edje_jax.types import Frames
from edje_jax.weights.families.registry import make_backbone
from edje_jax.weights.folder import Model
from edje_jax.weights.mapping import to_device
from edje_jax.weights.model_stamp import model_fingerprint

T = TypeVar("T")

CaptionsOfPairs = Callable[[Int[np.ndarray, " p"], int], Any]
"""(caption of each pair, device) -> what `score` takes: ids, or encoded captions, on the device."""


class PairBatch(NamedTuple):
    """Pairs that are scored in one call."""

    captions: CaptionsOfPairs
    pairs: Int[np.ndarray, " b"]
    """Positions in the list of all pairs."""
    count: int
    """Number of pairs that count; what follows fills the batch up to a program's size."""


@dataclass(frozen=True)
class JaxRuntime:
    """A model and its tokenizers on JAX devices: see `edje_jax.runtimes.base.Runtime`.

    Cheap to make: runtimes of one shape share their compiled programs.
    """

    config: EdjeConfig
    params: PyTree
    """`adapter`, and `joint_encoder` or `captioner`."""
    backbone_params: PyTree
    joint_tokenizer: JointTokenizer
    backbone_tokenizer: BackboneTokenizer
    scoring: Compute = Compute()
    """Numbers that pairs are scored in, and captions embedded."""
    encoding: Compute = Compute()
    """Numbers that images are encoded in; int8 is for layers of the vision tower."""
    devices: tuple[Any, ...] = ()
    """jax.Devices that take batches of pairs and of images in turn, each with a copy of the
    parameters; () is every accelerator of this process, or one CPU device. Texts are embedded where
    the backbone's parameters are."""
    heads: PyTree | None = None
    """Heads of the first stage (`models.heads.first_stage`), where the config has them."""

    @classmethod
    def of(
        cls,
        model: Model,
        precision: InferencePrecision = "auto",
        encoder_precision: InferencePrecision | None = None,
    ) -> "JaxRuntime":
        """Put a model that was loaded on the device.

        `encoder_precision` is that of images' way to compressed tokens (default: as `precision`,
        but not int8).

        Raises:
            ValueError: there is no such precision.
        """
        scoring = Compute.of(precision)
        encoding = Compute.of(encoder_precision) if encoder_precision else Compute(scoring.dtype)
        config, text = model.config, model.config.backbone.text
        folder, length = model.backbone.folder, text.max_position_embeddings
        params, backbone_params, heads = to_device(
            (model.params, model.backbone.params, model.heads)
        )
        return cls(
            config,
            params,
            backbone_params,
            JointTokenizer(model.tokenizer, config.max_text_length, config.text_recipe),
            BackboneTokenizer(folder, length, text.pad_token_id),
            scoring,
            encoding,
            heads=heads,
        )

    @property
    def model(self) -> PairScorer:
        """Adapter and what scores pairs, as a pure function of their parameters."""
        return make_scorer(self.config, self.scoring.dtype)

    @property
    def backbone(self) -> DualTower:
        """The dual encoder as a pure function of its parameters."""
        return make_backbone(self.config.backbone, self.encoding.dtype)

    @property
    def dual(self) -> DualEncoder:
        """The backbone alone, with its tokenizer."""
        return DualEncoder(
            self.config.backbone,
            self.config.image,
            self.backbone_params,
            self.backbone_tokenizer,
            self.scoring.dtype,
        )

    def fingerprint(self) -> str:
        """32 hex digits over every parameter and shape of the model."""
        parts = (self.params, self.backbone_params)
        # Left out where there are none, so that models older than heads keep their fingerprints.
        parts = parts if self.heads is None else (*parts, self.heads)
        return model_fingerprint(self.config, jax.device_get(parts))

    def count_parameters(self) -> dict[str, int]:
        """{"offline", "online"}: parameters of the part that encodes images and of the one that
        scores; deferred layers and the first stage's heads of captions count as online."""

        def count(tree: PyTree) -> int:
            return sum(leaf.size for leaf in jax.tree.leaves(tree))

        heads = self.heads or {}
        offline = (self.backbone_params, self.params["adapter"], heads.get("image"))
        online = (
            [part for name, part in self.params.items() if name != "adapter"],
            heads.get("text"),
        )
        return {"offline": count(offline), "online": count(online)}

    # --- images and texts -------------------------------------------------------------------------

    def encode_images(self, images: UInt8[np.ndarray, "n s s 3"] | Frames) -> Encoded:
        """Compressed tokens, embeddings and projections of resized images, or of videos, all
        float32."""
        return self._encode(images, self.config.image)

    def encode_pixels(self, pixel_values: Float32[np.ndarray, "n s s 3"]) -> Encoded:
        """As `encode_images`, of pixels that are normalised already."""
        return self._encode(pixel_values, None)

    def encode_each(
        self, batches: Iterable[T], images: Callable[[T], UInt8[np.ndarray, "b s s 3"] | Frames]
    ) -> Iterator[tuple[T, Encoded]]:
        """Yield each batch with its images encoded, in order.

        Devices take whole batches in turn, while the next ones are taken from `batches`.
        """
        recipe = self.config.image
        started = round_robin(
            ((batch, images(batch)) for batch in batches),
            lambda batch, device: self._start_encoding(batch[1], recipe, device),
            len(self._devices),
        )
        for (batch, pixels), arrays in started:
            yield batch, _to_host(arrays, count_images(pixels))

    def embed_texts(self, captions: Sequence[str]) -> Float32[np.ndarray, "n e"]:
        """First-stage embeddings of texts, unit length."""
        return self.encode_texts(captions).embeddings

    def encode_texts(self, captions: Sequence[str]) -> Embedded:
        """First-stage embeddings of texts, and the projections that codes are made of."""
        embeddings, stage = self.dual.embed_texts(captions), self.config.first_stage
        if stage is None:
            return Embedded(embeddings, np.empty((len(embeddings), 0), np.float32))
        return heads_of_texts(stage, self.heads, embeddings)

    def _encode(self, images: Images, recipe: ImageRecipe | None) -> Encoded:
        check_images(self.config, images)
        count = count_images(images)
        encoded = self._allocate(count)
        sizes = sizes_within_share(batch_sizes(images), count, len(self._devices))
        started = round_robin(
            batches(np.arange(count), sizes),
            lambda batch, device: self._start_encoding(
                take_images(images, batch[0]), recipe, device
            ),
            len(self._devices),
        )
        for (rows, count), arrays in started:
            part, rows = _to_host(arrays, count), rows[:count]
            for name, values in vars(part).items():
                getattr(encoded, name)[rows] = values
        return encoded

    def _allocate(self, count: int) -> Encoded:
        """Arrays for `count` images."""
        width, embedding = self.config.joint_encoder.hidden_size, self.config.backbone.text
        return Encoded(
            np.empty((count, self.config.num_tokens, width), np.float32),
            np.empty((count, embedding.projection_size), np.float32),
            np.empty((count, self._bits), np.float32),
        )

    def _start_encoding(
        self, images: Images, recipe: ImageRecipe | None, device: int
    ) -> tuple[Any, ...]:
        """Arrays of `Encoded` under way on a device, of a batch filled up to a program's size."""
        if not (count := count_images(images)):
            return tuple(vars(self._allocate(0)).values())
        rows = np.resize(np.arange(count), bucket(count, batch_sizes(images)))
        filled = take_images(images, rows)
        on = self._on_devices
        params = on.backbone[device], on.compressing[device]
        compressor = make_scorer(self.config, self.encoding.dtype)
        tokens, embeddings = encode_batch(self.backbone, compressor, recipe, *params, filled)
        if (stage := self.config.first_stage) is None:
            return tokens, embeddings, np.empty((len(rows), 0), np.float32)
        heads = on.heads[device]
        return tokens, *heads_of_images(stage, heads, embeddings, tokens)

    # --- pairs ------------------------------------------------------------------------------------
    #
    # published            ids ──────────────────────────── of each pair ──┐
    #                                                                      ├── score ── match logits
    # encodes_captions     ids ── encode_captions ── gather_rows ──────────┤
    #                             once a device      of each pair          │
    # either               tokens ───────────────────────── of each pair ──┘

    def score_pairs(
        self,
        ids: Int[np.ndarray, "t l"],
        tokens: TokenTable,
        text_index: Int[np.ndarray, " p"],
        image_index: Int[np.ndarray, " p"],
        similarities: Float[np.ndarray, " p"] | None = None,
    ) -> Float32[np.ndarray, " p"]:
        """Match logits of the pairs (ids[text_index], tokens[image_index]).

        `ids` are [CLS] caption [SEP] padded to one length; each pair is computed at its own
        caption's bucket. Of tokens in host memory or on disk only the rows asked for are read,
        while the device works on the batch before; a JAX array is gathered from on its device.
        What a caption alone decides (deferred layers, a captioner's score without an image) is
        computed once for each caption, on every device that scores it.
        `similarities` are the pairs' cosines, which a model with a similarity prior needs.

        Raises:
            ValueError: the model has a similarity prior, and there are no cosines.
        """
        cosines = required_cosines(self.config, similarities)
        logits = np.empty(len(text_index), np.float32)

        def start(batch: PairBatch, device: int) -> Array:
            captions = batch.captions(text_index[batch.pairs], device)
            cosine = None if cosines is None else cosines[batch.pairs]
            rows = image_index[batch.pairs]
            return self._start_scoring(captions, tokens, rows, batch.count, device, cosine)

        cut = self._pair_batches(ids, text_index)
        for batch, scored in round_robin(cut, start, len(self._devices)):
            logits[batch.pairs[: batch.count]] = np.asarray(scored)[: batch.count]
        return logits

    def _pair_batches(
        self, ids: Int[np.ndarray, "t l"], text_index: Int[np.ndarray, " p"]
    ) -> Iterator[PairBatch]:
        """All pairs, cut into batches whose captions are padded to one length."""
        lengths = lengths_up_to(self.config.max_text_length)
        used = (ids != self.config.joint_encoder.pad_token_id).sum(axis=1)
        padded = np.array([bucket(n, lengths) for n in used])[text_index]
        for length in np.unique(padded):
            of_length = np.flatnonzero(padded == length)
            for captions, pairs in self._caption_groups(ids[:, :length], text_index, of_length):
                sizes = sizes_within_share(pair_batches(), len(pairs), len(self._devices))
                for rows, count in batches(pairs, sizes):
                    yield PairBatch(captions, rows, count)

    def _caption_groups(
        self,
        ids: Int[np.ndarray, "t l"],
        text_index: Int[np.ndarray, " p"],
        pairs: Int[np.ndarray, " n"],
    ) -> Iterator[tuple[CaptionsOfPairs, Int[np.ndarray, " b"]]]:
        """Groups of the pairs, with their captions: all pairs at once where no captions are encoded
        first, else those of as many captions as are encoded together."""
        if not self.config.encodes_captions:
            yield (lambda index, device: ids[index]), pairs
            return
        pairs = pairs[np.argsort(text_index[pairs], kind="stable")]
        captions, first = np.unique(text_index[pairs], return_index=True)
        most = max(text_batches())
        for start in range(0, len(captions), most):
            stop = first[start + most] if start + most < len(captions) else len(pairs)
            group = self._encoded_captions(ids, captions[start : start + most])
            yield group, pairs[first[start] : stop]

    def _encoded_captions(
        self, ids: Int[np.ndarray, "t l"], captions: Int[np.ndarray, " n"]
    ) -> CaptionsOfPairs:
        """Captions (ascending rows of `ids`) by `PairScorer.encode_text`, once on each device."""
        rows = np.resize(captions, bucket(len(captions), text_batches()))

        @cache
        def encoded(device: int) -> PyTree:
            params = self._on_devices.scoring[device]
            return encode_captions(self.model, params, len(captions), ids[rows])

        return lambda index, device: gather_rows(encoded(device), np.searchsorted(captions, index))

    def _start_scoring(
        self,
        captions: Any,
        tokens: TokenTable,
        image_index: Int[np.ndarray, " p"],
        count: int,
        device: int,
        cosines: Float32[np.ndarray, " p"] | None = None,
    ) -> Array:
        """Logits under way on a device, of a batch filled up to a program's size."""
        # Gathered before, as the table's size would be compiled into `score`.
        there = all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tokens))
        rows = gather_rows(tokens, image_index) if there else tokens[image_index]
        gathered = jax.device_put(rows, self._devices[device])
        params = self._on_devices.scoring[device]
        return score(self.model, params, count, captions, gathered, cosines)

    @property
    def _bits(self) -> int:
        return self.config.first_stage.bits if self.config.first_stage else 0

    # --- devices and programs ---------------------------------------------------------------------

    @property
    def _devices(self) -> tuple[Any, ...]:
        return self.devices or default_devices()

    @cached_property
    def _on_devices(self) -> DeviceParams:
        parts = Parts(self.params, self.backbone_params, self.heads)
        return DeviceParams(parts, self._devices, self.scoring, self.encoding)

    def warm(self, tokens: TokenTable) -> None:
        """Compile every shape that scoring and embedding texts will ask for, on every device.

        `tokens` are those that will be scored: their format is part of the program.
        """
        lengths, one = lengths_up_to(self.config.max_text_length), np.zeros(1, np.int64)
        for device, length in product(range(len(self._devices)), lengths):
            ids = np.zeros((max(text_batches()), length), np.int32)
            sizes = text_batches() if self.config.encodes_captions else ()
            groups = [self._encoded_captions(ids, np.arange(size)) for size in sizes]
            for size in pair_batches():
                for group in groups:
                    group(one.repeat(size), device)
                captions = groups[0](one.repeat(size), device) if groups else ids[:size]
                cosines = required_cosines(self.config, np.zeros(size))
                self._start_scoring(captions, tokens, one.repeat(size), 1, device, cosines)
        for size in TEXT_BATCHES:
            self.embed_texts(["warm"] * size)

    def warm_images(self) -> None:
        """Compile every shape that encoding images will ask for, on every device."""
        side = self.config.image.size
        for size in IMAGE_BATCHES:
            self.encode_images(np.zeros((size * len(self._devices), side, side, 3), np.uint8))


def _to_host(arrays: tuple[Any, ...], count: int) -> Encoded:
    """The first `count` rows of all arrays in host memory, as soon as they are computed."""
    return Encoded(*(array[:count] for array in jax.device_get(arrays)))
