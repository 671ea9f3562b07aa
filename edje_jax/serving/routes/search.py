"""Search of the index, with a query among its images and with an image among its captions."""

import asyncio
import time
from dataclasses import asdict

from fastapi import APIRouter, HTTPException

from edje_jax.index.where import BadWhere, Where
from edje_jax.search.results import to_results
from edje_jax.serving.jobs import CaptionsJob, SearchJob
from edje_jax.serving.json_body import JsonRoute
from edje_jax.serving.schemas import (
    BaseImage,
    CaptionsAnswer,
    CaptionsRequest,
    FoundCaption,
    FoundImage,
    SearchAnswer,
    SearchRequest,
    Seconds,
)
from edje_jax.serving.state import Shared, State, check_at_most

router = APIRouter(route_class=JsonRoute)


@router.post("/search", response_model_exclude_none=True)
async def search(asked: SearchRequest, state: Shared) -> SearchAnswer:
    """Images of the index for a query."""
    check_at_most("k", asked.k, state.limits.k, "--max-k")
    began = time.perf_counter()
    async with state.in_time():
        where, query = await _filter(asked, state), await state.read_query(asked.query)
        job = SearchJob(query, asked.k, _ids(asked), where, asked.top_k, asked.min_score)
        answer = await state.compute(job)
    state.monitor.count_search(answer.seconds, len(answer.found.rows) * len(state.texts_of(query)))
    service = state.service
    found = service.results(answer, asked.top_k, asked.min_score)
    return SearchAnswer(
        query=asked.query.text,
        k=len(answer.found.rows),
        results=[FoundImage(**one) for one in found],
        base=[BaseImage(**one) for one in service.base_order(answer.found, asked.top_k)],
        seconds=Seconds(**asdict(answer.seconds), total=time.perf_counter() - began),
    )


@router.post("/captions")
async def captions(asked: CaptionsRequest, state: Shared) -> CaptionsAnswer:
    """Captions of the index for one of its images."""
    check_at_most("k", asked.k, state.limits.k, "--max-k")
    began = time.perf_counter()
    if not len(state.store.captions):
        raise HTTPException(422, "the images of this index have no captions")
    async with state.in_time():
        image, where = state.number(asked.id), await _filter(asked, state)
        answer = await state.compute(CaptionsJob(image, asked.k, _ids(asked), where))
    state.monitor.count_search(answer.seconds, len(answer.found.rows))
    results = []
    for row, scores in to_results(answer.found, asked.top_k, asked.min_score):
        image, caption = state.store.captions[row]
        results.append(FoundCaption(id=state.store.row(image).id, caption=caption, **scores))
    return CaptionsAnswer(
        id=asked.id,
        k=len(answer.found.rows),
        results=results,
        seconds=Seconds(**asdict(answer.seconds), total=time.perf_counter() - began),
    )


def _ids(asked: SearchRequest | CaptionsRequest) -> tuple[str, ...] | None:
    return None if asked.ids is None else tuple(asked.ids)


async def _filter(asked: SearchRequest | CaptionsRequest, state: State) -> str | None:
    """Filter of a request, once it is known to fit the index.

    Raises:
        HTTPException: 422 where it cannot be read, or does not fit; 503 where this server lacks
            what filters need.
    """
    if asked.where is not None:
        try:
            where = Where.parse(asked.where)
            # The first time, every shard's metadata are opened.
            await asyncio.to_thread(_check, where, state)
        except BadWhere as error:
            raise HTTPException(422, f"where: {error}") from None
        except ModuleNotFoundError as error:
            raise HTTPException(503, f"where: {error}") from None
    return asked.where


def _check(where: Where, state: State) -> None:
    where.check(state.store.metadata_kinds)
