"""`edje index`: build an index of images and look after it."""

import dataclasses
import logging
import os
import time
from collections.abc import Iterator
from functools import partial

from rich.console import Console
from rich.table import Table

from edje_jax.cli.cluster import connect_to
from edje_jax.cli.first_stage_options import check_codes
from edje_jax.cli.program import UsageError
from edje_jax.cli.progress import Bars
from edje_jax.config.model import InferencePrecision
from edje_jax.data.images import has_videos
from edje_jax.data.sources.registry import open_source
from edje_jax.data.sources.texts import printable
from edje_jax.evaluate.first_stage import StageChoice
from edje_jax.first_stage.registry import MILVUS, find_first_stage
from edje_jax.index import build as building
from edje_jax.index import maintain
from edje_jax.index import store as stores
from edje_jax.index.commit import Report
from edje_jax.index.files import IndexFiles, LocalFiles, files_of
from edje_jax.index.first_stages import (
    Stamp,
    check_bits,
    extend_first_stage,
    publish_first_stage,
)
from edje_jax.index.manifest import Manifest
from edje_jax.index.metadata import check_names
from edje_jax.index.on_ray import Opened, build_on_ray
from edje_jax.index.shard_files import BadStore, kind_of
from edje_jax.index.stage_upkeep import stored_stages, verify_first_stages
from edje_jax.index.store import Store
from edje_jax.search.reranker import Reranker
from edje_jax.system.allocator import use_one_heap
from edje_jax.system.ray_cluster import machines

log = logging.getLogger(__name__)

LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("RANK", "WORLD_SIZE"),
)
"""Variables in which launchers number a process; Slurm's batch script is no process of a step."""


def build(
    model: str,
    images: str,
    out: str | IndexFiles,
    options: building.BuildOptions,
    shard: str | None = None,
    image_root: str | None = None,
    on: str | None = None,
    encoder_precision: InferencePrecision = "auto",
) -> bool:
    """Build an index, go on with one, or bring it up to its set; the share is that of `shard`, or
    all of it on the cluster `on`.

    Returns:
        Whether the index is complete; other shares may be missing.

    Raises:
        UsageError: `shard` is not i/n, or given with `on`; or the share that may be bad is none.
        BadStore: the index is another model's, or holds another build.
        TooManyBadRecords: too many images, or all, cannot be indexed.
        FileNotFoundError, ValueError: the model or the images cannot be opened.
    """
    if on and shard:
        raise UsageError(f"--on {on} --shard {shard}: a cluster builds all shares; leave one out")
    ray = connect_to(on) if on else None
    options = dataclasses.replace(options, share=(0, 1) if on else share_of(shard))
    try:
        check_names(options.metadata or ())
    except ValueError as error:
        raise UsageError(f"--metadata: {error}") from None
    if not 0 <= options.max_bad <= 1:
        raise UsageError(f"--max-bad {options.max_bad:g}: a share of the set, from 0 to 1")
    use_one_heap()
    spec = images
    if ":" not in images or os.path.isdir(os.path.expanduser(images)):
        spec = f"folder:{os.path.abspath(os.path.expanduser(images))}"
    files = files_of(out)
    if on and not isinstance(files, LocalFiles):
        raise UsageError(f"--out {files} --on {on}: give a folder that all machines see")
    opened = partial(_open, model, spec, image_root, encoder_precision)
    own = None if ray else opened()
    with Bars() as bars:
        show = _progress(bars)
        if own:
            report = building.build(*own, spec, files, options, show)
        else:
            report = build_on_ray(ray, machines(ray), opened, spec, files.folder, options, show)
    if report is None:
        log.info("this share is done; the index is complete when the others are")
    else:
        _tell(files, report, options.prune)
    return report is not None


def _progress(bars: Bars) -> building.BuildProgress:
    """Progress of a build as a bar; where there is no terminal, a line now and then."""
    began = last = time.monotonic()
    before: int | None = None

    def show(done: int, total: int) -> None:
        nonlocal last, before
        before = done if before is None else before  # Shards of an earlier call come at once
        bars.show("images", done, total)
        if not Console(stderr=True).is_terminal and time.monotonic() - last > 20:
            last = time.monotonic()
            rate = max(done - before, 1) / (last - began)
            left = (total - done) / rate
            log.info(
                "%d/%d images · %.1f a second · %d:%02d left",
                done, total, rate, left // 60, left % 60,
            )  # fmt: skip

    return show


