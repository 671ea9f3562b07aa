"""Index of the samples of a tar, kept beside it, so that the tar is read in any order.

`00000.tar.index.npz` holds, for n samples: `tar` (its bytes and modification time, which tell a
changed tar), `offset` and `size` int64 [n] of the images or videos, `is_video` bool [n], `json`
int64 [n, 2] with both of the `.json` (-1 where a sample has none), the ids, captions and faults as
UTF-8 with their offsets, and what was passed over as JSON. Where the tar's folder cannot be
written, it lies in `~/.cache/edje_jax/tars/`.
"""

import hashlib
import io
import json
import logging
import os
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Bool, Int64

from edje_jax.data.decoders import PREFIX, endings, may_be_image, why_no_image
from edje_jax.data.frames import ENDINGS as VIDEO_ENDINGS
from edje_jax.data.sources.captioned import pack_captions
from edje_jax.data.sources.folder import SIDECARS
from edje_jax.data.sources.packed import PackedStrings
from edje_jax.data.sources.passed_over import PassedOver
from edje_jax.data.sources.tar_texts import Member, read_texts
from edje_jax.data.sources.texts import in_a_line, printable
from edje_jax.system.cache_folder import cache_folder
from edje_jax.system.files import atomic_path

log = logging.getLogger(__name__)

VERSION = 5
"""Version of the index; an index of another version is made anew."""
STRINGS = ("keys", "ids", "captions", "faults")


@dataclass(frozen=True)
class TarIndex:
    """The samples of one tar: image i is `size[i]` bytes from `offset[i]` on."""

    offset: Int64[np.ndarray, " n"]
    size: Int64[np.ndarray, " n"]
    json: Int64[np.ndarray, "n 2"]
    """Offset and size of each sample's `.json`."""
    is_video: Bool[np.ndarray, " n"]
    """Whether the image is a video."""
    keys: PackedStrings
    ids: PackedStrings
    """Image ids from the samples' JSON; empty where it has none."""
    captions: PackedStrings
    starts: Int64[np.ndarray, " n+1"]
    faults: PackedStrings
    """Faults of each sample's texts that are left out; empty if there are none."""
    passed_over: PassedOver
    """Members that are no sample's image, text or JSON."""


def index_of(tar: str) -> TarIndex:
    """The index of a tar: the one that was kept, or a new one, which is then kept.

    Raises:
        FileNotFoundError: no such tar.
        ValueError: it is truncated or no tar.
    """
    found = os.stat(tar)
    stamp = np.array([VERSION, found.st_size, found.st_mtime_ns])
    wrong = []
    for path in _places(tar):
        if path.exists():
            kept = _load(path, stamp)
            if not isinstance(kept, str):
                return kept
            wrong.append(f"{path}: {kept}")
    if wrong:
        log.warning("%s; made anew", "; ".join(wrong))
    index = build(tar)
    log.info("%s: indexed, %d samples", tar, len(index.size))
    _keep(index, stamp, _places(tar))
    return index


def _places(tar: str) -> list[Path]:
    """Paths at which the index of a tar may lie: beside it, and in the cache if there is one."""
    digest = hashlib.sha256(os.path.abspath(tar).encode()).hexdigest()[:32]
    cache = cache_folder("tars")
    return [Path(f"{tar}.index.npz"), *([cache / f"{digest}.npz"] if cache else [])]


