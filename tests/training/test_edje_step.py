"""The train step of an EDJE: what it learns from, what it leaves alone, what it repeats.

Covers training/gradients.py, training/losses/table.py, training/losses/term.py,
training/masking.py, training/match_pairs.py and training/rows.py.
"""

import dataclasses
import functools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from edje_jax.config.model import (
    AdapterConfig,
    BackboneConfig,
    BertConfig,
    EdjeConfig,
    ImageRecipe,
    OnlineVision,
    SimilarityPrior,
    TextConfig,
    VisionConfig,
)
from edje_jax.config.run import LossConfig, MeshConfig
from edje_jax.models.edje import Edje
from edje_jax.models.siglip import Siglip
from edje_jax.training.edje_step import (
    Frozen,
    StepSetup,
    edje_train_step,
    encode,
    examples_of,
)
from edje_jax.training.losses.table import TERMS, loss_of_rows, step_flops
from edje_jax.training.losses.term import Objective, Phase, RowContext, Term
from edje_jax.training.masking import choose_masked, masked_places
from edje_jax.training.negatives import Kinds, Pairs, choose_negatives, pair_similarities
from edje_jax.training.queue import empty_queue
from edje_jax.training.rows import Counts, Rows
from edje_jax.training.sharding import Devices
from edje_jax.training.state import Metrics, TrainState, init_state
from edje_jax.types import Batch, Features

PAD, UNK, CLS, SEP, MASK = SPECIAL = range(5)
WORDS = 24
CONFIG = EdjeConfig(
    BackboneConfig(
        vision=VisionConfig(16, 32, 1, 2, image_size=16, patch_size=8),
        text=TextConfig(20, 16, 32, 1, 2, max_position_embeddings=8, projection_size=16),
    ),
    AdapterConfig("compress", num_tokens=3, intermediate_size=32),
    BertConfig(WORDS + 1, 16, 32, 2, 2, max_position_embeddings=32),
    ImageRecipe(size=16),
)
ALL = LossConfig(match=2.0, masked_lm=0.5, negatives=2)
MATCH = LossConfig(masked_lm=0.0, text_recovery=0.0, distillation=0.0, negatives=2)
DISTIL = LossConfig(match=0.0, masked_lm=0.0, text_recovery=0.0, negatives=2)
STATES = dataclasses.replace(ALL, hidden_states=1.5, negatives=1)
HALF = 0.5
OPTIMISER = optax.adam(5e-3, b1=HALF)
"""After one step its first moment is half the gradient."""


ONE = Devices.of(MeshConfig(data=1), batch_size=1)

BIAS = "joint_encoder/classifier/bias"
"""A constant on every match logit; the softmax over a pair and its negatives does not see it."""


def make_batch(rows: int = 6, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    ids = np.full((rows, 9), PAD, np.int32)
    for row in ids:
        length = rng.integers(2, 8)
        row[: length + 2] = [CLS, *rng.integers(5, WORDS, length), SEP]
    return Batch(
        images=rng.integers(0, 256, (rows, 16, 16, 3), np.uint8),
        backbone_ids=rng.integers(2, 20, (rows, 8)).astype(np.int32),
        joint_ids=ids,
        image_ids=np.arange(rows, dtype=np.int32),
        caption_ids=np.arange(100, 100 + rows, dtype=np.int32),
        valid=np.ones(rows, bool),
    )


@functools.cache
def backbone_params() -> Any:
    pixels, ids = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 8), jnp.int32)
    return jax.jit(Siglip(CONFIG.backbone).init)(jax.random.key(7), pixels, ids)["params"]


@functools.cache
def fresh_params(seed: int = 0) -> Any:
    """Fresh, but with weights as large as trained ones, so that logits differ from pair to pair."""
    tokens, ids = jnp.zeros((1, 4, 16)), jnp.ones((1, 3), jnp.int32)
    params = jax.jit(Edje(CONFIG).init)(jax.random.key(seed), tokens, ids)["params"]
    return jax.tree.map(lambda x: 10 * x if x.ndim == 2 else x, params)


def deferring(layers: int, vision: OnlineVision = "updated") -> EdjeConfig:
    joint = dataclasses.replace(CONFIG.joint_encoder, deferred_layers=layers, online_vision=vision)
    return dataclasses.replace(CONFIG, joint_encoder=joint, max_text_length=9)


