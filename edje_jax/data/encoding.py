"""A record's image as its source keeps it, or as a recipe reads it."""

import io

from PIL import Image

from edje_jax.config import ImageRecipe
from edje_jax.data.images import decode
from edje_jax.types import Encoded, Source


def file_bytes(source: Source, index: int) -> bytes:
    """The file that a source keeps, else a PNG of the picture.

    Raises:
        BadImage: it cannot be read.
    """
    if isinstance(source, Encoded):
        return source.encoded(index)
    stream = io.BytesIO()
    source.image(index).save(stream, "PNG")
    return stream.getvalue()


def image_of(source: Source, index: int, recipe: ImageRecipe) -> Image.Image:
    """The image, upright and RGB, its profile and transparency treated as a recipe says.

    Raises:
        BadImage: it cannot be read.
    """
    if recipe.reading and isinstance(source, Encoded):
        return decode(source.encoded(index), source.image_id(index), recipe)
    return source.image(index)
