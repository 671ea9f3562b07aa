"""Encode the images or videos of a source to the content of a part of a shard."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from edje_jax.config.frames import FrameSampling
from edje_jax.config.model import EdjeConfig, EmbeddingDtype, ImageRecipe, TokenDtype
from edje_jax.data.image_reader import (
    PIECE,
    ReadBatch,
    Records,
    read_batches,
    stack_frames,
    stack_images,
)
from edje_jax.data.images import BadImage, decode_record, resize
from edje_jax.data.sources.texts import printable
from edje_jax.data.stamps import digest_of
from edje_jax.first_stage.packing import pack as pack_codes
from edje_jax.index.caption_columns import CODES, caption_columns
from edje_jax.index.changes import Changes
from edje_jax.index.embeddings import to_stored
from edje_jax.index.shard_files import ImageRecord
from edje_jax.index.thumbnails import thumbnail
from edje_jax.index.video_content import KeptVideo, decode_video, video_columns
from edje_jax.models.token_formats import pack
from edje_jax.runtimes.base import Embedded, Encoded, Runtime
from edje_jax.types import Frames, HasFiles, Source, Stamped


class Decoded(NamedTuple):
    """Image or video of a record, ready to be encoded."""

    pixels: UInt8[np.ndarray, "*f s s 3"]
    """Resized pixels; of a video, one array for each frame that is there."""
    thumbnail: bytes
    """JPEG file; of a video, of the frame in the middle."""
    digest: str
    """Digest of the file; "" where the stamp alone identifies the image."""
    video: KeptVideo | None
    """None for a model of images."""


@dataclass(frozen=True)
class RecordDecoder:
    """Decodes records of a source to what an index keeps of them; it pickles."""

    source: Source
    recipe: ImageRecipe
    sampling: FrameSampling | None = None
    """Choice of the frames of a model of videos; None for images."""

    @classmethod
    def of(cls, source: Source, config: EdjeConfig) -> "RecordDecoder":
        """Decoder of what a model reads."""
        return cls(source, config.image, config.video.sampling if config.video else None)

    def read(
        self, batches: Sequence[Records], workers: int
    ) -> Generator[ReadBatch[Decoded], None, None]:
        """Decoded records, batch by batch; see `read_batches`. A thread takes one video at a time,
        so that memory holds few of them."""
        return read_batches(self, batches, workers, 1 if self.sampling else PIECE)

    def __call__(self, record: int) -> Decoded:
        """Image or video of a record.

        Raises:
            BadImage: it cannot be read.
        """
        # Drawn images are identified by their stamp, files that may be copied only by a digest.
        is_digested = isinstance(self.source, HasFiles) or not isinstance(self.source, Stamped)
        try:
            # Digest first: a file that changes before it is decoded then counts as changed.
            digest = digest_of(self.source, record) if is_digested else ""
            if self.sampling:
                pixels, small, video = decode_video(self.source, record, self.sampling, self.recipe)
                return Decoded(pixels, small, digest, video)
            image = decode_record(self.source, record, self.recipe)
        except ValueError as error:  # `BadImage`, or an invalid path
            raise BadImage(str(error)) from error
        return Decoded(resize(image, self.recipe), thumbnail(image), digest, None)


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
    videos: list[KeptVideo] | None
    """None for a model of images."""
    frames: int
    """Most frames of a video."""

    @property
    def strips(self) -> list[bytes] | None:
        """Strips of frames; None for a model of images."""
        return None if self.videos is None else [video.strip for video in self.videos]

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
            **({} if self.videos is None else video_columns(self.videos, self.frames)),
        }


def encode(
    runtime: Runtime,
    changes: Changes,
    batches: Iterable[ReadBatch[Decoded]],
    note: Callable[[int], None],
) -> EncodedPart:
    """Encode a part's images as they come; `note` is called with the number of records done."""
    parts: list[Encoded] = []
    thumbnails: list[bytes] = []
    videos: list[KeptVideo] = []
    rows: list[ImageRecord] = []
    rejected: dict[str, str] = {}
    config = runtime.config

    def pixels(batch: ReadBatch[Decoded]) -> UInt8[np.ndarray, "b s s 3"] | Frames:
        found = [item.pixels for item in batch.values]
        if config.video:
            return stack_frames(found, config.frames, config.image)
        return stack_images(found, config.image)

    for batch, encoded in runtime.encode_each(batches, pixels):
        parts.append(encoded)
        for record, image in zip(batch.records, batch.values, strict=True):
            thumbnails.append(image.thumbnail)
            videos += [image.video] if image.video else []
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
        videos if config.video else None,
        config.frames,
    )
