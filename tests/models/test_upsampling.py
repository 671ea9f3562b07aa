"""Finer grids: their shapes, and what each of their tokens is made of."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from edje_jax.config.captioner import CaptionerConfig
from edje_jax.config.model import (
    AdapterConfig,
    BackboneConfig,
    BertConfig,
    EdjeConfig,
    TextConfig,
    VisionConfig,
)
from edje_jax.models.scorers import make_scorer
from edje_jax.models.upsampling import GridUpsampler, fold
from edje_jax.weights import edje
from edje_jax.weights.families.registry import make_backbone

SIDE, WIDTH = 4, 20
BACKBONE = BackboneConfig(
    "siglip",
    VisionConfig(WIDTH, 40, 6, 2, image_size=16, patch_size=4),
    TextConfig(50, 20, 40, 1, 2, projection_size=20),
)
BERT = BertConfig(50, 24, 40, 2, 3, max_position_embeddings=40)


def config_of(kind: Any, upsampling: Any, captioner: bool = True) -> EdjeConfig:
    backbone = replace(BACKBONE, earlier_layers=BACKBONE.layers_for(upsampling))
    adapter = AdapterConfig(kind, 5 if kind == "compress" else 0, 32, upsampling)
    return EdjeConfig(backbone, adapter, BERT, captioner=CaptionerConfig() if captioner else None)


def drawn(shapes):
    """Parameters far from zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0.0, 0.3, x.shape).astype(np.float32), shapes)


def maps(steps: int, batch: int = 2) -> np.ndarray:
    """Last map and earlier ones, beside each other."""
    rng = np.random.default_rng(3)
    return rng.normal(size=(batch, SIDE**2, (1 + steps) * WIDTH)).astype(np.float32)


@functools.cache
def upsampler_params(steps: int):
    model = GridUpsampler(SIDE, steps, jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), maps(steps))["params"]
    return drawn(shapes)


@functools.partial(jax.jit, static_argnums=0)
def upsampled(steps: int, params, tokens) -> Any:
    return GridUpsampler(SIDE, steps, jnp.float32).apply({"params": params}, tokens)


@pytest.mark.parametrize("upsampling", [1, 2, 4])
@pytest.mark.parametrize("kind", ["local", "compress"])
def test_an_adapter_gives_as_many_tokens_as_the_config_says(kind, upsampling):
    for captioner in (True, False):
        config = config_of(kind, upsampling, captioner)
        params = edje.expected_params(config)
        tokens = jnp.zeros((3, 16, config.backbone.token_width))
        compress = functools.partial(make_scorer(config).apply, method="compress")
        stored = jax.eval_shape(compress, {"params": params}, tokens)
        expected = 16 * upsampling**2 if kind == "local" else 5
        assert stored.shape == (3, config.num_tokens, 24) == (3, expected, 24)
        assert ("upsampling" in params["adapter"]) == (upsampling > 1)


def test_the_earlier_layers_are_those_two_and_one_thirds_up_the_tower():
    assert [BACKBONE.layers_for(factor) for factor in (1, 2, 4)] == [(), (-3,), (-3, -5)]
    twelve = BackboneConfig(vision=VisionConfig(num_hidden_layers=12))
    assert twelve.layers_for(4) == (-5, -9)  # Outputs of layers 8 and 4
    backbone = config_of("local", 4).backbone
    model = make_backbone(backbone)
    pixels = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
    ids = jnp.ones((1, 64), jnp.int32)
    params = drawn(jax.eval_shape(model.init, jax.random.key(0), pixels, ids)["params"])
    out = jax.jit(lambda params: model.bind({"params": params}).encode_image(pixels))(params)
    assert out.tokens.shape == (2, 16, 3 * WIDTH)
    np.testing.assert_array_equal(out.tokens[..., WIDTH : 2 * WIDTH], out.hidden_states[4])
    np.testing.assert_array_equal(out.tokens[..., 2 * WIDTH :], out.hidden_states[2])


@pytest.mark.parametrize("factor", [2, 4])
def test_folding_puts_each_vector_inside_its_place(factor):
    """Every number of the folded grid says where it should be."""
    row, column, inside_row, inside_column, channel = np.indices((3, 3, factor, factor, 2))
    numbers = np.stack([row * factor + inside_row, column * factor + inside_column, channel])
    folded = fold(jnp.asarray(numbers.reshape(3, 3, 3, -1), jnp.float32), factor)
    np.testing.assert_array_equal(folded, np.indices((3 * factor, 3 * factor, 2)))


@pytest.mark.parametrize("steps", [1, 2])
def test_what_one_patch_knew_earlier_changes_the_fine_tokens_inside_it_and_next_to_it(steps):
    params, tokens = upsampler_params(steps), maps(steps)
    other = tokens.copy()
    patch = 1 * SIDE + 2
    other[1, patch, -WIDTH:] += 1.0
    moved = upsampled(steps, params, tokens) != upsampled(steps, params, other)
    factor = 2**steps
    moved = np.asarray(moved).any(axis=-1).reshape(2, SIDE * factor, SIDE * factor)
    assert not moved[0].any()
    # The depthwise convolution of the last step reaches one fine place further.
    expected = np.zeros_like(moved[1])
    rows, columns = (slice(k * factor - 1, (k + 1) * factor + 1) for k in (1, 2))
    expected[rows, columns] = True
    np.testing.assert_array_equal(moved[1], expected)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_fusion_weights_are_shares_of_one(scale):
    """Both times a factor, or one of them below zero and hence none: nothing else matters."""
    params, tokens = upsampler_params(1), maps(1)

    def of(*shares: float):
        return upsampled(1, {**params, "shares_1": np.array(shares, np.float32)}, tokens)

    np.testing.assert_allclose(of(scale, scale), of(1.0, 1.0), rtol=0, atol=1e-3)
    np.testing.assert_array_equal(of(1.0, -scale), of(1.0, 0.0))
    assert np.abs(of(scale, 0.0) - of(1.0, 1.0)).max() > 0.1


def test_fresh_parameters_take_both_halves_alike_and_pass_gradients_to_all():
    model, tokens = GridUpsampler(SIDE, 2, jnp.float32), jnp.asarray(maps(2))
    weights = np.random.default_rng(5).normal(size=(2, (4 * SIDE) ** 2, WIDTH))
    weights = weights.astype(np.float32)

    def loss(params):
        out: Any = model.apply({"params": params}, tokens)
        return jnp.sum(out * weights)

    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    np.testing.assert_array_equal(params["shares_1"], [1.0, 1.0])
    for path, gradient in flatten_dict(jax.jit(jax.grad(loss))(params)).items():
        assert np.abs(np.array(gradient)).max() > 1e-3, path


def test_a_class_token_has_no_place_in_a_grid():
    backbone = replace(BACKBONE, class_token=True)
    with pytest.raises(ValueError, match=r"upsampling 2: a class token has no place .* leave"):
        EdjeConfig(backbone, AdapterConfig("local", 0, 32, 2))
    with pytest.raises(ValueError, match="upsampling 3: 1, 2, 4"):
        AdapterConfig(upsampling=3)  # type: ignore[arg-type]
