"""Properties of the joint encoder that hold for any weights.

Covers models/adapters.py, models/heads/masked_lm.py and models/joint_encoder.py.
"""

import functools
from dataclasses import replace
from typing import NamedTuple

import flax.errors
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

BERT = BertConfig(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    max_position_embeddings=40,
)
CONFIG = EdjeConfig(
    BackboneConfig("siglip", VisionConfig(20, 40, 1, 2), TextConfig(projection_size=28)),
    AdapterConfig("compress", 5, 32),
    BERT,
)
MODEL = Edje(CONFIG)
M, B = CONFIG.num_tokens, 4
LENGTHS = (7, 3, 12, 9)
KEYS = [jax.random.key(seed, impl="rbg") for seed in (0, 1)]
"""Random keys, of the kind that compiles fast."""


def expected_shapes(config: EdjeConfig):
    vision = jnp.zeros((1, config.backbone.vision.num_patches, config.backbone.vision.hidden_size))
    init = functools.partial(jax.eval_shape, Edje(config).init, jax.random.key(0))
    return init(vision, jnp.ones((1, 3), jnp.int32))["params"]


@functools.cache
def weights(config: EdjeConfig = CONFIG):
    """Large random weights, biases and layer norms included."""
    rng = np.random.default_rng(0)

    def draw(path, struct):
        value = rng.normal(0.0, 0.3, struct.shape).astype(np.float32)
        return value + 1 if path[-1].key == "scale" else value

    return jax.tree_util.tree_map_with_path(draw, expected_shapes(config))


@functools.cache
def text_ids(length: int = 16) -> np.ndarray:
    """Captions of different lengths, padded with 0."""
    ids = np.random.default_rng(1).integers(1, BERT.vocab_size, (B, 16))
    ids = np.where(np.arange(16) < np.array(LENGTHS)[:, None], ids, 0)
    return np.pad(ids, ((0, 0), (0, length - 16))).astype(np.int32)


def vision_tokens() -> np.ndarray:
    return np.random.default_rng(4).normal(size=(B, 64, 20)).astype(np.float32)


@functools.cache
def compressed() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(B, M, BERT.hidden_size)).astype(np.float32)


class Outputs(NamedTuple):
    """Outputs of the joint encoder for a batch."""

    match: jax.Array
    masked_lm: jax.Array
    """At every position of the text: [b * t, v]."""
    recovered: jax.Array


@functools.partial(jax.jit, static_argnames="model")
def run(params, ids, tokens, model=MODEL) -> Outputs:
    """All in one program, as compiling is what takes the time here."""
    apply = functools.partial(model.apply, {"params": params})
    return Outputs(
        apply(ids, tokens, method="match"),
        apply(ids, tokens, jnp.arange(ids.size)[None], method="masked_lm")[0],
        apply(ids, method="recover_text"),
    )


@functools.partial(jax.jit, static_argnames=("model", "method"))
def run_one(params, *args, model=MODEL, method: str):
    return model.apply({"params": params}, *args, method=method)


@functools.cache
def outputs() -> Outputs:
    """Outputs for the plain batch, with which most tests compare."""
    return run(weights(), text_ids(), compressed())


@functools.cache
def hidden_states() -> list[np.ndarray]:
    states = run_one(weights(), text_ids(), compressed(), method="hidden_states")
    return [np.asarray(state) for state in states]


