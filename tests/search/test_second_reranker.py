"""A captioner as the second reranker of a search, with an index of its own over the same images."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from edje_jax import ImageIndex, Reranker
from edje_jax.cli.edje import main as edje
from edje_jax.cli.program import UsageError
from edje_jax.config.calibration import Calibration
from edje_jax.evaluation.scores import sigmoid
from edje_jax.index.shard_files import ImageRecord
from edje_jax.index.store import BadStore
from edje_jax.models.token_formats import unpack
from edje_jax.scenes.shapes import Shapes
from edje_jax.search.cascade import search_images
from edje_jax.search.query import Query
from edje_jax.search.second_reranker import SecondReranker, shows_another

IMAGES = 10
TEXTS = ["a red circle left of a blue square", "a small striped green star"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "photos"
    folder.mkdir()
    for i in range(IMAGES):
        Shapes("val").image(i).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def indexes(trained, captioner, photos) -> dict[str, ImageIndex]:
    """Indexes of the same images by both models, the captioner's with int8 tokens."""
    out = {}
    for name, model, dtype in (("first", trained, "float16"), ("second", captioner, "int8")):
        folder = photos.parent / name
        arguments = [str(model), str(photos), "--out", str(folder), "--token-dtype", dtype]
        assert edje(["index", "build", *arguments]) == 0
        out[name] = ImageIndex.open(folder)
    return out


@pytest.fixture(scope="module")
def first(trained) -> Reranker:
    return Reranker.from_pretrained(trained)


@pytest.fixture(scope="module")
def second(captioner) -> Reranker:
    return Reranker.from_pretrained(captioner)


def ids_of(found) -> list[list[str]]:
    return [[result["id"] for result in results] for results in found]


def test_weight_0_is_the_first_order(first, second, indexes):
    alone = first.search(indexes["first"], TEXTS, k=8, top_k=8)
    then = second.second(indexes["second"], k=5, weight=0.0)
    both = first.followed_by(then).search(indexes["first"], TEXTS, k=8, top_k=8)
    assert ids_of(both) == ids_of(alone)
    for one, other in zip(both, alone, strict=True):
        for result, expected in zip(one, other, strict=True):
            assert result == pytest.approx(expected)


def test_candidates_beyond_the_best_follow_with_the_first_scores(first, second, indexes):
    alone = first.search(indexes["first"], TEXTS, k=8, top_k=8)
    then = first.followed_by(second.second(indexes["second"], k=3))
    both = then.search(indexes["first"], TEXTS, k=8, top_k=8)
    for one, other in zip(both, alone, strict=True):
        assert sorted(r["id"] for r in one[:3]) == sorted(r["id"] for r in other[:3])
        for result, expected in zip(one[3:], other[3:], strict=True):
            assert result == pytest.approx(expected)
    # Scores of two models need not fall, and each is compared.
    least = both[0][4]["score"]
    kept = then.search(indexes["first"], TEXTS[:1], k=8, top_k=8, min_score=least)[0]
    assert [r["id"] for r in kept] == [r["id"] for r in both[0] if r["score"] >= least]


def test_images_that_the_second_index_lacks_stand_behind(
    first, second, indexes, photos, captioner, tmp_path, caplog
):
    (tmp_path / "few").mkdir()
    for i in range(IMAGES - 2):
        (tmp_path / "few" / f"{i}.png").symlink_to(photos / f"{i}.png")
    out = tmp_path / "few.index"
    arguments = [str(captioner), str(tmp_path / "few"), "--token-dtype", "int8"]
    edje(["index", "build", *arguments, "--out", str(out)])
    few = second.second(ImageIndex.open(out), k=IMAGES)
    whole = second.second(indexes["second"], k=IMAGES)
    one, other, before = (
        each.search(indexes["first"], TEXTS, k=IMAGES, top_k=IMAGES)
        for each in (first.followed_by(few), first.followed_by(whole), first)
    )
    lost = {f"{IMAGES - 2}.png", f"{IMAGES - 1}.png"}
    for got, full, was in zip(ids_of(one), ids_of(other), ids_of(before), strict=True):
        assert got[:-2] == [id for id in full if id not in lost]
        assert got[-2:] == [id for id in was if id in lost]
    told = [record.getMessage() for record in caplog.records if "lacks" in record.getMessage()]
    assert len(told) == 1 and f"lacks 2 of {IMAGES} candidates" in told[0] and ".png" in told[0]


