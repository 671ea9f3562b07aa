"""Scores of a teacher for the candidates of every caption and every image of a training set.

Candidates are the nearest by the backbone's embeddings, and a query's own image or one of its
captions where that is not among them (hard lists, as in LoopITR, arXiv 2203.05465, and CPRD, arXiv
2407.07479). The scores are kept in the workdir, block by block, so that a run that was stopped goes
on where it was.
"""

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from edje_jax.first_stage.exact import Exact
from edje_jax.index.store import Store
from edje_jax.runtimes.base import Runtime
from edje_jax.system.files import atomic_path, read_json, write_json
from edje_jax.training.processes import is_first, part_of_this_process, wait_for_all

log = logging.getLogger(__name__)

BLOCK = 1024
"""Queries whose scores are written together."""


@dataclass(frozen=True)
class ScoredCandidates:
    """Candidates of the queries of one direction, nearest first, and the teacher's scores."""

    candidates: Int[np.ndarray, "q c"]
    """Rows of the index; -1 where it has fewer."""
    scores: Float32[np.ndarray, "q c"]


@dataclass(frozen=True)
class TeacherScores:
    """Scored candidates of both directions: images of each caption, captions of each image."""

    t2i: ScoredCandidates
    i2t: ScoredCandidates


@dataclass(frozen=True)
class Teacher:
    """A teacher on an index of the training set by its own model."""

    runtime: Runtime
    store: Store
    """Index of the training set by the teacher."""
    rows: Int[np.ndarray, " n"] | None = None
    """Row of each image of the heads' own index; None where both have the same order."""

    def row_of(self, images: Int[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
        """Rows of images of the heads' own index."""
        return images if self.rows is None else self.rows[images]


def teacher_scores(folder: Path, store: Store, teacher: Teacher, candidates: int) -> TeacherScores:
    """Scores that a folder keeps, made first where they are missing.

    Every process scores its share of the blocks; all need to see the folder.

    Raises:
        ValueError: the folder keeps another teacher's scores, or those of other candidates or
            images, or the teacher's index lacks an image.
    """
    teacher = _aligned(teacher, store)
    stamp = {
        "teacher": teacher.store.manifest.model["fingerprint"],
        "model": store.manifest.model["fingerprint"],
        "candidates": candidates,
        "set": _digest(store),
    }
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "stamp.json"
        if path.exists() and (found := read_json(path)) != stamp:
            changed = ", ".join(name for name in stamp if found.get(name) != stamp[name])
            raise ValueError(
                f"{folder}: keeps scores of another kind ({changed} differ); delete the folder, or"
                " choose another --workdir"
            )
        write_json(path, stamp)
    wait_for_all("teacher's scores begun")
    return TeacherScores(
        *(_scored(folder, direction, store, teacher, candidates) for direction in ("t2i", "i2t"))
    )


def averaged(teachers: Sequence[TeacherScores]) -> TeacherScores:
    """Scores of several teachers of the same candidates, brought to one scale and averaged.

    Each list of candidates has mean 0 and variance 1 by each teacher before the mean is taken, as
    match logits and sums of log-probabilities have neither zero nor unit in common; scores that
    are all alike become 0.
    """

    def mean(sides: Sequence[ScoredCandidates]) -> ScoredCandidates:
        scores = np.stack([_normalised(side) for side in sides]).mean(axis=0)
        return ScoredCandidates(sides[0].candidates, scores)

    return TeacherScores(
        mean([each.t2i for each in teachers]), mean([each.i2t for each in teachers])
    )


def _normalised(each: ScoredCandidates) -> Float32[np.ndarray, "q c"]:
    """Scores of mean 0 and variance 1 over the candidates of each list that are there."""
    there = each.candidates >= 0
    counts = np.maximum(there.sum(axis=1, keepdims=True), 1)
    scores = np.where(there, each.scores, 0).astype(np.float64)
    centred = np.where(there, scores - scores.sum(axis=1, keepdims=True) / counts, 0)
    deviation = np.sqrt(np.square(centred).sum(axis=1, keepdims=True) / counts)
    return (centred / np.maximum(deviation, 1e-6)).astype(np.float32)


def _scored(
    folder: Path, direction: str, store: Store, teacher: Teacher, count: int
) -> ScoredCandidates:
    """Candidates and scores of one direction."""
    queries = len(store.captions) if direction == "t2i" else len(store)
    blocks = [range(start, min(start + BLOCK, queries)) for start in range(0, queries, BLOCK)]
    paths = [folder / f"{direction}-{number:05d}.npz" for number in range(len(blocks))]
    part, parts = part_of_this_process()
    missing = [n for n in range(part, len(blocks), parts) if not paths[n].exists()]
    if missing:
        began = time.monotonic()
        mined = _mine(store, direction, [blocks[n] for n in missing], count)
        captions = [text for _, text in store.captions]
        ids = teacher.runtime.joint_tokenizer(captions)
        for done, (number, rows) in enumerate(zip(missing, mined, strict=True), start=1):
            scores = _score(teacher, direction, captions, ids, np.asarray(blocks[number]), rows)
            with atomic_path(paths[number]) as temporary, temporary.open("wb") as file:
                np.savez(file, candidates=rows, scores=scores)
            left = (time.monotonic() - began) / done * (len(missing) - done)
            log.info(
                "teacher, %s: %d/%d blocks of queries · %d:%02d left", direction, done,
                len(missing), left // 60, left % 60,
            )  # fmt: skip
    wait_for_all(f"teacher's scores {direction}")
    candidates, scores = [], []
    for path in paths:
        with np.load(path) as block:
            candidates.append(block["candidates"])
            scores.append(block["scores"])
    return ScoredCandidates(np.concatenate(candidates), np.concatenate(scores))


def _mine(store: Store, direction: str, blocks: list[range], count: int) -> Iterator[np.ndarray]:
    """Nearest items of each block's queries, int32 [rows, count], the own one always among them."""
    owner = np.array([image for image, _ in store.captions], np.int64)
    if direction == "t2i":
        queries, items = store.caption_embeddings, Exact(store.embeddings)
        own = [{int(image)} for image in owner]
    else:
        queries, items = store.embeddings, Exact(store.caption_embeddings)
        bounds = np.searchsorted(owner, np.arange(len(store) + 1))
        own = [set(range(*bounds[image : image + 2])) for image in range(len(store))]
    for block in blocks:
        rows = np.full((len(block), count), -1, np.int32)
        near = items.nearest(queries[np.asarray(block)], count).rows
        rows[:, : near.shape[1]] = near
        for row, query in zip(rows, block, strict=True):
            if own[query] and own[query].isdisjoint(row.tolist()):
                row[-1] = min(own[query])
        yield rows


def _score(
    teacher: Teacher,
    direction: str,
    captions: list[str],
    ids: Int[np.ndarray, "t l"],
    queries: Int[np.ndarray, " q"],
    items: Int[np.ndarray, "q c"],
) -> Float32[np.ndarray, "q c"]:
    """The teacher's scores of some queries with their candidates."""
    asking = np.repeat(queries, items.shape[1])
    asked = items.reshape(-1)
    there = asked >= 0
    texts, images = (asking, asked) if direction == "t2i" else (asked, asking)
    texts, images = texts[there], images[there]
    known = None
    if teacher.runtime.config.similarity_prior:
        wanted, place = np.unique(texts, return_inverse=True)
        embedded = teacher.runtime.embed_texts([captions[text] for text in wanted])
        images_embedded = teacher.store.embeddings[teacher.row_of(images)]
        known = np.einsum("pe,pe->p", embedded[place], images_embedded)
    scores = np.zeros(len(asked), np.float32)
    scores[there] = teacher.runtime.score_pairs(ids, _Tokens(teacher), texts, images, known)
    return scores.reshape(items.shape)


def _digest(store: Store) -> str:
    """32 hex digits over the images and captions of an index, in the order of its rows."""
    digest = hashlib.sha256()
    for image in range(len(store)):
        row = store.row(image)
        digest.update(json.dumps([row.id, row.captions, row.stamp, row.digest]).encode())
    return digest.hexdigest()[:32]


def _aligned(teacher: Teacher, store: Store) -> Teacher:
    """The teacher with the rows of its index in the order of another index's images.

    Raises:
        ValueError: its index lacks one of them.
    """
    if teacher.store is store:
        return teacher
    ids = [store.row(image).id for image in range(len(store))]
    rows = teacher.store.image_of_id.find(ids)
    if missing := [ids[image] for image in np.flatnonzero(rows < 0)]:
        raise ValueError(
            f"{teacher.store.folder}: lacks {len(missing)} of the images of {store.folder}, such as"
            f" {missing[0]}; delete it, so that it is made anew"
        )
    return dataclasses.replace(teacher, rows=rows)


class _Tokens:
    """Tokens of an index, read row by row."""

    def __init__(self, teacher: Teacher):
        self._teacher = teacher

    def __getitem__(self, images: np.ndarray):
        return self._teacher.store.tokens(self._teacher.row_of(images))