def _load(path: Path, stamp: np.ndarray) -> TarIndex | str:
    """The index in a file, or what is wrong with it."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            if kept["tar"][0] != VERSION:
                return "written by another version"
            if not np.array_equal(kept["tar"], stamp):
                return "the tar has changed since"
            strings = {
                name: PackedStrings.from_arrays(kept[name], kept[f"{name}_offsets"])
                for name in STRINGS
            }
            facts = json.loads(kept["passed_over"].tobytes())
            passed_over = PassedOver(Counter(facts["counts"]), facts["names"])
            index = TarIndex(
                kept["offset"],
                kept["size"],
                kept["json"],
                kept["is_video"],
                starts=kept["starts"],
                passed_over=passed_over,
                **strings,
            )
    except Exception as error:  # A damaged file makes zipfile and NumPy raise nearly anything
        return f"damaged ({in_a_line(error)})"
    count = len(index.keys)
    lists = (
        index.offset, index.size, index.json, index.is_video, index.ids, index.faults,
        index.starts[1:],
    )  # fmt: skip
    if any(len(each) != count for each in lists):
        return "damaged (its lists differ in length)"
    return index


def _keep(index: TarIndex, stamp: np.ndarray, places: list[Path]) -> None:
    arrays: dict[str, Any] = {"tar": stamp, "starts": index.starts}
    arrays |= {name: getattr(index, name) for name in ("offset", "size", "json", "is_video")}
    passed_over = json.dumps(vars(index.passed_over)).encode()
    arrays["passed_over"] = np.frombuffer(passed_over, np.uint8)
    for name in STRINGS:
        arrays[name], arrays[f"{name}_offsets"] = getattr(index, name).to_arrays()
    for path in places:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)
            return
        except OSError as error:
            log.info("%s: cannot be written (%s)", path, error.strerror)
    log.warning("%s: nowhere to keep an index; it is made again each time", places[0])


def build(tar: str) -> TarIndex:
    """Walk through a tar, reading texts and passing over images.

    Raises:
        ValueError: it is truncated or no tar.
    """
    passed_over = PassedOver()
    with open(tar, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise ValueError(f"{tar}: compressed; gunzip it first, as it is read in any order")
        samples, doubles = _samples(_members(tar, passed_over))
        for key in [key for key, sample in samples.items() if set(sample) == {""}]:
            if not _image(file, samples[key]):
                passed_over.add("no image", key)
                del samples[key]
        images = [_image(file, sample) for sample in samples.values()]
        texts = [read_texts(file, sample) for sample in samples.values()]
    for sample, image in zip(samples.values(), images, strict=True):
        for extension, member in sample.items():
            if member is not image and extension not in ("txt", "json"):
                passed_over.add(f".{extension}", f"{member.key}.{extension}")
    captions, starts = pack_captions([one.captions for one in texts])
    return TarIndex(
        np.array([member.offset if member else -1 for member in images], np.int64),
        np.array([member.size if member else -1 for member in images], np.int64),
        np.array(
            [sample["json"][2:] if "json" in sample else (-1, -1) for sample in samples.values()],
            np.int64,
        ).reshape(-1, 2),
        np.array([bool(member) and _is_video(member.extension) for member in images], bool),
        PackedStrings(samples),
        PackedStrings(one.image_id for one in texts),
        captions,
        starts,
        PackedStrings(
            "; ".join([*doubles.get(key, ()), *one.faults])
            for key, one in zip(samples, texts, strict=True)
        ),
        passed_over,
    )


def _samples(
    members: Iterable[Member],
) -> tuple[dict[str, dict[str, Member]], dict[str, list[str]]]:
    """({key: {extension in lower case: member}}, {key: members that came twice, and are dropped}).

    A key ends at the first dot of a name, as webdataset has it, unless all names of a sample go on
    with more dots: then their keys hold dots, and end at the last one.
    """
    groups: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        groups[member.key].append(member)
    samples: dict[str, dict[str, Member]] = defaultdict(dict)
    doubles: dict[str, list[str]] = defaultdict(list)
    for group in groups.values():
        dotted = all("." in member.extension for member in group)
        for member in map(_at_last_dot, group) if dotted else group:
            extension = member.extension.lower()
            if samples[member.key].setdefault(extension, member) is not member:
                fault = f"two members {printable(member.key)}.{extension}, of which one is dropped"
                doubles[member.key].append(fault)
    return samples, doubles


def _at_last_dot(member: Member) -> Member:
    more, _, extension = member.extension.rpartition(".")
    return member._replace(key=f"{member.key}.{more}", extension=extension)


def _members(tar: str, passed_over: PassedOver) -> Iterator[Member]:
    at = 0
    try:
        with tarfile.open(tar, "r:") as archive:
            while info := archive.next():
                at = info.offset
                archive.members.clear()  # type: ignore[attr-defined]  # Else it remembers millions
                folder, name = os.path.split(info.name)
                stem, _, extension = name.partition(".")
                if not info.isfile() or not stem:
                    if not info.isdir():
                        passed_over.add("hidden" if info.isfile() else "no regular file", info.name)
                else:
                    key = os.path.join(folder, stem).removeprefix("./")
                    yield Member(key, extension, info.offset_data, info.size)
            at = archive.offset
        _check_end(tar, at)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{tar}: not a whole tar ({in_a_line(error)}, {at:,} bytes in); download or write it"
            " again, or leave it out"
        ) from error


def _check_end(tar: str, at: int) -> None:
    """Check that a tar ends in two blocks of zeros: tarfile takes a broken header for its end."""
    with open(tar, "rb") as file:
        file.seek(at)
        mark = file.read(2 * tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE or any(mark):
        raise tarfile.ReadError("no end mark" if not mark else "a broken header")


def _image(file: BinaryIO, sample: dict[str, Member]) -> Member | None:
    """A sample's image or video.

    The first with an ending of the decoders', as KEY.jpg before KEY.mask.png; else the first with
    an ending of a video; else the first by content; else what a decoder that is not installed might
    read: reading it will say so.
    """
    last = {extension: f".{extension.rpartition('.')[2]}" for extension in sample}
    for extension in sample:
        if f".{extension}" in endings():
            return sample[extension]
    for extension in sample:
        if last[extension] in endings():
            return sample[extension]
    for extension in sample:
        if _is_video(extension):
            return sample[extension]
    others = [sample[extension] for extension in sample if last[extension] not in SIDECARS]
    likely = [m for m in others if may_be_image(_read(file, m, PREFIX))]
    images = (m for m in likely if not why_no_image(io.BytesIO(_read(file, m, m.size))))
    return next(images, None) or next(iter(likely), None)


def _is_video(extension: str) -> bool:
    return f".{extension.rpartition('.')[2].lower()}" in VIDEO_ENDINGS


def _read(file: BinaryIO, member: Member, most: int) -> bytes:
    file.seek(member.offset)
    return file.read(min(member.size, most))