def test_an_image_that_was_replaced_in_one_index_is_left_out(
    first, second, indexes, caplog, monkeypatch
):
    """Tokens in the other index are of another image."""
    store = indexes["second"].store
    row = type(store).row

    def replaced(self, number: int) -> ImageRecord:
        record = row(self, number)
        other = self is store and record.id == "3.png"
        return record._replace(digest="0" * 32) if other else record

    monkeypatch.setattr(type(store), "row", replaced)
    both = first.followed_by(second.second(indexes["second"], k=IMAGES))
    found = both.search(indexes["first"], TEXTS, k=IMAGES, top_k=IMAGES)
    assert [ids[-1] for ids in ids_of(found)] == ["3.png"] * 2
    (told,) = [one.getMessage() for one in caplog.records if "another image" in one.getMessage()]
    assert "holds another image of 1 of 10 candidates" in told and "such as 3.png; they" in told


def test_images_are_told_apart_by_digests_and_else_by_stamps():
    def row(stamp: str = "", digest: str = "") -> ImageRecord:
        return ImageRecord("a", "", [], (0, 0), stamp, digest)

    assert shows_another(row("1", "a"), row("1", "b"))
    assert not shows_another(row("1", "a"), row("2", "a"))  # A copy of the file
    assert not shows_another(row("1", "a"), row("2"))
    assert shows_another(row("1"), row("2")) and not shows_another(row("1"), row("1"))
    assert not shows_another(row(), row("1"))


def test_a_weight_between_two_models_warns_once_if_one_is_not_calibrated(
    first, second, indexes, caplog
):
    tuned = Calibration(fitted={"data": "shapes:val"})
    then = second.second(indexes["second"], weight=0.5)
    both = first.followed_by(then)
    both.search(indexes["first"], TEXTS, k=4)
    both.search(indexes["first"], TEXTS, k=4)
    told = [one.getMessage() for one in caplog.records if "not calibrated" in one.getMessage()]
    assert len(told) == 1 and told[0].startswith("weight 0.5: the scores of the first and the")
    caplog.clear()
    first.followed_by(second.second(indexes["second"]))
    calibrated = copy.copy(first)
    calibrated.calibration = tuned
    calibrated.followed_by(dataclasses.replace(then, calibration=tuned))
    assert not caplog.records
    calibrated.followed_by(then)
    assert "scores of the second model" in caplog.text


def test_weight_1_is_the_second_model_alone_on_the_same_candidates(first, second, indexes):
    then = second.second(indexes["second"], k=7)
    both = first.followed_by(then).search(indexes["first"], TEXTS, k=7, top_k=7)
    # Both have one backbone, so that the second model's own search has the same candidates.
    alone = second.search(indexes["second"], TEXTS, k=7, top_k=7)
    assert ids_of(both) == ids_of(alone)
    for one, other in zip(both, alone, strict=True):
        for result, expected in zip(one, other, strict=True):
            assert result["score"] == pytest.approx(expected["score"], abs=1e-5)
            assert result["base_rank"] == expected["base_rank"]


def test_logits_are_pooled_as_each_model_was_tuned(first, second, indexes):
    here, there = Calibration(2.0, 0.5, 1.0), Calibration(1.0, 4.0, -2.0)
    found, _ = search_images(first.runtime, indexes["first"], TEXTS, 8, here)
    then = dataclasses.replace(second.second(indexes["second"], k=6, weight=0.3), calibration=there)
    again, seconds = then.rerank(TEXTS, indexes["first"], found, here)
    assert seconds > 0
    stored = np.asarray(unpack(indexes["second"].tokens[np.arange(IMAGES)]), np.float32)
    captioned = second.score_matrix(TEXTS, stored)
    cosines = second.embed_texts(TEXTS) @ indexes["second"].store.embeddings[:].T
    places = {indexes["second"].store.row(i).id: i for i in range(IMAGES)}
    for text, (before, after) in enumerate(zip(found, again, strict=True)):
        assert sorted(after.rows[:6]) == sorted(before.rows[:6])
        for place, row in enumerate(after.rows[:6]):
            was = int(np.flatnonzero(before.rows == row)[0])
            own = places[indexes["first"].store.row(int(row)).id]
            one = (before.logits[was] + 2.0 * before.similarities[was]) / 0.5 + 1.0
            other = (captioned[text, own] + cosines[text, own]) / 4.0 - 2.0
            assert after.logits[place] == pytest.approx(0.7 * one + 0.3 * other, abs=1e-3)
            assert after.base_ranks[place] == before.base_ranks[was]
        assert (np.diff(after.logits[:6]) <= 0).all()
        np.testing.assert_array_equal(after.scores, sigmoid(after.logits))


