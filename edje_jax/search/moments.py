"""Moment of a video that a query speaks of: the frame that the query's words attend to most."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from edje_jax.evaluate.frame_attention import attended_frames, warm_frames
from edje_jax.index.image_index import ImageIndex
from edje_jax.runtimes.base import Runtime
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.runtimes.onnx import OnnxRuntime
from edje_jax.search.query import Query


class Moment(NamedTuple):
    """Frame of a video."""

    frame: int
    """Number of the frame, from 0, among those that the index keeps of the video."""
    seconds: float
    """Time from the beginning of the video at which it is shown; 0 for an image."""


def tells_moments(runtime: Runtime) -> bool:
    """Whether moments of videos can be told: the model keeps tokens of each frame, and its
    parameters are in this process."""
    video, is_here = runtime.config.video, isinstance(runtime, JaxRuntime | OnnxRuntime)
    return video is not None and video.pooling == "none" and is_here


def warm_moments(runtime: Runtime, index: ImageIndex) -> None:
    """Compile whatever moments of results of an index will need, if they can be told."""
    if index.store.frames and tells_moments(runtime):
        assert isinstance(runtime, JaxRuntime | OnnxRuntime)
        warm_frames(runtime)


def find_moments(
    runtime: Runtime, index: ImageIndex, text: str, images: Sequence[int]
) -> list[Moment]:
    """Moments of some videos of an index that a text speaks of; for those few that are shown, as
    each is another run of the joint encoder, by JAX whatever scores.

    Raises:
        BadStore: the index is one of images.
    """
    if not len(images):
        return []
    assert isinstance(runtime, JaxRuntime | OnnxRuntime)
    shares = attended_frames(runtime, text, index.tokens[np.array(images, np.int64)])
    times = [index.store.frame_times(image) for image in images]
    return [most_attended(own, shown) for own, shown in zip(np.asarray(shares), times, strict=True)]


def most_attended(shares: Float[np.ndarray, " f"], times: Float[np.ndarray, " f"]) -> Moment:
    """Frame with the largest share among those that are there, which have a time."""
    frame = int(np.argmax(np.where(np.isnan(times), -np.inf, shares)))
    return Moment(frame, round(float(times[frame]), 3))


def with_moments(
    runtime: Runtime,
    index: ImageIndex,
    query: str | Query,
    results: Sequence[tuple[int, dict[str, Any]]],
) -> list[tuple[int, dict[str, Any]]]:
    """Results of a query as (image, scores), with "moment", in seconds, and "frame" where they can
    be told: a query needs a text for that."""
    text = query if isinstance(query, str) else query.text
    if not (text and index.store.frames and tells_moments(runtime)):
        return list(results)
    moments = find_moments(runtime, index, text, [image for image, _ in results])
    return [
        (image, {**scores, "moment": moment.seconds, "frame": moment.frame})
        for (image, scores), moment in zip(results, moments, strict=True)
    ]
