"""The `didemo:` source: the annotations of DiDeMo (Hendricks et al., ICCV 2017), lists in JSON.

    [{"video": "54322086@N00_2408598493.avi", "description": "a dog runs by", ...}, ...]

A sentence describes a moment. All sentences of a video, in the order of the file, are joined to one
paragraph, its caption, which is how the set is used to search for whole videos.
"""

from collections import defaultdict
from typing import Any

from edje_jax.data.sources.texts import text_fault
from edje_jax.data.sources.video_list import VideoEntry, VideoList, objects, read_annotations

_EXAMPLE = '[{"video": "1.avi", "description": "a dog runs by"}]'


class Didemo(VideoList):
    """Videos, each with one paragraph.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file; see `VideoList` too.
        ImportError: PyAV is not installed.
    """

    def __init__(self, file: str, image_root: str | None = None):
        file, value = read_annotations(
            file, "didemo", _EXAMPLE, lambda value: bool(objects(value, "video"))
        )
        sentences: dict[Any, list[Any]] = defaultdict(list)
        first: dict[Any, int] = {}
        for number, entry in enumerate(objects(value, "video")):
            video = entry.get("video")
            name = video if isinstance(video, str) else None
            sentences[name].append(entry.get("description"))
            first.setdefault(name, number)
        super().__init__(
            file,
            [
                VideoEntry(f"{file}: entry {first[name]}", name, paragraph(texts))
                for name, texts in sentences.items()
            ],
            image_root,
        )


def paragraph(sentences: list[Any]) -> list[Any]:
    """Paragraph of all sentences that are texts, followed by the values that are none."""
    faulty = [each for each in sentences if text_fault(each)]
    joined = " ".join(each.strip() for each in sentences if not text_fault(each))
    return [joined, *faulty] if joined else faulty
