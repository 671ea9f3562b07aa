"""Model card: what it says stays true when a model is calibrated later."""

import pytest

from edje_jax.config.captioner import CaptionerConfig
from edje_jax.config.frames import FrameSampling, VideoConfig
from edje_jax.config.model import AdapterConfig, BackboneConfig, EdjeConfig
from edje_jax.weights.card import model_card, state_calibration
from edje_jax.weights.folder import Model

CALIBRATED = "Scores are calibrated: `calibration.json`"


@pytest.mark.parametrize(
    ("card", "before", "after"),
    [
        ("# A\n\n## Use\n\nSo.\n\n## Results\n\nGood.\n", "So.\n\n", "\n\n## Results\n\nGood.\n"),
        ("# A\n\n## Use\n\nSo.\n", "So.\n\n", "\n"),
        ("An own card, café", "An own card, café\n\n", "\n"),
    ],
)
def test_a_calibration_is_stated_once_and_the_rest_of_the_card_stays(tmp_path, card, before, after):
    path = tmp_path / "README.md"
    path.write_text(card, "latin-1")
    state_calibration(tmp_path)
    text = path.read_text("latin-1")
    start, found, end = text.partition(CALIBRATED)
    assert found and start.endswith(before) and end.endswith(after)
    for line in card.splitlines():
        assert line in text
    state_calibration(tmp_path)
    assert path.read_text("latin-1") == text


def test_a_folder_without_a_card_gets_none(tmp_path):
    state_calibration(tmp_path)
    assert list(tmp_path.iterdir()) == []


def card_of(config: EdjeConfig) -> str:
    """Card of a model of which only the shapes are read."""
    return model_card(Model(config, {}, None, None, "made"))  # type: ignore[arg-type]


def test_a_captioner_s_card_tells_its_decoders_and_its_score():
    backbone = BackboneConfig()
    config = EdjeConfig(
        BackboneConfig(earlier_layers=backbone.layers_for(2)),
        AdapterConfig("local", 0, 32, 2),
        captioner=CaptionerConfig("both", "pmi", "stored"),
    )
    card = card_of(config)
    assert "# A captioner that reranks" in card and "joint encoder" not in card
    assert "| local, 256 tokens, of a grid upsampled 2 times to 16 x 16 |" in card
    assert (
        "| decoders | forward and backward: BERT, 12 layers x 384 each, cross-attention to stored"
        " keys and values |" in card
    )
    assert "| score | pmi: log p of the caption's tokens, less that without an image" in card
    assert "-> without_image), once per caption" in card
    mean = card_of(EdjeConfig(captioner=CaptionerConfig("backward", "mean")))
    assert "| decoders | backward: BERT" in mean and "text.onnx" not in mean


def test_a_joint_encoder_s_card_knows_nothing_of_captioners():
    card = card_of(EdjeConfig())
    assert "# An EDJE reranker" in card and "| joint encoder | BERT, 12 layers x 384 |" in card
    assert "decoders" not in card and "score |" not in card and "upsampled" not in card


def test_a_card_of_videos_tells_frames_and_bytes():
    """VEDJE's sixteen frames of four tokens: 48 KiB a video in 16 bits."""
    adapter = AdapterConfig("compress", 4)
    card = card_of(EdjeConfig(adapter=adapter, video=VideoConfig(FrameSampling(16))))
    assert "# An EDJE reranker of videos\n\nScores a caption against a video from 64" in card
    assert "(49,152 bytes a video in 16 bits)" in card and "video-retrieval" in card
    assert "| adapter | compress, 4 tokens |" in card
    assert "| videos | 16 frames, from the middles of as many equal parts; an image is" in card
    assert "| stored of a video | 4 tokens of each frame, in their order (pooling none) |" in card
    assert "| bytes a video | bfloat16 49,152, int8 24,704, int4 12,416 |" in card
    assert "model.preprocess_videos(" in card and "(pixel_values, present -> tokens)" in card
    sampling = FrameSampling(8, "rate", 0.5)
    mean = card_of(EdjeConfig(adapter=adapter, video=VideoConfig(sampling, "mean")))
    assert "| videos | 0.5 frames a second, 8 frames at most, spread evenly;" in mean
    assert "the mean of the frames, 4 tokens (pooling mean)" in mean
    assert "| bytes a video | bfloat16 3,072, int8 1,544, int4 776 |" in mean
    keyframes = VideoConfig(FrameSampling(4, "keyframes"))
    told = card_of(EdjeConfig(captioner=CaptionerConfig(), video=keyframes))
    assert "# A captioner that reranks videos" in told and "how well a video explains it" in told
    assert "| videos | 4 frames at most, of those that are coded without others;" in told
