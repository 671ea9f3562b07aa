"""State that the routes of an application share."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ParamSpec, TypeVar

import numpy as np
from fastapi import Depends, HTTPException, Request
from jaxtyping import UInt8

from edje_jax.data.base64_data import decode
from edje_jax.data.images import BadImage
from edje_jax.first_stage.base import BeyondLimits
from edje_jax.first_stage.milvus import StaleCollection
from edje_jax.index.store import Store
from edje_jax.search.query import CAPTIONS, Query
from edje_jax.serving.batcher import Batcher, Busy
from edje_jax.serving.documents import read_pixels
from edje_jax.serving.jobs import Job
from edje_jax.serving.json_body import whole_characters
from edje_jax.serving.limits import Limits
from edje_jax.serving.monitor import Monitor
from edje_jax.serving.query_parts import QueryParts
from edje_jax.serving.service import Service

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

REPLACEMENT = "\ufffd"
"""Character that stands for half of a surrogate pair."""


class ImageOfAnswer(Mapping[str, int]):
    """Images by their ids, or by these as answers write them, if they are no whole characters."""

    def __init__(self, store: Store):
        self._store, self._known = store, store.image_of_id

    def __getitem__(self, id: str) -> int:
        number = self._known.get(id)
        if number is None and REPLACEMENT in id:
            number = self._odd.get(id)
        if number is None:
            raise KeyError(id)
        return number

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    @cached_property
    def _odd(self) -> dict[str, int]:
        odd = self._store.odd_images()
        return {whole_characters(self._store.row(image).id): image for image in odd}


@dataclass
class State:
    """Service with its queue, limits and counters."""

    service: Service
    batcher: Batcher[Job, Any]
    monitor: Monitor
    limits: Limits
    ready: bool = True
    """Whether every shape is compiled, or is meant to be compiled on first use."""
    started: int = field(default_factory=lambda: int(time.time()))
    """Start of the server, in seconds since 1970."""
    decoding: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    """Bound on requests that decode images at once: a decoded image is far larger than its file."""

    @property
    def store(self) -> Store:
        """Store of the index."""
        return self.service.index.store

    @cached_property
    def image_of_id(self) -> Mapping[str, int]:
        """Id -> image of the index, also as answers write an id that is no whole characters."""
        return ImageOfAnswer(self.store)

    async def compute(self, job: Job) -> Any:
        """Compute a job, and return its result.

        Raises:
            HTTPException: 422 where more is asked for than the first stage gives, 429 where too
                many wait, 503 where the first stage is of another state of the index.
        """
        try:
            return await self.batcher.submit(job)
        except Busy:
            raise HTTPException(
                429, "too many requests wait (edje serve --max-waiting)", {"Retry-After": "1"}
            ) from None
        except BeyondLimits as error:
            raise HTTPException(422, str(error)) from None
        except StaleCollection:
            # The message, which names a folder of the server, is in the log.
            raise HTTPException(
                503, "the first stage holds another state of the index; start the server again"
            ) from None

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Limit the time of everything that is awaited in the block.

        Raises:
            HTTPException: 503 where it takes too long.
        """
        limit = asyncio.timeout(self.limits.seconds)
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise  # What was computed had a limit of its own
            why = "" if self.ready else "; the server still compiles (GET /ready says until when)"
            detail = f"not done within {self.limits.seconds:g} seconds (edje serve --timeout){why}"
            raise HTTPException(503, detail) from None

    async def decode(
        self, read: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Result of a function that decodes images, in a thread; two of them run at once.

        One that is no longer waited for keeps its place until it ends.
        """
        await self.decoding.acquire()
        reading = asyncio.ensure_future(asyncio.to_thread(read, *args, **kwargs))
        reading.add_done_callback(self._decoded)
        return await asyncio.shield(reading)

    def _decoded(self, reading: "asyncio.Future[Any]") -> None:
        self.decoding.release()
        if not reading.cancelled():
            reading.exception()  # Nobody may be left who waits for it

    async def read_query(self, parts: QueryParts) -> str | Query:
        """The query of a request, its image decoded; a text where there is nothing else.

        Raises:
            HTTPException: 404 where it is to be like an image that the index has not, 422 where its
                image cannot be read.
        """
        like, image = parts.like, None
        if like is not None:
            like = self.store.row(self.number(like)).id
        if parts.image is not None:
            try:
                image = await self.decode(self._pixels, parts.image)
            except (ValueError, BadImage) as error:
                raise HTTPException(422, f"query.image: {error}") from None
        query = Query(parts.text, parts.negatives, image, like, parts.image_weight)
        return query.text if query.is_text else query

    def texts_of(self, query: str | Query) -> list[str]:
        """Texts that each image is scored with for a query."""
        if isinstance(query, str):
            return [query]
        own = [] if query.like is None else self.store.row(self.number(query.like)).captions
        return [*filter(None, [query.text]), *query.negatives, *own[:CAPTIONS]]

    def _pixels(self, data: str) -> UInt8[np.ndarray, "s s 3"]:
        recipe = self.service.reranker.config.image
        return read_pixels(decode(data), recipe, self.limits.pixels)

    def number(self, name: str) -> int:
        """Row of an image in the index, by its id.

        Raises:
            HTTPException: 404 where there is none.
        """
        if (number := self.image_of_id.get(name)) is None:
            raise HTTPException(404, "no such image in this index")
        return number


def _state(request: Request) -> State:
    return request.app.state.serving


Shared = Annotated[State, Depends(_state)]
"""A route's parameter for the application's `State`."""


def check_at_most(name: str, value: int, limit: int, flag: str) -> None:
    """Refuse with a 422 that names the flag of `edje serve`."""
    if value > limit:
        raise HTTPException(422, f"{name}: {value} is more than {limit} (edje serve {flag})")
