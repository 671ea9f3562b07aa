"""SPEC -> source: `kind:path[#split][#lines]`, as `--data.train` and its like take it, or several.

`#lines` at the end makes every line of a text a caption of its own.
`SPEC+SPEC` joins sets and `SPEC@0.7+SPEC@0.3` mixes them. As paths may hold both signs, a "+" parts
two SPECs only where a kind and a colon follow, and "@" begins a weight only where a number ends a
part of several.
"""

import difflib
import os
import re
from fractions import Fraction

from edje_jax.data.bad_pictures import caption_faults
from edje_jax.data.sources.array_record import ArrayRecord
from edje_jax.data.sources.blip_json import BlipJson
from edje_jax.data.sources.captioned import Captioned
from edje_jax.data.sources.folder import Folder
from edje_jax.data.sources.karpathy import Karpathy
from edje_jax.data.sources.mixture import Mixture
from edje_jax.data.sources.parquet import Parquet
from edje_jax.data.sources.tfds import Tfds
from edje_jax.data.sources.webdataset import WebDataset
from edje_jax.scenes.shapes import Shapes
from edje_jax.types import Source

EXAMPLES = {
    "shapes": "shapes:train",
    "blip": "blip:train.json",
    "karpathy": "karpathy:dataset_coco.json#test",
    "tfds": "tfds:coco_captions#test",
    "webdataset": "webdataset:/d/{00000..00331}.tar",
    "arrayrecord": "arrayrecord:/d/*.array_record",
    "parquet": "parquet:/d/*.parquet",
    "folder": "folder:/pictures",
}
"""Every kind there is, with a SPEC that shows it."""
LINES = "#lines"
NEED_SPLIT, MAY_SPLIT = ("karpathy", "tfds"), ("parquet",)

_PLUS = re.compile(rf"\+(?=(?:{'|'.join(EXAMPLES)}):)")
_WEIGHT = re.compile(r"(.*)@(\d+(?:\.\d*)?|\.\d+)", re.DOTALL)


def open_source(spec: str, image_root: str = "", image_size: int = 64) -> Source:
    """Open what a SPEC names.

    Args:
        image_root: folder that relative picture paths start from, for kinds whose files name
            pictures; empty for the file's own folder.
        image_size: side of the pictures that `shapes` draws; other kinds have their own.

    Raises:
        ValueError: the SPEC is malformed, of no known kind, or what it names is.
        FileNotFoundError: what it names is not there.
        ImportError: its kind needs a library that is not installed.
    """
    parts = _PLUS.split(spec)
    if len(parts) == 1:
        return _open_one(spec, image_root, image_size)
    specs, weights = _weighed(spec, parts)
    sources = [_open_one(part, image_root, image_size) for part in specs]
    return Mixture(sources, [_split_off(_lines_off(part)[0])[0] for part in specs], weights)


def open_captioned(spec: str, image_root: str = "", image_size: int = 64) -> Source:
    """`open_source` for those who ask with captions: training and evaluation.

    Raises:
        ValueError, FileNotFoundError, ImportError: see `open_source`.
        ValueError: the set has no captions.
    """
    source = open_source(spec, image_root, image_size)
    if not any(source.captions(i) for i in range(len(source))):
        faults = (caption_faults(source, i) for i in range(len(source)))
        raise ValueError(
            f'"{spec}": no captions in this set to train or evaluate with; '
            + (next(filter(None, faults), "") or f"{EXAMPLES['blip']} lists pictures with theirs")
        )
    return source


def _open_one(spec: str, image_root: str, image_size: int) -> Source:
    spec, by_lines = _lines_off(spec)
    source = _open_kind(spec, image_root, image_size)
    if by_lines:
        if not isinstance(source, Captioned | Tfds):
            raise ValueError(f'"{spec}#lines": {spec.partition(":")[0]} reads no texts with lines')
        source.split_lines()
    return source


def _open_kind(spec: str, image_root: str, image_size: int) -> Source:
    kind, colon, path = spec.partition(":")
    if not colon:
        raise ValueError(f'"{spec}" names no kind; a SPEC is kind:path, such as {_examples()}')
    if kind not in EXAMPLES:
        close = difflib.get_close_matches(kind.lower(), EXAMPLES, n=1)
        guess = f'did you mean "{close[0]}:{path}"? ' if close else ""
        raise ValueError(
            f'"{spec}": unknown kind "{kind}"; {guess}Supported: {", ".join(EXAMPLES)} '
            f"(for example {_examples()})"
        )
    whole, split = _split_off(spec)
    whole = whole.partition(":")[2]
    if not whole:
        raise ValueError(f'"{spec}" names no path; write it as in {EXAMPLES[kind]}')
    _check_split(spec, kind, whole, split)
    match kind:
        case "shapes":
            return Shapes(path, image_size)
        case "blip":
            return BlipJson(path, image_root)
        case "karpathy":
            return Karpathy(whole, split, image_root)
        case "tfds":
            return Tfds(whole, split)
        case "webdataset":
            return WebDataset(path)
        case "arrayrecord":
            return ArrayRecord(path)
        case "parquet":
            return Parquet(whole, split)
        case _:
            return Folder(path)


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


def _check_split(spec: str, kind: str, path: str, split: str) -> None:
    if kind in NEED_SPLIT and not split:
        raise ValueError(f'"{spec}": which split? Write it as in {EXAMPLES[kind]}')
    if split and kind not in (*NEED_SPLIT, *MAY_SPLIT):
        remedy = "name the split itself, as in shapes:val" if kind == "shapes" else "leave it out"
        raise ValueError(
            f'"{spec}": {kind} has no splits, so "#{split}" after "{path}" means nothing; {remedy}'
        )


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
    return ", ".join(EXAMPLES.values())
