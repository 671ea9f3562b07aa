"""Queries of requests: a text, or an object of several parts."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from edje_jax.serving.documents import DATA_KEYS, image_data

NEGATIVES = 8
"""Most texts that images must not match; each scores every candidate once more."""
LONGEST = 10_000
"""Most characters of a text."""

PARTS = ("text", "not", "image", "like", "image_weight", "content")
FIELDS = {*PARTS, *DATA_KEYS, "type"}
"""Names of the parts, and those that clients of other servers send."""

_TEXT = {"type": "string", "maxLength": LONGEST}
_IMAGE = {"type": "string", "description": "image to resemble: base64, or a data: URI"}
_OBJECT = {
    "type": "object",
    "properties": {
        "text": _TEXT,
        "not": {
            "description": "texts that images must not match",
            "anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": NEGATIVES}],
        },
        "image": _IMAGE,
        "like": {"type": "string", "description": "id of an image of the index to resemble"},
        "image_weight": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.5},
        "content": {"description": 'a text, or parts: texts and at most one "image_url"'},
    },
}
Text = Annotated[str, Field(max_length=LONGEST)]


class QueryParts(BaseModel):
    """Parts of a query."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    text: Text = ""
    negatives: Annotated[list[Text], Field(alias="not", max_length=NEGATIVES)] = []
    image: str | None = None
    like: str | None = None
    image_weight: Annotated[float, Field(ge=0, le=1)] = 0.5

    @model_validator(mode="after")
    def can_be_asked(self) -> Self:
        """Check that there is something to look for, and not two images."""
        if self.image is not None and self.like is not None:
            raise ValueError("image and like: give one, an image or the id of one in the index")
        if not self.text and self.image is None and self.like is None:
            raise ValueError('a query needs a "text", an "image", or "like", the id of an image')
        return self


def parts_of_query(query: Any) -> Any:
    """Fields of `QueryParts` from a text, or from an object in any form that clients send.

    Raises:
        ValueError: there is no part of such a name, the text is none, or a part of the content is
            neither a text nor an image, or is a second image.
    """
    if not isinstance(query, dict):
        return {"text": query} if isinstance(query, str) else query
    # Clients send the fields that they do not use as null.
    fields = {name: value for name, value in query.items() if value is not None}
    if unknown := sorted(fields.keys() - FIELDS):
        raise ValueError(f'"{unknown[0]}" is no part of a query; there are {", ".join(PARTS)}')
    if "text" in fields and _text_of(fields) is None:
        given = type(fields["text"]).__name__
        raise ValueError(f'the "text" of a query is a {given}; send a string')
    content = fields.pop("content", [])
    parts = [fields, *(content if isinstance(content, list) else [content])]
    images = [image_data(part) for part in parts if _is_image(part)]
    texts = [text for part in parts if (text := _text_of(part))]
    if len(images) > 1 or any(_is_unread(part) for part in parts[1:]):
        raise ValueError('the "content" of a query takes texts and at most one image')
    if isinstance(fields.get("not"), str):
        fields["not"] = [fields["not"]]
    if isinstance(negatives := fields.get("not"), list):
        fields["not"] = [one for one in negatives if not isinstance(one, str) or one.strip()]
    return {**fields, "text": "\n".join(texts), "image": images[0] if images else None}


def _is_image(part: Any) -> bool:
    return isinstance(part, dict) and bool(part.keys() & set(DATA_KEYS))


def _text_of(part: Any) -> str | None:
    text = part.get("text") if isinstance(part, dict) else part
    if isinstance(part, dict) and isinstance(text, int | float) and not isinstance(text, bool):
        return str(text)  # As pydantic reads the numbers of other fields
    return text if isinstance(text, str) else None


def _is_unread(part: Any) -> bool:
    return not _is_image(part) and _text_of(part) is None


Query = Annotated[
    QueryParts,
    BeforeValidator(parts_of_query),
    WithJsonSchema(
        {
            "description": "a text, or an object of several parts",
            "anyOf": [{"type": "string", "minLength": 1, "maxLength": LONGEST}, _OBJECT],
        }
    ),
]
