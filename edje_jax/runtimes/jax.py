"""The models behind plain array functions: any number of rows in, NumPy out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import product
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, PyTree, UInt8

from edje_jax.config.model import EdjeConfig, ImageRecipe
from edje_jax.data.buckets import batches, bucket, lengths_up_to
from edje_jax.data.images import normalise
from edje_jax.data.text import BackboneTokenizer, JointTokenizer
from edje_jax.models.edje import Edje
from edje_jax.models.joint_encoder import TextSide
from edje_jax.models.towers import DualTower
from edje_jax.runtimes.dual_encoder import IMAGE_BATCHES, TEXT_BATCHES, DualEncoder
from edje_jax.runtimes.round_robin import default_devices, in_turn, up_to_share
from edje_jax.runtimes.scoring import pair_batches, read_texts, repeat, score, text_batches
from edje_jax.weights.families.registry import make_backbone

T = TypeVar("T")

Texts = Callable[[Int[np.ndarray, " p"], int], Any]
"""(numbers of captions, a device) -> what the joint encoder there takes of them: ids or what it has
read."""


class TokenTable(Protocol):
    """Compressed tokens of many pictures; arrays are one, and so is what a store hands out."""

    def __getitem__(self, rows: Any, /) -> Any:
        """Compressed tokens of some images: an array [k, m, d] or `PackedTokens`."""
        ...


@dataclass(frozen=True)
class Encoded:
    """Compressed tokens and embeddings of n images."""

    tokens: Float[np.ndarray, "n m d"]
    """Compressed tokens."""
    embeddings: Float32[np.ndarray, "n e"]
    """First-stage embeddings, unit length."""


@dataclass(frozen=True)
class Engine:
    """A model and its tokenizers. Cheap to make: compiled programs are shared between engines."""

    config: EdjeConfig
    params: PyTree
    """`adapter` and `joint_encoder`."""
    backbone_params: PyTree
    joint_tokenizer: JointTokenizer
    backbone_tokenizer: BackboneTokenizer
    dtype: jax.typing.DTypeLike = jnp.float32
    """Compute dtype."""
    devices: tuple[Any, ...] = ()
    """jax.Devices that take batches of pairs and of pictures in turn, each with a copy of the
    parameters; () is every accelerator of this process, or one CPU device. Texts are embedded where
    the backbone's parameters are."""

    @property
    def model(self) -> Edje:
        """The joint encoder as a pure function of its parameters."""
        return Edje(self.config, self.dtype)

    @property
    def dual(self) -> DualEncoder:
        """The first stage."""
        return DualEncoder(
            self.config.backbone,
            self.config.image,
            self.backbone_params,
            self.backbone_tokenizer,
            self.dtype,
        )

    @property
    def backbone(self) -> DualTower:
        """The dual encoder as a pure function of its parameters."""
        return make_backbone(self.config.backbone, self.dtype)

    def encode_images(self, images: UInt8[np.ndarray, "n s s 3"]) -> Encoded:
        """Resized uint8 pictures -> compressed tokens and embeddings, both float32."""
        return self._encode(images, self.config.image)

    def encode_pixels(self, pixel_values: Float32[np.ndarray, "n s s 3"]) -> Encoded:
        """Encode pixels that are normalised already."""
        return self._encode(pixel_values, None)

    def encode_each(
        self, batches: Iterable[T], images: Callable[[T], UInt8[np.ndarray, "b s s 3"]]
    ) -> Iterator[tuple[T, Encoded]]:
        """(batch, its pictures encoded), in order, of batches of at most 32 pictures.

        Devices take whole batches in turn, while the next ones are taken from `batches`.
        """
        recipe = self.config.image
        started = in_turn(
            ((batch, images(batch)) for batch in batches),
            lambda batch, place: self._start_encoding(batch[1], recipe, place),
            len(self._places),
        )
        for (batch, pictures), made in started:
            yield batch, _fetch(made, len(pictures))

    def _encode(self, images: np.ndarray, recipe: ImageRecipe | None) -> Encoded:
        encoded = self._room(len(images))
        sizes = up_to_share(IMAGE_BATCHES, len(images), len(self._places))
        started = in_turn(
            batches(np.arange(len(images)), sizes),
            lambda share, place: self._start_encoding(images[share[0]], recipe, place),
            len(self._places),
        )
        for (rows, real), made in started:
            part, rows = _fetch(made, real), rows[:real]
            encoded.tokens[rows], encoded.embeddings[rows] = part.tokens, part.embeddings
        return encoded

    def _room(self, count: int) -> Encoded:
        width, embedding = self.config.joint_encoder.hidden_size, self.config.backbone.text
        return Encoded(
            np.empty((count, self.config.num_tokens, width), np.float32),
            np.empty((count, embedding.projection_size), np.float32),
        )

    def _start_encoding(
        self, images: np.ndarray, recipe: ImageRecipe | None, place: int
    ) -> tuple[Any, Any]:
        """Tokens and embeddings under way on a device, of a batch filled up to a program's size."""
        if not len(images):
            nothing = self._room(0)
            return nothing.tokens, nothing.embeddings
        rows = np.resize(np.arange(len(images)), bucket(len(images), IMAGE_BATCHES))
        params = self._backbone_copies[place], self._copies[place]
        return _encode_images(self.backbone, self.model, recipe, *params, images[rows])

    def embed_texts(self, captions: Sequence[str]) -> Float32[np.ndarray, "n e"]:
        """First-stage text embeddings, unit length."""
        return self.dual.embed_texts(captions)

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
        Where layers are deferred, each caption is read once, by every device that scores it.
        `similarities` are the pairs' cosines, which a model with a similarity prior needs.

        Raises:
            ValueError: the model has a similarity prior, and there are no cosines.
        """
        similarities = self._known(similarities)
        lengths = lengths_up_to(self.config.max_text_length)
        used = (ids != self.config.joint_encoder.pad_token_id).sum(axis=1)
        wanted = np.array([bucket(n, lengths) for n in used])[text_index]
        out = np.empty(len(text_index), np.float32)

        def shares() -> Iterator[tuple[Texts, np.ndarray, int]]:
            for length in np.unique(wanted):
                of_length = np.flatnonzero(wanted == length)
                for texts, pairs in self._texts(ids[:, :length], text_index, of_length):
                    sizes = up_to_share(pair_batches(), len(pairs), len(self._places))
                    for rows, real in batches(pairs, sizes):
                        yield texts, rows, real

        def start(share: tuple[Texts, np.ndarray, int], place: int) -> Array:
            texts, rows, real = share
            known = None if similarities is None else similarities[rows]
            text = texts(text_index[rows], place)
            return self._start_scoring(text, tokens, image_index[rows], real, place, known)

        for (_, rows, real), logits in in_turn(shares(), start, len(self._places)):
            out[rows[:real]] = np.asarray(logits)[:real]
        return out

    def _start_scoring(
        self,
        text: Any,
        tokens: TokenTable,
        image_index: Int[np.ndarray, " p"],
        real: int,
        place: int,
        similarity: Float32[np.ndarray, " p"] | None = None,
    ) -> Array:
        """Logits under way on a device, of a batch filled up to a program's size."""
        # Gathered before, as the table's size would be compiled into the program.
        gathered = jax.device_put(tokens[image_index], self._places[place])
        return score(self.model, self._copies[place], real, text, gathered, similarity)

    def _known(
        self, similarities: Float[np.ndarray, " p"] | None
    ) -> Float32[np.ndarray, " p"] | None:
        """Cosines for the similarity prior; None for a model without."""
        if not self.config.similarity_prior:
            return None
        if similarities is None:
            raise ValueError(
                "this model has a similarity prior: it scores a pair with the first stage's cosine"
                " of it; give similarities, products of embed_texts and embed_images"
            )
        return np.asarray(similarities, np.float32)

    def _texts(
        self,
        ids: Int[np.ndarray, "t l"],
        text_index: Int[np.ndarray, " p"],
        pairs: Int[np.ndarray, " n"],
    ) -> Iterator[tuple[Texts, Int[np.ndarray, " b"]]]:
        """Some of the pairs at a time, with their captions: ids as they are, or what the deferred
        layers make of as many captions as they read at once."""
        if not self._reads_ahead:
            yield (lambda index, place: ids[index]), pairs
            return
        pairs = pairs[np.argsort(text_index[pairs], kind="stable")]
        asked, first = np.unique(text_index[pairs], return_index=True)
        most = max(text_batches())
        for start in range(0, len(asked), most):
            stop = first[start + most] if start + most < len(asked) else len(pairs)
            yield self._reading(ids, asked[start : start + most]), pairs[first[start] : stop]

    def _reading(self, ids: Int[np.ndarray, "t l"], asked: Int[np.ndarray, " n"]) -> Texts:
        """Captions of which each is read once by each device: the ascending rows `asked`."""
        rows = np.resize(asked, bucket(len(asked), text_batches()))

        @cache
        def read(place: int) -> TextSide:
            return read_texts(self.model, self._copies[place], len(asked), ids[rows])

        return lambda index, place: repeat(read(place), np.searchsorted(asked, index))

    @cached_property
    def _copies(self) -> tuple[PyTree, ...]:
        return tuple(jax.device_put(self.params, device) for device in self._places)

    @cached_property
    def _backbone_copies(self) -> tuple[PyTree, ...]:
        return tuple(jax.device_put(self.backbone_params, device) for device in self._places)

    @property
    def _places(self) -> tuple[Any, ...]:
        return self.devices or default_devices()

    @property
    def _reads_ahead(self) -> bool:
        """Whether captions are read before they meet a picture."""
        return self.config.joint_encoder.deferred_layers > 0

    def warm(self, tokens: TokenTable) -> None:
        """Compile every shape that scoring and embedding texts will ask for, on every device.

        `tokens` are those that will be scored: their format is part of the program.
        """
        lengths, one = lengths_up_to(self.config.max_text_length), np.zeros(1, np.int64)
        for place, length in product(range(len(self._places)), lengths):
            ids = np.zeros((max(text_batches()), length), np.int32)
            asked = [np.arange(size) for size in text_batches()] if self._reads_ahead else []
            readings = [self._reading(ids, rows) for rows in asked]
            for size in pair_batches():
                for reading in readings:
                    reading(one.repeat(size), place)
                text = readings[0](one.repeat(size), place) if readings else ids[:size]
                known = self._known(np.zeros(size))
                self._start_scoring(text, tokens, one.repeat(size), 1, place, known)
        for size in TEXT_BATCHES:
            self.embed_texts(["warm"] * size)

    def warm_images(self) -> None:
        """Compile every shape that encoding pictures will ask for, on every device."""
        side = self.config.image.size
        for size in IMAGE_BATCHES:
            self.encode_images(np.zeros((size * len(self._places), side, side, 3), np.uint8))


def _fetch(made: tuple[Any, Any], real: int) -> Encoded:
    tokens, embeddings = jax.device_get(made)
    return Encoded(tokens[:real], embeddings[:real])


@partial(jax.jit, static_argnums=(0, 1, 2))
def _encode_images(backbone, model, recipe, backbone_params, params, images):
    pixels = images if recipe is None else normalise(images, recipe)
    image = backbone.bind({"params": backbone_params}).encode_image(pixels)
    tokens = model.bind({"params": params}).compress(image.tokens)
    return tokens.astype(jnp.float32), image.embedding
