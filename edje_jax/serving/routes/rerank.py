"""Reranking of images for a query, in the forms of Cohere, Jina, vLLM and TEI."""

import uuid

from fastapi import APIRouter, HTTPException, Request

from edje_jax.serving.documents import BadDocuments, Documents, read_documents
from edje_jax.serving.jobs import RerankJob
from edje_jax.serving.json_body import JsonRoute
from edje_jax.serving.schemas import (
    Meta,
    Ranked,
    RerankAnswer,
    RerankRequest,
    ReturnedDocument,
    TextScore,
    Usage,
)
from edje_jax.serving.state import Shared, State, check_at_most

router = APIRouter(route_class=JsonRoute)


@router.post("/rerank", response_model_exclude_none=True)
@router.post("/v1/rerank", response_model_exclude_none=True)
@router.post("/v2/rerank", response_model_exclude_none=True)
async def rerank(
    asked: RerankRequest, state: Shared, request: Request
) -> RerankAnswer | list[TextScore]:
    """Images, best first: with `texts` a bare list, as text-embeddings-inference answers."""
    async with state.in_time():
        documents, query = await _read(asked, state), await state.read_query(asked.query)
        found = await state.compute(RerankJob(query, documents.images))
    usage = _usage(len(found.logits), state.texts_of(query), state)
    state.monitor.count_pairs(usage.pairs)
    scores = [float(value) for value in (found.logits if asked.raw_scores else found.scores)]
    best = found.logits if asked.raw_scores else found.combined
    order = [int(place) for place in (-best).argsort(kind="stable")][: asked.top_n or None]
    if asked.texts is not None:
        texts = [one["text"] if asked.return_text else None for one in documents.returned]
        return [TextScore(index=i, score=scores[i], text=texts[i]) for i in order]
    results = [Ranked(index=i, relevance_score=scores[i]) for i in order]
    warnings = list(documents.warnings)
    if asked.return_documents and _is_ambiguous(request):
        warnings.append("documents are not returned to LiteLLM at /rerank; ask /v1/rerank")
    elif asked.return_documents:
        for one in results:
            one.document = ReturnedDocument(**documents.returned[one.index])
    return _answer(results, usage, warnings, state)


async def _read(asked: RerankRequest, state: State) -> Documents:
    place = "documents" if asked.texts is None else "texts"
    documents = asked.documents or asked.texts or []
    check_at_most(place, len(documents), state.limits.documents, "--max-documents")
    recipe = state.service.reranker.config.image
    try:
        return await state.decode(
            read_documents, documents, place, state.image_of_id, recipe, state.limits
        )
    except BadDocuments as error:
        raise HTTPException(422, str(error)) from None


def _is_ambiguous(request: Request) -> bool:
    """Whether LiteLLM sent a request. It is the same for hosted_vllm/, whose documents are objects,
    and for infinity/, whose documents are strings."""
    client = request.headers.get("user-agent", "")
    return client.startswith("litellm/") and request.scope["route"].path == "/rerank"


def _usage(images: int, texts: list[str], state: State) -> Usage:
    """Amount of computation where every image is scored with every text."""
    tokens = images * state.service.pair_tokens(texts)
    return Usage(pairs=images * len(texts), prompt_tokens=tokens, total_tokens=tokens)


def _answer(results: list[Ranked], usage: Usage, warnings: list[str], state: State) -> RerankAnswer:
    return RerankAnswer(
        id=uuid.uuid4().hex,
        model=state.service.name,
        results=results,
        usage=usage,
        meta=Meta(
            api_version={"version": "2"},
            billed_units={"search_units": 1},
            tokens={"input_tokens": usage.prompt_tokens, "output_tokens": 0},
            warnings=warnings or None,
        ),
    )
