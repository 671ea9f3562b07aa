"""The texts of a tar's sample: captions and id from its `.txt` and `.json`."""

import json
from typing import Any, BinaryIO, NamedTuple

from edje_jax.data.sources.texts import decoded, in_a_line, listed, text_fault, usable

NAMES = ("image_id", "sha256", "url")
"""JSON fields that hold an image's id, best first; img2dataset writes the last two."""
MOST_BYTES = 16 << 20
"""Largest .txt or .json that is read, in bytes."""


class Member(NamedTuple):
    """A file in a tar."""

    key: str
    """Path up to the first dot of the file name; members with one key form a sample."""
    extension: str
    """Rest of the file name, after that dot."""
    offset: int
    size: int


class Texts(NamedTuple):
    """Id, captions and faults of a sample."""

    image_id: str
    """Value of the first of `NAMES` that the JSON has; empty if it has none."""
    captions: list[str]
    faults: list[str]
    """Faults of the texts that are left out."""


def read_texts(file: BinaryIO, sample: dict[str, Member]) -> Texts:
    """Read a sample's texts from its open tar: the captions of its `.txt`, else of its `.json`."""
    faults = []
    facts, caption = {}, ""
    try:
        facts = read_facts(file, sample["json"]) if "json" in sample else {}
    except (ValueError, RecursionError) as error:
        faults.append(f"unreadable .json ({in_a_line(error)})")
    try:
        caption = _text(file, sample["txt"]) if "txt" in sample else ""
    except ValueError as error:
        faults.append(f"unreadable .txt ({in_a_line(error)})")
    captions, fault = usable(listed(caption) or listed(facts.get("caption")))
    image_id, id_fault = _identity(facts)
    faults += filter(None, (fault, id_fault))
    return Texts(image_id, [text.strip() for text in captions], faults)


def _text(file: BinaryIO, member: Member) -> str:
    if member.size > MOST_BYTES:
        raise ValueError(f"{member.size:,} bytes, more than {MOST_BYTES:,}")
    file.seek(member.offset)
    return decoded(file.read(member.size))


def read_facts(file: BinaryIO, member: Member) -> dict[str, Any]:
    """The object in a `.json` of an open tar.

    Raises:
        OSError: the tar cannot be read.
        ValueError, RecursionError: it holds no object.
    """
    facts = json.loads(_text(file, member))
    if not isinstance(facts, dict):
        raise ValueError("not an object")
    return facts


def _identity(facts: dict[str, Any]) -> tuple[str, str]:
    """(value of the first of `NAMES` that is there, or ""; its fault, or "")."""
    for name in NAMES:
        value = facts.get(name)
        if isinstance(value, str | int | float) and value != "" and value == value:  # Not NaN
            fault = text_fault(str(value))
            return ("", f'"{name}" {fault}') if fault else (str(value), "")
    return "", ""
