"""Weight maps: every difference is named, and there and back is the identity.

Covers weights/edje.py.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from edje_jax.config.model import (
    AdapterConfig,
    BackboneConfig,
    BertConfig,
    EdjeConfig,
    TextConfig,
    VisionConfig,
)
from edje_jax.weights import backbone, edje
from edje_jax.weights.families import siglip
from edje_jax.weights.mapping import (
    Rule,
    WeightMismatch,
    linear,
    norm,
    to_device,
    to_ours,
    to_theirs,
)

# No two sizes are alike, so that a transposition that should not be shows in a shape.
BACKBONE = BackboneConfig(
    "siglip",
    VisionConfig(12, 20, 2, 3, image_size=8, patch_size=2),
    TextConfig(30, 15, 25, 1, 5, max_position_embeddings=9, projection_size=12),
)
ENCODER = BertConfig(
    vocab_size=40,
    hidden_size=18,
    intermediate_size=26,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=31,
)
LOCAL = EdjeConfig(BACKBONE, AdapterConfig("local", 0, 22), ENCODER)
COMPRESS = replace(LOCAL, adapter=AdapterConfig("compress", 5, 22))


def random_like(expected, seed: int = 0):
    """Arrays of the same tree and shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), expected)


def siglip_case():
    return siglip.rules(BACKBONE), backbone.expected_params(BACKBONE)


def local_case():
    return edje.rules(LOCAL), edje.expected_params(LOCAL)


def compress_case():
    return edje.rules(COMPRESS), edje.expected_params(COMPRESS)


CASES = {"siglip": siglip_case, "local": local_case, "compress": compress_case}


@pytest.mark.parametrize("name", CASES)
def test_there_and_back_is_the_identity(name):
    rules, expected = CASES[name]()
    params = random_like(expected)
    tensors = to_theirs(rules, params)
    assert len(tensors) == len(jax.tree.leaves(params)) == len(rules)
    assert all(value.flags.c_contiguous for value in tensors.values())
    again = to_ours(rules, tensors, expected, "there and back")
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for ours, value in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, value)


@pytest.mark.parametrize("name", CASES)
def test_no_two_rules_share_a_name_on_either_side(name):
    rules, _ = CASES[name]()
    assert len({rule.ours for rule in rules}) == len(rules)
    assert len({rule.theirs for rule in rules}) == len(rules)


def test_layouts():
    """Places of the numbers, for the two layouts that move them."""
    weight = np.arange(2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)
    dense = np.arange(10, dtype=np.float32).reshape(2, 5)
    rules = [Rule("patch/kernel", "conv", "patch"), Rule("dense/kernel", "linear", "transpose")]
    expected = {
        "patch": {"kernel": jax.ShapeDtypeStruct((48, 2), np.float32)},
        "dense": {"kernel": jax.ShapeDtypeStruct((5, 2), np.float32)},
    }
    params = to_ours(rules, {"conv": weight, "linear": dense}, expected, "x")
    row, column, channel, out = 1, 3, 2, 1
    flat = (row * 4 + column) * 3 + channel
    assert params["patch"]["kernel"][flat, out] == weight[out, channel, row, column]
    assert params["dense"]["kernel"][3, 1] == dense[1, 3]


def test_other_dtypes_are_kept_until_the_device_has_them():
    rules, expected = siglip_case()
    halves = {k: v.astype(np.float16) for k, v in to_theirs(rules, random_like(expected)).items()}
    read = to_ours(rules, halves, expected, "x")
    assert {leaf.dtype for leaf in jax.tree.leaves(read)} == {np.dtype(np.float16)}
    for ours, loaded in zip(jax.tree.leaves(to_device(read)), jax.tree.leaves(read), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, loaded.astype(np.float32))


# --- differences ----------------------------------------------------------------------------------


def refused(call: Callable[[], object]) -> list[str]:
    """The lines of the message with which a call is refused."""
    with pytest.raises(WeightMismatch) as caught:
        call()
    return str(caught.value).splitlines()


