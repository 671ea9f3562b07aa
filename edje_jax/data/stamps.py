"""Stamps and digests, by which an image that changed is noticed.

A stamp is cheap to compare and tells that an image may have changed; a digest, for which the image
is read but not decoded, tells whether it has.
"""

import hashlib
import os

from edje_jax.data.images import BadImage, is_video, reason_of
from edje_jax.types import HasFiles, OnDisk, Source, Stamped


def file_stamp(path: str) -> str:
    """A file's size in bytes and modification time in nanoseconds; "" for a remote file.

    Raises:
        OSError, ValueError: the file is missing, or its name is not valid.
    """
    if "://" in path:
        return ""
    found = os.stat(os.path.expanduser(path))
    return f"{found.st_size}-{found.st_mtime_ns}"


def stamp_of(source: Source, index: int) -> str:
    """Stamp of an image, read without its content; "" if the source has none.

    Raises:
        OSError, ValueError: see `file_stamp`.
    """
    return source.stamp(index) if isinstance(source, Stamped) else ""


def digest_of(source: Source, index: int) -> str:
    """SHA-256 (32 hexadecimal digits of it) of an image's or video's file, else of its pixels.

    Raises:
        BadImage: it cannot be read.
    """
    if isinstance(source, OnDisk) and is_video(source, index):
        return _file_digest(source.path(index))
    if isinstance(source, HasFiles):
        return hashlib.sha256(source.encoded(index)).hexdigest()[:32]
    image = source.image(index)
    digest = hashlib.sha256(f"{image.width} x {image.height}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()[:32]


def _file_digest(path: str) -> str:
    """Digest of a file that may be larger than memory."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except OSError as error:
        raise BadImage(f"{path}: {reason_of(error, path)}") from error
