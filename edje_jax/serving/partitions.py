"""Search of an index whose parts are open in other processes: the front that asks them.

A search goes to the parts twice. First every part finds its k nearest, of which the k nearest of
all are kept: the candidates that one machine finds, too. Then each part scores the candidates that
lie in it, so that tokens stay where they are. What needs the model alone, embeddings of texts and
encoding of sent images, is asked of one part after the other.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

from edje_jax.config.calibration import Calibration
from edje_jax.config.model import EdjeConfig
from edje_jax.first_stage.base import Nearest, merge_nearest, no_neighbours, pad_nearest
from edje_jax.first_stage.screening import PLAIN, Screening
from edje_jax.index.image_index import ImageIndex
from edje_jax.index.partition import Partition, ShardRows
from edje_jax.index.places import Places
from edje_jax.index.selection import Selection
from edje_jax.index.store import Store, check_model
from edje_jax.models.token_formats import PackedTokens
from edje_jax.runtimes.base import Embedded, Encoded
from edje_jax.search.reranker import Reranker
from edje_jax.serving.service import Service


class Question(NamedTuple):
    """Call of a method of the `OpenPartition` of some number."""

    partition: int
    method: str
    arguments: tuple[Any, ...]


Ask = Callable[[Sequence[Question]], list[Any]]
"""Function that asks several questions at once, and returns an answer for each."""


class OpenPartition:
    """Model and part of an index in the process that computes for them.

    Raises:
        BadStore: the part cannot be opened, or was built with another model.
        ValueError, ModuleNotFoundError: as for `ImageIndex`.
    """

    def __init__(self, reranker: Reranker, partition: Partition, **options: Any):
        self._runtime, self._partition = reranker.runtime, partition
        self._index = ImageIndex(partition.open(), **options)
        check_model(self._index.store, reranker.stamp)
        self._service = Service(reranker, self._index)

    def warm(self) -> None:
        """Compile whatever questions will need."""
        self._service.compile()

    def nearest(
        self, column: str, queries: np.ndarray, k: int, chosen: ShardRows | None
    ) -> tuple[Float32[np.ndarray, "q k"], ShardRows]:
        """Similarities and rows of the k nearest, among the chosen ones if some are."""
        store = self._index.store
        places = store.places if column == "embeddings" else store.caption_places
        selection = None
        if chosen is not None:
            numbers = self._partition.numbered(places, chosen)
            selection = Selection(numbers, numbers, store)
        if len(places):
            stage = self._index.images if column == "embeddings" else self._index.texts
            near = stage.nearest(queries, k, selection)
        else:
            near = no_neighbours(len(queries), 0)
        return near.similarities, self._partition.named(places, near.rows)

    def score_rows(
        self,
        ids: Int[np.ndarray, "t l"],
        rows: ShardRows,
        text_index: Int[np.ndarray, " p"],
        image_index: Int[np.ndarray, " p"],
        similarities: Float[np.ndarray, " p"] | None,
    ) -> Float32[np.ndarray, " p"]:
        """Match logits of pairs of texts and of `rows[image_index]`."""
        images = self._partition.numbered(self._index.store.places, rows)
        tokens = self._index.tokens
        return self._runtime.score_pairs(ids, tokens, text_index, images[image_index], similarities)

    def of_model(self, method: str, *arguments: Any) -> Any:
        """Result of a method of the runtime."""
        return getattr(self._runtime, method)(*arguments)


class PartitionedFirstStage:
    """First stage over all parts of an index; `nearest` is `Covering.nearest`."""

    def __init__(self, ask: Ask, partitions: int, column: str, places: Places):
        self._ask, self._partitions = ask, partitions
        self._column, self._places = column, places

    def __len__(self) -> int:
        return len(self._places)

    def nearest(self, queries: np.ndarray, k: int, selection: Selection | None = None) -> Nearest:
        """The k nearest of each query, among selected ones if some are; equal ones by number."""
        chosen = None if selection is None else selection.numbers
        k = min(k, len(self) if chosen is None else len(chosen))
        if not k or not len(queries):
            return no_neighbours(len(queries), k)
        rows = None if chosen is None else ShardRows(*self._places.locate(chosen))
        asked = []
        for part in range(self._partitions):
            own = rows
            if rows is not None:
                here = rows.positions % self._partitions == part
                own = ShardRows(rows.positions[here], rows.rows[here])
            asked.append(Question(part, "nearest", (self._column, queries, k, own)))
        found = [Nearest(near, self._numbers(own)) for near, own in self._ask(asked)]
        return pad_nearest(merge_nearest(found, k), k)

    def _numbers(self, found: ShardRows) -> Int[np.ndarray, "q k"]:
        there = found.positions >= 0
        numbers = np.full(found.rows.shape, -1, np.int64)
        numbers[there] = self._places.number(found.positions[there], found.rows[there])
        return numbers


class PartitionedTokens:
    """Tokens of an index that stay in its parts: `tokens[images]` names their rows."""

    def __init__(self, store: Store):
        self._store = store
        self.shape = (len(store), store.manifest.num_tokens, store.manifest.width)

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, images: Int[np.ndarray, " k"]) -> ShardRows:
        return ShardRows(*self._store.places.locate(images))


class PartitionedIndex(ImageIndex):
    """Index that other processes search; words and thumbnails are at hand here."""

    def __init__(
        self,
        ask: Ask,
        partitions: int,
        store: Store,
        first_stage: str = "exact",
        bits: int | None = None,
        screening: Screening = PLAIN,
    ):
        super().__init__(store, "disk", first_stage, bits, screening)
        self._stage = partial(PartitionedFirstStage, ask, partitions)
        self.tokens = PartitionedTokens(store)  # type: ignore[assignment]

    @cached_property
    def images(self) -> PartitionedFirstStage:  # type: ignore[override]
        """First stage over images."""
        return self._stage("embeddings", self.store.places)

    @cached_property
    def texts(self) -> PartitionedFirstStage:  # type: ignore[override]
        """First stage over captions."""
        return self._stage("captions", self.store.caption_places)


class PartitionedRuntime:
    """Runtime whose computations other processes do; the tokenizer is here."""

    def __init__(self, ask: Ask, partitions: int, reranker: Reranker):
        self._ask, self._partitions = ask, partitions
        self._next = itertools.count()
        self._runtime = reranker.runtime

    @property
    def config(self) -> EdjeConfig:
        """Shapes of every part."""
        return self._runtime.config

    @property
    def joint_tokenizer(self) -> Callable[[Sequence[str]], Int[np.ndarray, "t l"]]:
        """Tokenizer of the joint encoder."""
        return self._runtime.joint_tokenizer

    def encode_images(self, images: np.ndarray) -> Encoded:
        """Encode images that were resized to the recipe's size."""
        return self._of_model("encode_images", images)

    def encode_texts(self, captions: Sequence[str]) -> Embedded:
        """First-stage embeddings and projections of texts."""
        return self._of_model("encode_texts", list(captions))

    def embed_texts(self, captions: Sequence[str]) -> Float32[np.ndarray, "n e"]:
        """First-stage embeddings of texts."""
        return self._of_model("embed_texts", list(captions))

    def score_pairs(
        self,
        ids: Int[np.ndarray, "t l"],
        tokens: Any,
        text_index: Int[np.ndarray, " p"],
        image_index: Int[np.ndarray, " p"],
        similarities: Float[np.ndarray, " p"] | None = None,
    ) -> Float32[np.ndarray, " p"]:
        """Match logits of pairs, each computed where its tokens are."""
        used, place = np.unique(image_index, return_inverse=True)
        found = tokens[used]
        if not isinstance(found, ShardRows):
            return self._of_model("score_pairs", ids, found, text_index, place, similarities)
        logits = np.empty(len(place), np.float32)
        asked, pairs = [], []
        owner = found.positions % self._partitions
        for part in np.unique(owner).tolist():
            own = np.flatnonzero(owner == part)
            here = np.flatnonzero(owner[place] == part)
            known = None if similarities is None else similarities[here]
            rows = ShardRows(found.positions[own], found.rows[own])
            within = np.searchsorted(own, place[here])
            asked.append(Question(part, "score_rows", (ids, rows, text_index[here], within, known)))
            pairs.append(here)
        for here, answer in zip(pairs, self._ask(asked), strict=True):
            logits[here] = answer
        return logits

    def _of_model(self, method: str, *arguments: Any) -> Any:
        part = next(self._next) % self._partitions
        return self._ask([Question(part, "of_model", (method, *arguments))])[0]


class PartitionedReranker:
    """Model whose computations other processes do."""

    def __init__(self, ask: Ask, partitions: int, reranker: Reranker):
        self.runtime = PartitionedRuntime(ask, partitions, reranker)
        self.source = reranker.source
        self.calibration: Calibration = reranker.calibration
        self.config = reranker.config


class PartitionedService(Service):
    """Service whose computations the processes of an index's parts do."""

    def __init__(self, reranker: PartitionedReranker, index: PartitionedIndex):
        super().__init__(reranker, index)  # type: ignore[arg-type]

    def _tokens(self, rows: Int[np.ndarray, " n"]) -> PackedTokens:
        return self.index.store.tokens(rows)

    def warm(self, ks: Sequence[int] = ()) -> None:
        """Open metadata; each part has compiled before it was asked anything."""
        self.open_metadata()