def test_fewer_candidates_and_equal_ones(first, second, indexes):
    """Candidates that a filter leaves are all; a runtime that cannot tell keeps the order."""
    then = second.second(indexes["second"], k=5)
    some = first.followed_by(then).search(indexes["first"], TEXTS, ids=["1.png", "4.png"])
    assert [sorted(ids) for ids in ids_of(some)] == [["1.png", "4.png"]] * 2
    assert first.followed_by(then).search(indexes["first"], TEXTS, ids=["none"]) == [[], []]
    assert first.followed_by(then).search(indexes["first"], []) == []

    class Flat:
        config, joint_tokenizer = second.config, second.runtime.joint_tokenizer

        def score_pairs(self, ids, tokens, text_index, image_index, similarities=None):
            return np.zeros(len(text_index), np.float32)

    flat = SecondReranker(Flat(), indexes["second"], Calibration(), 9)
    same = first.followed_by(flat).search(indexes["first"], TEXTS, k=9, top_k=9)
    assert ids_of(same) == ids_of(first.search(indexes["first"], TEXTS, k=9, top_k=9))


def test_what_does_not_fit_is_told(first, second, indexes, photos, captioner, tmp_path):
    with pytest.raises(BadStore, match="built with another model"):
        second.second(indexes["first"])
    with pytest.raises(ValueError, match="weight 2"):
        second.second(indexes["second"], weight=2)
    with pytest.raises(ValueError, match="k 0"):
        second.second(indexes["second"], k=0)
    then = second.second(indexes["second"])
    with pytest.raises(ValueError, match=r"queries\[0\] has other parts than a text"):
        first.followed_by(then).search(indexes["first"], [Query("a dog", negatives=["a cat"])])
    (tmp_path / "few").mkdir()
    Shapes("val").image(0).save(tmp_path / "few" / "other.png")
    out = tmp_path / "few.index"
    edje(["index", "build", str(captioner), str(tmp_path / "few"), "--out", str(out)])
    with pytest.raises(ValueError, match=r"lacks 10 of 10 .*first, such as \d.png; build both"):
        first.followed_by(second.second(ImageIndex.open(out))).search(indexes["first"], TEXTS)


def test_the_command(first, second, indexes, capsys):
    folders = [str(indexes[name].store.files) for name in ("first", "second")]
    arguments = ["search", folders[0], TEXTS[0], "--k", "8", "--json", "--details"]
    then = ["--then", folders[1], "--then-k", "4", "--then-weight", "0.25"]
    capsys.readouterr()
    assert edje([*arguments, *then]) == 0
    told = json.loads(capsys.readouterr().out)
    both = first.followed_by(second.second(indexes["second"], k=4, weight=0.25))
    expected = both.search(indexes["first"], TEXTS[:1], k=8)
    assert [result["id"] for result in told] == ids_of(expected)[0] and len(told) == 8
    assert told[0]["seconds"]["then"] > 0 and told[0]["seconds"]["rerank"] > 0
    assert edje([*arguments, *then, "--then-caption-score", "mean"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert {r["id"]: r["score"] for r in other} != {r["id"]: r["score"] for r in told}
    with pytest.raises(UsageError, match=r"--then-caption-score mean: .* kind edje; leave"):
        edje([*arguments, "--then", folders[0], "--then-caption-score", "mean"])
    with pytest.raises(UsageError, match="--then reranks"):
        edje([*arguments, *then, "--not", "a cat"])
    with pytest.raises(UsageError, match="--then-weight: of a second model"):
        edje([*arguments, "--then-weight", "1"])
    with pytest.raises(FileNotFoundError):
        edje([*arguments, *then, "--then-model", "/nowhere"])
