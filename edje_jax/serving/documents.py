"""Documents of a rerank request: images by id or as data, never by URL."""

import io
import re
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from edje_jax.config.model import ImageRecipe
from edje_jax.data.base64_data import ADDRESS, NOT_FETCHED, decode, is_data_uri
from edje_jax.data.decoders import open_image
from edje_jax.data.images import BadImage, image_pixels
from edje_jax.serving.limits import Limits

A_TEXT = (
    'a text; this model ranks images for a text. Give the id of an indexed image or {"id": ...}, '
    'a data: URI or {"image": base64 data}'
)
FORMS = 'expected an id, a data: URI, {"id": ...}, {"image": ...} or {"content": [...]}'
TEXT_ASIDE = "the text is left aside: the image counts"
DATA_KEYS = ("image", "image_url", "image_base64")
"""Fields of an object that hold the data of an image."""
_YAML_FIELD = re.compile(r"^(id|image): *(['\"]?)(.*?)\2$", re.MULTILINE)
"""Line of YAML, to which clients that send only strings convert {"id": ...}."""


class BadDocuments(ValueError):
    """Documents that are no images of the index and none that can be read.

    The message names the place of each, and why.
    """


@dataclass(frozen=True)
class Images:
    """The images of a request: rows of the index, and pixels that came with it."""

    rows: dict[int, int]
    """Document -> image of the index."""
    pixels: dict[int, np.ndarray]
    """Document -> uint8 [S, S, 3]."""


@dataclass(frozen=True)
class Documents:
    """The documents of a request as they were understood."""

    images: Images
    returned: list[dict[str, Any]]
    """Each document as `return_documents` gives it back: "text", which clients rely on, and the
    "id", "image" or "content" that was sent."""
    warnings: list[str]
    """Ignored parts of the request, with the numbers of the documents."""


class Form(NamedTuple):
    """Document: an id of the index, or base64 data of an image."""

    id: str | None = None
    data: str = ""
    text: str = ""
    echo: Mapping[str, Any] = {}
    warning: str = ""


@dataclass
class _Remarks:
    """Warnings about a request -> the documents that they concern."""

    places: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, place: str, remark: str) -> None:
        self.places[remark].append(place)

    def lines(self) -> list[str]:
        return [f"{', '.join(places)}: {remark}" for remark, places in self.places.items()]


def read_documents(
    documents: Sequence[Any],
    place: str,
    image_of_id: Mapping[str, int],
    recipe: ImageRecipe,
    limits: Limits,
) -> Documents:
    """Look ids up and decode data, of at most `limits.images` images.

    `place` names the list in messages, as in documents[0]; `image_of_id` gives the index's image of
    each id.

    Raises:
        BadDocuments: texts, unknown ids, addresses, damaged images, or more than allowed.
    """
    bad, warnings = _Remarks(), _Remarks()
    read = Documents(Images({}, {}), [], [])
    sent = 0
    for number, document in enumerate(documents):
        where = f"{place}[{number}]"
        try:
            form = read_form(document, image_of_id)
            sent += form.id is None
            if form.id is not None:
                read.images.rows[number] = image_of_id[form.id]
            elif sent > limits.images:
                raise ValueError(
                    f"more than {limits.images} images are sent; index them, or send fewer at a"
                    " time (edje serve --max-images)"
                )
            else:
                read.images.pixels[number] = read_pixels(decode(form.data), recipe, limits.pixels)
        except (ValueError, BadImage) as error:
            bad.add(where, str(error))
            continue
        read.returned.append({**form.echo, "text": form.text})
        if form.warning:
            warnings.add(where, form.warning)
    if bad.places:
        raise BadDocuments("; ".join(bad.lines() + warnings.lines()))
    read.warnings.extend(warnings.lines())
    return read


# --- forms ----------------------------------------------------------------------------------------


def read_form(document: Any, ids: Container[str]) -> Form:
    """A document of any form that clients send.

    Raises:
        ValueError: it is of none of these forms.
    """
    if isinstance(document, str):
        return _of_string(document, ids)
    if isinstance(document, int):
        return _of_object({"id": document}, ids)
    if not isinstance(document, dict):
        raise ValueError(FORMS)
    return _of_object(document, ids)