def close(ours, theirs, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


def test_the_random_weights_tell_inputs_apart():
    """Or else everything below would hold of a constant."""
    out = outputs()
    other_text = run(weights(), text_ids()[::-1].copy(), compressed())
    other_tokens = run(weights(), text_ids(), compressed()[::-1].copy())
    for field in ("match", "masked_lm"):
        for other in (other_text, other_tokens):
            assert np.abs(getattr(out, field) - getattr(other, field)).max() > 0.1
    assert np.abs(out.recovered - other_text.recovered).max() > 0.1
    np.testing.assert_array_equal(out.recovered, other_tokens.recovered)


# --- padding and neighbours -----------------------------------------------------------------------


def test_padding_changes_nothing():
    long, short = run(weights(), text_ids(24), compressed()), outputs()
    close(long.match, short.match)
    close(long.recovered, short.recovered)
    in_long, in_short = (np.flatnonzero(text_ids(length)) for length in (24, 16))
    assert len(in_long) == len(in_short) == sum(LENGTHS)
    close(long.masked_lm[in_long], short.masked_lm[in_short])


def test_neighbours_change_nothing():
    logits = np.asarray(outputs().match)
    pairs = ((text_ids()[i : i + 1], compressed()[i : i + 1]) for i in range(B))
    alone = [run_one(weights(), *pair, method="match")[0] for pair in pairs]
    close(logits, alone)
    # Within one compiled shape it holds bit for bit.
    ids, tokens = text_ids().copy(), compressed().copy()
    ids[1:], tokens[1:] = ids[1:][::-1], 7 * tokens[1:][::-1]
    other = np.asarray(run(weights(), ids, tokens).match)
    assert other[0] == logits[0] and (other[1:] != logits[1:]).all()


def with_an_empty_row() -> tuple[jax.Array, jax.Array]:
    """The batch with row 2 as the padding of a last batch is."""
    ids, tokens = text_ids().copy(), compressed().copy()
    ids[2], tokens[2] = 0, 0
    return jnp.asarray(ids), jnp.asarray(tokens)


def test_a_row_of_nothing_but_padding_stays_finite_and_by_itself():
    out, full = run(weights(), *with_an_empty_row()), outputs()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out))
    others = np.arange(B) != 2
    np.testing.assert_array_equal(out.match[others], full.match[others])
    np.testing.assert_array_equal(out.recovered[others], full.recovered[others])


# --- what is left out of the work -----------------------------------------------------------------


def test_match_computes_only_cls_in_the_last_layer_and_nothing_is_lost():
    joint = weights()["joint_encoder"]
    assert [state.shape for state in hidden_states()] == [(B, M + 1 + 16, 24)] * 3
    cls = hidden_states()[-1][:, M + 1]
    pooled = np.tanh(cls @ joint["pooler"]["kernel"] + joint["pooler"]["bias"])
    expected = pooled @ joint["classifier"]["kernel"] + joint["classifier"]["bias"]
    close(outputs().match, expected[:, 0])


def test_masked_lm_is_bert_s_head_over_the_text_rows():
    """Dense, exact GELU, norm, and the word table as the decoder."""
    ours, joint = outputs().masked_lm, weights()["joint_encoder"]
    assert ours.shape == (B * 16, BERT.vocab_size)
    head = joint["masked_lm_head"]
    x = hidden_states()[-1][:, M + 1 :].reshape(B * 16, -1) @ head["dense"]["kernel"]
    x = np.asarray(jax.nn.gelu(x + head["dense"]["bias"][None], approximate=False))
    x = standardised(x, BERT.layer_norm_eps) * head["norm"]["scale"] + head["norm"]["bias"]
    close(ours, x @ joint["embeddings"]["word"]["embedding"].T + head["bias"], 2e-5)


def test_masked_lm_at_some_positions_equals_the_full_logits():
    some = np.array([3, 17, 17, 40, 63])
    picked = run_one(weights(), text_ids(), compressed(), some[None], method="masked_lm")[0]
    close(picked, outputs().masked_lm[some])


