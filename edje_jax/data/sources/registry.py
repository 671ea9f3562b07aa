"""SPEC -> source: `kind:path[#split][#lines]`, as `--data.train` and its like take it, or several.

`#lines` at the end makes every line of a text a caption of its own.
`SPEC+SPEC` joins sets and `SPEC@0.7+SPEC@0.3` mixes them. As paths may hold both signs, a "+" parts
two SPECs only where a kind and a colon follow, and "@" begins a weight only where a number ends a
part of several.
"""

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol, runtime_checkable

from edje_jax.data.bad_records import caption_faults
from edje_jax.data.sources.activitynet import ActivityNet
from edje_jax.data.sources.array_record import ArrayRecord
from edje_jax.data.sources.blip_json import BlipJson
from edje_jax.data.sources.didemo import Didemo
from edje_jax.data.sources.folder import Folder
from edje_jax.data.sources.karpathy import Karpathy
from edje_jax.data.sources.mixture import Mixture
from edje_jax.data.sources.msrvtt import Msrvtt
from edje_jax.data.sources.parquet import Parquet
from edje_jax.data.sources.tfds import Tfds
from edje_jax.data.sources.vatex import Vatex
from edje_jax.data.sources.video_files import VideoFolder
from edje_jax.data.sources.webdataset import WebDataset
from edje_jax.scenes.moving import MovingShapes
from edje_jax.scenes.shapes import Shapes
from edje_jax.types import Source


@dataclass(frozen=True)
class Location:
    """Set that a SPEC names, with the caller's other settings."""

    path: str
    split: str
    """Text after "#"; "" where there is none."""
    image_root: str | None
    """Folder that relative image paths start from; None for that of the file that names images."""
    image_size: int
    """Side of images that are drawn."""


@dataclass(frozen=True)
class Kind:
    """Kind of data set."""

    example: str
    """SPEC that shows how it is written."""
    open: Callable[[Location], Source]
    split: Literal["none", "optional", "required", "path"] = "none"
    """Whether a SPEC names a split after "#"; `path`: its path is a split itself."""


KINDS = {
    "shapes": Kind("shapes:train", lambda at: Shapes(at.path, at.image_size), split="path"),
    "blip": Kind("blip:train.json", lambda at: BlipJson(at.path, at.image_root)),
    "karpathy": Kind(
        "karpathy:dataset_coco.json#test",
        lambda at: Karpathy(at.path, at.split, at.image_root),
        split="required",
    ),
    "tfds": Kind("tfds:coco_captions#test", lambda at: Tfds(at.path, at.split), split="required"),
    "webdataset": Kind("webdataset:/d/{00000..00331}.tar", lambda at: WebDataset(at.path)),
    "arrayrecord": Kind("arrayrecord:/d/*.array_record", lambda at: ArrayRecord(at.path)),
    "parquet": Kind(
        "parquet:/d/*.parquet", lambda at: Parquet(at.path, at.split), split="optional"
    ),
    "folder": Kind("folder:/pictures", lambda at: Folder(at.path)),
    "video": Kind("video:/videos", lambda at: VideoFolder(at.path)),
    "msrvtt": Kind(
        "msrvtt:MSRVTT_data.json#test",
        lambda at: Msrvtt(at.path, at.split, at.image_root),
        split="optional",
    ),
    "vatex": Kind(
        "vatex:vatex_validation.json#en",
        lambda at: Vatex(at.path, at.split, at.image_root),
        split="optional",
    ),
    "didemo": Kind("didemo:test_data.json", lambda at: Didemo(at.path, at.image_root)),
    "activitynet": Kind("activitynet:val_1.json", lambda at: ActivityNet(at.path, at.image_root)),
    "moving-shapes": Kind(
        "moving-shapes:train", lambda at: MovingShapes(at.path, at.image_size), split="path"
    ),
}
"""Every kind there is, by the name that a SPEC begins with."""


@runtime_checkable
class HasLines(Protocol):
    """A source whose captions may be texts of several lines."""

    def split_lines(self) -> None:
        """Make every line of a text a caption of its own."""
        ...


LINES = "#lines"

_WEIGHT = re.compile(r"(.*)@(\d+(?:\.\d*)?|\.\d+)", re.DOTALL)


