"""`ImageIndex`: a token store opened for searching."""

import os
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from edje_jax.evaluation.combination import Background
from edje_jax.first_stage.screening import PLAIN, Screening, Searched
from edje_jax.index.caption_columns import CODES
from edje_jax.index.column import Column
from edje_jax.index.covering import Covering
from edje_jax.index.files import files_of
from edje_jax.index.first_stages import check_bits, open_first_stage
from edje_jax.index.selection import Selection, select
from edje_jax.index.store import Store
from edje_jax.models.token_formats import PackedTokens

FILTERS = 8
"""Filters whose images are remembered."""
if TYPE_CHECKING:
    from edje_jax.index.in_milvus import InMilvus

TokensOn = Literal["disk", "host", "device"]


class ImageIndex:
    """Images that were encoded once, and the first stage over them.

        index = ImageIndex.open("my-index")
        reranker.search(index, ["two dogs"], k=100, top_k=10)

    Images count from 0 in the order in which they were indexed; removed ones are left out.
    """

    def __init__(
        self,
        store: Store,
        tokens_on: TokensOn = "disk",
        first_stage: str = "exact",
        bits: int | None = None,
        screening: Screening = PLAIN,
    ):
        self.bits = check_bits(store, first_stage, bits)
        """Length of the codes that the first stage reads; None where it reads embeddings."""
        self.store = store
        self.tokens = StoredTokens(store, tokens_on)
        self.first_stage = first_stage
        """Name of the first stage."""
        self.screening = screening

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        tokens_on: TokensOn = "disk",
        first_stage: str = "exact",
        bits: int | None = None,
        screening: Screening = PLAIN,
        cache: str | os.PathLike[str] | None = None,
        cache_gigabytes: float | None = None,
    ) -> "ImageIndex":
        """Open what `edje index build` made.

        Args:
            path: a folder, or a URL such as s3://bucket/photos.index, whose files are fetched into
                a cache when they are needed.
            tokens_on: where tokens rest: on "disk" (memory-mapped), or in the memory of the "host"
                or of the "device". Results are the same.
            first_stage: a name in `edje_jax.first_stage.registry.FIRST_STAGES`. All but "exact" are
                kept in the index: the first opening with one builds it.
            bits: length of codes, for a first stage that reads these (default: the longest).
            screening: numbers of candidates of such a first stage, which are then rescored.
            cache: folder for copies of remote files (default: in the user's cache folder).
            cache_gigabytes: room that they may take (default: `files.CACHE_GIGABYTES`).

        Raises:
            BadStore: no finished index, a damaged one, or one without the codes that are asked for.
            OSError: a remote index cannot be reached, or its files not be kept.
            ModuleNotFoundError: a library for such URLs is not installed.
            ValueError: no such first stage, or no codes of that length.
        """
        files = files_of(path, cache, cache_gigabytes)
        return cls(Store(files), tokens_on, first_stage, bits, screening)

    def __len__(self) -> int:
        return len(self.store)

    @cached_property
    def images(self) -> "Covering | InMilvus":
        """First stage over images."""
        return open_first_stage(self.store, self.first_stage, "embeddings", self.bits)

    @cached_property
    def texts(self) -> "Covering | InMilvus":
        """First stage over captions.

        Raises:
            ValueError: the images were indexed without any.
        """
        if len(self) and not len(self.store.captions):
            raise ValueError(
                f"{self.store.files}: no captions in this index, so an image finds none; build it"
                " from a SPEC that has them, such as blip:captions.json"
            )
        return open_first_stage(self.store, self.first_stage, "captions", self.bits)

    @cached_property
    def searched_images(self) -> Searched:
        """First stage over images, with the columns that rescoring reads."""
        return self._searched(self.images, "embeddings")

    @cached_property
    def searched_captions(self) -> Searched:
        """First stage over captions, with the columns that rescoring reads.

        Raises:
            ValueError: the images were indexed without any.
        """
        return self._searched(self.texts, "captions")

    @cached_property
    def background(self) -> Background:
        """Cosines of images with each other."""
        return Background.of(self.store.embeddings)

    def select(
        self, ids: Iterable[str] | None = None, where: str | None = None
    ) -> Selection | None:
        """Images that a search is confined to: see `selection.select`.

        Raises:
            BadWhere: the filter cannot be read, or does not fit the index's metadata.
        """
        if ids is None and where is not None:
            return self._of_filter(where)
        return select(self.store, ids, where)

    @cached_property
    def _of_filter(self) -> Callable[[str], Selection | None]:
        """Images for which a filter holds; the last few filters are remembered."""
        return lru_cache(FILTERS)(lambda where: select(self.store, None, where))

    def _searched(self, stage: "Covering | InMilvus", column: str) -> Searched:
        codes = self.codes(column) if self.bits else None
        return Searched(stage, self.store.column(column), codes, self.bits, self.screening)

    def codes(self, column: str) -> Column:
        """Codes that go with a column of embeddings, of the length that is searched."""
        assert self.bits is not None
        return self.store.column(CODES[column]).beginning(self.bits // 8)


class StoredTokens:
    """Tokens of an index: `tokens[images]` reads the tokens of some images."""

    def __init__(self, store: Store, place: TokensOn):
        self._store = store
        self._held: PackedTokens | None = None
        if place not in ("disk", "host", "device"):
            raise ValueError(f"tokens on {place!r}; they rest on disk, host or device")
        if place != "disk":
            held = store.tokens(np.arange(len(store)))
            self._held = jax.tree.map(jnp.asarray, held) if place == "device" else held

    @property
    def shape(self) -> tuple[int, int, int]:
        """(images, tokens, width)"""
        manifest = self._store.manifest
        return len(self._store), manifest.num_tokens, manifest.width

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, images: Int[np.ndarray, " k"]) -> PackedTokens:
        return self._store.tokens(images) if self._held is None else self._held[images]