@functools.cache
def compiled(
    loss: LossConfig = ALL,
    phase: Phase = "all",
    dropout: float = 0.0,
    remat: bool = False,
    dtype: str = "float32",
    teacher: bool = False,
    chunks: int = 1,
    deferred: int = 0,
    vision: OnlineVision = "updated",
    optimiser: optax.GradientTransformation = OPTIMISER,
):
    """(state, frozen, batch) -> (state, metrics), the same for the same settings."""
    model = Edje(deferring(deferred, vision), jnp.dtype(dtype), dropout, remat)
    setup = StepSetup(
        objective=Objective(model, loss, phase, MASK, ONE, Edje(CONFIG) if teacher else None),
        backbone=Siglip(CONFIG.backbone, jnp.dtype(dtype)),
        recipe=CONFIG.image,
        special_ids=tuple(SPECIAL),
        seed=3,
        optimiser=optimiser,
        learning_rate=optax.constant_schedule(0.25),
        chunks=chunks,
    )
    step = partial(edje_train_step, setup=setup)
    # Compiling takes all of the time, and most of that goes into making these few numbers fast.
    return jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})


def one_step(
    batch: Batch, teacher: Any = None, step: int = 0, **settings
) -> tuple[dict[str, np.ndarray], Metrics]:
    """(gradients by path, metrics) at the fresh parameters."""
    state = init_state(fresh_params(), OPTIMISER)
    state = dataclasses.replace(state, step=jnp.int32(step))
    run = compiled(teacher=teacher is not None, **settings)
    after, metrics = run(state, Frozen(backbone_params(), teacher), batch)
    assert isinstance(after, TrainState) and int(after.step) == step + 1
    assert jax.tree.structure(after.params) == jax.tree.structure(state.params)
    moment = flatten_dict(after.opt_state[0].mu, sep="/")
    return {name: np.asarray(leaf) / HALF for name, leaf in moment.items()}, metrics


def assert_close(a: dict, b: dict, rtol: float = 1e-4, atol: float = 2e-6) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol, atol, err_msg=name)


# --- learning -------------------------------------------------------------------------------------


def test_a_fixed_batch_is_learned_and_the_backbone_stays():
    state = init_state(fresh_params(), OPTIMISER)
    frozen = Frozen(backbone_params(), None)
    before = jax.tree.map(np.array, frozen.backbone)
    step, batch, losses = compiled(), make_batch(), []
    for _ in range(30):
        state, metrics = step(state, frozen, batch)
        losses.append({name: float(value) for name, value in metrics.items()})
    assert losses[-1]["loss"] < 0.6 * losses[0]["loss"]
    for name in ("loss/match", "loss/masked_lm", "loss/text_recovery"):
        assert losses[-1][name] < 0.8 * losses[0][name], name
    assert losses[-1]["match_accuracy"] == 1.0
    jax.tree.map(np.testing.assert_array_equal, frozen.backbone, before)
    assert set(state.params) == {"adapter", "joint_encoder"}


def test_what_a_step_tells():
    gradients, metrics = one_step(make_batch())
    assert set(metrics) == {
        "loss", "loss/match", "loss/masked_lm", "loss/text_recovery",
        "match_accuracy", "grad_norm", "lr",
    }  # fmt: skip
    weighted = (
        2 * metrics["loss/match"] + 0.5 * metrics["loss/masked_lm"] + metrics["loss/text_recovery"]
    )
    np.testing.assert_allclose(metrics["loss"], weighted, rtol=1e-6)
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    assert metrics["lr"] == 0.25
    for value in metrics.values():
        assert value.shape == () and value.dtype == jnp.float32


def idle(name: str, gradient: np.ndarray) -> bool:
    """Nothing to learn from. `BIAS` has a sum that is zero on paper, to the last bits."""
    return not gradient.any() or (name == BIAS and bool(np.abs(gradient).max() < 1e-6))


def test_every_parameter_learns():
    gradients, _ = one_step(make_batch())
    assert [name for name, gradient in gradients.items() if idle(name, gradient)] == [BIAS]


def test_a_weight_of_zero_switches_a_loss_off():
    """Fine-tuning: matching alone."""
    gradients, metrics = one_step(make_batch(), loss=MATCH)
    assert {name for name in metrics if name.startswith("loss/")} == {"loss/match"}
    np.testing.assert_array_equal(metrics["loss"], metrics["loss/match"])
    for name, gradient in gradients.items():
        heads = ("joint_encoder/masked_lm_head", "joint_encoder/text_recovery", BIAS)
        assert idle(name, gradient) == name.startswith(heads), name


