"""Metadata of images: what a set says of an image besides its captions, as its year or licence."""

from collections.abc import Collection, Mapping
from typing import Any

from edje_jax.types import Described, Scalar, Source


def metadata_of(source: Source, index: int) -> Mapping[str, Scalar]:
    """Metadata of an image; empty if the source has none.

    Raises:
        BadImage: it lies with the image, and cannot be read.
    """
    return source.metadata(index) if isinstance(source, Described) else {}


def scalars(fields: Mapping[str, Any], others: Collection[str] = ()) -> dict[str, Scalar]:
    """Fields of a record that are metadata: texts, numbers and truth values, NaN left out.

    Args:
        others: fields that are something else, such as the caption.
    """
    return {
        name: value
        for name, value in fields.items()
        if isinstance(value, str | int | float) and value == value and name not in others
    }
