"""The train step of a captioner: captioning alone, and mixed with matching and a teacher's lists.

Covers training/losses/listwise_distillation.py.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from edje_jax.config.calibration import Calibration
from edje_jax.config.captioner import CaptionerConfig
from edje_jax.config.model import AdapterConfig, EdjeConfig
from edje_jax.config.run import LossConfig, MeshConfig
from edje_jax.models.captioner import Captioner
from edje_jax.models.siglip import Siglip
from edje_jax.training.edje_step import Frozen, StepSetup, encode, examples_of, jit_step
from edje_jax.training.losses.listwise import softmax_cross_entropy, teacher_entropy
from edje_jax.training.losses.term import Objective, Phase
from edje_jax.training.negatives import Kinds, choose_negatives
from edje_jax.training.sharding import Devices
from edje_jax.training.state import Metrics, TrainState, init_state
from edje_jax.types import Batch
from tests.training.test_edje_step import (
    CONFIG,
    MASK,
    PAD,
    SPECIAL,
    backbone_params,
    make_batch,
)  # fmt: skip

ROWS, K, HALF, TEMPERATURE = 16, 2, 0.5, 0.8
PLAIN = dataclasses.replace(
    CONFIG,
    adapter=AdapterConfig("local", 0, 32),
    # Each layer is compiled for both directions, with an image and without, and for the teacher.
    joint_encoder=dataclasses.replace(CONFIG.joint_encoder, num_hidden_layers=1),
    captioner=CaptionerConfig(),
    max_text_length=9,
)
BACKBONE = dataclasses.replace(CONFIG.backbone, earlier_layers=CONFIG.backbone.layers_for(2))
FINE = dataclasses.replace(
    PLAIN, backbone=BACKBONE, adapter=AdapterConfig("local", 0, 32, upsampling=2)
)
NOTHING = dict.fromkeys(LossConfig.weights(), 0.0)
CAPTIONING = LossConfig(**NOTHING | {"captioning": 1.0}, negatives=1)
MIXED = LossConfig(
    **NOTHING
    | {"captioning": 1.0, "unconditional_captioning": 0.5, "match": 0.5}
    | {"listwise_distillation": 2.0, "distillation": 1.0},
    distillation_temperature=TEMPERATURE,
    negatives=K,
    auxiliary_stride=2,
)
CALIBRATION = Calibration(similarity_weight=2.0, temperature=5.0, bias=-0.5, fitted={"data": "x"})
OPTIMISER = optax.adam(5e-3, b1=HALF)
"""After one step its first moment is half the gradient."""


@cache
def fresh(config: EdjeConfig, seed: int = 0) -> Any:
    """Weights as large as trained ones, so that scores differ from pair to pair."""
    tokens, ids = jnp.zeros((1, 4, config.backbone.token_width)), jnp.ones((1, 3), jnp.int32)
    params = jax.jit(Captioner(config).init)(jax.random.key(seed), tokens, ids)["params"]
    return jax.tree.map(lambda x: np.asarray(5 * x if x.ndim == 2 else x), params)


def a_batch() -> Batch:
    """Rows of one image twice and an unreadable one, of padding alone, among them."""
    batch = make_batch(ROWS)
    batch.image_ids[3] = batch.image_ids[11]
    batch.valid[4] = False
    batch.joint_ids[4] = PAD
    return batch


@cache
def prepared(
    loss: LossConfig = MIXED,
    phase: Phase = "all",
    chunks: int = 1,
    mesh: tuple[int, int] = (1, 1),
) -> tuple[Devices, Any, tuple[TrainState, Frozen, Batch]]:
    """(devices, step, its arguments) of a captioner that upsamples, taught by one that does not."""
    devices = Devices.of(MeshConfig(*mesh), ROWS, chunks * loss.auxiliary_stride)
    teacher = Captioner(PLAIN) if loss.listwise_distillation else None
    setup = StepSetup(
        Objective(Captioner(FINE), loss, phase, MASK, devices, teacher, CALIBRATION),
        Siglip(BACKBONE),
        CONFIG.image,
        tuple(SPECIAL),
        seed=3,
        optimiser=OPTIMISER,
        learning_rate=optax.constant_schedule(0.25),
        chunks=chunks,
    )
    params = fresh(FINE)
    state = devices.init_sharded(lambda: init_state(params, OPTIMISER))
    place = devices.put
    frozen = Frozen(
        place(jax.device_get(backbone_params())), place(fresh(PLAIN, 1)) if teacher else None
    )
    return devices, jit_step(setup), (state, frozen, devices.batch(a_batch()))


@cache
def one_step(*args: Any, **settings: Any) -> tuple[dict[str, np.ndarray], Metrics]:
    """(gradients by path, metrics) of the step that is prepared so."""
    devices, step, given = prepared(*args, **settings)
    after, metrics = step(*given)
    moment = flatten_dict(devices.fetch(after.opt_state[0].mu), sep="/")
    told = jax.device_get(metrics)
    return {name: np.asarray(leaf) / HALF for name, leaf in moment.items()}, told


@cache
def expected() -> dict[str, float]:
    """Losses of the batch, from the scores of all its pairs."""
    batch = jax.tree.map(jnp.asarray, a_batch())
    features = encode(Siglip(BACKBONE), backbone_params(), batch, CONFIG.image)
    assert features.vision_tokens.shape == (ROWS, 4, 32), "one earlier layer beside the last"
    devices = Devices.of(MeshConfig(data=1), 1)
    own, pool = examples_of(batch, features, None, PAD, devices)
    chosen = choose_negatives(own, pool, Kinds(K, K), jax.random.key(0))

    @partial(jax.jit, static_argnums=0)
    def read(config: EdjeConfig, params, vision_tokens):
        model = Captioner(config).bind({"params": params})
        tokens = model.compress(vision_tokens)
        alone = model.log_probabilities(batch.joint_ids, None)
        beside = model.log_probabilities(batch.joint_ids, tokens)
        pairs = model.match(
            jnp.repeat(batch.joint_ids, ROWS, axis=0), jnp.tile(tokens, (ROWS, 1, 1))
        )
        return beside, alone, pairs.reshape(ROWS, ROWS)

    beside, alone, student = read(FINE, fresh(FINE), features.vision_tokens)
    _, _, teacher = read(PLAIN, fresh(PLAIN, 1), features.vision_tokens[..., :16])
    valid = np.asarray(batch.valid)
    some = valid & (np.arange(ROWS) % 2 == 0)

    def per_token(found, rows) -> float:
        return -np.asarray(found.values)[:, rows].sum() / np.asarray(found.present)[rows].sum()

    def lists(scores):
        """Own pair and negatives of every caption, then of every image."""
        by_text, by_image = np.asarray(scores), np.asarray(scores).T
        each = [
            np.concatenate([np.diag(values)[:, None], np.take_along_axis(values, found, 1)], 1)
            for values, found in (
                (by_text, np.asarray(chosen.images)), (by_image, np.asarray(chosen.captions))
            )
        ]  # fmt: skip
        return jnp.asarray(np.concatenate([each[0][valid], each[1][valid]]))

    assert np.asarray(chosen.images_usable)[valid].all()
    h, f = lists(teacher), lists(student)
    usable = jnp.ones(h.shape, bool)
    cosines = lists(features.text_embeddings @ features.image_embeddings.T)
    logits = (h + 2.0 * cosines) / 5.0 - 0.5
    per_pair = np.asarray(jax.nn.softplus(f) - jax.nn.sigmoid(logits) * f)
    count = valid.sum()
    own, images, captions = per_pair[:count, 0], per_pair[:count, 1:], per_pair[count:, 1:]
    return {
        "loss/captioning": per_token(beside, valid),
        "loss/unconditional_captioning": per_token(alone, some),
        "loss/match": float(jnp.mean(jax.nn.logsumexp(f, axis=1) - f[:, 0])),
        "loss/distillation": (own.mean() + images.mean() + captions.mean()) / 3,
        "loss/listwise_distillation": float(softmax_cross_entropy(h, f, usable, TEMPERATURE)),
        "teacher_entropy": float(teacher_entropy(h, usable, TEMPERATURE)),
    }


def test_a_step_tells_the_losses_of_its_pairs_scores():
    _, told = one_step()
    assert set(told) == {*expected(), "loss", "match_accuracy", "grad_norm", "lr"}
    for name, value in expected().items():
        np.testing.assert_allclose(told[name], value, rtol=1e-4, err_msg=name)
    assert 0.05 < told["teacher_entropy"] < 0.95 * np.log(1 + K)
    whole = sum(getattr(MIXED, name.removeprefix("loss/")) * told[name]
                for name in told if name.startswith("loss/"))  # fmt: skip
    np.testing.assert_allclose(told["loss"], whole, rtol=1e-6)


def test_every_parameter_learns_and_no_gradient_is_broken_by_a_row_of_padding():
    gradients, _ = one_step()
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    # A constant on all of a query's keys changes no softmax.
    idle = [name for name, gradient in gradients.items() if np.abs(gradient).max() < 1e-7]
    assert all(name.endswith("key/bias") for name in idle), idle
    assert "adapter/upsampling/lateral_1/kernel" in gradients
    assert "captioner/backward/layers_0/cross_value/kernel" in gradients


def test_captioning_alone_computes_no_other_loss():
    """Neither pairs with negatives nor captions without an image."""
    _, step, given = prepared(CAPTIONING)
    _, told = jax.eval_shape(step, *given)
    assert set(told) == {"loss", "loss/captioning", "grad_norm", "lr"}


def test_the_first_phase_trains_captioning():
    """With and without an image, on every row."""
    gradients, told = one_step(MIXED, "masked_lm")
    assert gradients["captioner/no_image"].any() and gradients["adapter/fc2/kernel"].any()
    assert {name for name in told if name.startswith("loss/")} == {
        "loss/captioning", "loss/unconditional_captioning"
    }  # fmt: skip
    np.testing.assert_allclose(told["loss/captioning"], expected()["loss/captioning"], rtol=1e-4)


def test_parts_of_a_batch_give_the_gradients_of_the_whole():
    """Two chunks on each of four devices, between which parameters are split too."""
    whole, told = one_step()
    parts, told_parts = one_step(chunks=2, mesh=(2, 2))
    largest = max(np.abs(gradient).max() for gradient in whole.values())
    assert parts.keys() == whole.keys()
    for name, gradient in whole.items():
        assert np.abs(parts[name] - gradient).max() <= 2e-5 * largest, name
    assert told.keys() == told_parts.keys()
    for name, value in told.items():
        np.testing.assert_allclose(told_parts[name], value, rtol=2e-5, err_msg=name)
