"""Stamps and digests, by which an image that changed is noticed.

A stamp is cheap to compare and tells that an image may have changed; a digest, for which the image
is read but not decoded, tells whether it has.
"""

import hashlib
import os

from edje_jax.types import HasFiles, Source, Stamped


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
    """SHA-256 (32 hexadecimal digits of it) of an image's file, else of its pixels.

    Raises:
        BadImage: the image cannot be read.
    """
    if isinstance(source, HasFiles):
        return hashlib.sha256(source.encoded(index)).hexdigest()[:32]
    image = source.image(index)
    digest = hashlib.sha256(f"{image.width} x {image.height}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()[:32]
