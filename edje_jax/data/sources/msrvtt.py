"""The `msrvtt:` source: the annotations of MSR-VTT (Xu et al., CVPR 2016), 20 captions a video.

    {"videos": [{"video_id": "video0", "split": "train", "category": 9, ...}, ...],
     "sentences": [{"video_id": "video0", "caption": "a car is driven", ...}, ...]}

A CSV with the columns `video_id` and `sentence` is read alike: the test set "1k-A" of JSFusion (Yu
et al., ECCV 2018) is one, a caption a video. A CSV of `video_id` alone, such as the training lists
of 9,000 and 7,000 videos that go with it, names a split of the JSON beside it.
"""

import csv
import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from edje_jax.data.metadata import scalars
from edje_jax.data.sources.texts import decoded, printable
from edje_jax.data.sources.video_list import VideoEntry, VideoList, read_annotations

_EXAMPLE = (
    '{"videos": [{"video_id": "video0", "split": "train"}], '
    '"sentences": [{"video_id": "video0", "caption": "a car"}]}'
)


class Msrvtt(VideoList):
    """Videos of one split: "train", "validate" or "test", or those that a CSV in the JSON's folder
    lists, whose name is the split. A CSV of captions has no splits.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such split, or not such a file; see `VideoList` too.
        ImportError: PyAV is not installed.
    """

    def __init__(self, file: str, split: str, image_root: str | None = None):
        file = os.path.expanduser(file)
        if file.lower().endswith(".csv"):
            if split:
                raise ValueError(f'{file}: a CSV has no splits; leave "#{split}" out')
            super().__init__(file, _captioned_rows(file), image_root)
            return
        file, value = read_annotations(file, "msrvtt", _EXAMPLE, _is_annotations)
        super().__init__(file, _of_split(file, value, split), image_root)


def _is_annotations(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), list) for key in ("videos", "sentences")
    )


def _of_split(file: str, value: dict[str, Any], split: str) -> list[VideoEntry]:
    captions: dict[str, list[Any]] = defaultdict(list)
    lost = []
    for number, sentence in enumerate(value["sentences"]):
        name = sentence.get("video_id") if isinstance(sentence, dict) else None
        if isinstance(name, str):
            captions[name].append(sentence.get("caption"))
        else:
            lost.append(VideoEntry(f"{file}: sentence {number}", name, ()))
    videos = [
        (f"{file}: video {number}", video if isinstance(video, dict) else {})
        for number, video in enumerate(value["videos"])
    ]
    if split.lower().endswith(".csv"):
        rows = _rows(os.path.join(os.path.dirname(file), split))
        listed = {row["video_id"] for _, row in rows}
        chosen = [(where, video) for where, video in videos if str(video.get("video_id")) in listed]
    else:
        chosen = [(where, video) for where, video in videos if video.get("split") == split]
    if not chosen:
        there = Counter(str(video.get("split")) for _, video in videos)
        told = ", ".join(f"{name} ({count:,})" for name, count in there.items())
        raise ValueError(
            f'{file}: no video of split "{split}"; there are {printable(told) or "none"}, and'
            " any CSV beside it that lists videos"
        )
    return [
        VideoEntry(
            where,
            name := video.get("video_id"),
            captions[name] if isinstance(name, str) else (),
            scalars(video, ("video_id", "id")),
        )
        for where, video in chosen
    ] + lost


def _captioned_rows(file: str) -> Iterator[VideoEntry]:
    for where, row in _rows(file):
        if "sentence" not in row:
            raise ValueError(
                f'{file}: no column "sentence"; a list of videos names a split of the JSON beside'
                f" it, as in msrvtt:MSRVTT_data.json#{os.path.basename(file)}"
            )
        yield VideoEntry(where, row["video_id"], [row["sentence"]])


def _rows(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line, row) of the rows of a CSV with a column `video_id`."""
    try:
        with open(file, "rb") as opened:
            text = decoded(opened.read())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file}: no such file") from error
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if "video_id" not in (rows.fieldnames or ()):
        raise ValueError(f'{file}: no column "video_id"; expected a CSV of MSR-VTT')
    for row in rows:
        yield f"{file}: line {rows.line_num}", row
