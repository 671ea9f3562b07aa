"""Pictures -> token store: streaming, resumable, on one machine or many.

The pictures that an index lacks are cut into shards of a fixed number; a shard is encoded in
memory, written whole, and counts once its record `shard-00000.json` lies beside it. When all are
there, `manifest.json` takes them in. A build that was killed repeats at most one shard, and what it
leaves does not depend on how often it was.
"""

import csv
import dataclasses
import hashlib
import io
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image

from edje_jax.allocator import give_back_freed_memory
from edje_jax.config import ImageRecipe
from edje_jax.data.bad_pictures import BadPictures
from edje_jax.data.encoding import image_of
from edje_jax.data.images import BadImage, resize
from edje_jax.data.loader import iterate
from edje_jax.inference.dual import IMAGE_BATCHES
from edje_jax.inference.engine import Encoded
from edje_jax.models.token_formats import TokenDtype, pack
from edje_jax.retrieval.reranker import Reranker
from edje_jax.retrieval.store import (
    BadStore,
    Manifest,
    Row,
    Store,
    check_model,
    known_ids,
    next_number,
    write_shard,
)
from edje_jax.types import OnDisk, Source
from edje_jax.weights.files import read_json, replacing, write_json

log = logging.getLogger(__name__)

BATCH = max(IMAGE_BATCHES)
"""Pictures decoded together, and encoded in one call."""
SHARD_ROWS = 1024
SHARD_BYTES = 64 << 20
"""Most pictures, and most bytes of tokens, of a shard: it is built in memory."""
THUMBNAIL = 256
"""Longest side of a thumbnail in pixels."""

Progress = Callable[[int, int], None]
"""Called with (pictures done, pictures to do), of this process's share."""


@dataclass(frozen=True)
class Todo:
    """The pictures that an index lacks, each once."""

    records: Int[np.ndarray, " n"]
    """The source's first record of each."""
    also: dict[int, list[int]]
    """More records of a picture, by its first."""
    digest: str

    @classmethod
    def of(cls, source: Source, known: set[str]) -> "Todo":
        """What of a source is not known yet. Records with one id show one picture."""
        first: dict[str, int] = {}
        also: dict[int, list[int]] = defaultdict(list)
        digest = hashlib.sha256()
        for record in range(len(source)):
            name = source.image_id(record)
            if name in known:
                continue
            if (before := first.setdefault(name, record)) != record:
                also[before].append(record)
            digest.update(json.dumps([name, list(source.captions(record))]).encode())
        records = np.fromiter(first.values(), np.int64, len(first))
        return cls(records, dict(also), digest.hexdigest()[:32])

    def captions(self, source: Source, record: int) -> list[str]:
        """All captions of a picture, each once."""
        records = [record, *self.also.get(record, [])]
        return list(dict.fromkeys(text for r in records for text in source.captions(r)))


@dataclass(frozen=True)
class Decoded:
    """A few pictures, ready to be encoded."""

    records: list[int]
    images: np.ndarray
    thumbnails: list[bytes]


@dataclass(frozen=True)
class Pictures:
    """Random access to batches of records of a source, for worker processes."""

    source: Source
    batches: list[np.ndarray]
    recipe: ImageRecipe

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[tuple[Decoded, dict[int, str]], dict[str, str]]:
        """((what could be read, {bad record: reason}), nothing to warn of)."""
        good: list[int] = []
        images, thumbnails, bad = [], [], {}
        for record in self.batches[index].tolist():
            try:
                self.source.image_id(record).encode()
            except UnicodeEncodeError:
                bad[record] = "its name is not UTF-8; rename it"
                continue
            try:
                picture = image_of(self.source, record, self.recipe)
            except BadImage as error:
                bad[record] = str(error)
                continue
            good.append(record)
            images.append(resize(picture, self.recipe))
            thumbnails.append(thumbnail(picture))
        side = self.recipe.size
        stacked = np.stack(images) if images else np.empty((0, side, side, 3), np.uint8)
        return (Decoded(good, stacked, thumbnails), bad), {}