def standardised(x: np.ndarray, eps: float) -> np.ndarray:
    """Rows of mean 0 and variance 1."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


@pytest.mark.slow
def test_rematerialised_gradients_are_the_same():
    """With dropout on, and a row of padding alone in the batch."""

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(remat: bool, params):
        model = Edje(CONFIG, dropout=0.1, remat=remat)

        def loss(params) -> jax.Array:
            rngs = {"dropout": KEYS[0]}
            args = *with_an_empty_row(), True
            return model.apply({"params": params}, *args, method="match", rngs=rngs).sum()

        return jax.value_and_grad(loss)(params)

    unused = ("masked_lm_head", "text_recovery")
    joint = {k: v for k, v in weights()["joint_encoder"].items() if k not in unused}
    (plain, expected), (again, ours) = (
        gradients(remat, {"joint_encoder": joint}) for remat in (False, True)
    )
    assert float(again) == pytest.approx(float(plain), rel=1e-6)
    # To the largest of all: a key's bias moves every logit alike, so its gradient is rounding.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for leaf, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert np.isfinite(theirs).all() and theirs.any()
        close(leaf, theirs, 1e-5 * largest)


# --- positions ------------------------------------------------------------------------------------


def test_vision_past_position_511_repeats_row_511():
    """A local adapter's 576 tokens behind a caption, against the embedding written out."""
    bert = replace(BERT, max_position_embeddings=512, num_hidden_layers=1)
    config = replace(CONFIG, joint_encoder=bert)
    params = {"joint_encoder": weights(config)["joint_encoder"]}
    tokens = np.random.default_rng(3).normal(size=(1, 576, 24)).astype(np.float32)
    ids = text_ids()[:1, :7]
    states = run_one(params, ids, tokens, model=Edje(config), method="hidden_states")
    tables = params["joint_encoder"]["embeddings"]
    rows = tables["position"]["embedding"][np.minimum(7 + np.arange(576), 511)]
    x = standardised(tokens[0] + rows + tables["segment"]["embedding"][1], bert.layer_norm_eps)
    close(states[0][0, :576], x * tables["norm"]["scale"] + tables["norm"]["bias"])


# --- precision and dropout ------------------------------------------------------------------------


def test_bfloat16_is_close_and_its_logits_float32():
    half = Edje(CONFIG, dtype=jnp.bfloat16)
    compress = functools.partial(run_one, weights(), vision_tokens(), method="compress")
    inputs = weights(), text_ids(), compressed()
    pairs = {
        "match": (run_one(*inputs, model=half, method="match"), outputs().match),
        "compress": (compress(model=half), compress()),
    }
    for name, (ours, expected) in pairs.items():
        assert ours.dtype == (jnp.bfloat16 if name == "compress" else jnp.float32)
        difference = np.abs(np.asarray(ours, np.float32) - expected).max()
        assert 0 < difference <= 3e-2 * np.abs(expected).max(), name


@functools.partial(jax.jit, static_argnames="train")
def match_with_dropout(params, ids, tokens, rng, *, train):
    model = Edje(CONFIG, dropout=0.1)
    return model.apply(
        {"params": params}, ids, tokens, train, method="match", rngs={"dropout": rng}
    )


def test_dropout_is_random_in_training_and_absent_otherwise():
    inputs = weights(), text_ids(), compressed()
    one, same, other = (
        np.asarray(match_with_dropout(*inputs, KEYS[seed], train=True)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    plain = np.asarray(outputs().match)
    assert (one != other).all() and (one != plain).all()
    close(match_with_dropout(*inputs, KEYS[0], train=False), plain, 1e-6)


def test_dropout_without_a_random_key_is_refused():
    model = Edje(CONFIG, dropout=0.1)
    with pytest.raises(flax.errors.InvalidRngError, match='needs PRNG for "dropout"'):
        model.apply({"params": weights()}, *with_an_empty_row(), True, method="match")


# --- the adapters ---------------------------------------------------------------------------------


def test_the_local_adapter_works_token_by_token():
    config = replace(CONFIG, adapter=AdapterConfig("local", 0, 32))
    order = np.random.default_rng(6).permutation(64)
    out, shuffled = (
        np.asarray(run_one(weights(config), x, model=Edje(config), method="compress"))
        for x in (vision_tokens(), vision_tokens()[:, order])
    )
    assert out.shape == (B, config.num_tokens, 24) == (B, 64, 24)
    close(shuffled, out[:, order])
    assert np.abs(shuffled - out).max() > 0.1


def test_compressing_does_not_care_about_the_order_of_the_tokens():
    order = np.random.default_rng(6).permutation(64)
    out, shuffled = (
        np.asarray(run_one(weights(), x, method="compress"))
        for x in (vision_tokens(), vision_tokens()[:, order])
    )
    assert out.shape == (B, M, 24)
    close(shuffled, out)
    assert np.abs(out[0] - out[1]).max() > 0.1
