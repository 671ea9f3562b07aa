"""Second reranker of a search: a slower model that scores the best of what the first has found.

    first stage ── k candidates ── first model ── best k2 ── second model ── results

The second model reads the same images from an index of its own. Its scores and the first model's
are pooled as logits (`evaluation.second_ranking`). Candidates that it does not score, beyond the
best k2 or not in its index as they are in the first one, follow in the first order with the first
model's scores.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from edje_jax.config.calibration import Calibration
from edje_jax.evaluation.combination import pool_logits
from edje_jax.evaluation.scores import add_cosines, calibrated_logits, cosines, sigmoid
from edje_jax.index.image_index import ImageIndex
from edje_jax.index.shard_files import ImageRecord
from edje_jax.runtimes.base import Runtime
from edje_jax.search.results import RankedCandidates

log = logging.getLogger(__name__)


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
        """Candidates that a first model, of that calibration, has found in its index for each text,
        with the best k reranked, and the seconds that it took.

        Equal candidates keep the first model's order. A warning tells of images that this model's
        index lacks, or that were replaced in one of the indexes.

        Raises:
            ValueError: this model's index has none of the images.
        """
        began = time.perf_counter()
        counts = [min(len(one.rows), self.k) for one in found]
        best = [one.rows[:count] for one, count in zip(found, counts, strict=True)]
        rows = self._find(index, np.concatenate([np.zeros(0, np.int64), *best]))
        there, logits = rows >= 0, np.zeros(len(rows), np.float32)
        owner = np.repeat(np.arange(len(found)), counts)
        logits[there] = self._logits(texts, owner[there], rows[there])
        ends = np.cumsum(counts, dtype=np.int64)  # After the last one nothing is left.
        parts = zip(found, np.split(logits, ends), np.split(there, ends), strict=False)
        out = [self._merge(one, own, known, calibration) for one, own, known in parts]
        return out, time.perf_counter() - began

    def _merge(
        self,
        one: RankedCandidates,
        second: Float[np.ndarray, " k2"],
        there: Bool[np.ndarray, " k2"],
        calibration: Calibration,
    ) -> RankedCandidates:
        """Candidates of a query by the pooled logits of the best, and then those that are not
        `there` or come after the best, by the first model's."""
        weight = calibration.similarity_weight
        combined = calibrated_logits(add_cosines(one.logits, one.similarities, weight), calibration)
        scored = np.flatnonzero(there)
        combined[scored] = pool_logits(combined[scored], second[scored], self.weight)
        rest = np.delete(np.arange(len(combined)), scored)
        order = np.concatenate([scored[np.argsort(-combined[scored], kind="stable")], rest])
        return RankedCandidates(
            one.rows[order], combined[order], sigmoid(combined[order]),
            one.similarities[order], one.base_ranks[order],
        )  # fmt: skip

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
            logits = add_cosines(logits, known, weight)
        return calibrated_logits(logits, self.calibration)

    def _find(self, index: ImageIndex, rows: Int[np.ndarray, " p"]) -> Int[np.ndarray, " p"]:
        """Rows of this model's index that hold the images of another index; -1 where it has none,
        or another image under the same id.

        Raises:
            ValueError: it has none of them.
        """
        own, (distinct, place) = self.index.store, np.unique(rows, return_inverse=True)
        records = [index.store.row(row) for row in distinct.tolist()]
        found = own.image_of_id.find([record.id for record in records])
        lacking = found < 0
        replaced = np.array(
            [
                row >= 0 and shows_another(record, own.row(row))
                for record, row in zip(records, found.tolist(), strict=True)
            ],
            bool,
        )
        told = [
            f"{what} {which.sum()} of {len(records)} candidates of {index.store.files}, such as"
            f" {records[int(np.argmax(which))].id}"
            for what, which in (("lacks", lacking), ("holds another image of", replaced))
            if which.any()
        ]
        if told:
            faults = f"{own.files}: {', and '.join(told)}"
            if (lacking | replaced).all():
                raise ValueError(f"{faults}; build both indexes from one set")
            log.warning("%s; they stand behind the others", faults)
        return np.where(replaced, -1, found)[place]


def shows_another(one: ImageRecord, other: ImageRecord) -> bool:
    """Whether rows of one id are known to have been made from different images: their digests
    differ, or their stamps where neither has a digest. A stamp beside a digest is that of a file,
    which a copy has not."""
    if one.digest or other.digest:
        return bool(one.digest and other.digest) and one.digest != other.digest
    return bool(one.stamp and other.stamp) and one.stamp != other.stamp