def _open(
    model: str, spec: str, image_root: str | None, encoder_precision: InferencePrecision
) -> Opened:
    """Runtime and stamp of a model, and the images that it is to encode."""
    reranker = Reranker.from_pretrained(model, encoder_precision=encoder_precision)
    source = open_source(spec, image_root, reranker.config.image.size)
    if not reranker.config.video and has_videos(source):
        log.info("this model reads images: of each video it takes the frame in the middle")
    return reranker.runtime, reranker.stamp, source


def check_first_stage(model: str, name: str | None, bits: int | None) -> None:
    """Check the first stage that a build is to end with, before any image is encoded.

    Raises:
        UsageError: a length of codes without a first stage, or the model has no codes of that
            length.
        FileNotFoundError, ValueError: the model cannot be opened.
    """
    if name and name.startswith(MILVUS):
        check_codes(model, [StageChoice("codes", bits)] if bits else [])
    elif name:
        check_codes(model, [StageChoice(name, bits)])
    elif bits is not None:
        raise UsageError(f"--bits {bits}: goes with a --first-stage of codes")


def build_first_stage(index: str | IndexFiles, name: str, bits: int | None = None) -> None:
    """Build a first stage over images, and over captions where there are any, and keep it.

    Raises:
        BadStore: no finished index, a damaged one, or one without the codes that are asked for.
        ValueError: no codes of that length.
        ModuleNotFoundError: a library is not installed.
        OSError: an index behind a URL cannot be reached.
    """
    if name.startswith(MILVUS):
        return _build_in_milvus(Store(index), name, bits)
    if find_first_stage(name).reads != "codes" and bits is not None:
        check_bits(Store(index), name, bits)
    if not find_first_stage(name).is_stored:
        log.info("%s is built at every opening, from columns that are there: nothing to keep", name)
        return
    store = Store(index)
    for column in ("embeddings", "captions"):
        began = time.monotonic()
        if not len(store.column(column)):
            continue
        with Bars() as bars:
            show = partial(bars.show, "rows")
            stamp = extend_first_stage(store, name, column, bits, show)
        publish_first_stage(store, name, column, bits)
        log.info(
            "%s: %s over %s rows, %s bytes, %.0f s%s", store.files, name, f"{stamp.rows:,}",
            f"{stamp.file['bytes']:,}", time.monotonic() - began, _recall(stamp),
        )  # fmt: skip


def _build_in_milvus(store: Store, uri: str, bits: int | None) -> None:
    """Bring what Milvus holds of an index up to it."""
    from edje_jax.index.in_milvus import sync_to_milvus

    bits = check_bits(store, uri, bits)
    for column in ("embeddings", "captions"):
        if len(store.column(column)):
            done = sync_to_milvus(store, uri, column, bits)
            log.info(
                "%s: %s in %s: %s rows were there, %s added, %s deleted", store.files, column, uri,
                *(f"{count:,}" for count in done),
            )  # fmt: skip


def _recall(stamp: Stamp) -> str:
    """Words for the recall of an approximate first stage."""
    if not stamp.recall_at_100:
        return ""
    recall = stamp.recall_at_100[str(stamp.effort)]
    return f"; recall@100 {recall:.3f} with effort {stamp.effort}, asked by {stamp.asked_by}"


def _tell(files: IndexFiles, report: Report, prune: bool) -> None:
    """Say what a build found and did."""
    bad, store = report.rejected | report.faults, Store(files)
    rows = "videos" if store.frames else "images"
    log.info(
        "%s: %d %s (%d new, %d changed, %d with other captions, %d at another path, %d gone,"
        " %d removed, %d bad)",
        files, len(store), rows, len(report.new), len(report.changed), len(report.recaptioned),
        len(report.moved), len(report.gone), len(report.removed), len(bad),
    )  # fmt: skip
    for names, what in (
        (report.changed, "changed, encoded again"),
        (report.recaptioned, "captions changed"),
        (report.removed, "removed earlier, left out; --restore takes them in again"),
    ):
        if names:
            log.info("%s: %s", what, _some(names))
    if report.unstamped:
        log.warning(
            "%d %s were indexed by an older version, which kept neither sizes nor times: taken"
            " as unchanged, and compared from now on", report.unstamped, rows,
        )  # fmt: skip
    if report.gone:
        kept = "dropped" if prune else "still in the index; --prune drops them"
        log.warning("gone from the set, %s: %s", kept, _some(report.gone))
    if bad:
        parts = {"could not be read": report.rejected, "left out, or in part": report.faults}
        told = ", ".join(f"{len(each)} {what}" for what, each in parts.items() if each)
        log.warning("%s, %s: %s", told, f"{files}/rejected.csv", _some(list(bad)))


