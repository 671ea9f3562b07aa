"""Build a token store from images: streaming, resumable, on one machine or many.

The images that an index lacks are cut into shards, and these into parts; a part is encoded in
memory and appended to the shard's files. A shard counts once its record `shard-00000.json` lies
beside it. When all are there, `manifest.json` takes them in. A build that was killed repeats at
most one part, and what it leaves does not depend on how often it was. A part of videos has as many
frames as one of images has images, so that no more of them is repeated, or held in memory.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from edje_jax.config.model import EmbeddingDtype, TokenDtype
from edje_jax.data.image_reader import cut_into
from edje_jax.index.caption_columns import caption_columns, code_column_types
from edje_jax.index.changes import Changes, compare
from edje_jax.index.changing import changing, has_same_shards
from edje_jax.index.commit import (
    Report,
    commit,
    finish,
    finished_parts,
    finished_records,
    keep_shard,
    record_of,
    refuse_many,
    with_shards,
)
from edje_jax.index.files import IndexFiles, files_of
from edje_jax.index.manifest import Manifest
from edje_jax.index.shard_content import RecordDecoder, encode
from edje_jax.index.shard_files import BadStore
from edje_jax.index.shard_writer import ShardWriter, clear_unfinished, parts_done, unfinished
from edje_jax.index.store import Store, check_model, next_number
from edje_jax.index.video_content import video_column_types
from edje_jax.runtimes.base import IMAGE_BATCH, Runtime
from edje_jax.system.allocator import give_back_freed_memory
from edje_jax.types import Source

log = logging.getLogger(__name__)

BATCH = IMAGE_BATCH
"""Images, or frames of videos, decoded together, and encoded in one call."""
SHARD_ROWS = 1 << 16
"""Most images of a shard."""
PART_ROWS = 1024
PART_BYTES = 64 << 20
"""Most images or frames, and most bytes of tokens, of a part of a shard, which is made in memory;
it has one video at least."""
BuildProgress = Callable[[int, int], None]
"""Function of (images done, images to do) of this process's share."""


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build."""

    token_dtype: TokenDtype = "bfloat16"
    embedding_dtype: EmbeddingDtype = "float32"
    metadata: tuple[str, ...] | None = None
    """Names of the values of the source that are kept, for filters; None: as the index has it."""
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
    out: str | os.PathLike[str] | IndexFiles,
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
    part, parts = options.share
    files = files_of(out)
    plan = begin(runtime, stamp, source, spec, files, options, parts)
    if part and not plan.shards:
        return None  # Only captions and paths are left to write; the first process writes them.
    mine = [n for n in plan.shards if (n - min(plan.shards)) % parts == part]
    rejected = encode_shards(runtime, plan, mine, files, options, progress)
    refuse_many(files, rejected, plan.changes, options.max_bad)
    return complete(runtime, plan, spec, files, options)


@dataclass(frozen=True)
class Plan:
    """Work of a build, as every process of it plans it."""

    manifest: Manifest
    """Manifest of the index as it is."""
    changes: Changes
    shards: dict[int, np.ndarray]
    """{number of a shard: records to encode}"""


def begin(
    runtime: Runtime,
    stamp: dict[str, Any],
    source: Source,
    spec: str,
    files: IndexFiles,
    options: BuildOptions,
    least_shards: int,
) -> Plan:
    """Plan a build, or go on with one; there are `least_shards`, if there are as many images.

    Raises:
        BadStore: as for `build`.
    """
    files.folder.mkdir(parents=True, exist_ok=True)
    while True:
        manifest = _manifest(runtime, stamp, spec, files, options)
        changes = compare(source, files, manifest, options.restore)
        with changing(files):
            now = _manifest(runtime, stamp, spec, files, options)
            if not has_same_shards(now, manifest) or _recover_previous_build(files, now, changes):
                continue  # Compared with what was there before
            return Plan(now, changes, _plan_shards(files, now, changes, least_shards))


def join(
    runtime: Runtime,
    stamp: dict[str, Any],
    source: Source,
    files: IndexFiles,
    options: BuildOptions,
) -> Plan:
    """Plan of a build that another process has begun.

    Raises:
        BadStore: it was begun with another model or data type, or from other images than this
            machine has.
    """
    manifest = _manifest(runtime, stamp, "", files, options)
    changes = compare(source, files, manifest, options.restore)
    return Plan(manifest, changes, _plan_shards(files, manifest, changes, 1))


def complete(
    runtime: Runtime, plan: Plan, spec: str, files: IndexFiles, options: BuildOptions
) -> Report | None:
    """Complete the index, if every shard is there; None if other processes' are not.

    Raises:
        TooManyBadRecords: as for `build`.
    """
    return finish(
        files, plan.manifest, plan.changes, list(plan.shards),
        spec=spec, max_bad=options.max_bad, prune=options.prune,
        embed=lambda captions: caption_columns(
            runtime.encode_texts(captions), plan.manifest.embedding_dtype
        ),
    )  # fmt: skip


def images_done(out: Path, plan: Plan, number: int) -> int:
    """Number of a shard's images that are encoded and stored."""
    if (out / record_of(number)).exists():
        return len(plan.shards[number])
    done = parts_done(out, number) * _part_rows(plan.manifest)
    return min(done, len(plan.shards[number]))


