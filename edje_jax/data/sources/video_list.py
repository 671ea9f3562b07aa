"""Base of the sources whose annotation files name videos by their ids."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from edje_jax.data.frames import ENDINGS, require_av
from edje_jax.data.sources.captioned import Captioned, merge_records, pack_captions
from edje_jax.data.sources.folder import ending, files_below
from edje_jax.data.sources.packed import PackedMetadata, PackedStrings
from edje_jax.data.sources.passed_over import NAMED, PassedOver
from edje_jax.data.sources.texts import path_fault, printable, read_json, refuse_if_none, usable
from edje_jax.data.sources.video_files import VideoFiles, why_no_video
from edje_jax.types import BadRecord, Scalar

log = logging.getLogger(__name__)


class VideoEntry(NamedTuple):
    """Video of an annotation file."""

    where: str
    """File and record, for messages."""
    video: Any
    """Value that should be the video's id."""
    captions: Sequence[Any]
    """Values that should be its captions."""
    metadata: Mapping[str, Scalar] = MappingProxyType({})


class VideoList(VideoFiles, Captioned):
    """Videos that an annotation file names by ids, in its order; entries of one id are one video.

    A video's file is the one in `image_root` or below (by default the folder of the annotation
    file) whose name is the id, with or without a video's ending; of several the first by path. It
    may have another ending than the id, as after converting. The log counts and names the ids that
    have none: reading such a video raises `BadImage`. An entry without an id is left out (`bad`), a
    caption that is no text is dropped (`caption_faults`).

    Raises:
        FileNotFoundError, NotADirectoryError: `image_root` is no folder.
        ValueError: no entry names a video, or there is no video below `image_root`.
        ImportError: PyAV is not installed.
    """

    def __init__(self, file: str, entries: Iterable[VideoEntry], image_root: str | None):
        require_av()
        self.image_root = os.path.expanduser(image_root or os.path.dirname(file) or ".")
        ids: list[str] = []
        captions: list[list[str]] = []
        metadata: list[Mapping[str, Scalar]] = []
        faults: dict[int, str] = {}
        bad: list[BadRecord] = []
        for entry in entries:
            if fault := path_fault(entry.video):
                bad.append(BadRecord(entry.where, printable(f"the video's id {fault}; correct it")))
                continue
            good, fault = usable(entry.captions) if entry.captions else ([], "has no caption")
            if fault:
                faults[len(ids)] = f"{entry.where}: {fault}"
            ids.append(entry.video)
            captions.append(good)
            metadata.append(entry.metadata)
        refuse_if_none(file, len(ids), bad)
        found = merge_records(ids, captions, faults)
        self._metadata = PackedMetadata(metadata[row] for row in found.rows)
        self._paths = PackedStrings(_paths(file, self.image_root, found.ids))
        texts = pack_captions(found.captions)
        super().__init__(
            file, PackedStrings(found.ids), *texts, found.faults, bad, joined=found.joined
        )

    def path(self, index: int) -> str:
        """Path of the video's file; of a missing one, that of its id in `image_root`."""
        return os.path.join(self.image_root, self._paths[self._checked(index)])

    def metadata(self, index: int) -> Mapping[str, Scalar]:
        """Texts and numbers of the video's first entry."""
        return self._metadata[self._checked(index)]


def _paths(file: str, root: str, ids: Sequence[str]) -> list[str]:
    """Path of each id's video below a folder; the id itself where there is none."""
    by_name: dict[str, str] = {}
    for path in files_below(root, "video", why_no_video, PassedOver()):
        name = os.path.basename(path)
        for key in (name, _stem(name), path, _stem(path)):
            by_name.setdefault(key, path)
    found = [by_name.get(name) or by_name.get(_stem(name)) for name in ids]
    lost = [name for name, path in zip(ids, found, strict=True) if path is None]
    if lost:
        named = ", ".join(map(printable, lost[:NAMED])) + (", ..." if len(lost) > NAMED else "")
        log.warning(
            "%s: %d of %d videos are not in %s (%s)", file, len(lost), len(ids), root, named
        )
    return [path or name for name, path in zip(ids, found, strict=True)]


def _stem(name: str) -> str:
    """A name without the ending of a video."""
    return os.path.splitext(name)[0] if ending(name) in ENDINGS else name


def read_annotations(
    file: str, kind: str, example: str, is_form: Callable[[Any], bool]
) -> tuple[str, Any]:
    """(path of a JSON file, the value in it).

    Args:
        kind: beginning of the SPEC, for messages.
        example: what such a file holds, for messages.
        is_form: whether a value is what it should be.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no JSON file, or holds something else.
    """
    file = os.path.expanduser(file)
    try:
        value = read_json(file, example)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file}: no such file; {kind}: takes a JSON file") from error
    except IsADirectoryError as error:
        raise ValueError(f"{file}: a folder; {kind}: takes a JSON file") from error
    if not is_form(value):
        raise ValueError(f"{file}: not the form that {kind}: reads; expected {example}")
    return file, value


def objects(value: Any, key: str) -> list[dict[str, Any]]:
    """Objects of a JSON list, an empty one for each other value; none if no object has the key."""
    entries = value if isinstance(value, list) else []
    found = [entry if isinstance(entry, dict) else {} for entry in entries]
    return found if any(key in entry for entry in found) else []