def test_every_missing_and_misshapen_tensor_is_listed():
    rules, expected = siglip_case()
    tensors = to_theirs(rules, random_like(expected))
    del tensors["text_model.head.bias"], tensors["vision_model.encoder.layers.1.mlp.fc2.weight"]
    tensors["logit_scale"] = np.zeros((2,), np.float32)
    tensors["vision_model.embeddings.patch_embedding.weight"] = np.zeros((12, 3, 4, 4), np.float32)
    assert sorted(refused(lambda: to_ours(rules, tensors, expected, "a/model.safetensors"))) == [
        "  missing: text_model.head.bias (for text/head/bias)",
        "  missing: vision_model.encoder.layers.1.mlp.fc2.weight"
        " (for vision/layers_1/mlp/fc2/kernel)",
        "  shape: logit_scale gives (2,), logit_scale is (1,)",
        "  shape: vision_model.embeddings.patch_embedding.weight gives (48, 12),"
        " vision/patch_embedding/kernel is (12, 12)",
        "a/model.safetensors: these weights do not fit the model:",
    ]


def test_every_extra_missing_and_misshapen_tensor_of_an_edje_is_listed():
    rules, expected = compress_case()
    tensors = to_theirs(rules, random_like(expected))
    tensors["language_model.bert.encoder.layer.2.output.dense.bias"] = np.zeros(18, np.float32)
    tensors["surprise"] = np.zeros(3, np.float32)
    del tensors["vision_projection.query"]
    tensors["text_projection.bias"] = np.zeros(13, np.float32)
    lines = refused(lambda: edje.read_params(tensors, COMPRESS, "x.pth"))
    assert lines[0] == "x.pth: these weights do not fit the model:"
    assert sorted(line.split(" (would be")[0] for line in lines[1:]) == [
        "  missing: vision_projection.query (for adapter/query)",
        "  not in the model: language_model.bert.encoder.layer.2.output.dense.bias",
        "  not in the model: surprise",
        "  shape: text_projection.bias gives (13,), joint_encoder/text_recovery/bias is (12,)",
    ]


def test_what_published_checkpoints_repeat_or_freeze_is_no_difference():
    rules, expected = local_case()
    params = random_like(expected)
    tensors = to_theirs(rules, params)
    word = tensors["language_model.bert.embeddings.word_embeddings.weight"]
    bias = tensors["language_model.cls.predictions.bias"]
    tensors |= {
        "text_embeddings.weight": word,
        "language_model.cls.predictions.decoder.weight": word,
        "language_model.cls.predictions.decoder.bias": bias,
        "clip.logit_scale": np.zeros(1, np.float32),
        "vision_encoder.post_layernorm.weight": np.zeros(3, np.float32),
    }
    read = edje.read_params(tensors, LOCAL, "x.pth")
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_a_local_checkpoint_does_not_fit_a_compressing_model():
    rules, expected = local_case()
    tensors = to_theirs(rules, random_like(expected))
    lines = refused(lambda: edje.read_params(tensors, COMPRESS, "x.pth"))
    assert "  missing: vision_projection.query (for adapter/query)" in lines
    assert "  not in the model: vision_projection.0.weight" in lines


def test_a_parameter_without_a_rule_is_refused_both_ways():
    rules, expected = siglip_case()
    params = random_like(expected)
    tensors = to_theirs(rules, params)
    grown = unflatten_dict({**flatten_dict(params), ("text", "new", "bias"): np.zeros(3)})
    assert refused(lambda: to_theirs(rules, grown)) == [
        "parameters and table differ in: text/new/bias"
    ]
    assert refused(lambda: to_ours(rules, tensors, grown, "x")) == [
        "x: these weights do not fit the model:",
        "  no source: text/new/bias",
    ]


def test_a_rule_without_a_parameter_is_refused_both_ways():
    rules = [*linear("fc", "fc"), *norm("ln", "ln")]
    expected = {"fc": {"kernel": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}}
    assert refused(lambda: to_theirs(rules, expected)) == [
        "parameters and table differ in: ln/bias, ln/scale"
    ]
    tensors = {
        f"{name}.{leaf}": np.zeros(3) for name in ("fc", "ln") for leaf in ("weight", "bias")
    }
    tensors["fc.weight"] = np.zeros((3, 2))
    # A table may be any iterable.
    assert refused(lambda: to_ours(iter(rules), tensors, expected, "x")) == [
        "x: these weights do not fit the model:",
        "  not in the model: ln.weight (would be ln/scale)",
        "  not in the model: ln.bias (would be ln/bias)",
    ]
