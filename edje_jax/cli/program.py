"""What every program shares: logging, one-line errors, exit codes, choosing a config."""

import difflib
import errno
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from edje_jax.allocator import keep_freed_memory

USAGE = 2
FAILED = 1
_FULL = (errno.ENOSPC, errno.EDQUOT)


class UsageError(Exception):
    """The command line itself is wrong; exit code 2."""


def run_program(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run `main` on the command line and exit: 0 done, 1 failed, 2 bad usage.

    A failure is one message on standard error; `--debug` shows the traceback instead.
    """
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    _set_up()
    try:
        code = main(arguments) or 0
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        code = USAGE
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        code = 130
    except Exception as error:
        if debug:
            raise
        sys.stderr.write(f"error: {_told(error)}\n")
        code = FAILED
    sys.exit(code)


def _told(error: Exception) -> str:
    """A failure in words; those of the system begin with the file, as all others do."""
    if not isinstance(error, OSError) or not error.errno:
        return str(error) or type(error).__name__
    where = error.filename2 or error.filename or "a file"
    remedy = ". Free some and run the same command again" if error.errno in _FULL else ""
    return f"{where}: {(error.strerror or str(error)).lower()}{remedy}"


def choose_config(folder: Path, arguments: Sequence[str], usage: str) -> tuple[str, Any]:
    """The config value named by the first argument: a name in `configs/`, or a Python file.

    Raises:
        UsageError: there is none of that name; the message suggests the nearest.
    """
    names = config_names(folder)
    listed = f"configs: {', '.join(names)}"
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"which config?\n{usage}\n{listed}")
    name = arguments[0]
    if name.endswith(".py"):
        return Path(name).stem, _from_file(Path(name))
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"no config called {name!r}.{hint}\n{listed}")
    return name, importlib.import_module(f"configs.{name}").config


def config_names(folder: Path) -> list[str]:
    """What `choose_config` knows by name."""
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def _from_file(path: Path) -> Any:
    if not path.exists():
        raise UsageError(f"{path}: no such config file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "config"):
        raise UsageError(f"{path}: defines no value called `config`")
    return module.config


def _set_up() -> None:
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
    quiet = ("jax", "orbax", "transformers", "httpx", "huggingface_hub", "onnxscript", "onnx_ir")
    for name in quiet:
        logging.getLogger(name).setLevel(logging.ERROR)
    # Orbax logs, traceback and all, what it raises too; asyncio every write that failed with it.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Compiling takes longer than anything else a short run does; the next one finds it done.
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "edje_jax" / "jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    keep_freed_memory()
