"""Schemas of requests, answers and errors, from which the OpenAPI document is made."""

import copy
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from edje_jax.serving.json_body import whole_characters
from edje_jax.serving.limits import Limits
from edje_jax.serving.query_parts import Query

# --- requests -------------------------------------------------------------------------------------

_DATA = {"type": "string", "description": "base64 of an image, or a data: URI"}
_URL = {"anyOf": [_DATA, {"type": "object", "required": ["url"], "properties": {"url": _DATA}}]}
_PARTS = {
    "type": "array",
    "minItems": 1,
    "items": {
        "anyOf": [
            {
                "type": "object",
                "required": ["type", "image_url"],
                "properties": {"type": {"const": "image_url"}, "image_url": _URL},
            },
            {
                "type": "object",
                "required": ["type", "text"],
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
            },
        ]
    },
}
_STRING = {"type": "string", "description": "the id of an indexed image, or a data: URI"}
_ID = {"anyOf": [{"type": "string"}, {"type": "integer"}]}
DOCUMENT = {
    "description": "an image: of the index, or sent along",
    "anyOf": [
        _STRING,
        {"type": "object", "required": ["id"], "properties": {"id": _ID}},
        {"type": "object", "required": ["image"], "properties": {"image": _DATA}},
        {
            "type": "object",
            "required": ["content"],
            "properties": {"content": _PARTS},
            "description": "one image; texts beside it are left aside",
        },
        {"type": "object", "required": ["text"], "properties": {"text": _STRING}},
    ],
}
"""Schema of a document; other JSON is read as well, so that an error can explain it."""


MinScore = Annotated[
    float | None, Field(ge=0, le=1, description="results below this score are left out")
]


Ids = Annotated[
    list[str] | None,
    Field(max_length=100_000, description="only these images are searched"),
]
Filter = Annotated[
    str | None,
    Field(description="only images are searched for which it holds, such as year >= 2010"),
]


class SearchRequest(BaseModel):
    """Search for the images that match a query."""

    query: Query
    k: Annotated[int, Field(ge=1, description="candidates that are reranked")] = 100
    top_k: Annotated[int, Field(ge=1, description="results that come back")] = 10
    min_score: MinScore = None
    ids: Ids = None
    where: Filter = None


class CaptionsRequest(BaseModel):
    """Search for the captions that match an image of the index."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    id: str
    k: Annotated[int, Field(ge=1, description="candidates that are reranked")] = 100
    top_k: Annotated[int, Field(ge=1, description="results that come back")] = 10
    min_score: MinScore = None
    ids: Ids = None
    where: Filter = None


def parts_as_documents(documents: Any) -> Any:
    """vLLM's {"content": [parts]} as a list: each part is a document."""
    if isinstance(documents, dict) and isinstance(parts := documents.get("content"), list):
        return [{"content": [part]} for part in parts]
    return documents


Document = Annotated[Any, WithJsonSchema(DOCUMENT)]
DocumentList = Annotated[
    list[Any],
    Field(min_length=1),
    BeforeValidator(parts_as_documents),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "minItems": 1, "items": DOCUMENT},
                {
                    "type": "object",
                    "required": ["content"],
                    "properties": {"content": _PARTS},
                    "description": "each part is a document",
                },
            ]
        }
    ),
]


class RerankRequest(BaseModel):
    """The form of Cohere, Jina and vLLM, whose documents are images; with `texts` that of TEI."""

    model_config = ConfigDict(extra="ignore")

    model: Annotated[Any, Field(description="left aside: there is one", exclude=True)] = None
    query: Query
    documents: DocumentList | None = None
    texts: Annotated[list[Document], Field(min_length=1)] | None = None
    top_n: Annotated[int, Field(ge=0, description="results that come back; 0 for all")] | None = (
        None
    )
    return_documents: bool | None = False
    raw_scores: bool | None = Field(
        False, description="match logits in place of scores from 0 to 1"
    )
    return_text: bool | None = False

    @model_validator(mode="after")
    def one_list(self) -> Self:
        """Check that there is one list of documents."""
        if (self.documents is None) == (self.texts is None):
            raise ValueError(
                "give documents, a list of images as ids, data: URIs or objects"
                " (or texts, in the form of text-embeddings-inference), and not both"
            )
        return self


# --- answers --------------------------------------------------------------------------------------


Stored = Annotated[str, BeforeValidator(whole_characters)]
"""Text of the index: names of files may hold bytes that are no characters."""


class Seconds(BaseModel):
    """Seconds that the parts of an answer took; reranking includes gathering."""

    first_stage: float
    by_projection: Annotated[
        float, Field(description="rescoring of codes by the query's projection; 0 without codes")
    ] = 0.0
    by_embedding: Annotated[
        float, Field(description="rescoring of what codes found by embeddings; 0 without codes")
    ] = 0.0
    gather: float
    rerank: float
    moments: Annotated[
        float, Field(description="attention to the frames of the results; 0 where none are told")
    ] = 0.0
    total: float


VideoAddress = Annotated[
    str | None, Field(description="address of a video's file, below the server's own")
]
VideoType = Annotated[str | None, Field(description="media type of that file, such as video/mp4")]


