"""Logging, one-line errors and exit codes that every program shares."""

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from edje_jax.cli.terminal import (
    READER_GONE,
    flush_all,
    reader_is_gone,
    start_in_utf8_mode,
    take_any_text,
)
from edje_jax.system.allocator import keep_freed_memory
from edje_jax.system.cache_folder import cache_folder

USAGE = 2
FAILED = 1
INTERRUPTED = 130
_FREE = ". Free some and run the same command again"
_REMEDIES = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EMFILE: ". Allow more, as with ulimit -n 4096, and run the same command again",
}


class UsageError(Exception):
    """The command line itself is wrong; exit code 2."""


def run_program(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run `main` on the command line and exit: 0 done, 1 failed, 2 bad usage, 130 interrupted, 141
    when whoever read standard output has gone, as with `| head -1`.

    A failure is one message on standard error; `--debug` shows the traceback instead.
    """
    start_in_utf8_mode()
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    _set_up()
    try:
        code = main(arguments) or 0
    except UsageError as error:
        code = _fail(f"error: {error}", USAGE)
    except KeyboardInterrupt:
        code = _fail("interrupted", INTERRUPTED)
    except SystemExit as stop:  # tyro's after --help, and rich's where the reader has gone
        code = READER_GONE if isinstance(stop.__context__, BrokenPipeError) else stop.code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_is_gone(sys.stdout):
            code = READER_GONE
        elif debug:
            raise
        else:
            code = _fail(f"error: {_message(error)}", FAILED)
    sys.exit(flush_all(code))


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # Nobody may read this either
        sys.stderr.write(f"{message}\n")
    return code


def _message(error: Exception) -> str:
    """A failure in words; those of the system begin with the file, as all others do."""
    if not isinstance(error, OSError) or not error.errno:
        return str(error) or type(error).__name__
    where = error.filename2 or error.filename or "a file"
    reason = (error.strerror or str(error)).lower()
    return f"{where}: {reason}{_REMEDIES.get(error.errno, '')}"


def _set_up() -> None:
    take_any_text()
    _log_to_stderr()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Such as that there is no PyTorch: transformers' tokenizers and configs do without.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # Libraries write to an empty or relative path; the specification says to ignore it.
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        if not os.path.isabs(os.environ.get(name, os.sep)):
            del os.environ[name]
    # Compiling takes longer than anything else a short run does; the next one finds it done.
    if cache := cache_folder("jax"):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    keep_freed_memory()


def _log_to_stderr() -> None:
    # Some library may have put a plain handler there while it was imported, as grain does; then
    # ours would not be.
    root = logging.getLogger()
    for handler in [h for h in root.handlers if type(h) is logging.StreamHandler]:
        root.removeHandler(handler)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname).1s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    # Libraries speak up when they fail; the project's own progress is at info.
    for name in ("orbax", "transformers", "httpx", "huggingface_hub", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Such as that there is a GPU and JAX computes on the CPU.
    logging.getLogger("jax").setLevel(logging.WARNING)
    # Orbax logs, traceback and all, what it raises too; asyncio every write that failed with it.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