def open_source(spec: str, image_root: str | None = None, image_size: int = 64) -> Source:
    """Open what a SPEC names.

    Args:
        image_root: folder that relative image paths start from, for kinds whose files name
            images; None for the file's own folder.
        image_size: side of the images that `shapes` draws; other kinds have their own.

    Raises:
        ValueError: the SPEC is malformed, of no known kind, or what it names is.
        FileNotFoundError: what it names is not there.
        ImportError: its kind needs a library that is not installed.
    """
    parts = re.split(rf"\+(?=(?:{'|'.join(KINDS)}):)", spec)
    if len(parts) == 1:
        return _open_one(spec, image_root, image_size)
    specs, weights = _weighed(spec, parts)
    sources = [_open_one(part, image_root, image_size) for part in specs]
    return Mixture(sources, [_split_off(_lines_off(part)[0])[0] for part in specs], weights)


def open_captioned(spec: str, image_root: str | None = None, image_size: int = 64) -> Source:
    """`open_source` for those who ask with captions: training and evaluation.

    Raises:
        ValueError, FileNotFoundError, ImportError: see `open_source`.
        ValueError: the set has no captions.
    """
    source = open_source(spec, image_root, image_size)
    if not any(source.captions(i) for i in range(len(source))):
        faults = filter(None, (caption_faults(source, i) for i in range(len(source))))
        blip = f"{KINDS['blip'].example} lists images with theirs"
        raise ValueError(
            f'"{spec}": no captions in this set to train or evaluate with; {next(faults, blip)}'
        )
    return source


def _open_one(spec: str, image_root: str | None, image_size: int) -> Source:
    spec, by_lines = _lines_off(spec)
    name, kind, path, split = _parsed(spec)
    source = kind.open(Location(path, split, image_root, image_size))
    if by_lines:
        if not isinstance(source, HasLines):
            raise ValueError(f'"{spec}#lines": {name} reads no texts with lines')
        source.split_lines()
    return source


def _parsed(spec: str) -> tuple[str, Kind, str, str]:
    """(name of the kind, the kind, path, split or "")."""
    name, colon, path = spec.partition(":")
    if not colon:
        raise ValueError(f'"{spec}" names no kind; a SPEC is kind:path, such as {_examples()}')
    kind = KINDS.get(name)
    if not kind:
        close = difflib.get_close_matches(name.lower(), KINDS, n=1)
        guess = f'did you mean "{close[0]}:{path}"? ' if close else ""
        raise ValueError(
            f'"{spec}": unknown kind "{name}"; {guess}Supported: {", ".join(KINDS)} '
            f"(for example {_examples()})"
        )
    whole, split = _split_off(spec)
    whole = whole.partition(":")[2]
    if not whole:
        raise ValueError(f'"{spec}" names no path; write it as in {kind.example}')
    if kind.split == "required" and not split:
        raise ValueError(f'"{spec}": which split? Write it as in {kind.example}')
    if kind.split in ("optional", "required"):
        return name, kind, whole, split
    if split:
        itself = f"name the split itself, as in {name}:{split}"
        raise ValueError(
            f'"{spec}": {name} has no splits, so "#{split}" after "{whole}" means nothing; '
            + (itself if kind.split == "path" else "leave it out")
        )
    return name, kind, path, ""


def _lines_off(spec: str) -> tuple[str, bool]:
    """(SPEC without #lines, whether it was there)."""
    is_path = os.path.exists(os.path.expanduser(spec.partition(":")[2]))
    return (spec, False) if is_path else (spec.removesuffix(LINES), spec.endswith(LINES))


def _split_off(spec: str) -> tuple[str, str]:
    """(SPEC without its split, split or ""). A path may hold a "#", which no split follows."""
    whole, mark, split = spec.rpartition("#")
    path = os.path.expanduser(spec.partition(":")[2])
    is_split = mark and "/" not in split and not os.path.exists(path)
    return (whole, split) if is_split else (spec, "")


def _weighed(spec: str, parts: list[str]) -> tuple[list[str], list[Fraction]]:
    """(SPECs without weights, weights or none of them)."""
    found = [_WEIGHT.fullmatch(part) for part in parts]
    weights = [Fraction(match[2]) for match in found if match]
    if not weights:
        return parts, []
    if len(weights) < len(parts) or not all(weights):
        raise ValueError(
            f'"{spec}": give every part a weight above 0, or none of them; a path that itself ends'
            " in @ and a number needs one, as in blip:a@2@1"
        )
    return [match[1] for match in found if match], weights


def _examples() -> str:
    return ", ".join(kind.example for kind in KINDS.values())
