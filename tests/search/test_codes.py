"""The cascade over codes: their candidates by cosine, reranked, with the time of every step."""

import json

import numpy as np
import pytest

from edje_jax import ImageIndex, Reranker
from edje_jax.cli import edje
from edje_jax.cli.program import UsageError
from edje_jax.data.sources.registry import open_captioned
from edje_jax.first_stage.packing import unpack
from edje_jax.first_stage.screening import PLAIN, Screening
from edje_jax.index.build import build
from edje_jax.runtimes.base import Embedded
from edje_jax.scenes.shapes import SPLITS, Shapes
from edje_jax.search.cascade import search_captions, search_images
from edje_jax.search.results import RankedCandidates
from tests.colour_runtime import CODED, CODED_STAMP, Colours

COUNT = 30
QUERIES = ["red", "blue and green", "red and blue", "green"]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """An index of thirty colours, by a model with codes."""
    folder = tmp_path_factory.mktemp("colours") / "index"
    assert build(CODED, CODED_STAMP, Colours(COUNT), "colours", folder)
    return folder


def opened(index, *numbers: int | None, bits: int = 64) -> ImageIndex:
    return ImageIndex.open(index, first_stage="codes", bits=bits, screening=Screening(*numbers))


def of_images() -> tuple[np.ndarray, Embedded]:
    """Tokens and queries of some images, of mixed colours, that ask for captions."""
    source = Colours(COUNT)
    encoded = CODED.encode_images(np.stack([np.asarray(source.image(i)) for i in (7, 12, 20)]))
    return encoded.tokens, Embedded(encoded.embeddings, encoded.projections)


def by_base_rank(one: RankedCandidates, values: np.ndarray) -> np.ndarray:
    return values[np.argsort(one.base_ranks)]


def assert_equal(found: list[RankedCandidates], expected: list[RankedCandidates]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.rows, theirs.rows)
        np.testing.assert_array_equal(ours.base_ranks, theirs.base_ranks)
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-6)
        np.testing.assert_allclose(ours.similarities, theirs.similarities, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 64])
def test_all_images_by_codes_are_reranked_as_those_of_exact_search(index, bits):
    found, told = search_images(CODED, opened(index, COUNT, bits=bits), QUERIES, 9)
    expected, exact = search_images(CODED, ImageIndex.open(index), QUERIES, 9)
    assert_equal(found, expected)
    assert told.by_embedding > 0 == exact.by_embedding and told.by_projection == 0


def test_images_find_captions_by_codes(index):
    tokens, queries = of_images()
    found, told = search_captions(CODED, opened(index, COUNT), tokens, queries, COUNT)
    expected, _ = search_captions(CODED, ImageIndex.open(index), tokens, queries, COUNT)
    for ours, theirs in zip(found, expected, strict=True):
        # Captions of other colours have equal cosines, which by codes stay in the codes' order.
        np.testing.assert_array_equal(np.sort(ours.rows), np.sort(theirs.rows))
        np.testing.assert_array_equal(ours.rows[:10], theirs.rows[:10])
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-6)
        np.testing.assert_allclose(ours.similarities, theirs.similarities, atol=1e-6)
    assert told.by_embedding > 0


def test_base_ranks_follow_the_cosines(index):
    images = opened(index, 12)
    found, _ = search_images(CODED, images, QUERIES, 6)
    texts = CODED.embed_texts(QUERIES)
    for query, one in enumerate(found):
        assert sorted(one.base_ranks) == [1, 2, 3, 4, 5, 6]
        assert (np.diff(by_base_rank(one, one.similarities)) <= 1e-6).all()
        cosines = images.store.embeddings[one.rows] @ texts[query]
        np.testing.assert_allclose(one.similarities, cosines, atol=1e-6)


def test_the_best_by_projection_are_kept(index):
    """With as many kept as are reranked, the candidates are those of that step."""
    images = opened(index, COUNT, 5)
    found, told = search_images(CODED, images, QUERIES, 5)
    projections = CODED.encode_texts(QUERIES).projections
    values = projections @ unpack(images.store.column("codes")[:]).astype(np.float32).T
    for query, one in enumerate(found):
        kept = np.argsort(-values[query], kind="stable")[:5]
        assert set(one.rows.tolist()) == set(kept.tolist())
    assert told.by_projection > 0 and told.by_embedding > 0


