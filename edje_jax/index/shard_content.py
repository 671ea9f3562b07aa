"""Encode the images of a source to the content of a part of a shard."""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from edje_jax.config.model import EmbeddingDtype, ImageRecipe, TokenDtype
from edje_jax.data.image_reader import ReadBatch, stack_images
from edje_jax.data.images import BadImage, decode_record, resize
from edje_jax.data.sources.texts import printable
from edje_jax.data.stamps import digest_of
from edje_jax.first_stage.packing import pack as pack_codes
from edje_jax.index.caption_columns import CODES, caption_columns
from edje_jax.index.changes import Changes
from edje_jax.index.embeddings import to_stored
from edje_jax.index.shard_files import ImageRecord
from edje_jax.models.token_formats import pack
from edje_jax.runtimes.base import Embedded, Encoded, Runtime
from edje_jax.types import HasFiles, Source, Stamped

THUMBNAIL = 256
"""Longest side of a thumbnail in pixels."""


class DecodedImage(NamedTuple):
    """Image of a record, ready to be encoded."""

    pixels: UInt8[np.ndarray, "s s 3"]
    thumbnail: bytes
    digest: str
    """Digest of the image's file; "" where the stamp alone identifies the image."""


@dataclass(frozen=True)
class RecordDecoder:
    """Decodes records of a source to what an index keeps of their images; it pickles."""

    source: Source
    recipe: ImageRecipe

    def __call__(self, record: int) -> DecodedImage:
        """Image of a record.

        Raises:
            BadImage: it cannot be read.
        """
        # Drawn images are identified by their stamp, files that may be copied only by a digest.
        is_digested = isinstance(self.source, HasFiles) or not isinstance(self.source, Stamped)
        try:
            # Digest first: a file that changes before it is decoded then counts as changed.
            digest = digest_of(self.source, record) if is_digested else ""
            image = decode_record(self.source, record, self.recipe)
        except ValueError as error:  # `BadImage`, or an invalid path
            raise BadImage(str(error)) from error
        return DecodedImage(resize(image, self.recipe), thumbnail(image), digest)


def thumbnail(image: Image.Image) -> bytes:
    """JPEG file of an image, shrunk to fit in THUMBNAIL x THUMBNAIL."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
    return out.getvalue()


@dataclass(frozen=True)
class EncodedPart:
    """Encoded content of a part of a shard."""

    rows: list[ImageRecord]
    tokens: np.ndarray
    embeddings: np.ndarray
    projections: np.ndarray
    """Numbers whose signs are the images' codes; [n, 0] of a model without codes."""
    of_captions: Embedded
    """Embeddings and projections of the captions, image by image."""
    thumbnails: list[bytes]
    rejected: dict[str, str]

    def columns(
        self, token_dtype: TokenDtype, embedding_dtype: EmbeddingDtype
    ) -> dict[str, np.ndarray]:
        """Arrays of the part by their names, as they are stored."""
        has_codes = self.projections.shape[1] > 0
        return {
            **pack(self.tokens, token_dtype).columns,
            "embeddings": to_stored(self.embeddings, embedding_dtype),
            **({CODES["embeddings"]: pack_codes(self.projections)} if has_codes else {}),
            **caption_columns(self.of_captions, embedding_dtype),
        }


def encode(
    runtime: Runtime,
    changes: Changes,
    batches: Iterable[ReadBatch[DecodedImage]],
    note: Callable[[int], None],
) -> EncodedPart:
    """Encode a part's images as they come; `note` is called with the number of records done."""
    parts: list[Encoded] = []
    thumbnails: list[bytes] = []
    rows: list[ImageRecord] = []
    rejected: dict[str, str] = {}
    recipe = runtime.config.image

    def pixels(batch: ReadBatch[DecodedImage]) -> UInt8[np.ndarray, "b s s 3"]:
        return stack_images([image.pixels for image in batch.values], recipe)

    for batch, encoded in runtime.encode_each(batches, pixels):
        parts.append(encoded)
        for record, image in zip(batch.records, batch.values, strict=True):
            thumbnails.append(image.thumbnail)
            captions, _ = changes.captions(record)
            rows.append(changes.row(record, captions, changes.stamps[record], image.digest))
        for record, reason in batch.bad.items():
            rejected[changes.source.image_id(record)] = printable(reason)
        note(len(batch.records) + len(batch.bad))
    return EncodedPart(
        rows,
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.embeddings for part in parts]),
        np.concatenate([part.projections for part in parts]),
        runtime.encode_texts([text for row in rows for text in row.captions]),
        thumbnails,
        rejected,
    )