class FoundImage(BaseModel):
    """An image that a search found, or a video; what is of videos alone is absent for an image."""

    id: Stored
    captions: list[Stored]
    score: Annotated[float, Field(description="from 0 to 1; a probability once calibrated")]
    similarity: Annotated[float, Field(description="cosine of the first stage")]
    base_rank: Annotated[int, Field(description="place (from 1) that the first stage gave")]
    moment: Annotated[
        float | None, Field(description="seconds at which the frame is shown that matches most")
    ] = None
    frame: Annotated[int | None, Field(description="number of that frame, from 0")] = None
    frames: Annotated[int | None, Field(description="frames that the model has read")] = None
    frame_times: Annotated[
        list[float] | None, Field(description="seconds at which each of them is shown")
    ] = None
    strip: Annotated[
        str | None, Field(description="address of a JPEG file of them, from left to right")
    ] = None
    video: VideoAddress = None
    video_type: VideoType = None


class BaseImage(BaseModel):
    """An image or video in the order of the first stage."""

    id: Stored
    similarity: float
    rank: Annotated[int, Field(description="place (from 1) that reranking gave")]
    video: VideoAddress = None
    video_type: VideoType = None


class SearchAnswer(BaseModel):
    """Images of the index for a query, best first."""

    query: Annotated[str, Field(description="its text; empty if there was none")]
    k: Annotated[int, Field(description="candidates that were reranked")]
    results: Annotated[list[FoundImage], Field(description="empty if none reaches min_score")]
    base: list[BaseImage]
    seconds: Seconds


class FoundCaption(BaseModel):
    """A caption that an image found, and the image that it was written for."""

    id: Stored
    caption: Stored
    score: float
    similarity: float
    base_rank: int


class CaptionsAnswer(BaseModel):
    """Captions of the index for an image, best first."""

    id: str
    k: int
    results: list[FoundCaption]
    seconds: Seconds


class ReturnedDocument(BaseModel):
    """A document as it was understood."""

    text: Annotated[str, Field(description="what was sent as text, or the id; empty for an image")]
    id: str | None = None
    image: str | None = None
    content: list[dict[str, Any]] | None = None


class Ranked(BaseModel):
    """A document's place in the request, and its score."""

    index: int
    relevance_score: Annotated[
        float, Field(description="each pair's own score, from 0 to 1, or its logit")
    ]
    document: ReturnedDocument | None = None


class Usage(BaseModel):
    """Amount of computation, in pairs of a text and an image, and in tokens."""

    pairs: int
    prompt_tokens: int
    total_tokens: int


class Meta(BaseModel):
    """Metadata that Cohere's clients read beside the results."""

    api_version: dict[str, str]
    billed_units: dict[str, int]
    tokens: dict[str, int]
    warnings: Annotated[
        list[str] | None, Field(description="what was left aside, and of which documents")
    ] = None


class RerankAnswer(BaseModel):
    """Documents, best first, in the form of Cohere, Jina and vLLM."""

    id: str
    model: str
    results: list[Ranked]
    usage: Usage
    meta: Meta


class TextScore(BaseModel):
    """A document's place in the request, and its score, as text-embeddings-inference answers."""

    index: int
    score: float
    text: str | None = None


class Health(BaseModel):
    """Health of the server, and the length of its queue."""

    status: str
    pictures: int
    waiting: Annotated[int, Field(description="requests in the queue")]


class Ready(BaseModel):
    """Whether requests are answered without waiting for the compiler."""

    status: str


class Info(BaseModel):
    """Model, counts and examples for the search page."""

    model: str
    pictures: int
    captions: int
    frames: Annotated[
        int, Field(description="most frames of a video that the model reads; 0 if it reads images")
    ] = 0
    examples: list[Stored]
    calibrated: Annotated[bool, Field(description="whether scores are probabilities")] = False
    min_score: Annotated[
        float | None, Field(description="least score for the precision that was asked of the model")
    ] = None


class ServedModel(BaseModel):
    """The model that is served, in OpenAI's form."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "edje_jax"


class Models(BaseModel):
    """List of the one model that is served."""

    object: str = "list"
    data: list[ServedModel]


# --- refusals -------------------------------------------------------------------------------------


class FieldError(BaseModel):
    """Fault of one field of a request."""

    where: str
    what: str


class ErrorResponse(BaseModel):
    """Reason for which there is no answer."""

    detail: str | list[FieldError]


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "The request was cut short or is no HTTP",
        401: "The API key is missing or wrong",
        404: "No such image in this index",
        413: "The body is longer than this server reads",
        422: "What was sent cannot be answered",
        429: "Too many requests wait; Retry-After says when to come back",
        503: "Not done in time, or not ready yet",
    }.items()
}
"""Answers that every path may give."""


def state_limits(document: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """An OpenAPI document with the limits of a server in it."""
    document = copy.deepcopy(document)
    schemas = document["components"]["schemas"]
    rerank = schemas["RerankRequest"]["properties"]
    documents, parts, _ = rerank["documents"]["anyOf"]
    for one in (documents, parts["properties"]["content"], rerank["texts"]["anyOf"][0]):
        one["maxItems"] = limits.documents
    for name in ("SearchRequest", "CaptionsRequest"):
        schemas[name]["properties"]["k"]["maximum"] = limits.k
    rerank["documents"]["description"] = (
        f"at most {limits.documents}, of them at most {limits.images} images that are sent, each"
        f" of at most {limits.pixels} pixels; a body has at most {limits.body_bytes} bytes"
    )
    return document