def test_masked_lm_alone_trains_no_match():
    gradients, metrics = one_step(make_batch(), phase="masked_lm")
    told = {name for name in metrics if name.startswith("loss/")}
    assert told == {"loss/masked_lm", "loss/text_recovery"}
    assert "match_accuracy" not in metrics
    for name, gradient in gradients.items():
        heads = ("joint_encoder/pooler", "joint_encoder/classifier")
        assert gradient.any() != name.startswith(heads), name


def test_masked_lm_sees_the_image():
    gradients, _ = one_step(make_batch(), phase="masked_lm")
    assert all(g.any() for name, g in gradients.items() if name.startswith("adapter/"))


# --- rows that do not count -----------------------------------------------------------------------


def test_what_invalid_rows_hold_changes_nothing():
    batch = make_batch()
    valid = np.array([True, False, True, True, False, True])
    other = make_batch(seed=1)
    zeros = batch._replace(valid=valid)
    garbage = zeros
    for name in ("images", "backbone_ids", "joint_ids"):
        rows = getattr(zeros, name)
        mask = valid.reshape(-1, *[1] * (rows.ndim - 1))
        zeros = zeros._replace(**{name: np.where(mask, rows, 0).astype(rows.dtype)})
        garbage = garbage._replace(**{name: np.where(mask, rows, getattr(other, name))})
    # An invalid row may even carry a valid one's ids.
    garbage = garbage._replace(
        image_ids=np.array([0, 0, 2, 3, 2, 5], np.int32),
        caption_ids=np.array([100, 103, 102, 103, 103, 105], np.int32),
    )
    (a, told_a), (b, told_b) = one_step(zeros), one_step(garbage)
    assert_close(a, b)
    assert_close(told_a, told_b)
    assert all(np.isfinite(g).all() for g in a.values())


def test_invalid_rows_are_as_if_they_were_not_there():
    batch = make_batch()
    valid = np.array([True, True, False, True, True, False])
    rows = {name: leaf[valid] for name, leaf in batch._asdict().items() if leaf is not None} | {
        "valid": np.ones(4, bool)
    }
    with_rows, told = one_step(batch._replace(valid=valid), loss=MATCH)
    without, told_without = one_step(Batch(**rows), loss=MATCH)
    assert_close(with_rows, without)
    assert_close(told, told_without)


def test_a_batch_without_any_negative_or_any_valid_row_is_harmless():
    same = make_batch()._replace(image_ids=np.zeros(6, np.int32))
    gradients, metrics = one_step(same, loss=MATCH)
    assert float(metrics["loss"]) == 0.0
    assert not any(g.any() for g in gradients.values())
    none = make_batch()._replace(valid=np.zeros(6, bool))
    gradients, metrics = one_step(none)
    assert float(metrics["loss"]) == 0.0 and float(metrics["match_accuracy"]) == 0.0
    assert not any(g.any() for g in gradients.values())


# --- distillation ---------------------------------------------------------------------------------


def test_a_student_that_equals_its_teacher_has_nothing_to_learn():
    """The loss is then the entropy of the teacher's answers, and its gradient zero."""
    batch = make_batch()
    gradients, metrics = one_step(batch, teacher=fresh_params(), loss=DISTIL)
    pairs = matched(jax.tree.map(jnp.asarray, batch))
    entropies = []
    for logits in pairs:
        p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
        entropies.append(np.mean(-p * np.log(p) - (1 - p) * np.log(1 - p)))
    assert np.std(np.concatenate([np.ravel(logits) for logits in pairs])) > 0.01
    np.testing.assert_allclose(metrics["loss/distillation"], np.mean(entropies), rtol=1e-5)
    assert "loss/match" not in metrics
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, 0, atol=1e-6, err_msg=name)


@partial(jax.jit, static_argnums=0)
def match_pairs(edje: Edje, params: Any, tokens: jax.Array, rows: Rows) -> Pairs:
    """Match logits of all pairs of the rows of a whole batch."""
    objective = Objective(edje, ALL, "all", MASK, ONE)
    return RowContext(objective, edje, params, tokens, rows.ids, rows, Counts.of(rows, PAD)).pairs


@jax.jit
def matched(batch: Batch) -> Pairs:
    """The teacher's logits, of the pairs that a step would choose."""
    return context_of(batch, ALL).pairs


