"""What sets of other makers call their columns."""

from collections.abc import Iterable

PICTURES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
CAPTIONS = (
    "caption", "captions", "text", "texts", "sentence", "sentences", "sentences_raw", "raw",
    "alt_text", "description", "txt",
)  # fmt: skip
PICTURE_IDS = ("image_id", "img_id", "imgid", "cocoid")
"""These name a picture in every file of a set."""
ROW_IDS = ("id", "key", "filename", "file_name")
"""These often begin anew in every file."""


def first_named(wanted: Iterable[str], there: Iterable[str]) -> str:
    """The first of `wanted` that is there, or ""."""
    names = set(there)
    return next((name for name in wanted if name in names), "")
