"""`edje data`: look at a set, and pack it for training."""

import logging
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from edje_jax.cli.program import UsageError
from edje_jax.cli.progress import Bars
from edje_jax.data import pack as packing
from edje_jax.data.sources.registry import LINES, open_source
from edje_jax.data.statistics import Statistics, grid, quantiles, statistics
from edje_jax.system.files import atomic_path

log = logging.getLogger(__name__)

AT = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Quantiles that are shown."""
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}
SHOWN = 10
"""Bad records that are listed, of each kind."""


def stat(spec: str, image_root: str | None, look_at: int | None, grid_file: str | None) -> None:
    """Print what a set holds; write some of its images to `grid_file` if named.

    Raises:
        UsageError: `grid_file` is no image, or `look_at` is negative.
        FileNotFoundError, ValueError: the set cannot be opened.
    """
    if look_at is not None and look_at < 0:
        raise UsageError(f"--look-at {look_at}: give a number of images, or leave it out for all")
    if grid_file and Path(grid_file).suffix.lower() not in FORMATS:
        raise UsageError(f"--grid {grid_file}: name a file that ends in {', '.join(FORMATS)}")
    source = open_source(spec, image_root)
    with Bars() as bars:
        found = statistics(source, look_at, lambda done, total: bars.show("images", done, total))
    Console().print(_table(found))
    for records in (found.left_out, found.faults, found.bad):
        for name, reason in list(records.items())[:SHOWN]:
            log.warning("%s: %s", name, reason)
    if found.several_lines:
        log.info(
            "%d captions have several lines; if each line is a caption of its own, write %s after"
            " the SPEC", found.several_lines, LINES,
        )  # fmt: skip
    if grid_file:
        path = Path(grid_file).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            grid(source).save(temporary, FORMATS[path.suffix.lower()])
        log.info("%s: some of the images", path)


def pack(spec: str, out: str, image_root: str | None, shard_size: int) -> None:
    """Write a set as ArrayRecord shards, or go on with it.

    Raises:
        UsageError: `shard_size` is not positive.
        FileNotFoundError, ValueError: the set cannot be opened, or `out` holds another.
    """
    if shard_size < 1:
        raise UsageError(f"--shard-size {shard_size}: the least is 1")
    folder = Path(out).expanduser()
    with Bars() as bars:
        written, rejected = packing.pack(
            open_source(spec, image_root),
            folder,
            shard_size,
            lambda done, total: bars.show("images", done, total),
        )
    log.info("%s: %d images; read them as arrayrecord:%s/*.array_record", folder, written, folder)
    if rejected:
        log.warning("%d could not be read: %s", len(rejected), folder / "rejected.csv")


def _table(found: Statistics) -> Table:
    widths = Counter(width for width, _ in found.sizes)
    heights = Counter(height for _, height in found.sizes)
    table = Table(show_header=False)
    shares = ", ".join(f"{share:.0%}" for share in AT)
    each = sorted(found.captions_each.items())
    for name, value in (
        ("images", f"{found.images:,}"),
        ("places in an epoch", f"{found.places:,}"),
        ("different ids", f"{found.ids:,}"),
        ("captions", f"{found.captions:,}"),
        ("captions an image", ", ".join(f"{n}: {count:,}" for n, count in each)),
        (f"words a caption ({shares})", _quantiles(found.words_each)),
        ("images decoded", f"{len(found.sizes) + len(found.bad):,}"),
        (f"width ({shares})", _quantiles(widths)),
        (f"height ({shares})", _quantiles(heights)),
        ("could not be read", f"{len(found.bad):,}"),
        ("records left out", f"{len(found.left_out):,}"),
        ("images with bad captions", f"{len(found.faults):,}"),
    ):
        table.add_row(name, value)
    return table


def _quantiles(values: Counter[int]) -> str:
    return ", ".join(f"{value:,}" for value in quantiles(values, AT)) if values else "-"
