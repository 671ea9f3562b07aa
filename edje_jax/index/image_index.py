"""`ImageIndex`: a token store opened for searching."""

import os
from functools import cached_property
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from edje_jax.first_stage.base import FirstStage
from edje_jax.first_stage.registry import ENGINES
from edje_jax.index.store import Store
from edje_jax.models.token_formats import PackedTokens

TokensOn = Literal["disk", "host", "device"]


class ImageIndex:
    """Pictures that were encoded once, and the first stage over them.

        index = ImageIndex.open("my-index")
        reranker.search(index, ["two dogs"], k=100, top_k=10)

    Pictures count from 0 in the order they were indexed; removed ones are left out.
    """

    def __init__(self, store: Store, tokens_on: TokensOn = "disk", first_stage: str = "exact"):
        if first_stage not in ENGINES:
            raise ValueError(
                f"no first stage called {first_stage!r}; there are {', '.join(ENGINES)}"
            )
        self.store = store
        self.tokens = StoredTokens(store, tokens_on)
        self._engine = ENGINES[first_stage]

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        tokens_on: TokensOn = "disk",
        first_stage: str = "exact",
    ) -> "ImageIndex":
        """Open what `edje index build` made.

        Args:
            tokens_on: where tokens rest: on "disk" (memory-mapped), or in the memory of the "host"
                or of the "device". Results are the same.
            first_stage: "exact", "faiss-flat", "faiss-hnsw" or "faiss-ivf".

        Raises:
            BadStore: no finished index, or a damaged one.
            ValueError: no such first stage.
        """
        return cls(Store(Path(path).expanduser()), tokens_on, first_stage)

    def __len__(self) -> int:
        return len(self.store)

    @cached_property
    def images(self) -> FirstStage:
        """The first stage over pictures."""
        return self._engine(self.store.embeddings)

    @cached_property
    def texts(self) -> FirstStage:
        """The first stage over captions.

        Raises:
            ValueError: the pictures were indexed without any.
        """
        if len(self) and not self.store.captions:
            raise ValueError(
                f"{self.store.folder}: no captions in this index, so a picture finds none; build it"
                " from a SPEC that has them, such as blip:captions.json"
            )
        return self._engine(self.store.caption_embeddings)


class StoredTokens:
    """The tokens of an index: `tokens[pictures]` reads those of some pictures."""

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
        """(pictures, tokens, width)"""
        manifest = self._store.manifest
        return len(self._store), manifest.num_tokens, manifest.width

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, pictures: Int[np.ndarray, " k"]) -> PackedTokens:
        return self._store.tokens(pictures) if self._held is None else self._held[pictures]
