"""Rankings and recalls of a gallery by a first stage that is named, against sorting."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from edje_jax.cli import edje
from edje_jax.cli.program import UsageError
from edje_jax.evaluate.first_stage import StageChoice, rank_by, stage_metrics, stage_recalls
from edje_jax.evaluate.gallery import EncodedGallery, encode_gallery, open_gallery
from edje_jax.evaluation.measures import measure_ranks
from edje_jax.evaluation.retrieval import BaseRanking, Gallery, base_ranking
from edje_jax.first_stage.base import Nearest
from edje_jax.first_stage.registry import find_first_stage
from edje_jax.first_stage.screening import Screening
from edje_jax.runtimes.base import Embedded
from edje_jax.scenes.shapes import SPLITS, Shapes
from edje_jax.search.reranker import Reranker

BITS = 32


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def world() -> tuple[EncodedGallery, Embedded]:
    """A gallery of 60 images with one to three captions each, whose vectors lie near the image's;
    the last image is a distractor without captions."""
    rng = np.random.default_rng(0)
    captions = [[f"{j} of {i}" for j in range(rng.integers(1, 4))] for i in range(59)]
    gallery = Gallery.of([f"p{i}" for i in range(60)], [*captions, []])
    owner = gallery.caption_image
    images, codes = unit(rng.normal(size=(60, 6))), rng.normal(size=(60, BITS))
    texts = unit(images[owner] + 0.4 * rng.normal(size=(len(owner), 6)))
    projections = codes[owner] + rng.normal(size=(len(owner), BITS))
    tokens = np.zeros((60, 1, 2), np.float32)
    encoded = EncodedGallery(gallery, [*range(60)], tokens, images, codes.astype(np.float32))
    return encoded, Embedded(texts, projections.astype(np.float32))


def sides(world):
    """(name, queries, items, image of each query, image of each item) of both directions."""
    encoded, texts = world
    images = Embedded(encoded.embeddings, encoded.projections)
    owner, own = encoded.gallery.caption_image, np.arange(60)
    yield "t2i", texts, images, owner, own
    yield "i2t", images, texts, own, owner


def expected(choice, queries, items, query_image, item_image, k) -> BaseRanking:
    """The definition, query by query: those that are found, by falling cosine if they are
    rescored, then all others by Hamming similarity; equal ones by number."""
    bits, screening = choice.bits, choice.screening
    signs = np.where(items.projections[:, :bits] > 0, 1.0, -1.0)
    out = []
    for query in range(len(queries.embeddings)):
        cosines = items.embeddings @ queries.embeddings[query]
        asked = queries.projections[query, :bits]
        hamming = signs @ np.where(asked > 0, 1.0, -1.0)
        by_codes = np.argsort(-hamming, kind="stable")
        rescored = screening != Screening()
        found = by_codes[: (screening.by_codes or 10 * k) if rescored else k]
        if screening.by_projection:
            rescores = (signs @ asked)[found]
            found = found[np.argsort(-rescores, kind="stable")[: screening.by_projection]]
        if rescored:
            found = found[np.argsort(-cosines[found], kind="stable")[:k]]
        order = [*found, *(item for item in by_codes if item not in found)]
        right = np.flatnonzero(item_image[order] == query_image[query])
        best, rank = (order[right[0]], right[0] + 1) if len(right) else (-1, 0)
        out.append((order[:k], cosines[order[:k]], best, rank))
    return BaseRanking(*(np.array(each) for each in zip(*out, strict=True)))


def assert_is(found: BaseRanking, right: BaseRanking) -> None:
    np.testing.assert_array_equal(found.candidates, right.candidates)
    np.testing.assert_array_equal(found.best, right.best)
    np.testing.assert_array_equal(found.rank, right.rank)
    np.testing.assert_allclose(found.similarities, right.similarities, atol=1e-6)


@pytest.mark.parametrize("k", [5, 1000])
def test_exact_search_ranks_as_evaluation_does(world, k):
    rankings = rank_by(StageChoice(), *world, k)
    for name, queries, items, query_image, item_image in sides(world):
        images = query_image, item_image
        right = base_ranking(queries.embeddings, items.embeddings, *images, k)
        assert_is(rankings[name], right)


@pytest.mark.parametrize(
    "bits, screening",
    [
        (BITS, Screening()),
        (8, Screening()),
        (8, Screening(20)),
        (16, Screening(40, 12)),
        (BITS, Screening(6, 6)),
    ],
)
def test_codes_rank_by_their_definition(world, bits, screening):
    choice = StageChoice("codes", bits, screening)
    rankings = rank_by(choice, *world, 6)
    for name, *side in sides(world):
        assert_is(rankings[name], expected(choice, *side, 6))
    assert rankings["i2t"].rank[-1] == 0, "a distractor has no right answer"


def test_all_items_by_codes_are_the_candidates_of_exact_search(world):
    exact, codes = (
        rank_by(choice, *world, 7)
        for choice in (StageChoice(), StageChoice("codes", 8, Screening(1000)))
    )
    for name in ("t2i", "i2t"):
        np.testing.assert_array_equal(codes[name].candidates, exact[name].candidates)


def test_an_approximate_first_stage_is_filled_up(world):
    pytest.importorskip("faiss")
    encoded, texts = world
    found = rank_by(StageChoice("faiss-binary-ivf", 16), encoded, texts, 60)["t2i"]
    rows = np.arange(60)
    assert all(np.array_equal(np.sort(own), rows) for own in found.candidates)


def test_longer_codes_recall_more_and_embeddings_recall_as_the_ranks_tell(world):
    encoded, texts = world
    short, long = (
        stage_recalls(StageChoice("codes", bits), encoded, texts)["t2i"].recalls["R@10"]
        for bits in (8, BITS)
    )
    assert 20 < short < long < 100
    metrics = stage_metrics(StageChoice(), encoded, texts)
    ranks = rank_by(StageChoice(), encoded, texts, 5)["t2i"].rank
    assert metrics["t2i"]["R@10"] == pytest.approx(100 * np.mean(ranks <= 10))
    assert (metrics["name"], metrics["bits"], metrics["bytes_per_image"]) == ("exact", None, 24)


@pytest.mark.parametrize("name, bits", [("faiss-hnsw", None), ("faiss-binary-ivf", BITS)])
def test_an_approximate_first_stage_recalls_what_it_finds(world, monkeypatch, name, bits):
    pytest.importorskip("faiss")
    encoded, texts = world
    kind = find_first_stage(name)
    nearest = kind.nearest

    def losing(self, queries, k, allowed=None):
        """Five of what is near, and nothing more."""
        near = nearest(self, queries, k, allowed)
        place = np.arange(near.rows.shape[1])
        return Nearest(near.similarities, np.where(place < 5, near.rows, -1))

    exact = stage_recalls(StageChoice("codes" if bits else "exact", bits), *world)["t2i"]
    monkeypatch.setattr(kind, "nearest", losing)
    found = stage_recalls(StageChoice(name, bits), encoded, texts)["t2i"]
    assert found.recalls["R@200"] == found.recalls["R@10"] <= exact.recalls["R@10"] < 100
    np.testing.assert_array_equal(found.answered, exact.answered)
    assert set(np.unique(found.hits)) == {0, 1}


def test_what_is_found_keeps_its_order_where_cosines_are_one_number(world):
    encoded, texts = world
    # One entry, so that no order of sums makes products differ.
    first = np.zeros_like(encoded.embeddings)
    first[:, 0] = 1
    level = dataclasses.replace(encoded, embeddings=first)
    choice = StageChoice("codes", 8, Screening(20))
    found = rank_by(choice, level, texts, 6)["t2i"]
    own = Embedded(level.embeddings, level.projections)
    right = expected(choice, texts, own, encoded.gallery.caption_image, np.arange(60), 6)
    assert_is(found, right)


def test_a_label_names_a_first_stage_and_its_length():
    for label in ("exact", "codes", "codes-64", "faiss-binary-flat", "faiss-binary-flat-128"):
        assert StageChoice.named(label).label == label
    assert StageChoice.named("faiss-binary-hnsw-256") == StageChoice("faiss-binary-hnsw", 256)
    assert StageChoice.named("codes").resolved((8, 64)) == StageChoice("codes", 64)
    assert StageChoice("codes", 8).resolved((8, 64)).bytes_per_image(6) == 1
    assert StageChoice().resolved(()) == StageChoice()


@pytest.mark.parametrize(
    "label, lengths, message",
    [
        ("exact-64", (64,), "first stage exact-64: exact compares no codes"),
        ("codes", (), "first stage codes: the model has no codes; train heads for it with edje"),
        ("codes-32", (8, 64), "first stage codes-32: the model's codes have 8, 64 bits"),
    ],
)
def test_what_a_model_does_not_have_is_told(label, lengths, message):
    with pytest.raises(ValueError, match=message):
        StageChoice.named(label).resolved(lengths)


# --- the command ----------------------------------------------------------------------------------


def evaluated(model: Path, out: Path, *arguments: str) -> dict:
    """metrics.json of an evaluation on twenty images."""
    edje.main(["eval", str(model), "--data", "shapes:val", "--out", str(out), *arguments])
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture
def twenty(monkeypatch) -> None:
    monkeypatch.setitem(SPLITS, "val", 20)


def test_the_command_tells_recalls_of_codes_and_precision_by_categories(
    coded, twenty, tmp_path, capsys
):
    labels = {Shapes("val").image_id(i): [("even", "odd")[i % 2]] for i in range(20)}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    metrics = evaluated(
        coded, tmp_path / "codes", "--k", "4", "--first-stage", "codes", "--bits", "8",
        "--by-codes", "8", "--by-projection", "6", "--categories", str(tmp_path / "labels.json"),
    )  # fmt: skip
    stage = metrics["first_stage"]
    assert set(stage) == {"name", "bits", "t2i", "i2t", "bytes_per_image"}
    assert (stage["name"], stage["bits"], stage["bytes_per_image"]) == ("codes", 8, 1)
    for key in ("t2i", "i2t"):
        assert set(stage[key]) == {"R@1", "R@10", "R@50", "R@100", "R@200"}
        assert stage[key]["R@1"] <= stage[key]["R@10"] <= stage[key]["R@200"] == 100
        told = metrics["categories"][key]
        assert {"mAP@10", "mAP@100", "mAP@N", "chance"} <= set(told)
        assert told["chance"] == metrics["base_categories"][key]["chance"] > 40
        # The ceiling is that of four candidates of that first stage.
        assert metrics[key]["ceiling"] >= metrics[key]["base"]["R@1"]
    choice = StageChoice("codes", 8, Screening(8, 6))
    assert metrics["t2i"]["base"] == base_measures(coded, choice)
    assert "codes" in capsys.readouterr().out


def base_measures(model: Path, choice: StageChoice) -> dict[str, float]:
    """Measures of the first stage's ranks of captions."""
    runtime = Reranker.from_pretrained(model).runtime
    encoded = encode_gallery(runtime, open_gallery("shapes:val"), 0.0)
    texts = runtime.encode_texts(encoded.gallery.captions)
    return measure_ranks(rank_by(choice, encoded, texts, 4)["t2i"].rank)


