"""Search by queries of several parts, against their formulas."""

import json

import numpy as np
import pytest

from edje_jax import ImageIndex, Query, Reranker
from edje_jax.cli import edje
from edje_jax.config.calibration import Calibration
from edje_jax.data.sources.blip_json import BlipJson
from edje_jax.evaluation.combination import Background, match_and_not, pool_logits
from edje_jax.evaluation.scores import add_cosines, calibrated_logits, sigmoid
from edje_jax.index.build import BuildOptions, build
from edje_jax.scenes.shapes import Shapes
from edje_jax.search.cascade import search_images
from edje_jax.search.composed import search_queries
from tests.colour_runtime import CODED, CODED_STAMP, Colours

COUNT = 20
TUNED = Calibration(0.7, 2.0, -0.5)


class Dated(Colours):
    """Images of a year."""

    def metadata(self, index: int) -> dict[str, int]:
        return {"year": 2000 + index}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("pyarrow")
    folder, options = tmp_path_factory.mktemp("colours"), BuildOptions(metadata=("year",))
    assert build(CODED, CODED_STAMP, Dated(COUNT), "colours", folder, options)
    return folder


@pytest.fixture(scope="module")
def index(folder) -> ImageIndex:
    return ImageIndex.open(folder)


def logits_of(index: ImageIndex, text: str) -> np.ndarray:
    """Calibrated logits of a text and every image."""
    known = index.store.embeddings[:] @ CODED.embed_texts([text])[0]
    ids, rows = CODED.joint_tokenizer([text]), np.arange(len(index))
    logits = CODED.score_pairs(ids, index.tokens, np.zeros_like(rows), rows)
    return calibrated_logits(add_cosines(logits, known, 0.7).astype(np.float64), TUNED)


def ask(index: ImageIndex, query: Query, k: int = COUNT, **chosen):
    found, _ = search_queries(CODED, index, [query], k, TUNED, index.select(**chosen))
    return found[0]


def expect(found, logits: np.ndarray) -> None:
    """Check that all images were found, by these logits."""
    assert sorted(found.rows.tolist()) == sorted(np.arange(len(logits))[np.isfinite(logits)])
    np.testing.assert_allclose(found.logits, logits[found.rows], atol=1e-4)
    np.testing.assert_allclose(found.scores, sigmoid(found.logits), atol=1e-6)
    assert (np.diff(found.scores) <= 0).all()


def test_negatives_are_taken_off_one_after_the_other(index):
    found = ask(index, Query("red", ["green", "blue"]))
    expected = match_and_not(logits_of(index, "red"), logits_of(index, "green"))
    expect(found, match_and_not(expected, logits_of(index, "blue")))
    plain, _ = search_images(CODED, index, ["red"], COUNT, TUNED)
    near = np.argsort(found.base_ranks)
    np.testing.assert_array_equal(found.rows[near], plain[0].rows[np.argsort(plain[0].base_ranks)])
    cosines = index.store.embeddings[found.rows] @ CODED.embed_texts(["red"])[0]
    np.testing.assert_allclose(found.similarities, cosines, atol=1e-6)


def test_an_image_alone_ranks_by_its_cosine(index):
    image = Colours(COUNT).image(7)
    found = ask(index, Query(image=image))
    cosines = index.store.embeddings[:] @ index.store.embeddings[np.array([7])][0]
    expect(found, Background.of(index.store.embeddings).logits(cosines))
    assert found.rows[0] == 7 and found.scores[0] > 0.5
    np.testing.assert_allclose(found.similarities, cosines[found.rows], atol=1e-6)


def test_an_image_of_the_index_asks_with_its_captions_and_is_left_out(index):
    found = ask(index, Query(like="07"))
    cosines = index.store.embeddings[:] @ index.store.embeddings[np.array([7])][0]
    of_captions = logits_of(index, Colours(COUNT).captions(7)[0])
    expected = pool_logits(index.background.logits(cosines), of_captions, 0.5)
    expected[7] = -np.inf
    expect(found, expected)
    assert len(ask(index, Query(like="07"), k=5).rows) == 5, "one more is asked for"


def test_text_and_image_are_pooled_by_the_weight(index):
    image = Colours(COUNT).image(7)
    cosines = index.store.embeddings[:] @ index.store.embeddings[np.array([7])][0]
    of_image = index.background.logits(cosines)
    for weight in (0.0, 0.3, 1.0):
        found = ask(index, Query("red", ["blue"], image=image, image_weight=weight))
        expected = pool_logits(logits_of(index, "red"), of_image, weight)
        expect(found, match_and_not(expected, logits_of(index, "blue")))


def test_candidates_of_text_and_image_come_in_turn(index):
    image = Colours(COUNT).image(2)
    found = ask(index, Query("red", image=image), k=6)
    embeddings = index.store.embeddings[:]
    by_text = np.argsort(-embeddings @ CODED.embed_texts(["red"])[0], kind="stable")
    by_image = np.argsort(-embeddings @ embeddings[2], kind="stable")
    in_turn = list(dict.fromkeys(np.stack([by_text, by_image], 1).ravel().tolist()))[:6]
    assert found.rows[np.argsort(found.base_ranks)].tolist() == in_turn


