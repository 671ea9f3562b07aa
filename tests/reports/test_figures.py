"""The report's figures: calibration, bars, depths, moves and words.

Covers reports/examples.py and reports/word_maps.py.
"""

import re
import sys

import numpy as np
import pytest
from PIL import Image

from edje_jax.evaluation.calibration import direction_reliability, reliability
from edje_jax.evaluation.intervals import gain_intervals
from edje_jax.evaluation.protocols import k_sweep
from edje_jax.evaluation.retrieval import Gallery, rerank
from edje_jax.reports import report
from edje_jax.reports.examples import moves, sections
from edje_jax.reports.figures import figures
from edje_jax.reports.word_maps import WordMaps


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def test_calibration_by_hand():
    scores = np.array([logit(p) for p in (0.9, 0.9, 0.9, 0.9, 0.1)])
    hits = np.array([1, 1, 1, 0, 0], bool)
    found = reliability(scores, hits)
    assert [(one["pairs"], round(one["score"], 6), one["right"]) for one in found["bins"]] == [
        (1, 0.1, 0.0),
        (4, 0.9, 0.75),
    ]
    assert found["ece"] == pytest.approx((1 * 0.1 + 4 * 0.15) / 5)
    assert reliability(np.array([900.0, -900.0]), np.array([True, False]))["ece"] == 0
    with pytest.raises(ValueError, match="no scored pair"):
        reliability(np.array([]), np.array([], bool))


def test_draws_from_the_score_are_calibrated():
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, 50_000)
    hits = rng.random(50_000) < 1 / (1 + np.exp(-scores))
    assert reliability(scores, hits)["ece"] < 0.01
    assert reliability(scores + 2, hits)["ece"] > 0.1


def measured(case) -> dict:
    gallery, retrieval = case
    return {
        **retrieval.metrics(),
        "interval": gain_intervals(retrieval, gallery),
        "calibration": {
            key: direction_reliability(getattr(retrieval, key)) for key in ("t2i", "i2t")
        },
        "k_sweep": k_sweep(retrieval, (1, 5, 10), 250.0),
    }


def test_figures_show_the_numbers_in_the_pages_colours(make_case):
    metrics = measured(make_case())
    bars, depths, calibration = figures(metrics)
    for key in ("t2i", "i2t"):
        for stage in ("base", "reranked"):
            for value in metrics[key][stage].values():
                assert f">{value:.1f}</text>" in bars.svg
        assert f"ECE {metrics['calibration'][key]['ece']:.3f}" in calibration.svg
    assert ">4.0 ms<" in depths.svg and ">40 ms<" in depths.svg
    for one in (bars, depths, calibration):
        # No colour of its own, nothing from outside, no style that reaches the page.
        assert not re.search(r"#[0-9a-f]{6}\b|https?:|<style|font-family", one.svg)
        assert "var(--accent)" in one.svg and one.svg.startswith("<svg viewBox")
        assert f'role="img" aria-label="{one.title}">' in one.svg.partition("\n")[0]
    assert [one.svg for one in figures(metrics)] == [bars.svg, depths.svg, calibration.svg]


def test_only_what_was_measured_is_drawn(make_case):
    assert len(figures(make_case().retrieval.metrics())) == 1


def test_without_matplotlib_the_page_says_so(make_case, tmp_path, monkeypatch):
    case = make_case()
    options = {"metrics": measured(case), "examples": 2}
    whole = report.write_report(tmp_path, case.retrieval, case.gallery, square, **options)
    assert whole.read_text("utf-8").count("<figure>") == 3
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = report.write_report(tmp_path, case.retrieval, case.gallery, square, **options)
    text = path.read_text("utf-8")
    assert "<figure>" not in text and "pip install 'edje-jax[eval]'" in text


def square(index: int) -> Image.Image:
    return Image.new("RGB", (30, 20), (index * 37 % 256, index * 91 % 256, 128))


