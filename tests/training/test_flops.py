"""Counted FLOPs against those that XLA counts in the same model."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from edje_jax.config.captioner import CaptionerConfig
from edje_jax.config.frames import FrameSampling, VideoConfig
from edje_jax.config.model import (
    AdapterConfig,
    BackboneConfig,
    BertConfig,
    EdjeConfig,
    TextConfig,
    VisionConfig,
)
from edje_jax.config.run import LossConfig
from edje_jax.models.captioner import Captioner
from edje_jax.models.edje import Edje
from edje_jax.training import flops
from edje_jax.training.losses.table import step_flops
from edje_jax.weights.families.registry import make_backbone

CONFIG = EdjeConfig(
    BackboneConfig(
        "siglip",
        VisionConfig(128, 512, 2, 4, image_size=64, patch_size=8),
        TextConfig(500, 128, 512, 2, 4, max_position_embeddings=32, projection_size=128),
    ),
    AdapterConfig("compress", 32, 512),
    BertConfig(500, 128, 512, 4, 4),
)


def counted(function, *arguments) -> float:
    lowered = jax.jit(function).lower(*arguments)
    return lowered.compile().cost_analysis()["flops"]


def shapes(module, *inputs):
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


@pytest.mark.parametrize("vision", ["updated", "attended"])
def test_deferred_layers_count_once_a_side(vision):
    joint = dataclasses.replace(CONFIG.joint_encoder, deferred_layers=1, online_vision=vision)
    config = dataclasses.replace(CONFIG, joint_encoder=joint)
    model, tokens = Edje(config), jnp.zeros((1, config.num_tokens, 128))
    ids = jnp.ones((1, config.max_text_length), jnp.int32)
    params = shapes(model, jnp.zeros((1, 64, 128)), jnp.ones((1, 3), jnp.int32))
    text = jax.eval_shape(lambda p, i: model.bind({"params": p}).encode_text(i), params, ids)
    read = counted(lambda p, i: model.bind({"params": p}).encode_text(i), params, ids)
    assert flops.encode_text(config) == pytest.approx(read, rel=0.15)
    online = counted(
        lambda p, x, t: model.bind({"params": p}).match_encoded(x, t), params, text, tokens
    )
    # A match logit asks the last layer for one row; a training step's masked LM asks for all.
    last = dataclasses.replace(config, joint_encoder=dataclasses.replace(joint, deferred_layers=3))
    assert flops.fused(config) - flops.fused(last) < online < 1.15 * flops.fused(config)
    vision_tokens = jnp.zeros((1, 64, 128))
    kept = counted(lambda p, x: model.bind({"params": p}).compress(x), params, vision_tokens)
    assert flops.stored(config) == pytest.approx(kept, rel=0.15)


def test_a_teacher_costs_what_it_is():
    """A teacher without deferred layers runs all of its layers for every pair."""
    joint = dataclasses.replace(CONFIG.joint_encoder, deferred_layers=2)
    student = dataclasses.replace(CONFIG, joint_encoder=joint)
    loss = LossConfig()
    alone = step_flops(student, loss, 1, None)
    expected = flops.stored(CONFIG) + 7 * flops.fused(CONFIG)
    assert step_flops(student, loss, 1, CONFIG) - alone == pytest.approx(expected)
    assert alone < step_flops(CONFIG, loss, 1, None)
    followed = dataclasses.replace(loss, hidden_states=1.0)
    more = 3 * (flops.encode_text(student) + flops.fused(student)) + flops.fused(CONFIG)
    got = step_flops(student, followed, 1, CONFIG) - step_flops(student, loss, 1, CONFIG)
    assert got == pytest.approx(more)


@pytest.mark.parametrize("kind", ["local", "compress"])
def test_they_are_those_of_the_model(kind):
    config = dataclasses.replace(CONFIG, adapter=AdapterConfig(kind, 32, 512))
    towers, model = make_backbone(config.backbone, jnp.float32), Edje(config)
    pixels, words = jnp.zeros((1, 64, 64, 3)), jnp.ones((1, 32), jnp.int32)
    params = shapes(towers, pixels, words)
    seen = counted(lambda p, x: towers.bind({"params": p}).encode_image(x).tokens, params, pixels)
    seen += counted(lambda p, x: towers.bind({"params": p}).encode_text(x), params, words)
    assert flops.backbone(config) == pytest.approx(seen, rel=0.1)

    vision = jnp.zeros((1, 64, 128))
    trained = shapes(model, vision, jnp.ones((1, 3), jnp.int32))
    seen = counted(lambda p, x: model.bind({"params": p}).compress(x), trained, vision)
    # XLA counts what GELU computes too, which weighs in a model as small as this one.
    assert flops.adapter(config) == pytest.approx(seen, rel=0.15)

    ids = jnp.ones((1, config.max_text_length), jnp.int32)
    tokens = jnp.zeros((1, config.num_tokens, 128))
    states = counted(
        lambda p, i, t: model.bind({"params": p}).hidden_states(i, t), trained, ids, tokens
    )
    rows = config.num_tokens + 1 + config.max_text_length
    assert flops.layers(config.joint_encoder, rows) == pytest.approx(states, rel=0.1)


@pytest.mark.parametrize("attention", ["projected", "stored"])
def test_a_captioner_is_counted_too(attention):
    """Decoders beside an image and without one, and an adapter on a finer grid."""
    captioner = CaptionerConfig(cross_attention=attention)
    adapter = AdapterConfig("local", 0, 512, upsampling=2)
    backbone = dataclasses.replace(CONFIG.backbone, earlier_layers=(-2,))
    config = dataclasses.replace(CONFIG, backbone=backbone, adapter=adapter, captioner=captioner)
    model, ids = Captioner(config), jnp.ones((1, config.max_text_length), jnp.int32)
    vision, tokens = jnp.zeros((1, 64, 256)), jnp.zeros((1, 256, 128))
    params = shapes(model, vision, jnp.ones((1, 3), jnp.int32))

    def predicted(tokens):
        return counted(
            lambda p, i: model.bind({"params": p}).log_probabilities(i, tokens).sum, params, ids
        )

    assert flops.fused(config) == pytest.approx(predicted(tokens), rel=0.1)
    assert flops.encode_text(config) == pytest.approx(predicted(None), rel=0.1)
    kept = counted(lambda p, x: model.bind({"params": p}).compress(x), params, vision)
    assert flops.stored(config) == pytest.approx(kept, rel=0.15)
    loss = LossConfig(
        **dict.fromkeys(LossConfig.weights(), 0.0)
        | {"captioning": 1.0, "unconditional_captioning": 1.0},
        auxiliary_stride=2,
    )
    row = flops.stored(config) + flops.fused(config) + flops.encode_text(config) / 2
    assert step_flops(config, loss, 4, None, cached=True) == pytest.approx(4 * 3 * row)


def test_terms_that_follow_the_same_scores_of_a_teacher_cost_them_once():
    loss = LossConfig()
    both = dataclasses.replace(loss, listwise_distillation=1.0)
    assert step_flops(CONFIG, both, 1, CONFIG) == step_flops(CONFIG, loss, 1, CONFIG)


def test_what_is_left_out_is_not_counted():
    whole = step_flops(CONFIG, LossConfig(), 8, teacher=CONFIG)
    alone = step_flops(
        CONFIG, LossConfig(match=1, masked_lm=0, text_recovery=0, distillation=0), 8, teacher=CONFIG
    )
    assert 0 < 8 * flops.backbone(CONFIG) < alone < whole
    assert step_flops(CONFIG, LossConfig(), 16, CONFIG) == pytest.approx(2 * whole)
    assert step_flops(CONFIG, LossConfig(), 8, None) < whole


def test_kept_features_cost_nothing():
    whole = step_flops(CONFIG, LossConfig(), 8, None)
    kept = step_flops(CONFIG, LossConfig(), 8, None, cached=True)
    assert whole - kept == pytest.approx(8 * flops.backbone(CONFIG))


def test_known_devices():
    assert flops.peak_flops("NVIDIA H200") == flops.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert flops.peak_flops("TPU v5 lite") == 197e12 and flops.peak_flops("TPU v5") == 459e12
    assert flops.peak_flops("NVIDIA L4") == 121e12
    assert flops.peak_flops("NVIDIA L40S") == flops.peak_flops("cpu") == 0.0


@pytest.mark.parametrize("pooling", ["none", "mean"])
def test_every_frame_of_a_video_is_counted(pooling):
    """Towers and adapter run over each; the rows that are kept meet the caption."""
    config = dataclasses.replace(CONFIG, video=VideoConfig(FrameSampling(3), pooling))
    captions = flops.layers(CONFIG.backbone.text, CONFIG.backbone.text.max_position_embeddings)
    of_image = flops.backbone(CONFIG) - captions
    assert flops.backbone(config) - captions == pytest.approx(3 * of_image)
    assert flops.adapter(config) == pytest.approx(3 * flops.adapter(CONFIG))
    model, vision = Edje(config), jnp.zeros((1, 3, 64, 128))
    params = shapes(model, vision, jnp.ones((1, 3), jnp.int32))
    kept = counted(lambda p, x: model.bind({"params": p}).compress(x), params, vision)
    assert flops.stored(config) == pytest.approx(kept, rel=0.15)
    wider = dataclasses.replace(CONFIG.adapter, num_tokens=32 if pooling == "mean" else 96)
    assert flops.fused(config) == flops.fused(dataclasses.replace(CONFIG, adapter=wider))
