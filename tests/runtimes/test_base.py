"""The protocol of a runtime: one of NumPy alone builds an index and searches it."""

import numpy as np
import pytest

from edje_jax import ImageIndex
from edje_jax.index.build import build
from edje_jax.runtimes.base import Embedded, Runtime
from edje_jax.search.cascade import search_captions, search_images
from tests.colour_runtime import COLOURS, RUNTIME, STAMP, Colours


def test_another_runtime_builds_an_index_and_searches_it(tmp_path):
    runtime: Runtime = RUNTIME
    report = build(runtime, STAMP, Colours(3), "colours", tmp_path / "index")
    assert report and report.new == ["00", "01", "02"]
    index = ImageIndex.open(tmp_path / "index")
    assert index.store.manifest.model == STAMP

    found, _ = search_images(runtime, index, ["blue", "green sea"], k=2)
    assert [int(one.rows[0]) for one in found] == [2, 1]
    for one in found:
        assert one.logits[0] == pytest.approx(2, abs=0.01) and len(one.rows) == 2

    red = runtime.encode_images(np.full((1, 8, 8, 3), COLOURS["red"], np.uint8))
    asked = Embedded(red.embeddings, red.projections)
    (captions,), _ = search_captions(runtime, index, red.tokens, asked, k=3)
    assert index.store.captions[captions.rows[0]] == (0, "red 0")
    np.testing.assert_allclose(captions.logits, [2, 0, 0], atol=0.01)
