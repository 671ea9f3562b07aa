"""`--data.exclude`: pictures of one set left out of another, told by their pixels.

Two files that decode to the same pixels are the same picture, whatever their names, ids and
formats; one that was scaled or compressed anew is another. Hashing decodes every picture of both
sets once (measured in benchmarks/results/data.json), and the hashes are kept.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from edje_jax.config import DataConfig
from edje_jax.data.caches import cache_folder
from edje_jax.data.encoding import file_bytes
from edje_jax.data.feature_cache import stamp_of_set
from edje_jax.data.images import BadImage
from edje_jax.types import Source
from edje_jax.weights.files import replacing

log = logging.getLogger(__name__)

BYTES = 16
"""Of a picture's SHA-256."""


class Subset:
    """Some pictures of a source; captions and ids are theirs."""

    def __init__(self, source: Source, kept: Bool[np.ndarray, " n"]):
        self.source, self._rows = source, np.flatnonzero(kept)

    def __len__(self) -> int:
        return len(self._rows)

    def image_id(self, index: int) -> str:
        """The picture's id in the whole set."""
        return self.source.image_id(self._row(index))

    def captions(self, index: int) -> Sequence[str]:
        """The picture's captions."""
        return self.source.captions(self._row(index))

    def encoded(self, index: int) -> bytes:
        """The picture's file; `BadImage` if it cannot be read."""
        return file_bytes(self.source, self._row(index))

    def image(self, index: int) -> Image.Image:
        """The picture, upright and RGB; `BadImage` if it cannot be read."""
        return self.source.image(self._row(index))

    def _row(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{len(self)} pictures are left, asked for {index}")
        return int(self._rows[index])


def without(train: Source, excluded: Source, data: DataConfig, image_size: int) -> Source:
    """`data.train` without the pictures of `data.exclude`; how many were left out is logged.

    Raises:
        ValueError: nothing is left.
    """
    setting = [os.path.abspath(os.path.expanduser(data.image_root)), image_size]
    unwanted = pixel_hashes(excluded, [data.exclude, *setting])
    unwanted = {row.tobytes() for row in unwanted if row.any()}
    hashes = pixel_hashes(train, [data.train, *setting])
    kept = np.array([row.tobytes() not in unwanted for row in hashes])
    log.info("%d of %d pictures left out: they are in %s", (~kept).sum(), len(kept), data.exclude)
    if not kept.any():
        raise ValueError(f"--data.exclude {data.exclude}: it has every picture of {data.train}")
    return Subset(train, kept)


def pixel_hashes(source: Source, name: Sequence[object]) -> UInt8[np.ndarray, "n 16"]:
    """A hash of the pixels of every picture; zeros for one that cannot be read.

    They are kept in `~/.cache/edje_jax/pixels/`. Sets are told apart by `name`, ids and captions:
    delete that folder if pictures changed under the same names.
    """
    stamp = json.dumps([*name, stamp_of_set(source)[0]])
    kept = cache_folder("pixels") / f"{hashlib.sha256(stamp.encode()).hexdigest()[:32]}.npy"
    if kept.exists():
        try:
            hashes = np.load(kept, allow_pickle=False)
            if hashes.shape == (len(source), BYTES) and hashes.dtype == np.uint8:
                return hashes
        except (OSError, ValueError, EOFError) as error:
            log.warning("%s: damaged (%s); made anew", kept, error)
    hashes = _hashed(source, str(name[0]))
    _keep(kept, hashes)
    return hashes


def _hashed(source: Source, name: str) -> UInt8[np.ndarray, "n 16"]:
    hashes = np.zeros((len(source), BYTES), np.uint8)
    last = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(source), 1024):  # The pool takes no more at a time
            rows = range(start, min(start + 1024, len(source)))
            hashes[rows.start : rows.stop] = list(pool.map(lambda row: _hash(source, row), rows))
            if time.monotonic() - last > 20:
                last = time.monotonic()
                log.info("%s: %d of %d pictures hashed", name, rows.stop, len(source))
    return hashes


def _hash(source: Source, index: int) -> UInt8[np.ndarray, " 16"]:
    try:
        picture = source.image(index)
    except BadImage:
        return np.zeros(BYTES, np.uint8)
    digest = hashlib.sha256(str(picture.size).encode())
    digest.update(picture.tobytes())
    return np.frombuffer(digest.digest()[:BYTES], np.uint8)


def _keep(path: Path, hashes: UInt8[np.ndarray, "n 16"]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, hashes)
    except OSError as error:
        log.warning("%s: cannot be kept (%s)", path, error.strerror)
