"""Attention against its formula, its implementations against each other, and their choice.

Covers models/attention_plain.py and models/attention_kernels.py.
"""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu

from edje_jax.models.attention import IMPLEMENTATIONS, Padding, attend
from edje_jax.models.attention_plain import SHORT, AttentionCall
from edje_jax.system.platform import programs_for

B, Q, K, H, D = 2, 3, 5, 2, 4


def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = ((B, Q, H, D), (B, K, H, D), (B, K, H, D))
    query, key, value = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return query, key, value


def weights(mask: np.ndarray) -> np.ndarray:
    """Attention probabilities, [B, H, Q, K]."""
    query, key, _ = inputs()
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(D)
    raised = np.exp(logits) * mask[:, None, None, :]
    return raised / raised.sum(-1, keepdims=True)


def run(mask: np.ndarray | None, dropout: float = 0.0, seed: int | None = None) -> np.ndarray:
    arrays = [jnp.asarray(array) for array in inputs()]
    rng = None if seed is None else jax.random.key(seed, impl="rbg")
    mask = None if mask is None else jnp.asarray(mask)
    return np.asarray(jax.jit(attend, static_argnums=4)(*arrays, mask, dropout, rng))


MASK = np.array([[True, True, False, True, False], [False, True, True, True, True]])


@pytest.mark.parametrize("dropout", [0.0, 1e-9])
@pytest.mark.parametrize("masked", [False, True])
def test_both_ways_equal_the_formula(masked, dropout):
    mask = MASK if masked else np.ones((B, K), bool)
    expected = np.einsum("bhqk,bkhd->bqhd", weights(mask), inputs()[2])
    out = run(MASK if masked else None, dropout, seed=0)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)


def test_dropout_drops_that_share_of_the_probabilities_and_keeps_the_mean():
    rate, value = 0.25, inputs()[2]
    outs = jnp.stack([jnp.asarray(run(MASK, rate, seed)) for seed in range(400)])
    expected = np.einsum("bhqk,bkhd->bqhd", weights(MASK), value)
    # Each probability p becomes p / (1 - rate) or 0: its variance is p^2 * rate / (1 - rate).
    variance = np.einsum("bhqk,bkhd->bqhd", weights(MASK) ** 2, value**2) * rate / (1 - rate)
    assert (np.abs(outs.mean(0) - expected) < 5 * np.sqrt(variance / 400)).all()
    np.testing.assert_allclose(outs.var(0), variance, rtol=0.5)


def test_dropout_without_a_key_is_no_dropout():
    np.testing.assert_array_equal(run(MASK, 0.25), run(MASK))


def long_inputs(length: int, width: int, dtype=jnp.float32) -> list[jax.Array]:
    rng = np.random.default_rng(1)
    shape = (2, length, 2, width)
    return [jnp.asarray(rng.normal(size=shape), dtype) for _ in range(3)]


def values_and_gradients(name: str, inputs, **options) -> tuple[jax.Array, ...]:
    """Values, and the gradients of a sum that weighs them unequally."""

    def loss(*inputs):
        out = attend(*inputs, among=(name,), **options)
        return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

    (_, out), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*inputs)
    return out, *gradients


def assert_equal_products(name: str, inputs, tolerance: float, **options) -> None:
    ours = values_and_gradients(name, inputs, **options)
    with programs_for("cpu"):
        theirs = values_and_gradients("products", inputs, **options)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype == inputs[0].dtype
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


def tail_mask(length: int) -> jax.Array:
    """Mask of two rows, of which the second is padded."""
    return jnp.arange(length)[None] < jnp.array([length, length - 7])[:, None]


@pytest.mark.parametrize("length, causal", [(SHORT + 1, False), (3 * SHORT, True)])
def test_blocks_equal_products(length, causal):
    inputs = long_inputs(length, 8)
    assert_equal_products("blocks", inputs, 1e-5, mask=tail_mask(length), causal=causal)


def test_blocks_in_bfloat16_equal_products():
    assert_equal_products("blocks", long_inputs(SHORT + 1, 8, jnp.bfloat16), 0.02)


def test_blocks_drop_other_probabilities_in_each_block():
    """Two blocks of the same queries differ under dropout, and are equal without."""
    query, key, value = long_inputs(SHORT, 8)
    inputs = jnp.concatenate([query, query], axis=1), key, value
    rng = jax.random.key(0)
    out = attend(*inputs, dropout=0.5, rng=rng, among=("blocks",))
    plain = attend(*inputs, among=("blocks",))
    np.testing.assert_allclose(plain[:, :SHORT], plain[:, SHORT:], rtol=0, atol=1e-6)
    assert np.abs(out[:, :SHORT] - out[:, SHORT:]).max() > 0.1


def test_blocks_never_hold_all_logits():
    """Neither forward nor backward; plain products do both."""
    inputs = long_inputs(3 * SHORT, 8)
    whole = f"f32[2,2,{3 * SHORT},{3 * SHORT}]"
    for name, expected in (("blocks", False), ("products", True)):
        program = str(jax.make_jaxpr(partial(values_and_gradients, name))(inputs))
        assert (whole in program) is expected, name


FLASH = {
    "plain": (200, 16, jnp.float32, False, False),
    "two blocks of queries, of which the last is cut": (729, 8, jnp.float32, False, False),
    "mask": (200, 16, jnp.float32, True, False),
    "causal": (200, 16, jnp.float32, True, True),
    "bfloat16": (200, 16, jnp.bfloat16, False, False),
}