def context_of(batch: Batch, loss: LossConfig) -> RowContext:
    """A whole batch at the fresh parameters, with two hard negatives of each kind."""
    batch = jax.tree.map(jnp.asarray, batch)
    features = encode(Siglip(CONFIG.backbone), backbone_params(), batch, CONFIG.image)
    examples, pool = examples_of(batch, features, None, PAD, ONE)
    negatives = choose_negatives(examples, pool, Kinds(2, 2), jax.random.key(0))
    tokens = Edje(CONFIG).bind({"params": fresh_params()}).compress(features.vision_tokens)
    index, nobody = jnp.arange(len(batch.valid)), jnp.zeros(batch.joint_ids.shape, bool)
    rows = Rows(index, batch.joint_ids, nobody, batch.valid, features.text_embeddings, negatives)
    edje = Edje(CONFIG)
    objective = Objective(edje, loss, "all", MASK, ONE)
    counts = Counts.of(rows, PAD)
    return RowContext(objective, edje, fresh_params(), tokens, rows.ids, rows, counts)


def test_a_student_learns_from_another_teacher():
    gradients, metrics = one_step(make_batch(), teacher=fresh_params(1), loss=DISTIL)
    assert float(metrics["grad_norm"]) > 1e-3
    assert gradients["joint_encoder/classifier/kernel"].any()


@pytest.mark.parametrize(("loss", "phase"), [(MATCH, "all"), (ALL, "masked_lm")])
def test_a_teacher_goes_unasked_where_distillation_is_off(loss, phase):
    state = init_state(fresh_params(), OPTIMISER)
    frozen = Frozen(backbone_params(), fresh_params())
    step = compiled(loss, phase, teacher=True)
    _, told = jax.eval_shape(step, state, frozen, make_batch())
    assert "loss/distillation" not in told
    _, told = jax.eval_shape(compiled(ALL, teacher=True), state, frozen, make_batch())
    assert "loss/distillation" in told


def test_a_student_of_its_teachers_weights_has_its_states():
    _, metrics = one_step(make_batch(), teacher=fresh_params(), loss=STATES)
    assert float(metrics["loss/hidden_states"]) < 1e-10
    gradients, metrics = one_step(make_batch(), teacher=fresh_params(1), loss=STATES)
    assert float(metrics["loss/hidden_states"]) > 0.1
    assert gradients["joint_encoder/layers_1/output/kernel"].any()


@pytest.mark.parametrize("deferred", [0, 1])
def test_states_are_compared_after_the_layers_that_both_have_online(deferred):
    """Against the mean of squares over the captions' own rows, made here."""
    alone = dataclasses.replace(DISTIL, distillation=0.0, hidden_states=1.0)
    batch, teacher = make_batch(), fresh_params(1)
    gradients, metrics = one_step(batch, teacher=teacher, loss=alone, deferred=deferred)

    @partial(jax.jit, static_argnums=0)
    def states(config: EdjeConfig, params, vision_tokens):
        edje = Edje(config).bind({"params": params})
        return edje.hidden_states(batch.joint_ids, edje.compress(vision_tokens))

    batch = jax.tree.map(jnp.asarray, batch)
    seen = encode(Siglip(CONFIG.backbone), backbone_params(), batch, CONFIG.image).vision_tokens
    ours = states(deferring(deferred), fresh_params(), seen)[deferred - 2 :]
    theirs = states(CONFIG, teacher, seen)[deferred - 2 :]
    captions = slice(CONFIG.num_tokens + 1, None)
    squares = np.mean(
        [np.square(np.asarray(a - b))[:, captions] for a, b in zip(ours, theirs, strict=True)],
        axis=(0, 3),
    )
    there = batch.joint_ids != PAD
    expected = [row[mask].mean() for row, mask in zip(squares, there, strict=True)]
    assert np.std(expected) > 1e-3
    np.testing.assert_allclose(metrics["loss/hidden_states"], np.mean(expected), rtol=1e-4)
    heads = tuple(
        f"joint_encoder/{head}" for head in ("masked_lm", "text_rec", "pooler", "classifier")
    )
    for name, gradient in gradients.items():
        assert idle(name, gradient) == name.startswith(heads), name


# --- randomness and precision ---------------------------------------------------------------------


def test_dropout_is_a_function_of_seed_and_step():
    batch = make_batch()
    first, again, later = (
        float(one_step(batch, step=step, dropout=0.5)[1]["loss/match"]) for step in (0, 0, 1)
    )
    assert first == again != later
    plain = [float(one_step(batch, step=step)[1]["loss/match"]) for step in (0, 1)]
    assert plain[0] == plain[1] and plain[0] not in (first, later)


def test_nothing_is_dropped_outside_training():
    batch = make_batch()
    tokens = jax.random.normal(jax.random.key(0), (6, 3, 16))
    ids = jnp.asarray(batch.joint_ids)

    @partial(jax.jit, static_argnums=0)
    def match(dropout: float) -> jax.Array:
        return Edje(CONFIG, dropout=dropout).bind({"params": fresh_params()}).match(ids, tokens)

    np.testing.assert_array_equal(match(0.5), match(0.0))