def thumbnail(picture: Image.Image) -> bytes:
    """A picture within THUMBNAIL x THUMBNAIL as a JPEG file."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
    return out.getvalue()


def build(
    reranker: Reranker,
    source: Source,
    spec: str,
    out: Path,
    *,
    token_dtype: TokenDtype = "bfloat16",
    share: tuple[int, int] = (0, 1),
    workers: int = 0,
    progress: Progress | None = None,
) -> bool:
    """Bring an index up to a source; True if it is complete, False if other shares are missing.

    Of n processes with share (i, n), each builds every n-th shard, and the last one to finish
    completes the index. Pictures that the index has already are left as they are.

    Raises:
        BadStore: the index is another model's or token dtype's, or a build of other pictures was
            begun in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    manifest = _manifest(reranker, spec, out, token_dtype)

    def missing(manifest: Manifest) -> Todo:
        return Todo.of(source, known_ids(out, manifest))

    manifest = _settle(out, manifest, missing)
    todo = missing(manifest)
    shards = _begin(out, manifest, todo)
    part, parts = share
    mine = [number for number in shards if (number - min(shards)) % parts == part]
    done, total = 0, sum(len(shards[number]) for number in mine)

    def note(more: int) -> None:
        nonlocal done
        done += more
        if progress:
            progress(done, total)

    paths = {number: out / f"shard-{number:05d}.json" for number in mine}
    note(sum(len(shards[number]) for number, path in paths.items() if path.exists()))
    left = {number: _cut(shards[number]) for number, path in paths.items() if not path.exists()}
    batches = [batch for cut in left.values() for batch in cut]
    pictures = Pictures(source, batches, reranker.config.image)
    # One stream for all shards: the next one's pictures are decoded while one is written.
    with closing(iterate(pictures, 0, BadPictures(0, 0.0), workers)) as decoded:
        for number, cut in left.items():
            built = _encode(reranker, source, todo, islice(decoded, len(cut)), note)
            rows, tokens = built.rows, pack(built.tokens, token_dtype)
            record = write_shard(
                out, number, tokens, built.embeddings, built.captions, rows, built.thumbnails
            )
            write_json(paths[number], {"shard": record, "rejected": built.rejected})
            give_back_freed_memory()
    return _commit(out, manifest, list(shards)) if shards else True


def _cut(records: np.ndarray) -> list[np.ndarray]:
    return [records[start : start + BATCH] for start in range(0, len(records), BATCH)]


def _manifest(reranker: Reranker, spec: str, out: Path, token_dtype: TokenDtype) -> Manifest:
    """The index's so far, or that of an empty one."""
    config = reranker.config
    fresh = Manifest(
        reranker.stamp,
        token_dtype,
        config.num_tokens,
        config.joint_encoder.hidden_size,
        config.backbone.text.projection_size,
        spec,
    )
    if not (out / "manifest.json").exists():
        return fresh
    store = Store(out)
    check_model(store, reranker.stamp)
    found = store.manifest
    if found.token_dtype != token_dtype:
        raise BadStore(
            f"{out}: keeps tokens as {found.token_dtype}, asked for {token_dtype}; give"
            f" --token-dtype {found.token_dtype}, or build another index"
        )
    return found


