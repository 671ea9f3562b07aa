"""Where what can be made again is kept between runs."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """`~/.cache/edje_jax/NAME`, or where XDG_CACHE_HOME says; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "edje_jax" / name
