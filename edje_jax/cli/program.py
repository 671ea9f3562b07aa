"""What every program shares: logging, one-line errors, exit codes, choosing a config."""

import contextlib
import ctypes
import difflib
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

USAGE = 2
FAILED = 1


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
        sys.stderr.write(f"error: {error or type(error).__name__}\n")
        code = FAILED
    sys.exit(code)


def choose_config(folder: Path, arguments: Sequence[str], usage: str) -> tuple[str, Any]:
    """The config value named by the first argument: a name in `configs/`, or a Python file.

    Raises:
        UsageError: there is none of that name; the message suggests the nearest.
    """
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
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
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname).1s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    # Libraries speak up at warning level; the project's own progress is at info.
    for name in ("absl", "jax", "orbax", "transformers", "httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Tell glibc not to hand freed buffers back to the system.

    On CPU, JAX frees and takes its largest buffers at every step; page faults would cost more
    than a tenth of the time. Other C libraries have no such call and need none.
    """
    if not sys.platform.startswith("linux"):
        return
    trim_threshold, mmap_threshold, a_gigabyte = -1, -3, 1 << 30
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, a_gigabyte)
        libc.mallopt(mmap_threshold, a_gigabyte)
