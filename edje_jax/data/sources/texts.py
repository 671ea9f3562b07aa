"""Texts in files: decoded, checked that they can be captions or names, and found under the column
names that other makers use."""

import codecs
import json
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from edje_jax.types import BadRecord

LONGEST = 100_000
"""Most characters of a caption; a longer text is taken for a whole file in the wrong place."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # Before that of UTF-16, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MESSAGE = 300
"""Most characters of a library's message that are quoted."""
_FAULTS = 9
"""Bad captions of a record that are named; more are counted."""
_NESTED = 4
"""Depth of nested lists in which captions are looked for."""
_INT_DIGITS = 4_000
"""Digits of the longest whole number that is read as one: Python refuses to read 4,301."""


def decoded(data: bytes) -> str:
    """The text in a file: UTF-8, or as its byte-order mark says.

    A byte that is not UTF-8 becomes half of a surrogate pair, which `text_fault` finds: what is
    beside it can be read.

    Raises:
        ValueError: UTF-16 or UTF-32 that is cut short.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            errors = "surrogateescape" if encoding == "utf-8" else "surrogatepass"
            return data[len(mark) :].decode(encoding, errors)
    return data.decode("utf-8", "surrogateescape")


def text_fault(text: Any) -> str:
    """Why a value cannot be a caption, a name or an id, as "is empty"; "" if it can."""
    if not isinstance(text, str):
        kind = json_kind(text)
        return f"is a{'n' * (kind == 'object')} {kind} ({shown(text)}), not a text"
    if not text.strip():
        return "is empty"
    if len(text) > LONGEST:
        return f"has {len(text):,} characters, more than {LONGEST:,}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"holds {text[error.start]!a}, half of a surrogate pair or a byte that is not UTF-8"
    return ""


def path_fault(text: Any) -> str:
    """Why a value cannot name a file; "" if it can."""
    fault = text_fault(text)
    return "holds a NUL" if not fault and "\0" in text else fault


def listed(value: Any) -> list[Any]:
    """The values in a field of captions: one, those of a list, or either below a name of
    `CAPTIONS`. None, NaN and a blank text alone are no caption, which is no fault."""
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return []
    return list(_values(value, _NESTED))


def _values(value: Any, depth: int) -> Iterator[Any]:
    if isinstance(value, dict) and (name := first_named(CAPTIONS, value)):
        value = value[name]
    if isinstance(value, list | tuple) and depth:
        for item in value:
            yield from _values(item, depth - 1)
    else:
        yield value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def usable(texts: Sequence[Any]) -> tuple[list[str], str]:
    """(the captions among some values, in their order; what is wrong with the others or "")."""
    good, wrong = [], []
    for number, text in enumerate(texts):
        if fault := text_fault(text):
            wrong.append(f"caption {number} {fault}")
        else:
            good.append(text)
    if len(wrong) > _FAULTS:
        wrong[_FAULTS:] = [f"{len(wrong) - _FAULTS:,} more"]
    return good, "; ".join(wrong) + ("; correct or drop it" if wrong else "")


def read_json(path: str, expected: str) -> Any:
    """The value in a JSON file; the list of those in a JSON Lines file, where each line is one.

    A file is JSON Lines if most of its lines hold an object. A line that is no JSON is a
    `ValueError` in the list.

    Raises:
        OSError: it cannot be read.
        ValueError: it is neither; the message names the place, and what was `expected`.
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        text = decoded(data)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be decoded ({error}); save it as UTF-8") from error
    try:
        return _parsed(text)
    except (json.JSONDecodeError, RecursionError) as error:
        values = [_line(line) for line in text.split("\n") if line.strip()]
        if 2 * sum(isinstance(value, dict) for value in values) > len(values):
            return values
        if isinstance(error, RecursionError):
            raise ValueError(f"{path}: nested too deeply; expected {expected}") from error
        raise ValueError(
            f"{path}: line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}); "
            f"expected {expected}"
        ) from error


def _line(line: str) -> Any:
    try:
        return _parsed(line)
    except RecursionError:
        return ValueError("nested too deeply")
    except json.JSONDecodeError as error:
        return ValueError(f"not valid JSON (column {error.colno}: {error.msg})")


def _parsed(text: str) -> Any:
    return json.loads(text, parse_int=_whole)


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) < _INT_DIGITS else float(digits)


def json_kind(value: Any) -> str:
    """JSON's name for what a value is."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def printable(text: str) -> str:
    """A text with its halves of surrogate pairs escaped, which no terminal and no file takes."""
    return text.encode("utf-8", "backslashreplace").decode()


def shown(value: Any) -> str:
    """A value in a message, shortened and printable: a wrong one can be a whole file."""
    return printable(reprlib.repr(value))


def in_a_line(error: BaseException) -> str:
    """Message of a library's error, in one line and shortened."""
    return printable(" ".join(str(error).split()))[:_MESSAGE] or type(error).__name__


def refuse_if_none(path: str, kept: int, bad: Sequence[BadRecord]) -> None:
    """Say what is wrong with a set of which every record is bad.

    Raises:
        ValueError: no record is kept.
    """
    if not kept and bad:
        where, reason = bad[0]
        raise ValueError(f"{path}: none of {len(bad):,} records can be used; {where}: {reason}")


IMAGE_FIELDS = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")


CAPTIONS = (
    "caption", "captions", "text", "texts", "sentence", "sentences", "sentences_raw", "raw",
    "alt_text", "description", "txt",
)  # fmt: skip


IMAGE_ID_FIELDS = ("image_id", "img_id", "imgid", "cocoid")
"""Fields whose values identify an image in all files of a set."""


ROW_IDS = ("id", "key", "filename", "file_name")
"""Fields whose values may be unique only within one file."""


def first_named(wanted: Iterable[str], there: Iterable[str]) -> str:
    """First name of `wanted` that is in `there`; "" if none is."""
    names = set(there)
    return next((name for name in wanted if name in names), "")