def test_other_pieces_are_masked_at_another_step():
    batch = make_batch()
    losses = [float(one_step(batch, step=step)[1]["loss/masked_lm"]) for step in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        *(
            pytest.param(one, marks=pytest.mark.extra)
            for one in ({"deferred": 1}, {"vision": "attended"})
        ),
    ],
)
def test_recomputing_activations_changes_no_number(settings):
    plain, told = one_step(make_batch(), dropout=0.5, **settings)
    if settings:
        assert told["loss"] != one_step(make_batch(), dropout=0.5)[1]["loss"]
    assert all(g.any() for name, g in plain.items() if "layers_" in name or "adapter" in name)
    again, told_again = one_step(make_batch(), dropout=0.5, remat=True, **settings)
    assert_close(plain, again)
    assert_close(told, told_again)


def test_bfloat16_is_for_activations_only():
    gradients, metrics = one_step(make_batch(), dtype="bfloat16")
    exact, told = one_step(make_batch())
    assert all(g.dtype == np.float32 for g in gradients.values())
    assert all(value.dtype == jnp.float32 for value in metrics.values())
    assert metrics["loss"] != told["loss"]
    np.testing.assert_allclose(metrics["loss"], told["loss"], rtol=0.05)
    a, b = (np.concatenate([g.ravel() for g in each.values()]) for each in (gradients, exact))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.95


