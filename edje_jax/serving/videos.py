"""Videos in answers: addresses of their files and strips, and times of their frames."""

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from edje_jax.index.shard_files import ImageRecord
from edje_jax.index.store import Store
from edje_jax.search.moments import Moment
from edje_jax.serving.json_body import whole_characters

MEDIA_TYPES: Mapping[str, str] = {
    ".3gp": "video/3gpp", ".avi": "video/x-msvideo", ".flv": "video/x-flv",
    ".m2ts": "video/mp2t", ".m4v": "video/mp4", ".mkv": "video/x-matroska",
    ".mov": "video/quicktime", ".mp4": "video/mp4", ".mpeg": "video/mpeg", ".mpg": "video/mpeg",
    ".mts": "video/mp2t", ".ogv": "video/ogg", ".ts": "video/mp2t", ".webm": "video/webm",
    ".wmv": "video/x-ms-wmv",
}  # fmt: skip
"""Media types of videos by the endings of their files (`data.frames.ENDINGS`)."""


def media_type(path: str) -> str:
    """Media type of a video's file, by its ending; "" of any other file."""
    return MEDIA_TYPES.get(os.path.splitext(path)[1].lower(), "")


def address(route: str, id: str) -> str:
    """Address of something that belongs to an id, relative to that of the server."""
    return f"{route}/{quote(whole_characters(id), safe='/')}"


def file_facts(row: ImageRecord) -> dict[str, str]:
    """{"video": address, "video_type": media type} of a video that is a file; else nothing."""
    kind = media_type(row.path)
    return {"video": address("videos", row.id), "video_type": kind} if kind else {}


def video_facts(
    store: Store, image: int, row: ImageRecord, moment: Moment | None = None
) -> dict[str, Any]:
    """Facts of a result that is a video, for its answer: those of `file_facts`, and where the index
    was built by a model of videos "frames", "frame_times", "strip", and "moment" and "frame" where
    the moment is known.

    Nothing of an image, also where it stands as a video of one frame.
    """
    facts: dict[str, Any] = file_facts(row)
    if not store.frames or not store.video_length(image):
        return facts
    times = store.frame_times(image)
    times = times[~np.isnan(times)]
    if moment:
        facts |= {"moment": moment.seconds, "frame": moment.frame}
    return facts | {
        "frames": len(times),
        "frame_times": [round(float(time), 3) for time in times],
        "strip": address("strips", row.id),
    }
