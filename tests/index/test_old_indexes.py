"""Indexes and a model that an earlier version wrote: they open, answer the same, and take more.

`tests/goldens/make_old_index.py` wrote them.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edje_jax import ImageIndex, Reranker
from edje_jax.data.sources.registry import open_source
from edje_jax.index.build import BuildOptions, build
from edje_jax.index.maintain import compact
from edje_jax.index.store import Store, verify

OLD = Path(__file__).parents[1] / "goldens" / "old_index"
ANSWERS = json.loads((OLD / "answers.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    return Reranker.from_pretrained(OLD / "model")


def check(reranker: Reranker, index: Path, expected: dict[str, list[dict]]) -> None:
    """Compare the answers to every query; scores may differ by rounding."""
    opened = ImageIndex.open(index)
    for query, results in expected.items():
        if query.endswith(".png"):
            image = OLD / "images" / query
            found = reranker.search_captions(opened, [image], k=6, top_k=5)[0]
        else:
            found = reranker.search(opened, [query], k=6, top_k=5)[0]
        assert [result.keys() for result in found] == [result.keys() for result in results]
        for result, wanted in zip(found, results, strict=True):
            numbers = {key: pytest.approx(wanted[key], abs=1e-6) for key in ("score", "similarity")}
            assert result == wanted | numbers


@pytest.mark.parametrize("dtype", ANSWERS)
def test_an_old_index_answers_the_same(reranker, dtype):
    assert not list(verify(OLD / dtype))
    check(reranker, OLD / dtype, ANSWERS[dtype])


@pytest.mark.parametrize("dtype", ANSWERS)
def test_images_are_added_to_an_old_index(reranker, dtype, tmp_path):
    """Indexed images keep their tokens, bit for bit, and removed ones stay removed."""
    index, spec = tmp_path / "index", f"blip:{OLD / 'images' / 'set.json'}"
    shutil.copytree(OLD / dtype, index)
    old = Store(OLD / dtype)
    report = build(
        reranker.runtime,
        reranker.stamp,
        open_source(spec),
        spec,
        index,
        BuildOptions(token_dtype=dtype),
    )
    assert report and report.new == ["08.png", "09.png"] and not report.changed
    for step in (lambda index: 0, compact):
        step(index)
        store = Store(index)
        assert store.image_of_id.keys() == {*old.image_of_id, "08.png", "09.png"}
        for name, image in old.image_of_id.items():
            before, now = old.tokens([image]), store.tokens([store.image_of_id[name]])
            assert all(np.array_equal(a, b) for a, b in zip(before, now, strict=True))
        found = reranker.search(ImageIndex(store), ["two dogs"], top_k=20)[0]
        assert {result["id"] for result in found} == store.image_of_id.keys()
        assert not list(verify(index))
