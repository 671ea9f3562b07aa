"""`--data.exclude`: images of one set left out of another, told by their pixels.

Two files that decode to the same pixels are the same image, whatever their names, ids and
formats; one that was scaled or compressed anew is another. Hashing decodes every image of both
sets once (measured in benchmarks/results/data.json), and the hashes are kept.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import PIL
from jaxtyping import Bool, Int64, UInt8
from PIL import features

from edje_jax.config.run import DataConfig
from edje_jax.data.bad_records import are_too_many, left_out
from edje_jax.data.feature_cache import dataset_stamp
from edje_jax.data.image_reader import cut_into, read_batches
from edje_jax.data.sources.mixture import Mixture
from edje_jax.data.sources.subset import Subset
from edje_jax.system.cache_folder import cache_folder
from edje_jax.system.files import atomic_path
from edje_jax.types import Source

log = logging.getLogger(__name__)

VERSION = 1
"""Version of the hashes; those of another version are made anew."""
BYTES = 16
"""Bytes that are kept of an image's SHA-256."""


def without(train: Source, excluded: Source, data: DataConfig, image_size: int) -> Source:
    """Leave the images of `data.exclude` out of `data.train`, and log how many they were.

    Of a mixture each part loses its own before they are mixed, so that the shares hold.

    Raises:
        ValueError: nothing is left of a part, or more of the excluded images than `data.max_bad`
            allows cannot be read.
    """
    spec = data.exclude or ""
    setting = [os.path.abspath(os.path.expanduser(data.image_root or "")), image_size]
    found = [pixel_hashes(part, [name, *setting]) for name, part in _parts(excluded, spec)]
    lost = np.zeros((len(left_out(excluded)), BYTES), np.uint8)
    unwanted = _readable(np.concatenate([*found, lost]), data)
    left = [
        _without(part, pixel_hashes(part, [name, *setting]), unwanted, name, spec)
        for name, part in _parts(train, data.train)
    ]
    return train.of(left) if isinstance(train, Mixture) else left[0]


def _parts(source: Source, spec: str) -> list[tuple[str, Source]]:
    """(name, set) of each: a mixture repeats images, its parts do not."""
    if isinstance(source, Mixture):
        return list(zip(source.prefixes, source.sources, strict=True))
    return [(spec, source)]


def _readable(hashes: UInt8[np.ndarray, "n 16"], data: DataConfig) -> set[bytes]:
    """Hashes of the excluded images that can be read, which most of them must be."""
    there: Bool[np.ndarray, " n"] = np.any(hashes, axis=1)
    if missing := int((~there).sum()):
        told = f"--data.exclude {data.exclude}: {missing} of {len(there)} images cannot be read"
        if missing == len(there) or are_too_many(missing, len(there), data.max_bad):
            raise ValueError(f"{told}, so they cannot be left out; check --data.image-root")
        log.warning("%s; they are not left out", told)
    return {row.tobytes() for row in hashes[there]}


def _without(
    train: Source, hashes: UInt8[np.ndarray, "n 16"], unwanted: set[bytes], name: str, excluded: str
) -> Source:
    kept = np.array([row.tobytes() not in unwanted for row in hashes], bool)
    log.info(
        "%d of %d images of %s left out: they are in %s", (~kept).sum(), len(kept), name, excluded
    )
    if not kept.any():
        raise ValueError(
            f"--data.exclude {excluded}: it has every image of {name}; leave one of them out"
        )
    return Subset(train, kept)


def pixel_hashes(source: Source, name: Sequence[object]) -> UInt8[np.ndarray, "n 16"]:
    """A hash of the pixels of every image; zeros for one that cannot be read.

    They are kept in `~/.cache/edje_jax/pixels/`, and those that could not be read are tried again.
    Sets are told apart by `name`, ids and captions: delete that folder if images changed under
    the same names.
    """
    # Another decoder may make other pixels of the same file.
    decoders = [VERSION, PIL.__version__, features.version("jpg")]
    stamp = json.dumps([*name, dataset_stamp(source)[0], decoders])
    cache = cache_folder("pixels")
    path = cache / f"{hashlib.sha256(stamp.encode()).hexdigest()[:32]}.npy" if cache else None
    hashes = _kept(path, len(source))
    missing = np.flatnonzero(~hashes.any(axis=1))
    if len(missing):
        _hash_into(hashes, source, missing, str(name[0]))
        if hashes[missing].any() and path:
            _keep(path, hashes)
    return hashes


def _kept(path: Path | None, count: int) -> UInt8[np.ndarray, "n 16"]:
    """Hashes that were kept; zeros for images without one."""
    if path and path.exists():
        try:
            hashes = np.load(path, allow_pickle=False)
            if hashes.shape == (count, BYTES) and hashes.dtype == np.uint8:
                return hashes
        except Exception as error:  # A damaged file makes NumPy raise nearly anything
            log.warning("%s: damaged (%s); made anew", path, error)
    return np.zeros((count, BYTES), np.uint8)


def _hash_into(
    hashes: UInt8[np.ndarray, "n 16"], source: Source, records: Int64[np.ndarray, " m"], name: str
) -> None:
    """Write the hash of each record that can be read into its row."""
    done, last = 0, time.monotonic()
    for batch in read_batches(partial(_hash, source), cut_into(records)):
        if batch.records:
            hashes[batch.records] = batch.values
        done += len(batch.records) + len(batch.bad)
        if time.monotonic() - last > 20:
            last = time.monotonic()
            log.info("%s: %d of %d images hashed", name, done, len(records))


def _hash(source: Source, index: int) -> UInt8[np.ndarray, " 16"]:
    image = source.image(index)
    digest = hashlib.sha256(str(image.size).encode())
    digest.update(image.tobytes())
    return np.frombuffer(digest.digest()[:BYTES], np.uint8)


def _keep(path: Path, hashes: UInt8[np.ndarray, "n 16"]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, hashes)
    except OSError as error:
        log.warning("%s: cannot be kept (%s)", path, error.strerror)
