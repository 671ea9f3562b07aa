"""Layers under a loop compute what they compute one after the other."""

import dataclasses
import functools

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
from edje_jax.models.edje import Edje
from edje_jax.weights.families.registry import make_backbone

BERT = BertConfig(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=5,
    num_attention_heads=3,
    max_position_embeddings=90,
)
VISION = VisionConfig(20, 40, 4, 2, image_size=16, patch_size=4)
TEXT = TextConfig(
    vocab_size=50, hidden_size=20, intermediate_size=40, num_hidden_layers=3,
    num_attention_heads=2, projection_size=20, max_position_embeddings=16,
)  # fmt: skip
IDS = jnp.asarray(np.random.default_rng(1).integers(1, 50, (3, 12)), jnp.int32).at[0, 7:].set(0)


def draw(shapes):
    """Parameters far from zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0.0, 0.3, x.shape), jnp.float32), shapes)


def edje(kind: str, deferred: int, vision: str) -> tuple[EdjeConfig, dict]:
    joint = dataclasses.replace(BERT, deferred_layers=deferred, online_vision=vision)
    backbone = BackboneConfig("siglip", VISION, TEXT)
    config = EdjeConfig(backbone, AdapterConfig(kind, 5, 32), joint)
    tokens = jnp.zeros((1, backbone.num_vision_tokens, VISION.hidden_size))
    shapes = jax.eval_shape(Edje(config).init, jax.random.key(0), tokens, IDS[:1])
    return config, draw(shapes["params"])


def loops(program) -> int:
    return program.as_text().count("stablehlo.while")


@pytest.mark.parametrize(
    ("deferred", "vision", "expected"), [(0, "updated", 1), (2, "attended", 2)]
)
def test_a_joint_encoder_and_its_gradient(deferred, vision, expected):
    config, params = edje("compress", deferred, vision)
    patches = jnp.asarray(np.random.default_rng(2).normal(size=(3, 16, 20)), jnp.float32)

    def loss(scan: bool, params):
        model = Edje(config, remat=deferred > 0, scan=scan).bind({"params": params})
        tokens = model.compress(patches)
        states = model.hidden_states(IDS, tokens)
        return jnp.sum(model.match(IDS, tokens) * np.arange(1, 4)) + sum(
            jnp.mean(state**2) for state in states
        )

    step = jax.jit(jax.value_and_grad(loss, 1), static_argnums=0)
    (plain, expected_gradient), (ours, gradient) = (step(scan, params) for scan in (False, True))
    assert float(ours) == pytest.approx(float(plain), rel=1e-6)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_gradient))
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5 * largest),
        gradient,
        expected_gradient,
    )

    def match(scan: bool):
        call = functools.partial(Edje(config, scan=scan).apply, method="match")
        return jax.jit(call).lower({"params": params}, IDS, jnp.zeros((3, 5, 24)))

    assert (loops(match(False)), loops(match(True))) == (0, expected)


@pytest.mark.parametrize(("kind", "token_layer"), [("siglip", -1), ("siglip", 2), ("clip", -2)])
def test_towers(kind, token_layer):
    backbone = BackboneConfig(kind, VISION, TEXT, token_layer=token_layer)
    pixels = jnp.asarray(np.random.default_rng(3).normal(size=(2, 16, 16, 3)), jnp.float32)
    shapes = jax.eval_shape(make_backbone(backbone).init, jax.random.key(0), pixels, IDS)
    params = {"params": draw(shapes["params"])}

    def run(scan: bool):
        model = make_backbone(backbone, scan=scan)
        encode = jax.jit(lambda params: model.bind(params).encode_image(pixels))
        return encode(params), model.apply(params, pixels, IDS)

    (plain, logits), (ours, again) = run(False), run(True)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), ours, plain)
    np.testing.assert_allclose(again, logits, atol=2e-5)
    assert len(ours.hidden_states) == 5
    assert np.std(np.asarray(plain.tokens)) > 0.1


def test_dropout_under_a_loop_differs_from_layer_to_layer_and_from_key_to_key():
    config, params = edje("compress", 0, "updated")
    model, tokens = Edje(config, dropout=0.5, scan=True), jnp.ones((3, 5, 24))

    def match(seed: int):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply({"params": params}, IDS, tokens, True, method="match", rngs=rngs)

    one, again, other = match(0), match(0), match(1)
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