def test_moves_are_the_largest(make_case):
    side = make_case(images=60).retrieval.t2i
    rose, fell = moves(side)
    risen = side.base_rank - side.reranked_rank
    assert risen[rose].tolist() == sorted(risen[risen > 0].tolist(), reverse=True)[:20]
    assert risen[fell].tolist() == sorted(risen[risen < 0].tolist())[:20]
    assert len(rose) == 20 and len(fell) > 0


def test_equal_moves_by_how_decided_they_are():
    """Fifty images of which every second one rises, and the others fall, by one place."""
    count = 50
    gallery = Gallery.of([str(i) for i in range(count)], [["x"]] * count)
    angles = np.linspace(0, np.pi, count)
    images = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # A caption lies by its own image, or a little nearer to the next one.
    asked = angles + np.where(np.arange(count) % 2, 0.1, 0.6) * (angles[1] - angles[0])
    texts = np.stack([np.cos(asked), np.sin(asked)], axis=1)
    sure = np.random.default_rng(0).permutation(count) + 1.0

    def score(text_index, image_index):
        rises = np.where(text_index % 2, -1.0, 1.0)
        return rises * sure[text_index] * (gallery.caption_image[text_index] == image_index)

    side = rerank(gallery, images, texts, score, 2).t2i
    rose, fell = moves(side)
    risen = side.base_rank - side.reranked_rank
    assert set(risen[rose]) == {1} and set(risen[fell]) == {-1} and len(rose) == len(fell) == 20
    assert sure[rose].tolist() == sorted(sure[risen > 0].tolist(), reverse=True)[:20]
    assert sure[fell].tolist() == sorted(sure[risen < 0].tolist(), reverse=True)[:20]
    chosen = {one.key: one.shown for one in sections(side, 5, "captions")}
    assert chosen["gains"].tolist() == rose[:5].tolist()
    assert chosen["losses"].tolist() == fell[:5].tolist()


def test_a_caption_without_words_has_no_card(make_case, tmp_path, caplog, recwarn):
    case = make_case()
    maps = WordMaps(np.zeros((8, 8, 3), np.uint8), [], np.zeros((0, 4, 4)))
    path = report.write_report(
        tmp_path, case.retrieval, case.gallery, square, word_maps=lambda q: maps
    )
    assert 'id="words"' not in path.read_text("utf-8")
    assert not caplog.records and not recwarn.list


def test_moves_stand_on_the_page(make_case, tmp_path):
    case = make_case(images=60)
    path = report.write_report(tmp_path, case.retrieval, case.gallery, square, examples=0)
    text = path.read_text("utf-8")
    for key in ("t2i", "i2t"):
        side = getattr(case.retrieval, key)
        part = text[text.index(f'id="{key}-moves"') :]
        part = part[: part.index("</article>")]
        shown = re.findall(r"<p>(\d+) → <b>(\d+)</b>", part)
        rows = np.concatenate(moves(side))
        expected = [(str(side.base_rank[q]), str(side.reranked_rank[q])) for q in rows]
        assert shown == expected and expected


def test_words_light_their_patches(make_case, tmp_path):
    case = make_case()
    image = np.full((16, 16, 3), 200, np.uint8)
    maps = np.zeros((2, 4, 4))
    maps[0, 0, 0] = maps[1, 3, 3] = 1.0
    asked = []

    def word_maps(q: int) -> WordMaps:
        asked.append(q)
        if len(asked) == 2:
            raise OSError("gone")
        return WordMaps(image, ["<red>", "square"], maps)

    path = report.write_report(tmp_path, case.retrieval, case.gallery, square, word_maps=word_maps)
    text = path.read_text("utf-8")
    assert len(asked) == 4 and "Where words look" in text
    assert text.index('href="#t2i-moves"') < text.index('href="#words"') < text.index('id="words"')
    # One of four could not be made, which costs the page nothing else.
    assert len(re.findall(r"\.w\d\{background-image", text)) == 3
    assert "&lt;red&gt;" in text and "<red>" not in text
    plain = report.write_report(tmp_path, case.retrieval, case.gallery, square)
    assert 'id="words"' not in plain.read_text("utf-8")
