"""Folder of files that are kept between runs and can be made again."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path | None:
    """`~/.cache/edje_jax/NAME`, or where XDG_CACHE_HOME says; it need not exist.

    None where nothing can be kept: there is no home, or the folder cannot be made or written to.
    """
    base = cache_base()
    folder = base and base / name
    return folder if folder and can_be_written(folder) else None


def cache_base() -> Path | None:
    """Folder of all caches of this project, whether or not it can be written; None without a home.

    As the XDG base directory specification has it, an XDG_CACHE_HOME that is empty or no absolute
    path counts as not set.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        home = _home()
        if home is None:
            return None
        base = home / ".cache"
    return base / "edje_jax"


def _home() -> Path | None:
    """The user's home, if there is one."""
    try:
        home = Path.home()
    except RuntimeError:  # As in containers whose user has a number but no name
        return None
    # An empty HOME would be the root folder.
    named = os.environ.get("HOME") != "" and home.is_absolute()
    return home if named and os.path.isdir(home) else None


def can_be_written(folder: Path) -> bool:
    """Whether files can be put into a folder that may have to be made."""
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)