def encode_shards(
    runtime: Runtime,
    plan: Plan,
    numbers: Sequence[int],
    files: IndexFiles,
    options: BuildOptions,
    progress: BuildProgress | None = None,
) -> dict[str, str]:
    """Write what is missing of some shards; {id: why it is none of the index} so far.

    Raises:
        TooManyBadRecords: as for `build`.
    """
    manifest, changes = plan.manifest, plan.changes
    shards = {number: plan.shards[number] for number in numbers}
    done, total = 0, sum(map(len, shards.values()))

    def note(more: int) -> None:
        nonlocal done
        done += more
        if progress:
            progress(done, total)

    size = max(BATCH // max(manifest.frames, 1), 1)
    left, begun, finished = {}, {}, set(finished_records(files))
    for number, records in shards.items():
        cut, is_finished = cut_into(records, _part_rows(manifest)), record_of(number) in finished
        begin = len(cut) if is_finished else parts_done(files.folder, number)
        note(sum(map(len, cut[:begin])))
        if not is_finished:
            begun[number] = begin
            left[number] = [cut_into(records, size) for records in cut[begin:]]
    batches = [batch for cut in left.values() for part in cut for batch in part]
    decoder = RecordDecoder.of(changes.source, runtime.config)
    rejected = dict(changes.bad)
    # One stream for all shards: the next part's images are decoded while one is written.
    with closing(decoder.read(batches, options.workers)) as decoded:
        for number, cut in left.items():
            with ShardWriter(files.folder, number) as writer:
                if writer.parts != begun[number] or files.exists(record_of(number)):
                    raise BadStore(
                        f"{files}: another process has written shard {number} meanwhile; run the"
                        " same again, with a share for each process (--shard i/n)"
                    )
                for part in cut:
                    encoded = encode(runtime, changes, islice(decoded, len(part)), note)
                    rejected |= encoded.rejected
                    refuse_many(files, rejected, changes, options.max_bad)
                    columns = encoded.columns(manifest.token_dtype, manifest.embedding_dtype)
                    writer.append(
                        columns, encoded.rows, encoded.thumbnails, encoded.rejected, encoded.strips
                    )
                    give_back_freed_memory()
                keep_shard(files, writer, manifest.metadata)
    return rejected


def _part_rows(manifest: Manifest) -> int:
    """Most images or videos of a part of a shard."""
    most = min(PART_ROWS // max(manifest.frames, 1), PART_BYTES // manifest.bytes_per_image)
    return max(most, 1)


def _manifest(
    runtime: Runtime, stamp: dict[str, Any], spec: str, out: IndexFiles, options: BuildOptions
) -> Manifest:
    """Manifest of the index as it is, or of an empty one."""
    config = runtime.config
    fresh = Manifest(
        stamp,
        options.token_dtype,
        config.num_tokens,
        config.joint_encoder.hidden_size,
        config.backbone.text.projection_size,
        spec,
        embedding_dtype=options.embedding_dtype,
        metadata=options.metadata or (),
        columns={
            **code_column_types(config.first_stage.bits if config.first_stage else 0),
            **video_column_types(config.frames if config.video else 0),
        },
    )
    if not out.exists("manifest.json"):
        return fresh
    store = Store(out)
    check_model(store, stamp)
    found = store.manifest
    for name, kept, asked in (
        ("token", found.token_dtype, options.token_dtype),
        ("embedding", found.embedding_dtype, options.embedding_dtype),
    ):
        if kept != asked:
            raise BadStore(
                f"{out}: keeps {name}s as {kept}, asked for {asked}; give --{name}-dtype {kept},"
                " or build another index"
            )
    if options.metadata is not None:
        found = dataclasses.replace(found, metadata=options.metadata)
    return found


def _plan_shards(
    out: IndexFiles, manifest: Manifest, changes: Changes, least: int
) -> dict[int, np.ndarray]:
    """Assign the records to encode to shards, as an unfinished build of them did.

    Returns:
        {number of the shard: its records}.

    Raises:
        BadStore: it was begun with another model or data type.
    """
    first, records = next_number(manifest), changes.records
    plan = {
        "fingerprint": manifest.model["fingerprint"],
        "token_dtype": manifest.token_dtype,
        "embedding_dtype": manifest.embedding_dtype,
        "pictures": len(records),
        "digest": changes.digest,
        "first_shard": first,
        "metadata": list(manifest.metadata),
    }
    size = min(SHARD_ROWS, max(-(-len(records) // least), 1))
    if out.exists("build.json"):
        found = out.read_json("build.json")
        known = {"metadata": []} | found  # Older versions have none
        if changed := [name for name in plan if known.get(name) != plan[name]]:
            raise BadStore(
                f"{out}/build.json: an unfinished build of another kind ({', '.join(changed)}"
                " differ). Run its command to the end, or delete that file and every shard-* beside"
                " it"
            )
        size = int(found["shard_rows"])
    else:
        out.delete(out.names("shard-*.json"))
        clear_unfinished(out.folder)
        if len(records):
            out.write_json("build.json", plan | {"shard_rows": size})
    if len(records):
        out.begin(plan | {"shard_rows": size})
    starts = range(0, len(records), size)
    return {first + i: records[start : start + size] for i, start in enumerate(starts)}


def _recover_previous_build(out: IndexFiles, manifest: Manifest, changes: Changes) -> bool:
    """Take the finished shards of an earlier build into the index, or clear them away.

    A build may have been killed while it was being committed, or its set may have changed since:
    its finished shards are kept then, and the rest is planned anew.

    Returns:
        Whether the index has changed by that.
    """
    if not out.exists("build.json"):
        return False
    found = out.read_json("build.json")
    if found.get("first_shard", 0) < next_number(manifest):
        clear_unfinished(out.folder)
        out.delete([*out.names("shard-*.json"), "build.json"])
        return False
    same = found.get("fingerprint") == manifest.model["fingerprint"]
    dtypes = ("token_dtype", "embedding_dtype")
    if not same or any(found.get(name) != getattr(manifest, name) for name in dtypes):
        return False
    if (found["pictures"], found["digest"]) == (len(changes.stamps), changes.digest):
        return False
    log.info("%s: the images have changed since this build began; what is done is kept", out)
    out.begin(found)
    for number in unfinished(out.folder):
        with ShardWriter(out.folder, number) as writer:
            keep_shard(out, writer, manifest.metadata)
    parts = finished_parts(out)
    commit(out, manifest, with_shards(out, manifest, parts), parts)
    return True
