"""What requests and refusals look like, as the OpenAPI document tells it."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

_DATA = {"type": "string", "description": "base64 of a picture, or a data: URI"}
DOCUMENT = {
    "description": "a picture: of the index, or sent along",
    "anyOf": [
        {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}},
        {"type": "object", "required": ["image"], "properties": {"image": _DATA}},
        {
            "type": "object",
            "required": ["content"],
            "properties": {
                "content": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["type", "image_url"],
                        "properties": {
                            "type": {"const": "image_url"},
                            "image_url": {"type": "object", "properties": {"url": _DATA}},
                        },
                    },
                }
            },
        },
    ],
}
"""Any JSON is read, so that a text document is told why it is none of these."""


class SearchRequest(BaseModel):
    """Words to look for."""

    query: Annotated[str, Field(min_length=1, max_length=10_000)]
    k: Annotated[int, Field(ge=1, description="candidates that are reranked")] = 100
    top_k: Annotated[int, Field(ge=1)] = 10


class CaptionsRequest(BaseModel):
    """A picture of the index to look for captions of."""

    id: str
    k: Annotated[int, Field(ge=1)] = 100
    top_k: Annotated[int, Field(ge=1)] = 10


class RerankRequest(BaseModel):
    """The Cohere and Jina form; documents are pictures."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    query: Annotated[str, Field(min_length=1, max_length=10_000)]
    documents: Annotated[list[Annotated[Any, WithJsonSchema(DOCUMENT)]], Field(min_length=1)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False
    raw_scores: bool = False


class Mistake(BaseModel):
    """What is wrong with one field of a request."""

    where: str
    what: str


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str | list[Mistake]


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": description}
    for status, description in {
        400: "The request was cut short or is no HTTP",
        401: "The API key is missing or wrong",
        404: "No such picture in this index",
        413: "The body is longer than this server reads",
        422: "What was sent cannot be answered",
        429: "Too many requests wait; Retry-After says when to come back",
        503: "Not done in time",
    }.items()
}
"""Answers that every path may give."""
