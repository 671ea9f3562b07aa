"""The `activitynet:` source: ActivityNet Captions (Krishna et al., ICCV 2017), one JSON a split.

    {"v_QOlSCBRmfWY": {"duration": 82.73, "timestamps": [[0.83, 19.86], ...],
                       "sentences": ["A young woman is seen ...", ...]}, ...}

A sentence describes an event. All sentences of a video are joined to one paragraph, its caption,
which is how the set is used to search for whole videos.
"""

from typing import Any

from edje_jax.data.metadata import scalars
from edje_jax.data.sources.didemo import paragraph
from edje_jax.data.sources.video_list import VideoEntry, VideoList, read_annotations

_EXAMPLE = '{"v_QOlSCBRmfWY": {"duration": 82.7, "sentences": ["a woman dances"]}}'


class ActivityNet(VideoList):
    """Videos, each with one paragraph; its duration in seconds is metadata.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file; see `VideoList` too.
        ImportError: PyAV is not installed.
    """

    def __init__(self, file: str, image_root: str | None = None):
        file, value = read_annotations(file, "activitynet", _EXAMPLE, _is_annotations)
        super().__init__(file, [_entry(file, *item) for item in value.items()], image_root)


def _is_annotations(value: Any) -> bool:
    return isinstance(value, dict) and any(
        isinstance(facts, dict) and "sentences" in facts for facts in value.values()
    )


def _entry(file: str, video: str, facts: Any) -> VideoEntry:
    facts = facts if isinstance(facts, dict) else {}
    sentences = facts.get("sentences")
    texts = paragraph(sentences) if isinstance(sentences, list) else []
    return VideoEntry(f"{file}: {video}", video, texts, scalars(facts))
