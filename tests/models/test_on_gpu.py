"""Kernels and programs on an NVIDIA GPU; machines without one skip these."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edje_jax.config.model import (
    AdapterConfig,
    BackboneConfig,
    BertConfig,
    EdjeConfig,
    TextConfig,
    VisionConfig,
)
from edje_jax.models.attention import Padding, attend
from edje_jax.models.edje import Edje
from edje_jax.models.int8 import quantise_layers
from edje_jax.runtimes.scoring import score
from edje_jax.weights.backbone import expected_params as backbone_params
from edje_jax.weights.edje import expected_params
from edje_jax.weights.families.registry import make_backbone

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="there is no GPU")

CALLS = {
    "pairs": (64, 89, 89, 12, 32, True, False),
    "the last layer": (64, 1, 89, 12, 32, True, False),
    "rows that only attend": (64, 25, 89, 12, 32, True, False),
    "a vision tower": (4, 577, 577, 12, 64, False, False),
    "a large vision tower": (4, 729, 729, 16, 72, False, False),
    "a compressing adapter": (8, 64, 576, 12, 64, False, False),
    "a text tower of CLIP": (8, 77, 77, 8, 64, False, True),
}


@pytest.mark.parametrize(
    "rows, queries, keys, heads, width, masked, causal", CALLS.values(), ids=CALLS
)
def test_cudnn_equals_products(rows, queries, keys, heads, width, masked, causal):
    """Values and gradients, beside those in float32 on the same bfloat16 numbers."""
    rng = np.random.default_rng(0)
    shapes = ((rows, queries), (rows, keys), (rows, keys))
    inputs = [jnp.asarray(rng.normal(size=(*s, heads, width)), jnp.bfloat16) for s in shapes]
    lengths = rng.integers(1, keys + 1, rows)
    mask = Padding(jnp.asarray(np.arange(keys)[None] < lengths[:, None])) if masked else None

    def loss(inputs, name):
        out = attend(*inputs, mask, causal=causal, among=(name,))
        return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (_, out), ours = grad(inputs, "cudnn")
    with jax.default_matmul_precision("float32"):
        exact = [x.astype(jnp.float32) for x in inputs]
        (_, expected), theirs = grad(exact, "products" if queries * keys < 192**2 else "blocks")
    for one, other in zip((out, *ours), (expected, *theirs), strict=True):
        one, other = np.asarray(one, np.float32), np.asarray(other)
        assert np.linalg.norm(one - other) < 0.01 * np.linalg.norm(other)


CONFIG = EdjeConfig(
    BackboneConfig(
        "siglip",
        VisionConfig(384, 1536, 2, 6, 384, 16),
        TextConfig(256, 384, 512, 2, 6, 64, projection_size=384),
    ),
    AdapterConfig("compress", 64, 512),
    BertConfig(1000, 384, 1536, 6, 12, initializer_range=0.05),
)


def pairs(count: int):
    """Weights, captions of several lengths, and tokens."""
    rng = np.random.default_rng(0)
    ids = np.zeros((count, 24), np.int32)
    for row in ids:
        length = int(rng.integers(3, 25))
        row[:length] = rng.integers(1, 1000, length)
    tokens = jnp.asarray(rng.normal(size=(count, 64, 384)), jnp.float32)
    return drawn(expected_params(CONFIG), 0.05), jnp.asarray(ids), tokens


def drawn(shapes, deviation: float):
    """Parameters drawn on the host: a GPU takes long to compile the program that initialises."""
    rng = np.random.default_rng(1)

    def leaf(path, shape):
        if len(shape.shape) > 1:
            return jnp.asarray(deviation * rng.standard_normal(shape.shape, np.float32))
        return jnp.full(shape.shape, float(path[-1].key == "scale"))

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def test_bfloat16_and_int8_rank_as_float32():
    params, ids, tokens = pairs(256)
    with jax.default_matmul_precision("float32"):
        exact = np.asarray(score(Edje(CONFIG), params, 256, ids, tokens))
    half = np.asarray(score(Edje(CONFIG, jnp.bfloat16), params, 256, ids, tokens))
    small = {"joint_encoder": quantise_layers(params["joint_encoder"])}
    int8 = np.asarray(score(Edje(CONFIG, jnp.bfloat16), small, 256, ids, tokens))
    for name, logits in {"bfloat16": half, "int8": int8}.items():
        assert np.corrcoef(exact, logits)[0, 1] > 0.99, name
        assert np.isfinite(logits).all()


def test_products_of_int8_take_int8_operands():
    """Each layer has six products, whose sums leave cuBLAS as int32."""
    params, ids, tokens = pairs(256)
    small = {"joint_encoder": quantise_layers(params["joint_encoder"])}
    lowered = score.lower(Edje(CONFIG, jnp.bfloat16), small, 256, ids, tokens)
    text = lowered.compile().as_text()
    found = re.findall(r"= \(s32\[[^)]*\) custom-call\(.*__cublas\$lt\$matmul", text)
    assert len(found) == 6 * CONFIG.joint_encoder.num_hidden_layers


def test_no_program_of_a_vision_tower_holds_all_logits():
    tower = make_backbone(CONFIG.backbone, jnp.bfloat16)
    pixels = jnp.zeros((2, 384, 384, 3))
    params = drawn(backbone_params(CONFIG.backbone), 0.02)

    def encode(params, pixels):
        return tower.bind({"params": params}).encode_image(pixels)

    text = jax.jit(encode).lower(params, pixels).compile().as_text()
    assert "576,576]" not in text
    assert "cudnn" in text


def test_padding_does_not_change_a_logit():
    """Captions in a longer bucket, and rows that hide every key, as fill batches up."""
    params, ids, tokens = pairs(16)
    model = Edje(CONFIG, jnp.bfloat16)
    longer = jnp.pad(ids, ((0, 0), (0, 24)))
    one, other = (np.asarray(score(model, params, 16, x, tokens)) for x in (ids, longer))
    np.testing.assert_allclose(one, other, rtol=0, atol=0.05 * deviation(one))
    empty = np.asarray(score(model, params, 16, jnp.zeros_like(ids), tokens))
    assert np.isfinite(empty).all()


def deviation(logits: np.ndarray) -> float:
    return float(max(logits.std(), 1e-3))


def test_training_in_bfloat16_follows_float32():
    """Gradients of match logits by both, with cuDNN in one and products in the other."""
    params, ids, tokens = pairs(32)

    def loss(params, dtype):
        model = Edje(CONFIG, dtype).bind({"params": params})
        return jnp.sum(jax.nn.softplus(model.match(ids, tokens)))

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    half = grad(params, jnp.bfloat16)
    with jax.default_matmul_precision("float32"):
        exact = grad(params, jnp.float32)
    one, other = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (half, exact))
    assert np.isfinite(one).all()
    assert one @ other > 0.98 * np.linalg.norm(one) * np.linalg.norm(other)


def test_deferred_layers_and_attended_rows_on_the_gpu():
    joint = dataclasses.replace(CONFIG.joint_encoder, deferred_layers=3, online_vision="attended")
    config = dataclasses.replace(CONFIG, joint_encoder=joint)
    params, ids, tokens = pairs(64)
    with jax.default_matmul_precision("float32"):
        exact = np.asarray(score(Edje(config), params, 64, ids, tokens))
    half = np.asarray(score(Edje(config, jnp.bfloat16), params, 64, ids, tokens))
    assert np.corrcoef(exact, half)[0, 1] > 0.99
