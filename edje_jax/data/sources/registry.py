"""SPEC -> source: `kind:path[#split]`, as `--data.train` and its like take it."""

import difflib
import os

from edje_jax.data.sources.blip_json import BlipJson
from edje_jax.data.sources.folder import Folder
from edje_jax.data.sources.shapes import Shapes
from edje_jax.types import Source

EXAMPLES = {"shapes": "shapes:train", "blip": "blip:train.json", "folder": "folder:/pictures"}
"""Every kind there is, with a SPEC that shows it."""


def open_source(spec: str, image_root: str = "", image_size: int = 64) -> Source:
    """Open what a SPEC names.

    Args:
        image_root: folder that relative picture paths start from, for kinds whose files name
            pictures; empty for the file's own folder.
        image_size: side of the pictures that `shapes` draws; other kinds have their own.

    Raises:
        ValueError: the SPEC is malformed, of no known kind, or what it names is.
        FileNotFoundError: what it names is not there.
    """
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
    if not path:
        raise ValueError(f'"{spec}" names no path; write it as in {EXAMPLES[kind]}')
    _refuse_split(spec, kind, path)
    match kind:
        case "shapes":
            return Shapes(path, image_size)
        case "blip":
            return BlipJson(path, image_root)
        case _:
            return Folder(path)


def open_captioned(spec: str, image_root: str = "", image_size: int = 64) -> Source:
    """`open_source` for those who ask with captions: training and evaluation.

    Raises:
        ValueError, FileNotFoundError: see `open_source`; also, the set has no captions.
    """
    source = open_source(spec, image_root, image_size)
    if not any(source.captions(i) for i in range(len(source))):
        raise ValueError(
            f'"{spec}": no captions in this set to train or evaluate with; {EXAMPLES["blip"]} lists'
            " pictures with theirs"
        )
    return source


def _refuse_split(spec: str, kind: str, path: str) -> None:
    """None of the kinds so far has splits; yet a file's name may hold a "#"."""
    whole, mark, split = path.rpartition("#")
    if not mark or os.path.exists(os.path.expanduser(path)):
        return
    remedy = "name the split itself, as in shapes:val" if kind == "shapes" else "leave it out"
    raise ValueError(
        f'"{spec}": {kind} has no splits, so "#{split}" after "{whole}" means nothing; {remedy}'
    )


def _examples() -> str:
    return ", ".join(EXAMPLES.values())
