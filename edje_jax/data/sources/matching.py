"""Which files a pattern names: `{00000..00331}`, `{a,b}`, and the shell's wildcards."""

import glob
import itertools
import logging
import os
import re
from collections.abc import Sequence

from etils import epath

from edje_jax.data.sources.texts import in_a_line, printable

log = logging.getLogger(__name__)

_OWN = (".index.npz", ".tmp")
"""Endings of files that this library writes beside the user's."""
_BRACES = re.compile(r"\{([^{}]*)\}")


def matching_files(pattern: str, suffix: str) -> list[str]:
    """The files that a pattern names, in its order; those of a wildcard are sorted.

    Of what a wildcard fits, files that end in `suffix` are taken if there are any: lists, indices
    and statistics often lie beside them.

    Ranges keep their width, as in `{000..012}`. Wildcards of remote folders (`gs://...`) may stand
    in the file's name alone.

    Raises:
        FileNotFoundError: a name or wildcard fits no file; a folder was named.
        ValueError: a range is empty.
    """
    names = expand(os.path.expanduser(pattern))
    files = [file for name in names for file in _globbed(name, pattern, suffix)]
    return list(dict.fromkeys(files))


def short_names(files: Sequence[str]) -> list[str]:
    """Each file's path below the folder that all share, without its extension, printable.

    Sets in several folders often call their files the same.
    """
    paths = [os.path.abspath(file) for file in files]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [printable(os.path.splitext(os.path.relpath(path, common))[0]) for path in paths]


def modified(file: str) -> int:
    """When a file was last written, in nanoseconds; 0 of a remote one.

    It stands beside the name where open files are kept, as another may come to have that name.
    """
    return 0 if "://" in file else os.stat(file).st_mtime_ns


def expand(pattern: str) -> list[str]:
    """Every way to fill a pattern's braces, the last ones turning fastest."""
    parts = _BRACES.split(pattern)
    choices = [[part] if i % 2 == 0 else _choices(part) for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(inner: str) -> list[str]:
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        first, last = numbers.groups()
        if int(first) > int(last):
            raise ValueError(f"{{{inner}}}: an empty range; write the smaller number first")
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        return [f"{i:0{width}d}" for i in range(int(first), int(last) + 1)]
    return inner.split(",") if "," in inner else [f"{{{inner}}}"]


def _globbed(path: str, pattern: str, suffix: str) -> list[str]:
    # As a name first: a folder may be called "[old]".
    if "://" not in path and os.path.exists(path):
        found = [path]
    else:
        found = _fitting(path)
        wanted = [file for file in found if file.endswith(suffix)]
        if wanted and (others := len(found) - len(wanted)):
            log.info("%s: %d files that do not end in %s passed over", path, others, suffix)
        found = wanted or [file for file in found if not file.endswith(_OWN)]
    if not found:
        told = path if path == pattern else f"{path} (of {pattern})"
        raise FileNotFoundError(f"{told}: no such file")
    for file in found:
        if "://" not in file and os.path.isdir(file):
            raise FileNotFoundError(
                f"{file}: a folder; name the files in it, as in {os.path.join(file, f'*{suffix}')}"
            )
    return found


def _fitting(path: str) -> list[str]:
    if "://" not in path:
        return sorted(glob.glob(path, recursive=True))
    folder, name = os.path.split(path)
    try:
        return sorted(os.fspath(file) for file in epath.Path(folder).glob(name))
    except Exception as error:  # The library raises several kinds
        raise ValueError(
            f"{path}: cannot be looked through ({in_a_line(error)}); of remote files only those of"
            " gs://... are read, so download others first"
        ) from error
