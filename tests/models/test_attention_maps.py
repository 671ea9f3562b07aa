"""The probabilities are the forward pass's own: with the values they give its outputs again."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edje_jax.config.captioner import CaptionerConfig
from edje_jax.config.model import (
    AdapterConfig,
    BackboneConfig,
    BertConfig,
    EdjeConfig,
    TextConfig,
    VisionConfig,
)
from edje_jax.models.attention_maps import (
    compressor_attention,
    layer_attention,
    patch_attention,
    probabilities,
)
from edje_jax.models.captioner import reverse
from edje_jax.models.scorers import make_scorer

CONFIG = EdjeConfig(
    BackboneConfig("siglip", VisionConfig(20, 40, 1, 2, 32, 8), TextConfig(projection_size=28)),
    AdapterConfig("compress", 5, 32),
    BertConfig(50, 24, 40, 2, 3, 60),
)
LOCAL = dataclasses.replace(CONFIG, adapter=AdapterConfig("local", 0, 32))
N, M = 16, 5
HEADS = 3


def captioner(directions="both", cross_attention="projected", layers=1) -> EdjeConfig:
    """A captioner on a local adapter."""
    return dataclasses.replace(
        LOCAL,
        joint_encoder=BertConfig(50, 24, 40, layers, 3, 60),
        captioner=CaptionerConfig(directions, "pmi", cross_attention),
    )


def finer(config: EdjeConfig) -> EdjeConfig:
    """With a grid of twice the side."""
    return dataclasses.replace(
        config,
        backbone=dataclasses.replace(config.backbone, earlier_layers=(-1,)),
        adapter=dataclasses.replace(config.adapter, upsampling=2),
    )


def made(config: EdjeConfig):
    """A model, large random weights, four captions of different lengths, and vision tokens."""
    model, rng = make_scorer(config), np.random.default_rng(0)
    ids = np.zeros((4, 9), np.int32)
    for row, length in enumerate((4, 9, 2, 6)):
        ids[row, :length] = rng.integers(1, 50, length)
    vision = rng.normal(size=(4, N, config.backbone.token_width)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), vision, ids)["params"]
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    return model, params, jnp.asarray(ids), jnp.asarray(vision)


def dense(params, x):
    return np.asarray(x) @ params["kernel"] + params["bias"]


def merged(weights, value):
    """[b h q k] and [b k d] -> [b q d]: the average that each head takes of its part."""
    batch, rows, width = value.shape
    value = np.asarray(value).reshape(batch, rows, weights.shape[1], -1)
    return np.einsum("bhqk,bkhd->bqhd", weights, value).reshape(batch, -1, width)


def norm(params, x, eps):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return x * params["scale"] + params["bias"]


def gelu(x):
    return np.asarray(jax.nn.gelu(x, approximate=False))


def test_the_compressors_weights_give_its_output():
    model, params, _, vision = made(CONFIG)
    a = params["adapter"]
    weights = np.asarray(compressor_attention(a, vision, 2))
    assert weights.shape == (4, 2, M, N)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert weights.max() > 3 / N
    kernel, bias = a["attention"]["in_proj_kernel"], a["attention"]["in_proj_bias"]
    value = dense(a["value"], vision) @ kernel[:, 40:] + bias[40:]
    attended = dense(a["attention"]["out_proj"], merged(weights, value))
    inner = gelu(dense(a["mlp"]["fc1"], norm(a["layernorm"], attended, 1e-6)))
    out = dense(a["projection"], attended + dense(a["mlp"]["fc2"], inner))
    expected = model.bind({"params": params}).compress(vision)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_the_layers_weights_give_the_next_states():
    model, params, ids, vision = made(CONFIG)
    tokens = model.bind({"params": params}).compress(vision)
    states = [np.asarray(x) for x in model.bind({"params": params}).hidden_states(ids, tokens)]
    mask = np.concatenate([np.ones((4, M + 1), bool), np.asarray(ids) != 0], axis=1)
    for i, (x, after) in enumerate(itertools.pairwise(states)):
        p = params["joint_encoder"][f"layers_{i}"]
        weights = np.asarray(layer_attention(p, jnp.asarray(x), jnp.asarray(mask), HEADS))
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
        assert np.abs(weights * ~mask[:, None, None]).max() == 0
        context = merged(weights, dense(p["value"], x))
        kept = norm(p["attention_norm"], x + dense(p["attention_output"], context), 1e-12)
        inner = gelu(dense(p["intermediate"], kept))
        out = norm(p["output_norm"], kept + dense(p["output"], inner), 1e-12)
        np.testing.assert_allclose(out[mask], after[mask], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [CONFIG, LOCAL], ids=["compress", "local"])
def test_words_over_patches(config):
    model, params, ids, vision = made(config)
    seen = np.asarray(patch_attention(model, params, ids, vision))
    assert seen.shape == (4, 9, N)
    np.testing.assert_allclose(seen.sum(-1), 1, atol=1e-5)
    # By hand, for one word of one caption.
    tokens = model.bind({"params": params}).compress(vision)
    m = tokens.shape[1]
    states = model.bind({"params": params}).hidden_states(ids, tokens)
    mask = jnp.concatenate([jnp.ones((4, m + 1), bool), ids != 0], axis=1)
    rows = [
        layer_attention(params["joint_encoder"][f"layers_{i}"], states[i], mask, HEADS)
        for i in range(2)
    ]
    word = np.mean([np.asarray(x)[1, :, m + 1 + 3, :m] for x in rows], axis=(0, 1))
    word /= word.sum()
    if config is CONFIG:
        word = word @ np.asarray(compressor_attention(params["adapter"], vision, 2))[1].mean(0)
    np.testing.assert_allclose(seen[1, 3], word, atol=1e-6)


def test_padding_makes_no_difference():
    model, params, ids, vision = made(CONFIG)
    short = patch_attention(model, params, ids[:1, :4], vision[:1])
    long = patch_attention(model, params, ids[:1], vision[:1])[:, :4]
    np.testing.assert_allclose(short, long, atol=1e-6)


@pytest.mark.parametrize("cross_attention", ["projected", "stored"])
def test_words_of_a_captioner_by_hand(cross_attention):
    model, params, ids, vision = made(captioner("forward", cross_attention))
    seen = np.asarray(patch_attention(model, params, ids, vision))
    assert seen.shape == (4, 9, N)
    np.testing.assert_allclose(seen[:, 1:].sum(-1), 1, atol=1e-5)
    p = params["captioner"]["forward"]["layers_0"]
    embeddings = params["captioner"]["embeddings"]
    words, places, kinds = (embeddings[x]["embedding"] for x in ("word", "position", "segment"))
    x = norm(embeddings["norm"], words[np.asarray(ids)] + places[:9] + kinds[0], 1e-12)
    for row, length in enumerate((4, 9, 2, 6)):
        for predicted in range(1, length):
            own = x[row, None, :predicted]
            weights = probabilities(
                *(jnp.asarray(dense(p[name], own)) for name in ("query", "key")), HEADS
            )
            context = dense(p["attention_output"], merged(weights, dense(p["value"], own)))
            last = norm(p["attention_norm"], own + context, 1e-12)[:, -1:]
            tokens = np.asarray(model.bind({"params": params}).compress(vision))[row, None]
            key = tokens if cross_attention == "stored" else dense(p["cross_key"], tokens)
            query = jnp.asarray(dense(p["cross_query"], last))
            expected = probabilities(query, jnp.asarray(key), HEADS).mean(axis=1)[0, 0]
            np.testing.assert_allclose(seen[row, predicted], expected, rtol=1e-4, atol=1e-6)


def test_both_directions_are_averaged_token_by_token():
    model, params, ids, vision = made(captioner("both", layers=2))
    adapter, parts = params["adapter"], params["captioner"]

    def alone(name, ids):
        """Attention of one direction's decoder when it reads forward."""
        shared = {key: parts[key] for key in parts if key not in ("forward", "backward")}
        own = {"adapter": adapter, "captioner": shared | {"forward": parts[name]}}
        one = make_scorer(captioner("forward", layers=2))
        return np.asarray(patch_attention(one, own, ids, vision))

    seen = np.asarray(patch_attention(model, params, ids, vision))
    forward, backward = alone("forward", ids), alone("backward", reverse(ids, ids != 0))
    for row, length in enumerate((4, 9, 2, 6)):
        for word in range(1, length - 1):
            mean = (forward[row, word] + backward[row, length - 1 - word]) / 2
            np.testing.assert_allclose(seen[row, word], mean, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "places"),
    [(finer(LOCAL), 4 * N), (finer(CONFIG), 4 * N), (finer(captioner()), 4 * N)],
    ids=["local", "compress", "captioner"],
)
def test_words_over_a_finer_grid(config, places):
    model, params, ids, vision = made(config)
    seen = np.asarray(patch_attention(model, params, ids, vision))
    assert seen.shape == (4, 9, places)
    np.testing.assert_allclose(seen[:, 1:3].sum(-1)[[0, 1, 3]], 1, atol=1e-5)
