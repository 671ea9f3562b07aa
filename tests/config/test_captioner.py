"""A captioner's settings, and what a model of its kind cannot have."""

from dataclasses import replace

import pytest

from edje_jax.config.captioner import CaptionerConfig
from edje_jax.config.model import AdapterConfig, BertConfig, EdjeConfig, SimilarityPrior
from edje_jax.config.parts import CaptionerSpec

CAPTIONER = EdjeConfig(captioner=CaptionerConfig())


@pytest.mark.parametrize("field", ["directions", "score", "cross_attention"])
def test_an_unknown_value_is_told_with_those_there_are(field):
    with pytest.raises(ValueError, match=rf'captioner: {field} "sideways": \w+, \w+'):
        CaptionerConfig(**{field: "sideways"})  # type: ignore[arg-type]


def test_directions_name_the_decoders():
    assert CaptionerConfig().reads == ("forward", "backward")
    assert CaptionerConfig("backward").reads == ("backward",)


def test_the_kind_of_a_model_is_that_of_what_scores_its_pairs():
    assert (EdjeConfig().kind, CAPTIONER.kind) == ("edje", "captioner")
    assert CAPTIONER.encodes_captions and not EdjeConfig().encodes_captions
    assert not EdjeConfig(captioner=CaptionerConfig(score="mean")).encodes_captions


def test_a_captioner_refuses_what_only_a_joint_encoder_has():
    with pytest.raises(ValueError, match="no match head for a similarity prior; leave it out"):
        replace(CAPTIONER, similarity_prior=SimilarityPrior())
    for joint in (BertConfig(deferred_layers=1), BertConfig(online_vision="attended")):
        with pytest.raises(ValueError, match=r"no deferred layers .* set deferred_layers to 0"):
            replace(CAPTIONER, joint_encoder=joint)


def test_a_captioner_needs_positions_for_captions_alone():
    many = replace(
        CAPTIONER,
        adapter=AdapterConfig("local", 0, 32, 4),
        joint_encoder=BertConfig(max_position_embeddings=70),
        max_text_length=70,
    )
    assert many.num_tokens == 1024 and many.num_positions == 70
    many.check_positions("here")
    longer = replace(many, max_text_length=71)
    with pytest.raises(ValueError, match="here: max_text_length 71: the decoders have 70 pos"):
        longer.check_positions("here")


def test_what_a_run_leaves_out_is_that_of_init():
    start = CaptionerConfig("forward", "mean", "stored")
    assert CaptionerSpec().resolve(start) == start
    assert CaptionerSpec().resolve(None) == CaptionerConfig()
    assert CaptionerSpec(score="sum").resolve(start) == replace(start, score="sum")