def test_filters_choose_before_candidates_are_found(index):
    where = "year >= 2010 and id not in ['12', '13']"
    found = ask(index, Query("red", ["blue"], like="15"), k=4, where=where)
    assert len(found.rows) == 4
    everything = ask(index, Query("red", ["blue"], like="15"), where=where)
    assert sorted(everything.rows.tolist()) == [10, 11, 14, 16, 17, 18, 19]
    assert ask(index, Query(like="15"), ids=["15"]).rows.tolist() == []


def test_codes_find_the_candidates_of_every_part(folder):
    coded = ImageIndex.open(folder, first_stage="codes", bits=64)
    for query in (Query("red", ["blue"]), Query("red", like="07"), Query(image=Dated(9).image(4))):
        exact = ask(ImageIndex.open(folder), query)
        np.testing.assert_array_equal(ask(coded, query).rows, exact.rows)


# --- with a trained model -------------------------------------------------------------------------

TEXTS = ["a red circle left of a blue square", "a small striped green star"]


@pytest.fixture(scope="module")
def reranker(trained) -> Reranker:
    return Reranker.from_pretrained(trained)


@pytest.fixture(scope="module")
def scenes(reranker, tmp_path_factory):
    """An index of captioned scenes, and their images."""
    folder, source = tmp_path_factory.mktemp("scenes"), Shapes("val")
    for i in range(12):
        source.image(i).save(folder / f"{i}.png")
    records = [{"image": f"{i}.png", "caption": list(source.captions(i))} for i in range(12)]
    (folder / "set.json").write_text(json.dumps(records))
    captioned = BlipJson(str(folder / "set.json"))
    assert build(reranker.runtime, reranker.stamp, captioned, "blip:set", folder / "index")
    return folder


def test_results_of_texts_stay_the_same_to_the_bit(reranker, scenes):
    index = ImageIndex.open(scenes / "index")
    plain = reranker.search(index, TEXTS, k=8)
    several = Query(TEXTS[0], ["a blue square"])
    mixed_ones = reranker.search(index, [Query(TEXTS[0]), several, TEXTS[1]], k=8, details=True)
    seconds = mixed_ones[0][0].pop("seconds")
    assert min(seconds["rerank"], seconds["first_stage"]) > 0
    kept = [[{key: one[key] for key in plain[0][0]} for one in found] for found in mixed_ones]
    assert kept[0] == plain[0] and kept[2] == plain[1]
    assert kept[1] == reranker.search(index, [several], k=8)[0]
    images = [scenes / f"{i}.png" for i in range(12)]
    assert reranker.rank(Query(TEXTS[0]), images) == reranker.rank(TEXTS[0], images)


def test_rank_takes_queries_of_several_parts(reranker, scenes):
    images = [scenes / f"{i}.png" for i in range(12)]
    tokens, embeddings = reranker.encode_images(images), reranker.embed_images(images)
    positive, negative = reranker.score_matrix(TEXTS, tokens).astype(np.float64)
    of_image = Background.of(embeddings).logits(embeddings @ embeddings[3])
    expected = match_and_not(pool_logits(positive, of_image, 0.25), negative)
    query = Query(TEXTS[0], TEXTS[1], image=images[3], image_weight=0.25)
    ranked = reranker.rank(query, images)
    assert [one["corpus_id"] for one in ranked] == np.argsort(-expected, kind="stable").tolist()
    scores = [one["score"] for one in ranked]
    np.testing.assert_allclose(scores, sigmoid(-np.sort(-expected)), atol=1e-4)
    assert reranker.rank(query, images, top_k=2) == ranked[:2] and reranker.rank(query, []) == []
    with pytest.raises(ValueError, match="there is no index here"):
        reranker.rank(Query(like="0.png"), images)


def test_the_command_takes_every_part(reranker, scenes, capsys):
    index = ImageIndex.open(scenes / "index")
    image = str(scenes / "3.png")

    def found(*arguments: str):
        assert edje.main(["search", str(scenes / "index"), *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    for arguments, query in (
        (
            [TEXTS[0], "--not", "a star", "--not", "a cross"],
            Query(TEXTS[0], ["a star", "a cross"]),
        ),
        (
            [TEXTS[0], "--image", image, "--image-weight", "0.2"],
            Query(TEXTS[0], image=image, image_weight=0.2),
        ),
        (["--like", "3.png"], Query(like="3.png")),
        (["--image", image, "--among", "images"], Query(image=image)),
    ):
        assert found(*arguments) == reranker.search(index, [query])[0]
    assert "caption" in found("--image", image)[0]
    for arguments, message in (
        (["--image", image, "--like", "3.png"], "give one, an image or the id"),
        (["dog", "--like", "3.png", "--image-weight", "2"], "image_weight 2.0"),
        (["--not", "dog"], "give a query"),
    ):
        with pytest.raises(Exception, match=message):
            edje.main(["search", str(scenes / "index"), *arguments])


def test_embeddings_of_the_index_are_sampled_for_queries_with_an_image_alone(folder):
    index = ImageIndex.open(folder)
    search_queries(CODED, index, [Query("red", ["blue"])], 5)
    assert "background" not in vars(index)
    search_queries(CODED, index, [Query("red", like="03")], 5)
    assert "background" in vars(index)