def test_without_the_options_nothing_is_added(coded, twenty, tmp_path):
    plain = evaluated(coded, tmp_path / "plain", "--k", "4")
    assert not {"first_stage", "categories", "base_categories"} & set(plain)
    exact = evaluated(coded, tmp_path / "exact", "--k", "4", "--first-stage", "exact")
    assert exact["t2i"] == plain["t2i"] and exact["i2t"] == plain["i2t"]
    assert exact["first_stage"]["bits"] is None


def test_codes_that_a_model_does_not_have_fail_in_one_line(trained, twenty):
    with pytest.raises(UsageError, match="first stage codes: the model has no codes; train heads"):
        edje.main(["eval", str(trained), "--data", "shapes:val", "--first-stage", "codes"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--bits", "64"], "--bits, --by-codes and --by-projection go with a --first-stage"),
        (["--first-stage", "codes", "--by-codes", "0"], "--by-codes 0: candidates count from 1"),
        (["--first-stage", "codes", "--folds", "2"], "--folds takes no --first-stage"),
        (["--first-stage", "codes", "--eccv", "a.json"], "--eccv takes no --first-stage"),
        (["--first-stage", "exact", "--by-codes", "9"], "the first stage 'exact' reads no codes"),
        (["--first-stage", "exact", "--bits", "8"], "first stage exact-8: exact compares no codes"),
        (["--by-codes", "0"], "--bits, --by-codes and --by-projection go with a --first-stage"),
    ],
)
def test_options_that_do_not_go_together_are_bad_usage(coded, arguments, message):
    with pytest.raises(UsageError, match=message):
        edje.main(["eval", str(coded), "--data", "shapes:val", *arguments])