def test_few_candidates_by_codes_are_the_nearest_codes(index):
    images = opened(index, 4)
    found, _ = search_images(CODED, images, QUERIES, 4)
    signs = np.where(CODED.encode_texts(QUERIES).projections > 0, 1, -1)
    similarity = signs @ unpack(images.store.column("codes")[:]).astype(int).T
    for query, one in enumerate(found):
        nearest = np.argsort(-similarity[query], kind="stable")[:4]
        assert set(one.rows.tolist()) == set(nearest.tolist())


# --- with a trained model -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes(coded, tmp_path_factory):
    """An index of twelve scenes by a model with codes."""
    folder = tmp_path_factory.mktemp("shapes") / "index"
    reranker = Reranker.from_pretrained(coded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPLITS, "val", 12)
        source = open_captioned("shapes:val")
        assert build(reranker.runtime, reranker.stamp, source, "shapes:val", folder)
    return folder


@pytest.fixture(scope="module")
def reranker(coded) -> Reranker:
    return Reranker.from_pretrained(coded)


PARTS = {"first_stage", "by_projection", "by_embedding", "gather", "rerank", "moments"}


def test_results_tell_the_first_stage_and_the_seconds_of_every_part(reranker, shapes):
    images = opened(shapes, 12, 8)
    found = reranker.search(images, ["a red circle"], k=5, top_k=3, details=True)[0]
    assert [one["first_stage"] for one in found] == ["codes-64"] * 3
    seconds = found[0]["seconds"]
    assert set(seconds) == PARTS and min(seconds.values()) > 0
    plain = reranker.search(images, ["a red circle"], k=5, top_k=3)[0]
    keys = ("id", "score", "similarity", "base_rank")
    assert [{key: one[key] for key in keys} for one in found] == plain
    exact = ImageIndex.open(shapes)
    told = reranker.search(exact, ["a red circle"], k=5, top_k=1, details=True)[0][0]
    assert told["first_stage"] == "exact" and told["seconds"]["by_embedding"] == 0


def test_a_cascade_over_all_scenes_is_exact_search(reranker, shapes):
    everything, exact = opened(shapes, 99, bits=8), ImageIndex.open(shapes)
    texts = ["a red circle", "two squares", "a small green star"]
    image = Shapes("val").image(3)
    by_text, exact_by_text = (
        reranker.search(one, texts, k=6, top_k=6) for one in (everything, exact)
    )
    by_image, exact_by_image = (
        reranker.search_captions(one, [image], k=9) for one in (everything, exact)
    )
    for ours, theirs in zip(by_text + by_image, exact_by_text + exact_by_image, strict=True):
        assert [one["id"] for one in ours] == [one["id"] for one in theirs]
        assert [one["base_rank"] for one in ours] == [one["base_rank"] for one in theirs]
        np.testing.assert_allclose(
            [one["score"] for one in ours], [one["score"] for one in theirs], atol=1e-5
        )


def test_the_command_searches_by_codes(shapes, capsys):
    numbers = ["--bits", "8", "--by-codes", "10", "--by-projection", "6"]
    arguments = ["--first-stage", "codes", *numbers, "--k", "4", "--top", "2", "--json"]
    edje.main(["search", str(shapes), "a red circle", *arguments, "--details"])
    found = json.loads(capsys.readouterr().out)
    assert [one["first_stage"] for one in found] == ["codes-8"] * 2
    assert set(found[0]["seconds"]) == PARTS
    edje.main(["search", str(shapes), "a red circle", *arguments])
    assert set(json.loads(capsys.readouterr().out)[0]) == {"id", "score", "similarity", "base_rank"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--by-codes", "5"], "--by-codes and --by-projection: the first stage 'exact' reads no"),
        (["--first-stage", "codes", "--by-codes", "0"], "by.codes 0: candidates count from 1"),
    ],
)
def test_numbers_of_candidates_go_with_codes(shapes, arguments, message):
    with pytest.raises(UsageError, match=message):
        edje.main(["search", str(shapes), "a red circle", *arguments])


def test_nothing_is_screened_unless_told():
    assert Screening() == PLAIN and PLAIN.by_projection is None
