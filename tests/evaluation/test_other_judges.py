"""Other people's evaluators find what ours finds: `ir_measures`, `eccv_caption`.

Covers evaluate/coco_ids.py, evaluation/eccv.py and evaluation/trec.py.
"""

import json

import ir_measures
import numpy as np
import pytest
from ir_measures import R, Success

from edje_jax.evaluate.coco_ids import coco_ids
from edje_jax.evaluation import trec
from edje_jax.evaluation.eccv import eccv_metrics
from edje_jax.evaluation.retrieval import Gallery, rerank
from edje_jax.reports.evaluation_files import write_metrics
from edje_jax.reports.tables import eccv_table


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_ir_measures_finds_the_same_recalls(tmp_path, make_case, weight):
    gallery, retrieval = make_case(images=80, k=10, weight=weight)
    write_metrics(tmp_path, retrieval, gallery, model="m", data="d", seconds={})
    for key in ("t2i", "i2t"):
        direction = getattr(retrieval, key)
        names = gallery.text_ids if key == "t2i" else gallery.image_ids
        for run, ranks in (
            ("base.run", direction.base_rank), ("run", direction.reranked_rank),
        ):  # fmt: skip
            qrels = list(ir_measures.read_trec_qrels(str(tmp_path / f"{key}.qrels")))
            lines = list(ir_measures.read_trec_run(str(tmp_path / f"{key}.{run}")))
            measures = [Success @ k for k in (1, 5, 10)]
            found = {
                (one.query_id, one.measure): one.value
                for one in ir_measures.iter_calc(measures, qrels, lines)
            }
            # Query by query, so that two errors cannot cancel.
            for k, measure in zip((1, 5, 10), measures, strict=True):
                ours = dict(zip(map(trec.safe_id, names), ranks <= k, strict=True))
                assert {query: bool(found[query, measure]) for query in ours} == ours
                total = ir_measures.calc_aggregate([measure], qrels, lines)[measure]
                stage = "base" if run == "base.run" else "reranked"
                expected = direction.metrics()[stage][f"R@{k}"]
                assert 100 * total == pytest.approx(expected, abs=1e-9)
            recall = ir_measures.calc_aggregate([R @ 5], qrels, lines)[R @ 5]
            success = ir_measures.calc_aggregate([Success @ 5], qrels, lines)[Success @ 5]
            # One right image a caption, so theirs is ours; several captions an image, so not.
            assert (recall == pytest.approx(success)) == (key == "t2i")


def test_runs_are_as_deep_as_what_was_reranked(tmp_path, make_case):
    """Up to that depth `Success@k` is our R@k; past it, a run of TREC has nothing more to find."""
    gallery, retrieval = make_case(images=80, k=3)
    write_metrics(tmp_path, retrieval, gallery, model="m", data="d", seconds={})
    for key in ("t2i", "i2t"):
        qrels = list(ir_measures.read_trec_qrels(str(tmp_path / f"{key}.qrels")))
        lines = list(ir_measures.read_trec_run(str(tmp_path / f"{key}.run")))
        found = ir_measures.calc_aggregate([Success @ k for k in (1, 3, 5)], qrels, lines)
        ranks = getattr(retrieval, key).reranked_rank
        for k in (1, 3):
            assert found[Success @ k] == pytest.approx(np.mean(ranks <= k))
        assert found[Success @ 5] == found[Success @ 3] < np.mean(ranks <= 5)


# --- eccv_caption ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """COCO's test set by its numbers: made-up captions and embeddings, and scores."""
    judge = pytest.importorskip("eccv_caption").Metrics()
    owned = judge.coco_gts["i2t"]
    gallery = Gallery.of(
        [f"val2014/COCO_val2014_{i:012d}.jpg" for i in owned],
        [[f"caption {c}" for c in captions] for captions in owned.values()],
    )
    annotations = [
        {"image_id": i, "id": c, "caption": f" caption  {c}\n"}
        for i, captions in owned.items()
        for c in captions
    ]
    path = tmp_path_factory.mktemp("coco") / "captions_val2014.json"
    path.write_text(json.dumps({"annotations": annotations}))
    rng = np.random.default_rng(0)
    images = rng.normal(size=(len(owned), 12))
    texts = images[gallery.caption_image] + 0.7 * rng.normal(size=(len(gallery.captions), 12))
    unit = [
        (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (images, texts)
    ]

    def score(text_index, image_index):
        noise = np.random.default_rng(1).normal(size=len(text_index))
        return 2.0 * (gallery.caption_image[text_index] == image_index) + noise

    return judge, gallery, *unit, rerank(gallery, *unit, score, 10), path


@pytest.mark.slow
def test_coco_recalls_are_ours_and_eccv_is_told(coco):
    _, gallery, images, texts, retrieval, path = coco
    ids = coco_ids(gallery, path)
    found = eccv_metrics(retrieval, images, texts, gallery.caption_image, ids)
    assert eccv_table(found).row_count == len(found["base"]) == 9
    for key in ("t2i", "i2t"):
        ours = getattr(retrieval, key).metrics()
        for stage in ("base", "reranked"):
            for k in (1, 5, 10):
                theirs = found[stage][f"coco_5k_r{k}"][key]
                assert theirs == pytest.approx(ours[stage][f"R@{k}"], abs=1e-9)
            assert 0 < found[stage]["eccv_map_at_r"][key] < 100
        assert found["reranked"]["eccv_r1"][key] > found["base"]["eccv_r1"][key]


def test_numbers_of_images_and_captions(coco):
    judge, gallery, *_, path = coco
    images, captions = coco_ids(gallery, path)
    assert images.tolist() == list(judge.coco_gts["i2t"])
    assert captions.tolist() == [c for all_of in judge.coco_gts["i2t"].values() for c in all_of]


def test_what_is_not_coco_is_refused(coco, tmp_path):
    *_, path = coco
    with pytest.raises(ValueError, match=r"'a\.jpg': no COCO number"):
        coco_ids(Gallery.of(["a.jpg"], [["x"]]), path)
    with pytest.raises(ValueError, match="image 391895 has no caption 'x'"):
        coco_ids(Gallery.of(["COCO_val2014_000000391895.jpg"], [["x"]]), path)
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"not COCO's captions_val2014\.json"):
        coco_ids(Gallery.of(["1.jpg"], [["x"]]), tmp_path / "other.json")


def test_a_part_of_coco_is_refused(coco):
    _, gallery, *_, path = coco
    owner = gallery.caption_image
    part = Gallery.of(
        gallery.image_ids[:5],
        [[gallery.captions[t] for t in np.flatnonzero(owner == i)] for i in range(5)],
    )
    # By the numbers alone, which are looked up before anything is scored.
    with pytest.raises(ValueError, match="4,995 of COCO's 5,000 test images are not in this"):
        coco_ids(part, path)
