import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from edje_jax.evaluation.retrieval import Gallery, rerank
from edje_jax.reports import report
from edje_jax.reports.examples import sections

VOID = {"meta", "br"}


def square(index: int) -> Image.Image:
    return Image.new("RGB", (300, 200), (index * 37 % 256, index * 91 % 256, 128))


class Page(HTMLParser):
    """Collects tags and texts, and fails on one that is closed out of turn."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def write_page(tmp_path, case, load=square, **options) -> tuple[str, Page]:
    path = report.write_report(tmp_path, case.retrieval, case.gallery, load, **options)
    assert path == tmp_path / "report.html"
    text = path.read_text("utf-8")
    return text, Page(text)


def test_page_shows_the_numbers_and_counts(tmp_path, make_case):
    case = make_case()
    _, shown = write_page(
        tmp_path, case, heading=report.Heading("A title", {"Model": "some/model"})
    )
    words = " ".join(" ".join(shown.texts).split())
    assert "A title" in words
    assert "some/model" in words
    for direction in ("t2i", "i2t"):
        result = case.retrieval.metrics()[direction]
        for stage in ("base", "reranked"):
            for value in result[stage].values():
                assert f"{value:.2f}" in words
        assert f"{result['ceiling']:.2f}" in words
        side = getattr(case.retrieval, direction)
        gains = int(((side.base_rank > 1) & (side.reranked_rank == 1)).sum())
        losses = int(((side.base_rank == 1) & (side.reranked_rank > 1)).sum())
        assert gains > 0
        assert f"{min(12, gains)} of {gains} shown" in words
        assert f"{gains} gained" in words
        assert f"{losses} lost" in words


def test_every_query_is_in_one_part_of_the_outcomes(tmp_path, make_case):
    case = make_case(k=3)
    text, _ = write_page(tmp_path, case, examples=0)
    legends = re.findall(r'<ul class="legend">(.*?)</ul>', text)
    totals = [sum(int(n) for n in re.findall(r"<b>(\d+)</b>", legend)) for legend in legends]
    assert totals == [120, 40]


def test_page_needs_nothing_from_outside(tmp_path, make_case):
    text, shown = write_page(tmp_path, make_case())
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in shown.tags}
    for target in re.findall(r"url\(([^)]*)\)", text):
        assert target.startswith(("data:image/jpeg;base64,", "#"))
    assert not re.search(r"https?://|@import|\bsrc=", text)
    links = [attrs["href"] for tag, attrs in shown.tags if tag == "a"]
    ids = {f"#{attrs['id']}" for _, attrs in shown.tags if attrs.get("id")}
    assert links
    assert set(links) <= ids


def test_each_image_is_loaded_and_embedded_once(tmp_path, make_case):
    loaded = []

    def load(index):
        loaded.append(index)
        return square(index)

    text, shown = write_page(tmp_path, make_case(), load)
    assert len(loaded) == len(set(loaded)) == len(re.findall(r"\.p\d+\{background-image", text))
    assert len(set(re.findall(r"base64,([^)]*)", text))) == len(loaded)
    images = [attrs for _, attrs in shown.tags if "pic" in (attrs.get("class") or "").split()]
    assert len(images) > len(loaded)
    for attrs in images:
        assert attrs["role"] == "img"
        assert re.search(r"image \d+\.jpg: caption 0 of \d+", attrs["aria-label"] or "")


def test_images_that_cannot_be_read_show_a_placeholder(tmp_path, make_case, caplog):
    def load(index):
        if index % 2:
            raise OSError("truncated")
        return square(index)

    text, shown = write_page(tmp_path, make_case(), load)
    missing = [a for _, a in shown.tags if "missing" in (a.get("class") or "").split()]
    assert missing
    assert all("could not be read" in (a["aria-label"] or "") for a in missing)
    odd = [n for n in re.findall(r"\.p(\d+)\{", text) if int(n) % 2]
    assert odd == []
    assert "truncated" in caplog.text


def test_text_from_the_data_is_escaped(tmp_path):
    evil = "<script>alert(1)</script> \"quoted\" & 'more' $images"
    gallery = Gallery.of([f"{evil}{i}" for i in range(3)], [[evil]] * 3)
    axes = np.eye(3, dtype=np.float32)
    retrieval = rerank(gallery, axes, axes, lambda t, i: (t != i) * 1.0, k=2)
    path = report.write_report(
        tmp_path, retrieval, gallery, square, report.Heading(evil, {evil: evil}), examples=3
    )
    text = path.read_text("utf-8")
    shown = Page(text)
    assert "<script" not in text
    assert "script" not in {tag for tag, _ in shown.tags}
    assert shown.texts.count(evil) > 3
    labels = [a["aria-label"] for _, a in shown.tags if (a.get("class") or "").startswith("pic")]
    assert labels
    assert all(evil in (label or "") for label in labels)


def test_the_right_image_is_framed_and_moves_are_told(tmp_path):
    gallery = Gallery.of(["a", "b", "c"], [["the first"], ["the second"], ["the third"]])
    texts = np.array([[0.6, 0.8, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    logits = np.array([[4.25, 1, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    retrieval = rerank(gallery, np.eye(3), texts, lambda t, i: logits[t, i], k=2)
    text = report.write_report(tmp_path, retrieval, gallery, square).read_text("utf-8")
    gains = text[text.index('id="t2i-gains"') : text.index('id="t2i-losses"')]
    assert "the first" in gains
    assert re.search(r"rank 2 <span>→</span> <b>1</b>", gains)
    base, after = gains.split("Reranked <small>")
    places = r'<li><div class="(hit|miss)"><div class="pic p(\d)"'
    assert re.findall(places, base) == [("miss", "1"), ("hit", "0")]
    assert re.findall(places, after) == [("hit", "0"), ("miss", "1")]
    assert "0.800" in base
    assert "4.25" in after
    assert "▲1" in after
    assert "▼1" in after


def test_a_right_answer_outside_the_places_shown_stands_apart(tmp_path, make_case):
    case = make_case(k=2)
    text, _ = write_page(tmp_path, case, examples=200)
    side = case.retrieval.t2i
    wrong = text[text.index('id="t2i-wrong"') : text.index('id="t2i-random"')]
    far = int(((side.base_rank > 2) & (side.reranked_rank > 2)).sum())
    assert far > 0
    # Nothing past k has been reranked: it stands apart in both rows.
    assert wrong.count('class="apart"') == 2 * far
    assert wrong.count("out of reach") == far


def test_a_caption_that_stands_apart_is_the_images_own(tmp_path, make_case):
    case = make_case(k=12)
    text, _ = write_page(tmp_path, case, examples=200)
    side = case.retrieval.i2t
    cards = text[text.index('id="i2t-random"') :].split("<article")[1:]
    assert len(cards) == 40
    apart = r'<li class="hit apart"><span>(.*?)</span><p>rank (\d+)</p>'
    told = 0
    for q, card in enumerate(cards):
        for part, rank in zip(
            card.split("Reranked <small>"), (side.base_rank[q], side.reranked_rank[q]), strict=True
        ):
            found = re.findall(apart, part)
            assert len(found) == (rank > 5)
            for caption, shown in found:
                assert caption.endswith(f" of {q}")
                assert int(shown) == rank
                told += 1
    assert told > 0


def test_sections_choose_as_they_say(make_case):
    side = make_case(images=60).retrieval.t2i
    gains, losses, wrong, anything = sections(side, 5, "captions")
    moved = side.base_rank[gains.shown]
    assert (side.reranked_rank[gains.shown] == 1).all()
    every = np.sort(side.base_rank[(side.base_rank > 1) & (side.reranked_rank == 1)])
    assert moved.tolist() == every[::-1][:5].tolist()
    assert (side.base_rank[losses.shown] == 1).all()
    assert (np.diff(side.reranked_rank[losses.shown]) <= 0).all()
    assert (side.base_rank[wrong.shown] > 1).all()
    assert (side.reranked_rank[wrong.shown] > 1).all()
    assert anything.total == len(side.base_rank)
    again = sections(side, 5, "captions")[3].shown
    assert anything.shown.tolist() == again.tolist()
    other = sections(side, 5, "captions", seed=1)[3].shown
    assert anything.shown.tolist() != other.tolist()


def test_an_empty_section_says_so(tmp_path):
    gallery = Gallery.of(["a", "b"], [["a0"], ["b0"]])
    axes = np.eye(2, dtype=np.float32)
    retrieval = rerank(gallery, axes, axes, lambda t, i: (t == i) * 1.0, k=2)
    text = report.write_report(tmp_path, retrieval, gallery, square).read_text("utf-8")
    assert "Wrong before, right after. None." in text
    with pytest.raises(ValueError, match="examples = -1"):
        report.write_report(tmp_path, retrieval, gallery, square, examples=-1)


def test_failing_to_rename_leaves_the_old_page_and_no_part(tmp_path, make_case, monkeypatch):
    (tmp_path / "report.html").write_text("the old one")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_page(tmp_path, make_case(), examples=1)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "the old one"
