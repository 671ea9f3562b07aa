"""Second reranker of a search: a slower model that scores the best of what the first has found.

    first stage ── k candidates ── first model ── best k2 ── second model ── results

The second model reads the same images from an index of its own. Its scores and the first model's
are pooled as logits (`evaluation.second_ranking`).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from edje_jax.config.calibration import Calibration
from edje_jax.evaluation.combination import pooled
from edje_jax.evaluation.scores import calibrated_logits, cosines, mixed, sigmoid
from edje_jax.index.image_index import ImageIndex
from edje_jax.runtimes.base import Runtime
from edje_jax.search.results import RankedCandidates


@dataclass(frozen=True)
class SecondReranker:
    """Model and index of a search's last step, which `Reranker.second` puts together."""

    runtime: Runtime
    index: ImageIndex
    calibration: Calibration
    k: int = 20
    """Candidates of each text that are scored."""
    weight: float = 1.0
    """Weight of this model's logits beside the first one's, from 0 to 1; 1 leaves those aside."""

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"k {self.k}: a second reranker scores 1 candidate or more")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight {self.weight}: give a number from 0 to 1")

    def rerank(
        self,
        texts: Sequence[str],
        index: ImageIndex,
        found: Sequence[RankedCandidates],
        calibration: Calibration,
    ) -> tuple[list[RankedCandidates], float]:
        """Best k of what a first model, of that calibration, has found in its index for each text,
        reranked, and the seconds that it took.

        Equal candidates keep the first model's order.

        Raises:
            ValueError: an image is missing in this model's index.
        """
        began = time.perf_counter()
        best = [one.first(self.k) for one in found]
        counts = np.array([len(one.rows) for one in best], np.int64)
        owner = np.repeat(np.arange(len(best)), counts)
        rows = np.concatenate([np.zeros(0, np.int64), *(one.rows for one in best)])
        logits = self._logits(texts, owner, self._find(index, rows))
        weight, out = calibration.similarity_weight, []
        for query, one in enumerate(best):
            first = calibrated_logits(mixed(one.logits, one.similarities, weight), calibration)
            combined = pooled(first, logits[owner == query], self.weight)
            order = np.argsort(-combined, kind="stable")
            out.append(
                RankedCandidates(
                    one.rows[order], combined[order], sigmoid(combined[order]),
                    one.similarities[order], one.base_ranks[order],
                )
            )  # fmt: skip
        return out, time.perf_counter() - began

    def _logits(
        self, texts: Sequence[str], owner: Int[np.ndarray, " p"], rows: Int[np.ndarray, " p"]
    ) -> Float[np.ndarray, " p"]:
        """Calibrated logits of pairs of texts and rows of this model's index."""
        runtime, weight, known = self.runtime, self.calibration.similarity_weight, None
        if runtime.config.similarity_prior or weight:
            distinct, place = np.unique(rows, return_inverse=True)
            embeddings = self.index.store.embeddings[distinct]
            known = cosines(runtime.embed_texts(texts), embeddings, owner, place)
        ids = runtime.joint_tokenizer(list(texts))
        logits = runtime.score_pairs(ids, self.index.tokens, owner, rows, known)
        if known is not None:
            logits = mixed(logits, known, weight)
        return calibrated_logits(logits, self.calibration)

    def _find(self, index: ImageIndex, rows: Int[np.ndarray, " p"]) -> Int[np.ndarray, " p"]:
        """Rows of this model's index that hold the images of another index."""
        own, out = self.index.store, {}
        for row in np.unique(rows).tolist():
            out[row] = own.image_of_id.get(id := index.store.row(row).id)
            if out[row] is None:
                raise ValueError(
                    f"{own.files}: has no image {id}, which {index.store.files} has; build both"
                    " indexes from one set"
                )
        return np.array([out[row] for row in rows.tolist()], np.int64)
