"""Integer products are those of the rounded numbers, and near to those of the numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edje_jax.models.int8 import Dense, int8_product, quantise_layers


def rounded(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """(integers, scales) by the definition, in float64."""
    scale = np.abs(x.astype(np.float64)).max(axis=axis, keepdims=True) / 127
    return np.rint(x / np.where(scale > 0, scale, 1)), scale


@pytest.fixture(scope="module")
def numbers() -> tuple[np.ndarray, np.ndarray]:
    """Rows of very different sizes, one of zeros, and a kernel with columns of such."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 48)) * 10.0 ** rng.integers(-4, 4, (2, 9, 1))
    x[0, 3] = 0.0
    kernel = rng.normal(size=(48, 20)) * 10.0 ** rng.integers(-3, 3, (1, 20))
    kernel[:, 5] = 0.0
    return x.astype(np.float32), kernel.astype(np.float32)


def params_of(kernel: np.ndarray) -> dict:
    bias = np.linspace(-1, 1, kernel.shape[1], dtype=np.float32)
    return {"layers_0": {"fc": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}}


def test_a_product_is_that_of_integers_between_two_scales(numbers):
    x, kernel = numbers
    rows, row_scale = rounded(x, -1)
    columns, column_scale = rounded(kernel, 0)
    expected = (rows @ columns) * row_scale * column_scale
    ours = quantise_layers(params_of(kernel))["layers_0"]["fc"]
    assert ours["kernel"].dtype == jnp.int8 and ours["scale"].shape == (20,)
    out = np.asarray(int8_product(jnp.asarray(x), ours["kernel"], ours["scale"]))
    # A number that lies halfway may be rounded to either side in float32.
    step = np.abs(columns).max() * row_scale * column_scale
    assert (np.abs(out - expected) <= 1e-5 * np.abs(expected) + 1.01 * step).all()
    assert (np.abs(out - expected) <= 1e-5 * np.abs(expected) + 1e-6 * step).mean() > 0.99
    assert not out[0, 3].any() and not out[..., 5].any()


def test_the_error_of_a_product_is_about_a_percent():
    rng = np.random.default_rng(1)
    x, kernel = rng.normal(size=(64, 384)), rng.normal(size=(384, 384))
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    part = quantise_layers(params_of(np.asarray(kernel)))["layers_0"]["fc"]
    error = int8_product(x, part["kernel"], part["scale"]) - x @ kernel
    assert 0.002 < float(jnp.std(error) / jnp.std(x @ kernel)) < 0.02


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_dense_layer_takes_the_kernel_that_it_is_given(numbers, dtype):
    x, kernel = jnp.asarray(numbers[0]), numbers[1]
    layer, params = Dense(20, dtype), params_of(kernel)
    plain, small = (tree["layers_0"]["fc"] for tree in (params, quantise_layers(params)))
    whole = layer.apply({"params": plain}, x)
    ours = layer.apply({"params": small}, x)
    assert whole.dtype == ours.dtype == dtype and ours.shape == whole.shape
    expected = int8_product(x, small["kernel"], small["scale"]) + plain["bias"][None, None]
    np.testing.assert_array_equal(ours, expected.astype(dtype))
    text = jax.jit(layer.apply).lower({"params": small}, x).as_text()
    assert text.count("(tensor<2x9x48xi8>, tensor<48x20xi8>) -> tensor<2x9x20xi32>") == 1
    assert (
        "dot_general" in text
        and "xi8>" not in jax.jit(layer.apply).lower({"params": plain}, x).as_text()
    )


def test_only_kernels_of_layers_are_rounded(numbers):
    _, kernel = numbers
    inner = params_of(kernel)["layers_0"]
    params = {"layers_1": {"mlp": inner, "norm": {"scale": kernel[0]}}, "pooler": inner["fc"]}
    nested = quantise_layers({"vision": params, "logit_scale": kernel[0, 0]})
    ours = nested["vision"]
    assert ours["layers_1"]["mlp"]["fc"]["kernel"].dtype == jnp.int8
    assert ours["layers_1"]["norm"]["scale"] is params["layers_1"]["norm"]["scale"]
    assert ours["pooler"]["kernel"] is params["pooler"]["kernel"]
    assert nested["logit_scale"] == kernel[0, 0]