def _some(names: list[str], most: int = 10) -> str:
    """A list's first names, and how many more there are."""
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def share_of(shard: str | None) -> tuple[int, int]:
    """ "i/n" -> (i, n); None means this process of a cluster's, or the only one."""
    if not shard:
        for rank, size in LAUNCHERS:
            if rank in os.environ and int(os.environ.get(size, 1)) > 1:
                part, parts = int(os.environ[rank]), int(os.environ[size])
                log.info("share %d/%d, as %s and %s say", part, parts, rank, size)
                return part, parts
        return 0, 1
    part, slash, parts = shard.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise UsageError(f"--shard {shard}: write i/n with i from 0 to n - 1, such as 0/4")
    return int(part), int(parts)


def info(index: str | IndexFiles) -> None:
    """Print what an index holds.

    Raises:
        BadStore: no finished index, or a damaged one.
    """
    store = Store(index)
    manifest = store.manifest
    sizes: dict[str, int] = {}
    for record in manifest.shards:
        for name, file in record["files"].items():
            kind = kind_of(name)
            sizes[kind] = sizes.get(kind, 0) + file["bytes"]
    table = Table(show_header=False)
    tokens = f"{manifest.num_tokens} x {manifest.width} {manifest.token_dtype}"
    item = "a video" if store.frames else "an image"
    if deferred := manifest.model.get("deferred_layers", 0):
        tokens += f" after {deferred} deferred layers"
    for name, value in (
        ("videos" if store.frames else "images", f"{len(store):,}"),
        ("captions", f"{len(store.captions):,}"),
        ("removed", f"{len(manifest.removed):,}"),
        ("rejected", f"{len(manifest.rejected):,}"),
        ("with faults", f"{len(manifest.faults):,}"),
        ("shards", f"{len(manifest.shards):,}"),
        *((("frames", f"up to {store.frames} of a video"),) if store.frames else ()),
        ("tokens", f"{tokens}, {manifest.bytes_per_image:,} bytes {item}"),
        ("embeddings", f"{manifest.embedding_size} {manifest.embedding_dtype}"),
        *((("metadata", ", ".join(manifest.metadata)),) if manifest.metadata else ()),
        *((f"first stage {name}", told) for name, told in _first_stages(store)),
        ("read from", printable(manifest.spec)),
        ("model", printable(f"{manifest.model['source']} ({manifest.model['fingerprint']})")),
        *((f"{kind} on disk", f"{size / 1e6:,.1f} MB") for kind, size in sizes.items()),
    ):
        table.add_row(name, value)
    Console().print(table, markup=False)  # Paths may hold brackets


def _first_stages(store: Store) -> Iterator[tuple[str, str]]:
    """(name, what there is to say) of every stored first stage."""
    for folder, _, stamp in stored_stages(store):
        told = "damaged, or of another version; it is built anew"
        if stamp is not None:
            told = f"{stamp.rows:,} rows, {stamp.file['bytes'] / 1e6:,.1f} MB{_recall(stamp)}"
        *part, _, name, column = folder.split("/")
        yield ", ".join((name, column, *part[1:])), told


def verify(index: str | IndexFiles) -> None:
    """Check every file's checksum, those of stored first stages too.

    Raises:
        BadStore: a file is not as it was written, or there is no finished index.
    """
    files = files_of(index)
    if wrong := [*stores.verify(files), *verify_first_stages(files)]:
        listed = "\n".join(f"  {files}/{name}: {what}" for name, what in wrong)
        raise BadStore(f"{files}: {len(wrong)} damaged; build the index again:\n{listed}")
    count = sum(len(record["files"]) for record in Manifest.read(files).shards)
    Console().print(f"{count} files are as they were written")


def remove(index: str | IndexFiles, ids: tuple[str, ...]) -> None:
    """Take images out of an index.

    Raises:
        UsageError: none is named.
        BadStore: one is not in the index.
    """
    if not ids:
        raise UsageError("which images? Give their ids")
    count = maintain.remove(index, list(ids))
    told = f"{count} removed; `edje index compact {printable(str(index))}` gives their room back"
    Console().print(told, markup=False, soft_wrap=True)


def compact(index: str | IndexFiles) -> None:
    """Give the room of removed images back.

    Raises:
        BadStore: no finished index.
    """
    count = maintain.compact(index)
    Console().print(f"the room of {count} images that counted no more was given back")
