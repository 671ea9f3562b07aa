"""An index in parts answers as it does in one piece.

Covers index/partition.py.
"""

import numpy as np
import pytest

from edje_jax import ImageIndex
from edje_jax.first_stage.screening import Screening
from edje_jax.index.first_stages import extend_first_stage
from edje_jax.index.partition import Partition
from edje_jax.index.selection import Selection
from edje_jax.index.store import BadStore, Store
from edje_jax.search.query import Query
from edje_jax.serving.documents import Images
from edje_jax.serving.jobs import CaptionsJob, RerankJob, SearchJob
from edje_jax.serving.partitions import (
    OpenPartition,
    PartitionedIndex,
    PartitionedReranker,
    PartitionedService,
)
from edje_jax.serving.service import Service
from tests.colour_runtime import COLOURS
from tests.serving.small_parts import ColourModel, build_in_shards

QUERIES = ["red", "green and blue", "blue", "nothing"]


SEVERAL = (
    Query("red", ["blue"], like="05"),
    Query(image=np.full((8, 8, 3), COLOURS["green"], np.uint8)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_in_shards(tmp_path_factory.mktemp("parts") / "index")


def in_parts(folder, parts: int, **options) -> PartitionedService:
    """Service whose parts are open in this process."""
    store, model = Store(folder), ColourModel()
    opened = [
        OpenPartition(model, Partition(folder, store.manifest, part, parts), **options)
        for part in range(parts)
    ]

    def ask(questions):
        return [getattr(opened[one.partition], one.method)(*one.arguments) for one in questions]

    index = PartitionedIndex(ask, parts, store, **options)
    return PartitionedService(PartitionedReranker(ask, parts, model), index)


def in_one_piece(folder, **options) -> Service:
    return Service(ColourModel(), ImageIndex.open(folder, **options))


@pytest.mark.parametrize(("stage", "bits"), [("exact", None), ("codes", 64)])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_an_index_in_parts_answers_as_one(folder, stage, bits, parts):
    sent = {1: np.full((8, 8, 3), COLOURS["green"], np.uint8)}
    jobs = [
        *(SearchJob(query, k) for query in QUERIES for k in (1, 7, 100)),
        *(CaptionsJob(image, 9) for image in (0, 36)),
        *(SearchJob(query, 7) for query in SEVERAL),
        *(RerankJob(query, Images({0: 30, 2: 4}, sent)) for query in (*QUERIES, *SEVERAL)),
    ]
    options = {"first_stage": stage, "bits": bits, "screening": Screening()}
    expected = in_one_piece(folder, **options).run(jobs)
    for one, same in zip(in_parts(folder, parts, **options).run(jobs), expected, strict=True):
        if hasattr(one, "found"):
            np.testing.assert_array_equal(one.found.rows, same.found.rows)
            np.testing.assert_array_equal(one.found.base_ranks, same.found.base_ranks)
            np.testing.assert_allclose(one.found.scores, same.found.scores, atol=1e-6)
            np.testing.assert_allclose(one.found.similarities, same.found.similarities, atol=1e-6)
        else:
            np.testing.assert_allclose(one.logits, same.logits, atol=1e-6)
            np.testing.assert_allclose(one.combined, same.combined, atol=1e-6)


def test_an_approximate_first_stage_is_built_for_each_part(folder):
    jobs = [SearchJob(query, 100) for query in ("red", "green and blue", "blue")]
    extend_first_stage(Store(folder), "faiss-hnsw", "embeddings")
    before = {path: path.read_bytes() for path in (folder / "first-stage").rglob("*.json")}
    expected = in_one_piece(folder).run(jobs)
    found = in_parts(folder, 5, first_stage="faiss-hnsw").run(jobs)
    for one, same in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.found.scores, same.found.scores, atol=1e-6)
    # That of the whole index is as it was.
    assert before == {path: path.read_bytes() for path in (folder / "first-stage").rglob("*.json")}
    kept = folder.glob("partitions/*-of-5/first-stage/faiss-hnsw/embeddings/stamp.json")
    assert len(list(kept)) == 5


def test_a_selection_holds_in_every_part(folder):
    chosen = np.array([0, 5, 8, 20, 33])
    asked = ColourModel().runtime.encode_texts(QUERIES)
    for k in (2, 9):
        (own, _), (same, _) = (
            index.searched_images.candidates(
                *asked_of(asked), k, Selection(chosen, chosen, index.store)
            )
            for index in (in_parts(folder, 3).index, in_one_piece(folder).index)
        )
        np.testing.assert_array_equal(own.rows, same.rows)


def asked_of(embedded):
    return embedded.embeddings, embedded.projections


def test_a_part_is_of_the_state_that_its_manifest_names(folder):
    manifest = Store(folder).manifest
    part = Partition(folder, manifest, 1, 2).open()
    assert [shard.number for shard in part.shards] == [1, 3]
    assert part.__reduce__()[1][1] == part.manifest


def test_an_index_of_an_older_version_is_not_opened_in_parts(folder):
    from dataclasses import replace

    old = replace(Store(folder).manifest, format=2)
    with pytest.raises(BadStore, match="edje index compact"):
        Partition(folder, old, 0, 2).open()
