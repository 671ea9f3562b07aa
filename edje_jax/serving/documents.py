"""What `/v1/rerank` is given to rank: pictures by id or as data, never by address."""

import base64
import binascii
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from edje_jax.config import ImageRecipe
from edje_jax.data.images import BadImage, load_image, resize


class BadDocument(ValueError):
    """A document is no picture of the index and none that can be read; the message says which."""


@dataclass(frozen=True)
class Pictures:
    """The documents of a request: rows of the index, and pictures that came with it."""

    rows: dict[int, int]
    """Document -> picture of the index."""
    pixels: dict[int, np.ndarray]
    """Document -> uint8 [S, S, 3]."""


def read_documents(
    documents: list[Any],
    numbers: dict[str, int],
    recipe: ImageRecipe,
    most: int,
    pixels_each: int,
) -> Pictures:
    """Look ids up and decode data: of at most `most` pictures of at most `pixels_each` pixels.

    Raises:
        BadDocument: one is a text, an unknown id, an address, damaged, or more than allowed.
    """
    rows: dict[int, int] = {}
    pixels: dict[int, np.ndarray] = {}
    for place, document in enumerate(documents):
        try:
            if len(pixels) == most and not (isinstance(document, dict) and "id" in document):
                raise ValueError(f"more than {most} pictures are sent; index them, or ask again")
            found = _read(document, numbers, recipe, pixels_each)
        except (ValueError, BadImage) as error:
            raise BadDocument(f"documents[{place}]: {error}") from error
        if isinstance(found, int):
            rows[place] = found
        else:
            pixels[place] = found
    return Pictures(rows, pixels)


def _read(
    document: Any, numbers: dict[str, int], recipe: ImageRecipe, pixels_each: int
) -> int | np.ndarray:
    if isinstance(document, str) or (isinstance(document, dict) and "text" in document):
        raise ValueError(
            'a text; this model ranks pictures for a text. Give {"id": ...} of an indexed picture'
            ' or {"image": base64 data}'
        )
    if not isinstance(document, dict):
        raise ValueError('expected {"id": ...}, {"image": ...} or {"content": [...]}')
    if "id" in document:
        name = document["id"]
        if not isinstance(name, str) or name not in numbers:
            raise ValueError(f"no picture with the id {name!r} in this index")
        return numbers[name]
    data = document.get("image", document.get("content"))
    if isinstance(data, list):
        data = _image_url(data)
    if not isinstance(data, str):
        raise ValueError('expected {"id": ...}, {"image": ...} or {"content": [...]}')
    raw = decode(data)
    _check_size(raw, pixels_each)
    return resize(load_image(raw, recipe, pixels_each), recipe)


def _check_size(raw: bytes, pixels: int) -> None:
    """From the header alone, before anything is decoded."""
    try:
        with Image.open(io.BytesIO(raw)) as picture:
            width, height = picture.size
    except Exception:
        return  # No picture: reading it will say so in better words
    if width * height > pixels:
        raise ValueError(f"{width} x {height} are more than {pixels:,} pixels; send a smaller one")


def _image_url(content: list[Any]) -> Any:
    """The one picture among the parts of a message."""
    parts = [part for part in content if isinstance(part, dict)]
    pictures = [part.get("image_url") for part in parts if part.get("type") == "image_url"]
    if len(pictures) != 1 or len(parts) != len(content) or len(parts) != 1:
        raise ValueError('"content" takes one part of type "image_url" and nothing else')
    return pictures[0].get("url") if isinstance(pictures[0], dict) else pictures[0]


def decode(data: str) -> bytes:
    """Base64, or a data: URI of it.

    Raises:
        ValueError: it is an address, or no base64.
    """
    if data.startswith("data:"):
        head, comma, data = data.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ValueError("a data: URI has to read data:image/...;base64,...")
    elif "://" in data[:16]:
        raise ValueError("addresses are not fetched; send the picture itself as base64")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"not base64 ({error})") from error
