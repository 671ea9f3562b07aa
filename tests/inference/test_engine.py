"""Lists of any length through the models in a few fixed shapes."""

import jax
import numpy as np
import pytest

from edje_jax.data.buckets import batches, bucket, lengths_up_to
from edje_jax.data.sources.shapes import Shapes
from edje_jax.inference import engine as engine_module
from edje_jax.inference.gallery import encode_gallery, evaluate
from edje_jax.retrieval.reranker import Reranker


@pytest.fixture(scope="module")
def engine(trained):
    return Reranker.from_pretrained(trained).engine


class Few:
    """The first pictures of a source."""

    def __init__(self, count: int):
        self.source, self.count = Shapes("val"), count

    def __len__(self) -> int:
        return self.count

    def __getattr__(self, name: str):
        return getattr(self.source, name)


def test_buckets():
    assert lengths_up_to(63) == (16, 24, 32, 48, 63)
    assert lengths_up_to(20) == (16, 20)
    assert bucket(17, (16, 24)) == 24
    rows = np.arange(100, 135)
    cut = list(batches(rows, (8, 1, 32)))
    assert [len(b) for b, _ in cut] == [32, 8] and [real for _, real in cut] == [32, 3]
    np.testing.assert_array_equal(np.concatenate([b[:real] for b, real in cut]), rows)
    assert list(batches(rows[:0], (8,))) == []


def test_a_score_does_not_depend_on_its_neighbours(engine):
    rng = np.random.default_rng(0)
    captions = [" ".join(["red circle"] * n) for n in (1, 3, 9, 20)]
    ids = engine.joint_tokenizer(captions)
    shape = (6, engine.config.num_tokens, engine.config.joint_encoder.hidden_size)
    tokens = rng.normal(size=shape).astype(np.float32)
    text_index, image_index = rng.integers(4, size=40), rng.integers(6, size=40)
    together = engine.score_pairs(ids, tokens, text_index, image_index)
    assert together.std() > 0
    for i in range(0, 40, 7):
        part = slice(i, i + 1)
        alone = engine.score_pairs(ids, tokens, text_index[part], image_index[part])
        np.testing.assert_allclose(alone, together[part], rtol=0, atol=1e-5)


def test_ragged_requests_compile_a_bounded_number_of_programs(engine):
    rng = np.random.default_rng(1)
    shape = (4, engine.config.num_tokens, engine.config.joint_encoder.hidden_size)
    tokens = rng.normal(size=shape).astype(np.float32)
    ids = engine.joint_tokenizer(["red " * n for n in (1, 20, 28, 60)])
    before = engine_module._score._cache_size()
    for _ in range(20):
        pairs = int(rng.integers(1, 300))
        engine.score_pairs(ids, tokens, rng.integers(4, size=pairs), rng.integers(4, size=pairs))
    sizes = engine_module.PAIR_BATCHES[jax.default_backend()]
    lengths = lengths_up_to(engine.config.max_text_length)
    assert engine_module._score._cache_size() - before <= len(sizes) * len(lengths)


def test_a_picture_does_not_depend_on_its_batch(engine):
    source = Shapes("val")
    size = engine.config.image.size
    images = np.stack([np.asarray(source.image(i).resize((size, size))) for i in range(11)])
    whole = engine.encode_images(images)
    one = engine.encode_images(images[10:])
    np.testing.assert_allclose(one.tokens[0], whole.tokens[10], rtol=0, atol=1e-5)
    np.testing.assert_allclose(one.embeddings[0], whole.embeddings[10], rtol=0, atol=1e-6)


def test_a_gallery_is_evaluated_both_ways(engine):
    encoded = encode_gallery(engine, Few(12), max_bad=0.0)
    assert len(encoded.tokens) == len(encoded.embeddings) == 12
    metrics = evaluate(engine, encoded, k=4).metrics()
    for direction in ("t2i", "i2t"):
        found = metrics[direction]
        assert found["base"]["R@1"] <= found["base"]["R@5"] <= found["base"]["R@10"]
        assert found["reranked"]["R@1"] <= found["ceiling"]
        # What lies past the candidates keeps its place.
        assert found["reranked"]["R@10"] == found["base"]["R@10"]
