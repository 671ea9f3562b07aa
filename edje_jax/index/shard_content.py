"""Encode the images of a source to the content of a shard."""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from edje_jax.config.model import ImageRecipe
from edje_jax.data.images import image_of, resize
from edje_jax.data.sources.texts import printable
from edje_jax.data.stamps import digest_of
from edje_jax.index.changes import Changes
from edje_jax.index.shard_files import ImageRecord
from edje_jax.runtimes.base import Encoded, Runtime
from edje_jax.types import Encoded as HasFiles
from edje_jax.types import Source, Stamped

THUMBNAIL = 256
"""Longest side of a thumbnail in pixels."""


@dataclass(frozen=True)
class Decoded:
    """Batch of decoded images, ready to be encoded."""

    records: list[int]
    images: np.ndarray
    thumbnails: list[bytes]
    digests: list[str]
    """Digests of the images' files; "" where the stamp alone identifies an image."""


@dataclass(frozen=True)
class Pictures:
    """Random access to batches of records of a source, for worker processes."""

    source: Source
    batches: list[np.ndarray]
    recipe: ImageRecipe

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[tuple[Decoded, dict[int, str]], dict[str, str]]:
        """((readable images, {bad record: reason}), an empty dict of warnings)."""
        good: list[int] = []
        images, thumbnails, digests, bad = [], [], [], {}
        # Drawn images are identified by their stamp, files that may be copied only by a digest.
        is_digested = isinstance(self.source, HasFiles) or not isinstance(self.source, Stamped)
        for record in self.batches[index].tolist():
            try:
                # Digest first: a file that changes before it is decoded then counts as changed.
                digest = digest_of(self.source, record) if is_digested else ""
                image = image_of(self.source, record, self.recipe)
            except ValueError as error:  # `BadImage`, or an invalid path
                bad[record] = str(error)
                continue
            good.append(record)
            images.append(resize(image, self.recipe))
            thumbnails.append(thumbnail(image))
            digests.append(digest)
        side = self.recipe.size
        stacked = np.stack(images) if images else np.empty((0, side, side, 3), np.uint8)
        return (Decoded(good, stacked, thumbnails, digests), bad), {}


def thumbnail(image: Image.Image) -> bytes:
    """JPEG file of an image, shrunk to fit in THUMBNAIL x THUMBNAIL."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
    return out.getvalue()


@dataclass(frozen=True)
class EncodedShard:
    """Encoded content of a shard."""

    rows: list[ImageRecord]
    tokens: np.ndarray
    embeddings: np.ndarray
    captions: np.ndarray
    thumbnails: list[bytes]
    rejected: dict[str, str]


def encode(
    runtime: Runtime,
    changes: Changes,
    batches: Iterable[tuple[Decoded, dict[int, str]]],
    note: Callable[[int], None],
) -> EncodedShard:
    """Encode a shard's images as they come; `note` is called with the number of records done."""
    parts: list[Encoded] = []
    thumbnails: list[bytes] = []
    rows: list[ImageRecord] = []
    rejected: dict[str, str] = {}
    each = runtime.encode_each(batches, lambda batch: batch[0].images)
    for (decoded, bad), encoded in each:
        parts.append(encoded)
        thumbnails += decoded.thumbnails
        for record, digest in zip(decoded.records, decoded.digests, strict=True):
            rows.append(changes.row(record, changes.stamps[record], digest))
        rejected |= {changes.source.image_id(record): printable(bad[record]) for record in bad}
        note(len(decoded.records) + len(bad))
    return EncodedShard(
        rows,
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.embeddings for part in parts]),
        runtime.embed_texts([caption for row in rows for caption in row.captions]),
        thumbnails,
        rejected,
    )
