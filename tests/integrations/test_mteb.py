"""mteb runs a local task through `MtebSearch` and finds what eval.py finds."""

import json

import numpy as np
import pytest

from edje_jax.cli.evaluate import evaluate_model
from edje_jax.data.sources.blip_json import BlipJson
from edje_jax.evaluate.measure import Protocol
from edje_jax.integrations.mteb import MtebSearch
from edje_jax.scenes.shapes import Shapes
from edje_jax.search.reranker import Reranker

IMAGES, K = 24, 6


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("set")
    scenes, entries = Shapes("val", image_size=32), []
    for i in range(IMAGES):
        scenes.image(i).save(folder / f"{i}.png")
        entries.append({"image": f"{i}.png", "caption": list(scenes.captions(i)[:3])})
    (folder / "set.json").write_text(json.dumps(entries))
    return f"blip:{folder / 'set.json'}"


@pytest.fixture(scope="module")
def reranker(trained) -> Reranker:
    return Reranker.from_pretrained(trained, precision="float32")


def sides(spec: str):
    """Images, captions, and which belong together, as mteb's datasets."""
    from datasets import Dataset

    source = BlipJson(spec.removeprefix("blip:"))
    images = [{"id": source.image_id(i), "image": source.image(i)} for i in range(IMAGES)]
    captions, owner = [], {}
    for i in range(IMAGES):
        for j, text in enumerate(source.captions(i)):
            name = f"{source.image_id(i)}#{j}"
            captions.append({"id": name, "text": text})
            owner[name] = source.image_id(i)
    return Dataset.from_list(images), Dataset.from_list(captions), owner


