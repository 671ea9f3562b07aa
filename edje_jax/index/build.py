"""Build a token store from images: streaming, resumable, on one machine or many.

The images that an index lacks are cut into shards of a fixed number; a shard is encoded in
memory, written whole, and counts once its record `shard-00000.json` lies beside it. When all are
there, `manifest.json` takes them in. A build that was killed repeats at most one shard, and what it
leaves does not depend on how often it was.
"""

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from edje_jax.config.model import TokenDtype
from edje_jax.data.image_reader import cut_into, read_batches
from edje_jax.index.caption_columns import caption_columns, code_column_types
from edje_jax.index.changes import Changes, compare
from edje_jax.index.commit import Report, commit, finish, record_of, refuse_many, with_shards
from edje_jax.index.manifest import Manifest
from edje_jax.index.shard_content import RecordDecoder, encode
from edje_jax.index.shard_files import BadStore, write_shard
from edje_jax.index.store import Store, check_model, next_number
from edje_jax.runtimes.base import IMAGE_BATCH, Runtime
from edje_jax.system.allocator import give_back_freed_memory
from edje_jax.system.files import read_json, write_json
from edje_jax.types import Source

log = logging.getLogger(__name__)

BATCH = IMAGE_BATCH
"""Images decoded together, and encoded in one call."""
SHARD_ROWS = 1024
SHARD_BYTES = 64 << 20
"""Most images, and most bytes of tokens, of a shard: it is built in memory."""
BuildProgress = Callable[[int, int], None]
"""Function of (images done, images to do) of this process's share."""


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build."""

    token_dtype: TokenDtype = "bfloat16"
    share: tuple[int, int] = (0, 1)
    """(i, n): this process builds every n-th shard, from the i-th on."""
    workers: int = 0
    """Processes that decode images; 0 uses threads of this one."""
    max_bad: float = 1.0
    """Share of the source's images that may be bad; if all are, it is an error anyway."""
    prune: bool = False
    """Drop images that are gone from the source, which else keep answering."""
    restore: bool = False
    """Take removed images in again."""


def build(
    runtime: Runtime,
    stamp: dict[str, Any],
    source: Source,
    spec: str,
    out: Path,
    options: BuildOptions = BuildOptions(),
    progress: BuildProgress | None = None,
) -> Report | None:
    """Bring an index up to a source; None if other shares are missing, so that it is not complete.

    Of several processes, the last one to finish completes the index. Images that are as they were
    indexed are left as they are. `stamp` is the model's that `runtime` runs
    (`weights.model_stamp`).

    Raises:
        BadStore: the index is another model's or token dtype's, or a build of other images was
            begun in it.
        TooManyBadRecords: more images than may be are bad, or all of them; the index is as it was.
    """
    out.mkdir(parents=True, exist_ok=True)
    manifest = _manifest(runtime, stamp, spec, out, options.token_dtype)
    manifest, changes = _recover_previous_build(
        out, manifest, lambda now: compare(source, out, now, options.restore)
    )
    shards = _plan_shards(out, manifest, changes)
    part, parts = options.share
    if part and not shards:
        return None  # Only captions and paths are left to write; the first process writes them.
    mine = [number for number in shards if (number - min(shards)) % parts == part]
    done, total = 0, sum(len(shards[number]) for number in mine)

    def note(more: int) -> None:
        nonlocal done
        done += more
        if progress:
            progress(done, total)

    finished = {number for number in mine if record_of(out, number).exists()}
    note(sum(len(shards[number]) for number in finished))
    left = {n: cut_into(shards[n], BATCH) for n in mine if n not in finished}
    batches = [batch for cut in left.values() for batch in cut]
    decoder = RecordDecoder(source, runtime.config.image)
    rejected = dict(changes.bad)
    # One stream for all shards: the next one's images are decoded while one is written.
    with closing(read_batches(decoder, batches, options.workers)) as decoded:
        for number, cut in left.items():
            encoded = encode(runtime, changes, islice(decoded, len(cut)), note)
            rejected |= encoded.rejected
            refuse_many(out, rejected, changes, options.max_bad)
            columns = encoded.columns(options.token_dtype)
            record = write_shard(out, number, columns, encoded.rows, encoded.thumbnails)
            write_json(record_of(out, number), {"shard": record, "rejected": encoded.rejected})
            give_back_freed_memory()
    return finish(
        out, manifest, changes, list(shards),
        spec=spec, max_bad=options.max_bad, prune=options.prune,
        embed=lambda captions: caption_columns(runtime.encode_texts(captions)),
    )  # fmt: skip