def _of_string(text: str, ids: Container[str]) -> Form:
    """A string that is an id or a data: URI, also as a field of YAML."""
    stripped = text.strip()
    for name in (text, stripped):
        if name in ids:
            return Form(id=name, text=text)
    if is_data_uri(stripped):
        return Form(data=stripped, text=text)
    if given := _YAML_FIELD.search(stripped):
        form = _of_object({given[1]: given[3]}, ids)
        rest = "" if given[0] == stripped else f"all but its {given[1]} left aside"
        return form._replace(text=text, echo={}, warning=rest)
    raise ValueError(NOT_FETCHED if ADDRESS.match(stripped) else A_TEXT)


def _of_object(document: dict[str, Any], ids: Container[str]) -> Form:
    # Clients send the fields that they do not use as null.
    document = {key: value for key, value in document.items() if value is not None}
    name, text = _name(document.get("id")), document.get("text")
    if name is not None and name in ids:
        aside = [key for key in ("text", *DATA_KEYS, "content") if document.get(key)]
        warning = f"{', '.join(aside)} left aside: the id counts" if aside else ""
        return Form(name, "", text if isinstance(text, str) else name, {"id": name}, warning)
    form = _of_fields(document, ids)
    if "id" not in document and form:
        return form
    if "id" in document:
        unknown = f"no image with the id {_short(document['id'])} in this index"
        if form:
            return form._replace(warning=f"{unknown}; the image sent along counts")
        raise ValueError(unknown)
    raise ValueError(A_TEXT if "text" in document else FORMS)


def _of_fields(document: dict[str, Any], ids: Container[str]) -> Form | None:
    """The image that an object holds beside an id, if it holds one."""
    text = document.get("text")
    if document.keys() & set(DATA_KEYS):
        data = image_data(document)
        if isinstance(text, str) and text:
            return Form(None, data, text, {"image": data}, TEXT_ASIDE)
        return Form(data=data, echo={"image": data})
    if "content" in document:
        return _of_content(document["content"], ids)
    if isinstance(text, str) and "id" not in document:
        return _of_string(text, ids)
    return None


def _of_content(content: Any, ids: Container[str]) -> Form:
    """The parts of a message, one of which is an image."""
    if isinstance(content, str):
        return _of_string(content, ids)
    parts = content if isinstance(content, list) else [content]
    texts = [part for part in map(_text_of, parts) if part is not None]
    images = [part for part in parts if _text_of(part) is None]
    text = "\n".join(filter(None, texts))
    if not images and texts:
        return _of_string(text, ids)
    if len(images) != 1 or not isinstance(images[0], dict):
        raise ValueError('"content" takes one part of type "image_url"; texts beside it are left')
    data = image_data(images[0])
    echo = {"content": [{"type": "image_url", "image_url": {"url": data}}]}
    return Form(None, data, text, echo, TEXT_ASIDE if text else "")


def _text_of(part: Any) -> str | None:
    """The text of a part of a message, if it is one."""
    if isinstance(part, dict) and part.get("type") in ("text", "input_text"):
        part = part.get("text")
    return part if isinstance(part, str) else None


def image_data(part: dict[str, Any]) -> str:
    """The base64 data of an image, plain or in an object as OpenAI's clients send it."""
    for key in DATA_KEYS:
        value = part.get(key)
        if isinstance(value, dict):
            value = value.get("url", value.get("data"))
        if isinstance(value, str):
            return value
    raise ValueError(f"{FORMS}, with the image as base64 data")


def _name(given: Any) -> str | None:
    """An id; clients send those that look like numbers as numbers."""
    if isinstance(given, int) and not isinstance(given, bool) and abs(given) < 10**100:
        return str(given)
    return given if isinstance(given, str) else None


def _short(given: Any) -> str:
    """A value for a message, cut where it is long; of a container only its kind."""
    if isinstance(given, str):
        return repr(given if len(given) <= 80 else f"{given[:80]}...")
    return repr(given) if isinstance(given, float | bool) else _name(given) or type(given).__name__


# --- images ---------------------------------------------------------------------------------------


def read_pixels(raw: bytes, recipe: ImageRecipe, most: int) -> np.ndarray:
    """uint8 [S, S, 3] of a file of at most `most` pixels."""
    try:
        _check_size(raw, most)
        return image_pixels(raw, recipe, most)
    except MemoryError:
        raise ValueError("too large for this server's memory; send a smaller one") from None


def _check_size(raw: bytes, pixels: int) -> None:
    """Refuse an image by the size in its header, before anything is decoded."""
    try:
        with open_image(io.BytesIO(raw)) as image:
            width, height = image.size
    except Exception:
        return  # No image: reading it will say so in better words
    if width * height > pixels:
        raise ValueError(
            f"{width} x {height} are more than {pixels:,} pixels; send a smaller one"
            " (edje serve --max-pixels)"
        )
