"""Standard output and error of programs, for any encoding and for closed pipes."""

import codecs
import contextlib
import json
import os
import select
import sys
from typing import Any, TextIO

READER_GONE = 141
"""Exit code when the reader of standard output has closed it, as a shell reports after SIGPIPE."""
_PLAIN = {"↑": "^", "↓": "v", "·": "-", "→": "->", "▲": "^", "▼": "v", "…": "...", "•": "*"}
"""ASCII replacements of signs in the project's output, for terminals that lack them."""


def start_in_utf8_mode() -> None:
    """Start this program anew in Python's UTF-8 mode if file names would have to be ASCII, as under
    LC_ALL=C with PYTHONUTF8=0. Standard output keeps its encoding."""
    if sys.getfilesystemencoding() != "ascii" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", getattr(sys.stdout, "encoding", "ascii"))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def take_any_text() -> None:
    """Let standard output and error write any text, whatever their encoding; closed ones too."""
    codecs.register_error("edje_jax.plain", _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # Closed by the parent process
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="edje_jax.plain")


def write_json(value: Any) -> None:
    """Write a line of JSON to standard output, with escapes where that is not UTF-8."""
    encoding = codecs.lookup(sys.stdout.encoding or "ascii").name
    text = json.dumps(value, ensure_ascii=not encoding.startswith("utf-8"))
    sys.stdout.write(f"{text}\n")


def reader_is_gone(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose other end was closed."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # Windows; a stream that is no file; a closed one
        return False


def flush_all(code: Any) -> Any:
    """Write all output; the exit code of a program that ends with `code`, unless that fails.

    Python would report unwritten output when it ends, and change the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            if stream is sys.stdout and not code:
                code = READER_GONE if isinstance(error, BrokenPipeError) else _not_written(error)
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def _not_written(error: OSError) -> int:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"error: standard output: {(error.strerror or str(error)).lower()}\n")
    return 1


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replacement for characters that an encoding lacks: a similar sign, or their escapes."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    escaped = (_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(escaped), error.end
