"""Search in videos: moments of results, videos as queries, galleries of videos, second models."""

import dataclasses
import logging

import numpy as np
import pytest

from edje_jax import ImageIndex, Reranker
from edje_jax.cli.search import clock
from edje_jax.config.frames import FrameSampling, VideoConfig
from edje_jax.data.sources.subset import Subset
from edje_jax.evaluate.frame_attention import attended_frames
from edje_jax.evaluate.measure import measure_source
from edje_jax.evaluation.second_ranking import check_same_frames
from edje_jax.index.build import build
from edje_jax.runtimes.onnx import OnnxRuntime
from edje_jax.runtimes.onnx_export import Export
from edje_jax.scenes.moving import SECONDS, MovingShapes
from edje_jax.search.moments import Moment, find_moments, most_attended, tells_moments
from edje_jax.search.query import Query
from tests.videos import write_video

TEXT = "a red square moves left, then a green circle appears"


def clips() -> Subset:
    source = MovingShapes("val")
    return Subset(source, np.arange(len(source)) < 6)


@pytest.fixture(scope="module")
def reranker(video_model) -> Reranker:
    return Reranker.from_pretrained(video_model)


@pytest.fixture(scope="module")
def index(reranker, tmp_path_factory) -> ImageIndex:
    out = tmp_path_factory.mktemp("moments") / "index"
    build(reranker.runtime, reranker.stamp, clips(), "moving-shapes:val", out)
    return ImageIndex.open(out)


def test_results_tell_the_frame_that_the_words_attend_to_most(reranker, index):
    (found,) = reranker.search(index, [TEXT], top_k=3, details=True)
    assert len(found) == 3 and found[0]["seconds"]["moments"] > 0
    for result in found:
        row = index.store.image_of_id[result["id"]]
        shares = attended_frames(reranker.runtime, TEXT, index.tokens[np.array([row])])[0]
        assert result["frame"] == shares.argmax()
        assert result["moment"] == (result["frame"] + 0.5) * SECONDS / 4
    only_image = Query(like=found[0]["id"])
    assert all("moment" not in one for one in reranker.search(index, [only_image])[0])


def test_moments_are_the_same_where_onnx_runtime_scores(reranker, index):
    runtime = reranker.runtime
    scored = OnnxRuntime(runtime, Export(runtime.config, {}, "float32", ""))
    assert tells_moments(scored)
    moments = find_moments(scored, index, TEXT, [0, 4])
    assert moments == find_moments(runtime, index, TEXT, [0, 4])


def test_a_frame_that_is_not_there_is_no_moment():
    times = np.array([0.5, 2.25, np.nan], np.float32)
    assert most_attended(np.array([0.1, 0.3, 0.6]), times) == Moment(1, 2.25)
    assert [clock(each) for each in (0, 65.9, 3601)] == ["0:00", "1:05", "1:00:01"]


def test_videos_lists_of_frames_and_images_are_queries(reranker, index, tmp_path):
    source, sampling = clips(), reranker.config.video.sampling
    frames = list(source.frames(2, sampling))
    found = reranker.search(index, [Query(image=frames)], top_k=1)[0]
    # The first four are one group: the same frames in other orders, and so the same mean.
    assert found[0]["id"] in map(source.image_id, range(4)) and found[0]["similarity"] > 0.9999
    video = write_video(tmp_path / "grey.mp4")
    assert len(reranker.search(index, [Query(image=video), Query(image=frames[0])])) == 2
    assert len(reranker.search_captions(index, [video, frames, frames[0]])) == 3
    assert len(reranker.rank(TEXT, [video, frames[0]])) == 2
    with pytest.raises(ValueError, match=r"images\[0\]: 5 frames; this model reads 1 to 4"):
        reranker.encode_images([[*frames, frames[0]]])


def test_a_model_of_images_refuses_videos(trained):
    with pytest.raises(ValueError, match=r"images\[0\] is a video"):
        Reranker.from_pretrained(trained).encode_images(["clip.mp4"])


def test_galleries_of_videos_have_the_keys_of_images(reranker, trained, caplog):
    metrics = measure_source(reranker.runtime, clips()).metrics
    assert {"R@1", "R@5", "R@10"} <= metrics["t2i"]["reranked"].keys()
    images = Reranker.from_pretrained(trained)
    with caplog.at_level(logging.INFO):
        measure_source(images.runtime, clips())
    assert "takes the frame in the middle" in caplog.text


def test_a_second_model_reads_the_same_frames(reranker, index, trained):
    then = reranker.second(index, k=2)
    assert len(reranker.followed_by(then).search(index, [TEXT])[0]) == 6
    with pytest.raises(ValueError, match=r"reads images and the second one 4 frames"):
        Reranker.from_pretrained(trained).followed_by(then)
    other = VideoConfig(FrameSampling(4, "rate", 2.0))
    with pytest.raises(ValueError, match="second one 2 frames a second, 4 frames at most"):
        check_same_frames(reranker.config, dataclasses.replace(reranker.config, video=other))