def _printable(name: str) -> str:
    """A name that is not UTF-8, with its odd bytes escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def _begin(out: Path, manifest: Manifest, todo: Todo) -> dict[int, np.ndarray]:
    """{shard: its records}; what a build left that was begun here is taken up.

    Raises:
        BadStore: it was begun with another model or token dtype.
    """
    first = next_number(manifest)
    size = min(SHARD_ROWS, max(SHARD_BYTES // manifest.bytes_per_picture, 1))
    plan = {
        "fingerprint": manifest.model["fingerprint"],
        "token_dtype": manifest.token_dtype,
        "pictures": len(todo.records),
        "digest": todo.digest,
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
        if len(todo.records):
            write_json(begun, plan)
    starts = range(0, len(todo.records), size)
    return {first + i: todo.records[start : start + size] for i, start in enumerate(starts)}


def _settle(out: Path, manifest: Manifest, todo: Callable[[Manifest], Todo]) -> Manifest:
    """Take in, or clear away, what an earlier build left; the manifest after that.

    A build may have been killed while it was being committed, or its set may have changed since:
    its finished shards are kept then, and the rest is planned anew.
    """
    begun = out / "build.json"
    if not begun.exists():
        return manifest
    found = read_json(begun)
    first = next_number(manifest)
    if found.get("first_shard", 0) < first:
        for path in (begun, *out.glob("shard-*.json")):
            path.unlink(missing_ok=True)
        return manifest
    same = found.get("fingerprint") == manifest.model["fingerprint"]
    if not same or found.get("token_dtype") != manifest.token_dtype:
        return manifest
    now = todo(manifest)
    if (found["pictures"], found["digest"]) == (len(now.records), now.digest):
        return manifest
    log.info("%s: the pictures have changed since this build began; what is done is kept", out)
    finished = sorted(int(path.stem.split("-")[1]) for path in out.glob("shard-*.json"))
    _commit(out, manifest, finished)
    return Manifest.read(out)


@dataclass(frozen=True)
class Built:
    """A shard's content."""

    rows: list[Row]
    tokens: np.ndarray
    embeddings: np.ndarray
    captions: np.ndarray
    thumbnails: list[bytes]
    rejected: dict[str, str]


def _encode(
    reranker: Reranker,
    source: Source,
    todo: Todo,
    batches: Iterable[tuple[Decoded, dict[int, str]]],
    note: Callable[[int], None],
) -> Built:
    parts: list[Encoded] = []
    thumbnails: list[bytes] = []
    rows: list[Row] = []
    rejected: dict[str, str] = {}
    each = reranker.engine.encode_each(batches, lambda batch: batch[0].images)
    for (decoded, bad), encoded in each:
        parts.append(encoded)
        thumbnails += decoded.thumbnails
        for record in decoded.records:
            path = os.path.abspath(source.path(record)) if isinstance(source, OnDisk) else ""
            captions = todo.captions(source, record)
            rows.append(Row(source.image_id(record), path, captions, (0, 0)))
        rejected |= {_printable(source.image_id(record)): why for record, why in bad.items()}
        note(len(decoded.records) + len(bad))
    return Built(
        rows,
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.embeddings for part in parts]),
        reranker.engine.embed_texts([caption for row in rows for caption in row.captions]),
        thumbnails,
        rejected,
    )


def _commit(out: Path, manifest: Manifest, numbers: list[int]) -> bool:
    """Make all shards of a build count at once, if all are there."""
    paths = [out / f"shard-{number:05d}.json" for number in numbers]
    try:
        built = [read_json(path) for path in paths]
    except FileNotFoundError:
        # Another process's are missing; or it was the last, and has just taken them all in.
        return not (out / "build.json").exists()
    if (out / "manifest.json").exists():
        # Pictures may have been removed while this ran.
        manifest = dataclasses.replace(manifest, removed=Manifest.read(out).removed)
    rejected = manifest.rejected
    for part in built:
        rejected = rejected | part["rejected"]
    records = [part["shard"] for part in built if part["shard"]["rows"]]
    manifest = dataclasses.replace(manifest, shards=(*manifest.shards, *records))
    # One that could not be read before may have been mended since.
    known = known_ids(out, manifest)
    still = {name: reason for name, reason in rejected.items() if name not in known}
    manifest = dataclasses.replace(manifest, rejected=still)
    listed = out / "rejected.csv"
    with replacing(listed) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "reason"), *still.items()])
    manifest.write(out)
    empty = [part["shard"]["files"] for part in built if not part["shard"]["rows"]]
    made = [name for names in empty for name in names]
    # The plan goes last: until then, the next build finds and clears what a killed one left.
    cut_short = [path.name for path in out.glob("*.tmp")]
    for name in (*made, *cut_short, *(path.name for path in paths), "build.json"):
        (out / name).unlink(missing_ok=True)
    return True