def _manifest(
    runtime: Runtime, stamp: dict[str, Any], spec: str, out: Path, token_dtype: TokenDtype
) -> Manifest:
    """Manifest of the index as it is, or of an empty one."""
    config = runtime.config
    fresh = Manifest(
        stamp,
        token_dtype,
        config.num_tokens,
        config.joint_encoder.hidden_size,
        config.backbone.text.projection_size,
        spec,
        columns=code_column_types(config.first_stage.bits if config.first_stage else 0),
    )
    if not (out / "manifest.json").exists():
        return fresh
    store = Store(out)
    check_model(store, stamp)
    found = store.manifest
    if found.token_dtype != token_dtype:
        raise BadStore(
            f"{out}: keeps tokens as {found.token_dtype}, asked for {token_dtype}; give"
            f" --token-dtype {found.token_dtype}, or build another index"
        )
    return found


def _plan_shards(out: Path, manifest: Manifest, changes: Changes) -> dict[int, np.ndarray]:
    """Assign the records to encode to shards, as an unfinished build of them did.

    Returns:
        {number of the shard: its records}.

    Raises:
        BadStore: it was begun with another model or token dtype.
    """
    first, records = next_number(manifest), changes.records
    size = min(SHARD_ROWS, max(SHARD_BYTES // manifest.bytes_per_image, 1))
    plan = {
        "fingerprint": manifest.model["fingerprint"],
        "token_dtype": manifest.token_dtype,
        "pictures": len(records),
        "digest": changes.digest,
        "first_shard": first,
        "shard_rows": size,
    }
    begun = out / "build.json"
    if begun.exists():
        found = read_json(begun)
        if changed := [name for name in plan if found.get(name) != plan[name]]:
            raise BadStore(
                f"{begun}: an unfinished build of another kind ({', '.join(changed)} differ). Run"
                " its command to the end, or delete that file and every shard-*.json beside it"
            )
    else:
        for stale in out.glob("shard-*.json"):
            stale.unlink(missing_ok=True)
        if len(records):
            write_json(begun, plan)
    starts = range(0, len(records), size)
    return {first + i: records[start : start + size] for i, start in enumerate(starts)}


def _recover_previous_build(
    out: Path, manifest: Manifest, compared: Callable[[Manifest], Changes]
) -> tuple[Manifest, Changes]:
    """Take the finished shards of an earlier build into the index, or clear them away.

    Returns:
        The manifest after that, and the changes left to make.

    A build may have been killed while it was being committed, or its set may have changed since:
    its finished shards are kept then, and the rest is planned anew.
    """
    begun, changes = out / "build.json", compared(manifest)
    if not begun.exists():
        return manifest, changes
    found = read_json(begun)
    if found.get("first_shard", 0) < next_number(manifest):
        for path in (begun, *out.glob("shard-*.json")):
            path.unlink(missing_ok=True)
        return manifest, changes
    same = found.get("fingerprint") == manifest.model["fingerprint"]
    if not same or found.get("token_dtype") != manifest.token_dtype:
        return manifest, changes
    if (found["pictures"], found["digest"]) == (len(changes.stamps), changes.digest):
        return manifest, changes
    log.info("%s: the images have changed since this build began; what is done is kept", out)
    parts = [read_json(path) for path in sorted(out.glob("shard-*.json"))]
    now = with_shards(out, manifest, parts)
    commit(out, manifest, now, parts)
    return now, compared(now)
