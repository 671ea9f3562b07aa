"""Words of a caption over the frames of videos, from stored tokens alone."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from edje_jax.config.frames import FrameSampling, VideoConfig
from edje_jax.evaluate.frame_attention import _frame_attention, attended_frames, warm_frames
from edje_jax.evaluate.word_attention import frame_word_maps
from edje_jax.models.attention_maps import token_attention
from edje_jax.models.token_formats import pack
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.search.reranker import Reranker
from edje_jax.types import Frames

FRAMES = 3
CAPTION = "A large, red_square zyxwvq"


def with_video(runtime: JaxRuntime, pooling="none") -> JaxRuntime:
    """The runtime of a model that reads videos with the same weights."""
    video = VideoConfig(FrameSampling(FRAMES), pooling)
    return dataclasses.replace(runtime, config=dataclasses.replace(runtime.config, video=video))


def stored(runtime: JaxRuntime, videos: int = 5) -> np.ndarray:
    """Tokens as a store keeps them; the last video has one frame, and the one before it two."""
    config = runtime.config
    shape = (videos, FRAMES, config.tokens_per_frame, config.joint_encoder.hidden_size)
    tokens = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tokens[-1, 1:] = tokens[-2, 2:] = 0
    return tokens.reshape(videos, -1, shape[-1])


def check(runtime: JaxRuntime) -> None:
    tokens = stored(runtime)
    shares = attended_frames(runtime, CAPTION, tokens)
    assert shares.shape == (5, FRAMES) and shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(shares > 0, tokens.reshape(5, FRAMES, -1).any(axis=-1))
    # By hand: the mean over the words of the mean over each word's pieces.
    ids = np.repeat(runtime.joint_tokenizer([CAPTION]), 5, axis=0)
    rows = jnp.asarray(ids), jnp.asarray(tokens)
    seen = np.asarray(token_attention(runtime.model, runtime.params, *rows))
    words = [pieces for _, pieces in runtime.joint_tokenizer.words(CAPTION)]
    assert len(words) == 5
    of_words = np.mean([seen[:, pieces].mean(axis=1) for pieces in words], axis=0)
    expected = of_words.reshape(5, FRAMES, -1).sum(axis=-1)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, expected, atol=1e-6)
    # Each video by itself, and as it is stored.
    np.testing.assert_allclose(attended_frames(runtime, CAPTION, tokens[3:4]), shares[3:4], 1e-4)
    in_int8 = attended_frames(runtime, CAPTION, pack(tokens, "int8"))
    np.testing.assert_allclose(in_int8, shares, atol=0.02)


def test_shares_of_frames(runtime):
    check(with_video(runtime))


def test_shares_of_frames_where_vision_is_attended_to(runtime):
    if not runtime.config.joint_encoder.deferred_layers:
        pytest.skip("the model with a deferred layer is enough")
    joint = dataclasses.replace(runtime.config.joint_encoder, online_vision="attended")
    config = dataclasses.replace(runtime.config, joint_encoder=joint)
    check(with_video(dataclasses.replace(runtime, config=config)))


def test_shares_of_frames_of_a_captioner(captioner):
    check(with_video(Reranker.from_pretrained(captioner).runtime))


def test_word_maps_of_a_video_are_of_the_frame_that_is_attended_to_most(runtime):
    if runtime.config.joint_encoder.deferred_layers:
        pytest.skip("the model without deferred layers is enough")
    video = with_video(runtime)
    side = video.config.image.size
    pixels = np.random.default_rng(1).integers(0, 256, (1, FRAMES, side, side, 3), np.uint8)
    pixels[0, 2] = 0
    tokens = video.encode_images(Frames(pixels, np.array([[True, True, False]]))).tokens
    moment = int(attended_frames(video, CAPTION, tokens)[0].argmax())
    found = frame_word_maps(video, pixels[0, :2], CAPTION)
    np.testing.assert_array_equal(found.image, pixels[0, moment])
    np.testing.assert_allclose(found.maps.sum(axis=(1, 2)), 1, atol=1e-5)
    assert len(found.words) == 5


def test_a_caption_without_words_tells_no_frame_from_another(runtime):
    video = with_video(runtime)
    shares = attended_frames(video, "...", stored(video))
    np.testing.assert_allclose(shares[[0, -2, -1]], [[1 / 3] * 3, [0.5, 0.5, 0], [1, 0, 0]])


def test_warming_compiles_every_shape(runtime):
    if runtime.config.joint_encoder.deferred_layers:
        pytest.skip("the model without deferred layers is enough")
    video = with_video(runtime)
    warm_frames(video)
    warm = _frame_attention._cache_size()
    for words, videos in ((1, 1), (12, 5), (200, 17)):
        attended_frames(video, "red " * words, stored(video, 17)[:videos])
    assert _frame_attention._cache_size() == warm


def test_a_model_without_tokens_of_frames_is_refused(runtime):
    with pytest.raises(ValueError, match="this model reads images, which have no frames"):
        attended_frames(runtime, CAPTION, stored(runtime))
    with pytest.raises(ValueError, match=r"keeps the mean of a video.* train one with pooling"):
        attended_frames(with_video(runtime, "mean"), CAPTION, stored(runtime))