def about(category: str):
    """Metadata that mteb holds of a task."""
    from mteb.abstasks.task_metadata import TaskMetadata

    return TaskMetadata(
        name=f"Local{category.upper()}",
        description="Scenes.",
        reference=None,
        dataset={"path": "local/scenes", "revision": "1"},
        type="Any2AnyRetrieval",
        category=category,
        modalities=["text", "image"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="hit_rate_at_5",
        date=None, domains=None, task_subtypes=None, license=None, annotations_creators=None,
        dialect=None, sample_creation=None, bibtex_citation=None,
    )  # fmt: skip


def local_task(spec: str, category: str):
    """A retrieval task of mteb whose data are made here."""
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    images, captions, owner = sides(spec)
    corpus, queries = (images, captions) if category == "t2i" else (captions, images)
    relevant: dict[str, dict[str, int]] = {}
    for caption, image in owner.items():
        query, item = (caption, image) if category == "t2i" else (image, caption)
        relevant.setdefault(query, {})[item] = 1

    class Local(AbsTaskRetrieval):
        metadata = about(category)
        k_values = (1, 5, 10)

        def load_data(self, *_, **__):
            data = {"corpus": corpus, "queries": queries, "relevant_docs": relevant}
            self.dataset = {"default": {"test": {**data, "top_ranked": None}}}
            self.data_loaded = True

    return Local()


@pytest.mark.slow
@pytest.mark.parametrize("category", ["t2i", "i2t"])
@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_mteb_finds_what_eval_finds(trained, reranker, spec, category, weight):
    import mteb

    model = MtebSearch(reranker, k=K, similarity_weight=weight)
    encoded = []
    plain_encode = type(reranker.runtime).encode_images

    def count(runtime, images):
        encoded.append(len(images))
        return plain_encode(runtime, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(reranker.runtime), "encode_images", count)
        (result,) = mteb.evaluate(
            model, local_task(spec, category), cache=None, co2_tracker=False
        ).task_results
    assert sum(encoded) == IMAGES
    (scores,) = result.scores["test"]
    ours = evaluate_model(str(trained), spec, Protocol(K, weight))[category]["reranked"]
    for k in (1, 5, 10):
        assert 100 * scores[f"hit_rate_at_{k}"] == pytest.approx(ours[f"R@{k}"], abs=1e-2)
    if category == "t2i":
        assert 100 * scores["recall_at_1"] == pytest.approx(ours["R@1"], abs=1e-2)


def test_ranks_fall_and_what_was_not_scored_keeps_its_order(reranker, spec):
    images, captions, _ = sides(spec)
    model = MtebSearch(reranker, k=4)
    model.index(images, task_metadata=about("t2i"))
    found = model.search(captions, task_metadata=about("t2i"), top_k=10)
    texts = [row["text"] for row in captions]
    tokens = reranker.encode_images(list(images["image"]))
    near = reranker.embed_texts(texts) @ reranker.embed_images(list(images["image"])).T
    logits = reranker.score_matrix(texts, tokens)
    for q, row in enumerate(captions):
        base = np.argsort(-near[q], kind="stable")[:10]
        head = base[:4][np.argsort(-logits[q, base[:4]], kind="stable")]
        ranked = [images[int(i)]["id"] for i in [*head, *base[4:]]]
        assert list(found[row["id"]]) == ranked
        values = np.array(list(found[row["id"]].values()), np.float32)
        assert (np.diff(values) < 0).all()
        np.testing.assert_allclose(values[:4], np.sort(logits[q, base[:4]])[::-1], atol=1e-5)


def test_candidates_of_a_task_are_all_scored(reranker, spec):
    images, captions, _ = sides(spec)
    model = MtebSearch(reranker, k=2)
    model.index(captions, task_metadata=about("i2t"))
    own = {row["id"]: [f"{row['id']}#{j}" for j in range(3)] + ["0.png#0"] for row in images}
    own = {name: list(dict.fromkeys(rows)) for name, rows in own.items()}
    found = model.search(images, task_metadata=about("i2t"), top_k=10, top_ranked=own)
    assert {name: set(rows) for name, rows in found.items()} == {
        name: set(rows) for name, rows in own.items()
    }
    tokens = reranker.encode_images([images[5]["image"]])
    texts = {row["id"]: row["text"] for row in captions}
    scores = found[images[5]["id"]]
    expected = reranker.score_matrix([texts[name] for name in scores], tokens)[:, 0]
    np.testing.assert_allclose(list(scores.values()), expected, atol=1e-5)


def test_texts_against_texts_are_refused(reranker, spec):
    _, captions, _ = sides(spec)
    model = MtebSearch(reranker)
    with pytest.raises(ValueError, match="index a corpus first"):
        model.search(captions, task_metadata=about("t2t"), top_k=5)
    model.index(captions, task_metadata=about("t2t"))
    with pytest.raises(ValueError, match="one of queries and corpus must be images"):
        model.search(captions, task_metadata=about("t2t"), top_k=5)


def test_the_task_tells_what_is_read_and_not_the_columns(reranker, spec):
    """Sets of mteb carry an empty column of the other kind, or both kinds in every row."""
    images, captions, _ = sides(spec)
    model, expected = MtebSearch(reranker, k=4), MtebSearch(reranker, k=4)
    both = images.add_column("text", [f"text {i}" for i in range(IMAGES)])
    empty = captions.add_column("image", [None] * len(captions))
    model.index(both, task_metadata=about("t2i"))
    expected.index(images, task_metadata=about("t2i"))
    found, plain = (
        one.search(asked, task_metadata=about("t2i"), top_k=5)
        for one, asked in ((model, empty), (expected, captions))
    )
    assert found == plain


def test_what_cannot_be_read_is_refused(reranker, spec):
    images, captions, _ = sides(spec)
    model = MtebSearch(reranker)
    empty = captions.add_column("image", [None] * len(captions))
    for corpus, category, told in (
        (images, "t2it", "LocalT2IT: a document is image and text; .* either text or image"),
        (captions, "t2i", "LocalT2I: no column 'image' for a document"),
        (empty, "t2i", r"LocalT2I: 72 of 72 .*\n  document '0\.png#0': has no image"),
        (
            images.add_column("text", [None] * IMAGES), "i2t",
            r"LocalI2T: 24 of 24 .*\n  document '0\.png': has no text",
        ),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            model.index(corpus, task_metadata=about(category))


def cut(images, *rows: int):
    """The dataset with the files of some images truncated."""
    from datasets import Image

    stored = images.cast_column("image", Image(decode=False)).to_list()
    for row in rows:
        stored[row]["image"]["bytes"] = stored[row]["image"]["bytes"][:120]
    return type(images).from_list(stored).cast_column("image", Image())


def test_bad_documents_are_named_and_counted_and_never_found(reranker, spec, caplog):
    images, captions, _ = sides(spec)
    model, expected = (MtebSearch(reranker, k=4, max_bad=0.1) for _ in range(2))
    model.index(cut(images, 3, 5), task_metadata=about("t2i"))
    assert "LocalT2I: left out document '3.png': " in caplog.text
    assert caplog.text.count("image file is truncated") == 2
    good = images.select([i for i in range(IMAGES) if i not in (3, 5)])
    expected.index(good, task_metadata=about("t2i"))
    found, plain = (
        one.search(captions, task_metadata=about("t2i"), top_k=IMAGES) for one in (model, expected)
    )
    assert found == plain
    given = {name: ["3.png", "4.png"] for name in captions["id"]}
    found = model.search(captions, task_metadata=about("t2i"), top_k=5, top_ranked=given)
    assert {name for hits in found.values() for name in hits} == {"4.png"}
    with pytest.raises(ValueError, match=r"2 of 24 cannot be used, more than max_bad=0\.01 allows"):
        MtebSearch(reranker).index(cut(images, 3, 5), task_metadata=about("t2i"))


def test_a_bad_query_finds_nothing_and_counts_as_a_miss(reranker, spec):
    images, captions, owner = sides(spec)
    model = MtebSearch(reranker, k=4, max_bad=0.1)
    model.index(captions, task_metadata=about("i2t"))
    plain = model.search(images, task_metadata=about("i2t"), top_k=72)
    found = model.search(cut(images, 3), task_metadata=about("i2t"), top_k=72)
    expected = plain | {"3.png": {}}
    assert found.keys() == expected.keys()
    for name, scores in expected.items():
        # One image fewer in a batch: the others are rounded differently on some CPUs.
        assert found[name] == pytest.approx(scores, abs=1e-5)
    relevant: dict[str, dict[str, int]] = {}
    for caption, image in owner.items():
        relevant.setdefault(image, {})[caption] = 1
    from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores

    recall = calculate_retrieval_scores(found, relevant, [72]).recall["Recall@72"]
    assert recall == pytest.approx((IMAGES - 1) / IMAGES, abs=1e-4)


def test_a_broken_model_is_told(reranker, spec, monkeypatch):
    images, captions, _ = sides(spec)
    model = MtebSearch(reranker, k=2)
    model.index(images, task_metadata=about("t2i"))

    def broken(self, ids, tokens, text, image, similarities):
        return np.full(len(text), np.nan, np.float32)

    monkeypatch.setattr(type(reranker.runtime), "score_pairs", broken)
    with pytest.raises(ValueError, match=r"gave nan for query '0\.png#0' and document"):
        model.search(captions, task_metadata=about("t2i"), top_k=5)
