"""Small copies that an index keeps of its images, as JPEG files."""

import io

from PIL import Image

THUMBNAIL = 256
"""Longest side of a thumbnail in pixels."""


def thumbnail(image: Image.Image) -> bytes:
    """JPEG file of an image, shrunk to fit in THUMBNAIL x THUMBNAIL."""
    return jpeg(shrunk(image))


def shrunk(image: Image.Image) -> Image.Image:
    """Copy of an image, shrunk to fit in THUMBNAIL x THUMBNAIL."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return small


def jpeg(image: Image.Image) -> bytes:
    """JPEG file of an image."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return out.getvalue()
