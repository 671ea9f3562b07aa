"""Heads of the first stage: a fresh one changes nothing, and short codes begin long ones.

Covers config/first_stage.py and runtimes/heads.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edje_jax.config.first_stage import FirstStageConfig
from edje_jax.config.model import EdjeConfig
from edje_jax.models.heads.first_stage import FirstStageHeads, fresh_heads, rotations
from edje_jax.search.reranker import Reranker
from tests.small_runs import coded as coded  # fixtures
from tests.small_runs import trained as trained

WORDS = ["a small red star", "two blue circles", "x"]


def unit(rows: int, width: int, seed: int = 0) -> jax.Array:
    values = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return jnp.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


@pytest.mark.parametrize("hidden_size", [0, 8])
def test_fresh_heads_give_the_embeddings_bit_for_bit(hidden_size):
    config = EdjeConfig(first_stage=FirstStageConfig((8, 16), hidden_size, reads_tokens=True))
    params = fresh_heads(config, jax.random.key(0))
    heads = FirstStageHeads(config.first_stage).bind({"params": params})
    x = unit(5, config.backbone.text.projection_size)
    tokens = np.random.default_rng(1).normal(size=(5, 3, config.joint_encoder.hidden_size))
    images, texts = heads.of_images(x, jnp.asarray(tokens, jnp.float32)), heads.of_texts(x)
    np.testing.assert_array_equal(images.embeddings, x)
    np.testing.assert_array_equal(texts.embeddings, x)
    # Both modalities start with the same projections, and tokens count for nothing yet.
    np.testing.assert_allclose(images.projections, texts.projections, atol=1e-5)


def test_moved_embeddings_have_unit_length_and_the_stated_direction():
    config = EdjeConfig(first_stage=FirstStageConfig(()))
    params = fresh_heads(config, jax.random.key(0))
    moved = jax.tree.map(
        lambda leaf: np.random.default_rng(2).normal(size=leaf.shape).astype(np.float32), params
    )
    x = unit(6, config.backbone.text.projection_size)
    found = FirstStageHeads(config.first_stage).bind({"params": moved}).of_texts(x)
    f = x @ moved["text"]["move"]["out"]["kernel"] + moved["text"]["move"]["out"]["bias"][None]
    expected = (x + f) / np.linalg.norm(x + f, axis=1, keepdims=True)
    np.testing.assert_allclose(found.embeddings, expected, atol=1e-5)
    assert found.projections.shape == (6, 0)


def test_the_mean_is_taken_away_and_gets_no_gradient():
    config = EdjeConfig(first_stage=FirstStageConfig((8,)))
    params = fresh_heads(config, jax.random.key(0))
    x = unit(50, config.backbone.text.projection_size)
    params["image"] = {**params["image"], "mean": x.mean(axis=0)}

    def total(params):
        heads = FirstStageHeads(config.first_stage).bind({"params": params})
        return (heads.of_pooled_images(x).projections ** 2).sum()

    heads = FirstStageHeads(config.first_stage).bind({"params": params})
    found = heads.of_pooled_images(x).projections
    np.testing.assert_allclose(np.mean(found, axis=0), np.zeros(8), atol=1e-5)
    gradients = jax.grad(total)(params)
    assert not np.any(gradients["image"]["mean"])
    assert np.any(gradients["image"]["code"]["out"]["kernel"])


@pytest.mark.parametrize("lengths", [(12,), (64, 32), (64, 64), (0, 8)])
def test_lengths_that_cannot_be_stored_are_refused(lengths):
    with pytest.raises(ValueError, match="multiples of 8, each once, rising"):
        FirstStageConfig(lengths)


def test_a_runtime_with_fresh_heads_embeds_as_the_backbone_does(trained):
    plain = Reranker.from_pretrained(trained, precision="float32").runtime
    stage = FirstStageConfig((8, 32), reads_tokens=True)
    config = dataclasses.replace(plain.config, first_stage=stage)
    params = fresh_heads(config, jax.random.key(0))
    runtime = dataclasses.replace(plain, config=config, heads=params)
    side = config.image.size
    images = np.random.default_rng(0).integers(0, 256, (5, side, side, 3), np.uint8)
    with_heads, without = runtime.encode_images(images), plain.encode_images(images)
    np.testing.assert_array_equal(with_heads.embeddings, without.embeddings)
    np.testing.assert_array_equal(with_heads.tokens, without.tokens)
    assert with_heads.projections.shape == (5, 32) and without.projections.shape == (5, 0)
    texts = runtime.encode_texts(WORDS)
    np.testing.assert_array_equal(texts.embeddings, plain.embed_texts(WORDS))
    assert texts.projections.shape == (3, 32)
    assert runtime.fingerprint() != plain.fingerprint()
    assert dataclasses.replace(plain).fingerprint() == plain.fingerprint()


def test_codes_start_as_rotations_beside_each_other():
    kernel = np.asarray(rotations(jax.random.key(0), (16, 40)))
    for block in (kernel[:, :16], kernel[:, 16:32]):
        np.testing.assert_allclose(block.T @ block, 16 * np.eye(16), atol=1e-4)
    assert kernel.shape == (16, 40) and not np.allclose(kernel[:, :16], kernel[:, 16:32])


def test_heads_are_counted_where_they_run(trained, coded):
    plain, with_heads = (
        Reranker.from_pretrained(model).num_parameters for model in (trained, coded)
    )
    heads = Reranker.from_pretrained(coded).runtime.heads
    for part, side in (("offline", "image"), ("online", "text")):
        own = sum(leaf.size for leaf in jax.tree.leaves(heads[side]))
        assert with_heads[part] - plain[part] == own > 0
