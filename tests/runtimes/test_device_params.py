"""Copies of parameters: int8 in the parts that compute so, and nowhere else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from edje_jax.runtimes.device_params import DeviceParams, Parts
from edje_jax.runtimes.devices import Compute
from edje_jax.runtimes.scoring import score
from edje_jax.search.reranker import Reranker

FLOAT, INT8 = Compute(), Compute(jnp.float32, True)


def dtypes(tree) -> set[str]:
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    return Reranker.from_pretrained("shapes-demo")


def test_a_copy_for_each_device_with_int8_where_it_is_asked_for(reranker):
    runtime, devices = reranker.runtime, jax.devices()[:2]
    parts = Parts(runtime.params, runtime.backbone_params, None)
    scoring = DeviceParams(parts, devices, INT8, FLOAT)
    assert len(scoring.scoring) == 2 and set(scoring.scoring[1]) == {"joint_encoder"}
    assert dtypes(scoring.scoring) == {"float32", "int8"}
    assert dtypes([scoring.compressing, scoring.backbone, scoring.heads]) == {"float32"}
    assert jax.tree.leaves(scoring.scoring[1])[0].devices() == {devices[1]}
    encoding = DeviceParams(parts, devices, FLOAT, INT8)
    assert encoding.scoring is encoding.compressing
    assert dtypes(encoding.backbone[0]["vision"]) == {"float32", "int8"}
    assert dtypes(encoding.backbone[0]["text"]) == {"float32"}


def test_kernels_are_cast_once_and_compute_what_casting_at_use_does(reranker):
    half = Compute(jnp.bfloat16)
    runtime = dataclasses.replace(reranker.runtime, scoring=half, encoding=half)
    parts = Parts(runtime.params, runtime.backbone_params, None)
    cast = DeviceParams(parts, jax.devices()[:1], half, half)
    assert cast.scoring is cast.compressing
    layer = cast.scoring[0]["joint_encoder"]["layers_0"]
    assert dtypes(layer["query"]) == {"bfloat16"} and dtypes(layer["output_norm"]) == {"float32"}
    assert dtypes(cast.scoring[0]["joint_encoder"]["embeddings"]) == {"float32"}
    mixed = DeviceParams(parts, jax.devices()[:1], half, FLOAT)
    assert dtypes(mixed.compressing) == {"float32"} and "bfloat16" in dtypes(mixed.scoring)
    rng = np.random.default_rng(0)
    shape = (2, runtime.config.num_tokens, runtime.config.joint_encoder.hidden_size)
    tokens, ids = jnp.asarray(rng.normal(size=shape), jnp.float32), jnp.asarray([[2, 7, 3]] * 2)
    at_use, before = (
        score(runtime.model, params, 2, ids, tokens) for params in (runtime.params, cast.scoring[0])
    )
    np.testing.assert_array_equal(at_use, before)


def test_int8_scores_rank_as_float_ones_do(reranker):
    int8 = Reranker.from_pretrained("shapes-demo", precision="int8")
    assert int8.runtime.fingerprint() == reranker.runtime.fingerprint()
    texts = ["a large red star", "two small blue circles", "a green square left of a cross"]
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(20)]
    tokens = reranker.encode_images(images)
    np.testing.assert_array_equal(int8.encode_images(images), tokens)
    plain, ours = (each.score_matrix(texts, tokens) for each in (reranker, int8))
    assert 0 < np.abs(ours - plain).max() < 0.1 * np.std(plain)
    assert spearmanr(ours.ravel(), plain.ravel()).statistic > 0.99


def test_images_encoded_in_int8_are_near_to_those_in_float(reranker):
    runtime = dataclasses.replace(reranker.runtime, encoding=INT8)
    images = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8)
    images = images[:, : runtime.config.image.size, : runtime.config.image.size]
    plain, ours = reranker.runtime.encode_images(images), runtime.encode_images(images)
    assert 0 < np.abs(ours.embeddings - plain.embeddings).max() < 0.1
    for one, other in zip(ours.tokens, plain.tokens, strict=True):
        assert 0 < np.linalg.norm(one - other) / np.linalg.norm(other) < 0.1