@pytest.mark.parametrize("length, width, dtype, masked, causal", FLASH.values(), ids=FLASH)
def test_the_kernel_of_tpus_equals_products(length, width, dtype, masked, causal):
    """The kernel is interpreted, as there is no TPU."""
    mask = tail_mask(length) if masked else None
    tolerance = 0.02 if dtype == jnp.bfloat16 else 1e-5
    with programs_for("tpu"), tpu.force_tpu_interpret_mode():
        assert_equal_products(
            "flash", long_inputs(length, width, dtype), tolerance, mask=mask, causal=causal
        )


def test_the_kernel_runs_on_every_device_of_a_mesh():
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), (jax.sharding.AxisType.Auto,) * 2)
    rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    whole = [jnp.tile(x, (2, 1, 1, 1)) for x in long_inputs(200, 8)]

    @jax.jit
    def run(*inputs):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return attend(*inputs, among=("flash",))

    with programs_for("tpu"), tpu.force_tpu_interpret_mode():
        out = run(*jax.device_put(whole, rows))
    assert out.sharding.is_equivalent_to(rows, 4)
    np.testing.assert_allclose(out, attend(*whole), rtol=0, atol=1e-5)


@pytest.mark.parametrize("masked, causal", [(True, False), (False, False), (False, True)])
def test_gradients_of_cudnn_are_asked_for_at_even_lengths(masked, causal, monkeypatch):
    """Odd ones are filled up: JAX has no gradient for them. Its own implementation stands in."""
    seen, plain = [], jax.nn.dot_product_attention

    def stand_in(query, key, value, *, implementation, **options):
        assert implementation == "cudnn"
        seen.append((query.shape[1], key.shape[1]))
        return plain(query, key, value, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(compute_capability="9.0")])
    query, key, value = long_inputs(9, 8, jnp.bfloat16)
    query = query if causal else query[:, :5]
    mask = jnp.arange(9)[None] < jnp.array([9, 0])[:, None] if masked else None
    shown = None if mask is None else mask.at[1, 0].set(True)  # No key: as if it were the first
    options = {"causal": causal}

    def loss(query, key, value, name, mask):
        hides = None if mask is None else Padding(mask)
        out = attend(query, key, value, hides, among=(name,), **options)
        return jnp.sum(jnp.sin(out.astype(jnp.float32)))

    with programs_for("gpu"):
        value_only = loss(query, key, value, "cudnn", mask)
        ours = jax.grad(loss, (0, 1, 2))(query, key, value, "cudnn", mask)
    assert seen[0] == (query.shape[1], 9)
    assert all(not n % 2 for lengths in seen[1:] for n in lengths) and len(seen) > 1
    expected = jax.grad(loss, (0, 1, 2))(query, key, value, "products", shown)
    np.testing.assert_allclose(value_only, loss(query, key, value, "products", shown), rtol=0.02)
    for one, other in zip(ours, expected, strict=True):
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        assert np.linalg.norm(one - other) < 0.02 * np.linalg.norm(other)


BFLOAT16 = jnp.dtype(jnp.bfloat16)
VIT = AttentionCall("tpu", 8, 576, 576, 64, BFLOAT16, False, False, False)


def chosen(call: AttentionCall) -> str:
    return next(name for name, one in IMPLEMENTATIONS.items() if one.refuse(call) is None)


def test_every_device_and_length_has_its_implementation():
    pairs = VIT._replace(queries=129, keys=129, head_width=32, masked=True)
    for call, name in {
        VIT: "flash",
        VIT._replace(queries=729, keys=729, head_width=72): "flash",
        VIT._replace(queries=196, keys=196): "flash",
        VIT._replace(masked=True): "flash",
        VIT._replace(drops=True): "blocks",
        VIT._replace(keys=4096, queries=4096): "blocks",
        VIT._replace(queries=64): "products",  # The compressing adapter
        VIT._replace(platform="gpu"): "cudnn",
        VIT._replace(platform="gpu", dtype=jnp.dtype(jnp.float32)): "blocks",
        VIT._replace(platform="gpu", head_width=144): "blocks",
        VIT._replace(platform="gpu", masked=True): "blocks",
        VIT._replace(platform="gpu", masked=True, padding=True): "cudnn",
        VIT._replace(platform="cpu"): "products",
        pairs: "products",
        pairs._replace(platform="gpu"): "products",
        pairs._replace(platform="gpu", padding=True): "cudnn",
        pairs._replace(drops=True): "products",
    }.items():
        assert chosen(call) == name, call


@pytest.mark.parametrize("capability, name", [("7.5", "blocks"), ("gfx90a", "blocks")])
def test_cudnn_is_left_to_gpus_that_have_it(capability, name, monkeypatch):
    gpu = SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    assert chosen(VIT._replace(platform="gpu")) == name


def test_one_error_tells_why_each_was_refused():
    inputs = long_inputs(SHORT + 1, 8)
    with programs_for("gpu"), pytest.raises(ValueError, match="no attention for 193") as error:
        attend(*inputs, among=("products", "flash", "cudnn"))
    told = str(error.value)
    assert "products would keep float32 logits of 193 x 193" in told
    assert "flash needs a TPU, not a gpu; cudnn computes bfloat16 and float16, not float32" in told
    assert told.endswith("allow another of cudnn, products, flash, blocks")