# --- chunks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taught", "settings"),
    [
        (True, {}),
        # A chunk of two rows has fewer pairs than there are captions, and reads those alone.
        (True, {"deferred": 1, "loss": STATES}),
        pytest.param(False, {"vision": "attended"}, marks=pytest.mark.extra),
        pytest.param(
            False,
            {"loss": dataclasses.replace(ALL, auxiliary_stride=2, random_negatives=2)},
            marks=pytest.mark.extra,
        ),
    ],
)
def test_chunks_give_the_gradients_of_the_whole_batch(taught, settings):
    """Rows that are invalid or of one image among them; negatives lie in other chunks."""
    batch = make_batch(8)
    batch.image_ids[3] = batch.image_ids[6]
    batch.valid[5] = False
    teacher = fresh_params(1) if taught else None
    parts, told_parts = one_step(batch, teacher, chunks=4, **settings)
    whole, told = one_step(batch, teacher, **settings)
    assert_close(parts, whole, rtol=1e-4, atol=1e-6)
    largest = max(np.abs(gradient).max() for gradient in whole.values())
    for name, gradient in whole.items():
        assert np.abs(parts[name] - gradient).max() <= 1e-5 * largest, name
    assert told.keys() == told_parts.keys()
    for name, value in told.items():
        np.testing.assert_allclose(told_parts[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.extra
def test_chunks_take_less_memory():
    batch = make_batch(64)
    state, frozen = init_state(fresh_params(), OPTIMISER), Frozen(backbone_params(), None)

    def temporary(chunks: int) -> int:
        lowered = compiled(chunks=chunks).lower(state, frozen, batch)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(8) < 0.5 * temporary(1)


# --- masking --------------------------------------------------------------------------------------


class Hidden(NamedTuple):
    """Ids with [MASK] in them, and what the head is asked."""

    ids: jax.Array
    positions: jax.Array
    labels: jax.Array
    used: jax.Array


@functools.cache
def masker(probability: float, groups: int = 1):
    @jax.jit
    def run(ids, valid, key) -> Hidden:
        masked = choose_masked(ids, valid, probability, tuple(SPECIAL), key)
        return Hidden(
            jnp.where(masked, MASK, ids), *masked_places(ids, masked, probability, groups)
        )

    return run


def long_captions(rows: int = 64, length: int = 40) -> np.ndarray:
    rng = np.random.default_rng(0)
    ids = rng.integers(5, WORDS, (rows, length)).astype(np.int32)
    ids[:, 0], ids[:, -1] = CLS, SEP
    ids[::2, 20:] = PAD
    ids[::2, 19] = SEP
    ids[:, 3] = UNK
    return ids


@pytest.mark.parametrize("probability", [0.15, 0.5, 1.0])
def test_masking(probability):
    ids = long_captions()
    valid = np.arange(64) % 8 != 0
    hidden = masker(probability)(ids, valid, jax.random.key(1))
    masked = np.asarray(hidden.ids) == MASK
    eligible = (ids >= 5) & valid[:, None]
    assert not masked[~eligible].any()
    np.testing.assert_array_equal(np.asarray(hidden.ids)[~masked], ids[~masked])
    share = masked[eligible].mean()
    deviation = np.sqrt(probability * (1 - probability) / eligible.sum())
    assert abs(share - probability) <= 4 * deviation
    # Each masked place is asked for once, with the piece that stood there.
    positions = np.asarray(hidden.positions)[hidden.used]
    np.testing.assert_array_equal(positions, np.flatnonzero(masked))
    np.testing.assert_array_equal(np.asarray(hidden.labels)[hidden.used], ids.ravel()[positions])
    assert hidden.labels.shape == hidden.used.shape == hidden.positions.shape


def test_groups_of_rows_mask_the_same_pieces():
    """However the rows are grouped, the same places are asked for, each in its own group."""
    ids, valid, key = long_captions(), np.ones(64, bool), jax.random.key(1)
    whole = masker(0.5)(ids, valid, key)
    parts = masker(0.5, groups=4)(ids, valid, key)
    np.testing.assert_array_equal(parts.ids, whole.ids)
    assert parts.positions.shape[0] == 4
    offsets = np.arange(4)[:, None] * ids.size // 4
    together = (np.asarray(parts.positions) + offsets)[parts.used]
    np.testing.assert_array_equal(together, np.asarray(whole.positions)[whole.used])
    np.testing.assert_array_equal(
        np.asarray(parts.labels)[parts.used], np.asarray(whole.labels)[whole.used]
    )


def test_masking_is_a_function_of_its_key():
    ids, valid = long_captions(), np.ones(64, bool)
    one, two, three = (masker(0.5)(ids, valid, jax.random.key(key)) for key in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert (np.asarray(one.ids) != np.asarray(three.ids)).any()


def test_no_masked_piece_is_left_out():
    """The static number of places holds what full-length captions have masked."""
    ids = long_captions()
    ids[:, 1:-1] = 7
    for key in range(50):
        hidden = masker(0.5)(ids, np.ones(64, bool), jax.random.key(key))
        assert int(hidden.used.sum()) == int((hidden.ids == MASK).sum())
    assert hidden.positions.size < 0.6 * ids.size


# --- negatives beyond the batch -------------------------------------------------------------------
# What compiles from here on is slow, so that the newest JAX leaves it out: jaxlib 0.12.0.1 was seen
# to crash in a process that had compiled this many steps.

QUEUED = dataclasses.replace(MATCH, random_negatives=2, queue=10)


@jax.jit
def encoded(batch: Batch) -> Features:
    return encode(Siglip(CONFIG.backbone), backbone_params(), batch, CONFIG.image)


def queue_after(batches: list[Batch], loss: LossConfig = QUEUED, **settings) -> TrainState:
    """The state after a step on each of the batches, without learning from them."""
    config = deferring(settings.get("deferred", 0))
    state = init_state(fresh_params(), optax.set_to_zero())
    state = dataclasses.replace(state, queue=empty_queue(config, loss.queue))
    step = compiled(loss, optimiser=optax.set_to_zero(), **settings)
    for batch in batches:
        state, _ = step(state, Frozen(backbone_params(), None), batch)
    return state


@pytest.mark.slow
@pytest.mark.parametrize("chunks, deferred", [(1, 0), (2, 1)])
def test_the_queue_holds_the_last_batches_newest_first(chunks, deferred):
    batches = [make_batch(6, seed) for seed in range(3)]
    batches[1].valid[2] = False
    queue = queue_after(batches, chunks=chunks, deferred=deferred).queue
    newest = [*range(6)], [*range(4)]
    made = [encoded(batch) for batch in batches[:0:-1]]
    edje = Edje(deferring(deferred)).bind({"params": fresh_params()})
    tokens = np.concatenate(
        [edje.compress(m.vision_tokens)[: len(rows)] for m, rows in zip(made, newest, strict=True)]
    )
    np.testing.assert_allclose(queue.tokens, tokens, rtol=1e-3, atol=0.1)
    for name, field in (("text_embeddings",) * 2, ("image_embeddings",) * 2):
        expected = np.concatenate([getattr(made[0], name), getattr(made[1], name)[:4]])
        np.testing.assert_allclose(getattr(queue, field), expected, atol=1e-6)
    ids = np.concatenate([batches[2].joint_ids, batches[1].joint_ids[:4]])
    np.testing.assert_array_equal(queue.ids[:, :9], ids)
    assert (np.asarray(queue.ids[:, 9:]) == PAD).all()
    assert queue.valid.tolist() == [True] * 6 + [True, True, False, True]


@pytest.mark.slow
def test_an_empty_queue_gives_no_negative():
    """The first step is that of a run without one."""
    batch = make_batch()
    without, told = one_step(batch, loss=dataclasses.replace(MATCH, negatives=5))
    state = init_state(fresh_params(), OPTIMISER)
    state = dataclasses.replace(state, queue=empty_queue(CONFIG, 10))
    loss = dataclasses.replace(MATCH, negatives=5, queue=10)
    after, metrics = compiled(loss)(state, Frozen(backbone_params(), None), batch)
    np.testing.assert_allclose(metrics["loss"], told["loss"], rtol=1e-6)
    moment = flatten_dict(after.opt_state[0].mu, sep="/")
    assert_close({name: np.asarray(leaf) / HALF for name, leaf in moment.items()}, without)


@pytest.mark.slow
@pytest.mark.parametrize("deferred", [0, 1])
def test_negatives_from_the_queue_count_as_those_of_the_batch(deferred):
    """A batch beside a queue that holds another loses as both in one batch would, on its rows."""
    first, second = make_batch(4, 0), make_batch(4, 1)
    second = second._replace(image_ids=second.image_ids + 50, caption_ids=second.caption_ids + 50)
    loss = dataclasses.replace(MATCH, negatives=7, queue=4)
    state = queue_after([first], loss, deferred=deferred)
    step = compiled(loss, optimiser=optax.set_to_zero(), deferred=deferred)
    _, queued = step(state, Frozen(backbone_params(), None), second)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), second, first)
    # Only the rows of the second count, and those of the first are negatives.
    features = encoded(both)
    examples, pool = examples_of(both, features, None, PAD, ONE)
    negatives = choose_negatives(examples, pool, Kinds(7, 7), jax.random.key(0))
    edje = Edje(deferring(deferred))
    tokens = edje.bind({"params": fresh_params()}).compress(features.vision_tokens)
    index, nobody = jnp.arange(8), jnp.zeros(both.joint_ids.shape, bool)
    rows = Rows(index, both.joint_ids, nobody, both.valid, features.text_embeddings, negatives)
    pairs = match_pairs(edje, fresh_params(), tokens, rows)
    each = [
        jax.nn.logsumexp(jnp.concatenate([pairs.positive[:, None], rivals], 1), axis=1)
        - pairs.positive
        for rivals in (pairs.images, pairs.captions)
    ]
    expected = float(sum(x[:4].mean() for x in each) / 2)
    np.testing.assert_allclose(queued["loss/match"], expected, rtol=1e-4)


def test_a_longer_caption_of_the_queue_is_no_negative():
    queue = empty_queue(dataclasses.replace(CONFIG, max_text_length=9), 3)
    ids = np.full((3, 9), PAD, np.int32)
    for row, length in enumerate((3, 5, 9)):
        ids[row, :length] = CLS
    queue = queue._replace(ids=jnp.asarray(ids), valid=jnp.asarray([True, True, True]))
    assert queue.examples(9, PAD).captions_valid.tolist() == [True, True, True]
    assert queue.examples(5, PAD).captions_valid.tolist() == [True, True, False]
    assert queue.examples(4, PAD).captions_valid.tolist() == [True, False, False]
    assert queue.examples(4, PAD).images_valid.tolist() == [True, True, True]


# --- similarity prior -----------------------------------------------------------------------------


def test_a_similarity_prior_is_given_each_pair_s_cosine():
    """The logit of every pair is that of `match` with the backbone's cosine of it."""
    config = dataclasses.replace(CONFIG, similarity_prior=SimilarityPrior(0.2, 0.4))
    edje, batch = Edje(config), jax.tree.map(jnp.asarray, make_batch())
    tokens, ids = jnp.zeros((1, 4, 16)), jnp.ones((1, 3), jnp.int32)
    params = jax.jit(edje.init)(jax.random.key(0), tokens, ids)["params"]
    params = jax.tree.map(lambda x: x + 0.3, params)
    features = encoded(batch)
    examples, pool = examples_of(batch, features, None, PAD, ONE)
    negatives = choose_negatives(examples, pool, Kinds(2, 2, 1), jax.random.key(0))
    known = pair_similarities(examples, pool, negatives)
    cosines = np.asarray(features.text_embeddings @ features.image_embeddings.T)
    rows = np.arange(6)[:, None]
    np.testing.assert_allclose(known.positive, np.diag(cosines), atol=1e-6)
    np.testing.assert_allclose(known.images, cosines[rows, negatives.images], atol=1e-6)
    np.testing.assert_allclose(known.captions, cosines[negatives.captions, rows], atol=1e-6)
    bound = edje.bind({"params": params})
    compressed = bound.compress(features.vision_tokens)
    nobody = jnp.zeros(batch.joint_ids.shape, bool)
    given = Rows(
        jnp.arange(6), batch.joint_ids, nobody, batch.valid, features.text_embeddings, negatives,
        similarities=known,
    )  # fmt: skip
    pairs = match_pairs(edje, params, compressed, given)

    @jax.jit
    def match(ids, tokens, similarity):
        return edje.bind({"params": params}).match(ids, tokens, similarity=similarity)

    for i in range(6):
        for j, logit in zip(negatives.images[i], pairs.images[i], strict=True):
            similarity = jnp.asarray(cosines[i, j])[None]
            own = match(batch.joint_ids[i][None], compressed[j][None], similarity)
            np.testing.assert_allclose(own[0], logit, rtol=1e-4, atol=1e-5)


# --- a term of one's own --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class WithSize(LossConfig):
    size: float = 0.5


def test_a_new_term_is_an_entry_of_the_table(monkeypatch):
    """It is added with its weight, logged under its name, and counted in FLOPs."""
    term = Term(
        lambda context: jnp.mean(jnp.square(context.pairs.positive)),
        flops=lambda config, loss: 1e12,
        needs_pairs=True,
    )
    monkeypatch.setitem(TERMS, "size", term)
    loss = WithSize(masked_lm=0.0, text_recovery=0.0, negatives=2)
    context = context_of(make_batch(), loss)
    total, told = loss_of_rows(context)
    expected = np.mean(np.square(context.pairs.positive))
    np.testing.assert_allclose(told["loss/size"], expected, rtol=1e-6)
    np.testing.assert_allclose(total, told["loss/match"] + 0.5 * expected, rtol=1e-6)
    unused = dataclasses.replace(loss, size=0.0)
    assert "loss/size" not in loss_of_rows(context_of(make_batch(), unused))[1]
    more = step_flops(CONFIG, loss, 2, None) - step_flops(CONFIG, unused, 2, None)
    assert more == 2 * 3 * 1e12


# --- binary matching ------------------------------------------------------------------------------


@pytest.mark.slow
def test_binary_matching_sees_a_constant_on_all_logits():
    """The softmax does not: its gradient of the constant is zero."""
    loss = dataclasses.replace(MATCH, match=0.0, binary_match=2.0)
    gradients, told = one_step(make_batch(), loss=loss)
    assert abs(float(gradients[BIAS][0])) > 1e-3
    np.testing.assert_allclose(told["loss"], 2 * told["loss/binary_match"], rtol=1e-6)
    pairs = matched(make_batch())
    expected = (
        jax.nn.softplus(-np.asarray(pairs.positive)).mean()
        + jax.nn.softplus(np.asarray(pairs.images)).mean()
        + jax.nn.softplus(np.asarray(pairs.captions)).mean()
    ) / 3
    np.testing.assert_allclose(told["loss/binary_match"], expected, rtol=1e-4)


@pytest.mark.slow
def test_masked_lm_and_text_recovery_may_take_every_other_row():
    """They are those of a batch of these rows; matching is that of all."""
    batch = make_batch(8)
    batch.valid[2] = False
    loss = dataclasses.replace(ALL, auxiliary_stride=2)
    _, some = one_step(batch, loss=loss)
    _, whole = one_step(batch)
    np.testing.assert_allclose(some["loss/match"], whole["loss/match"], rtol=1e-6)
    features, ids = encoded(jax.tree.map(jnp.asarray, batch)), jnp.asarray(batch.joint_ids)
    edje = Edje(CONFIG).bind({"params": fresh_params()})
    guess = np.asarray(edje.recover_text(ids))[[0, 4, 6]]
    target = np.asarray(features.text_embeddings)[[0, 4, 6]]
    cosines = (guess * target).sum(1) / np.linalg.norm(guess, axis=1)
    np.testing.assert_allclose(some["loss/text_recovery"], 1 - cosines.mean(), rtol=1e-4)
    assert abs(some["loss/text_recovery"] - whole["loss/text_recovery"]) > 1e-5
    assert abs(some["loss/masked_lm"] - whole["loss/masked_lm"]) > 1e-4
    # Alone they take every row.
    _, first = one_step(batch, loss=loss, phase="masked_lm")
    _, all_rows = one_step(batch, phase="masked_lm")
    np.testing.assert_allclose(first["loss"], all_rows["loss"], rtol=1e-6)
