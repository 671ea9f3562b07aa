"""The HTTP of `edje serve`: a FastAPI application around a `Service`."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse

from edje_jax.serving.batcher import Batcher
from edje_jax.serving.limits import Limits
from edje_jax.serving.middleware import Body, Drain, Head, Paths, Watch
from edje_jax.serving.monitor import Monitor
from edje_jax.serving.routes import images, rerank, search, status, videos
from edje_jax.serving.schemas import ERROR_RESPONSES, state_limits
from edje_jax.serving.service import Service
from edje_jax.serving.state import State
from edje_jax.serving.tracing import FAILED, Tracing, Watched

log = logging.getLogger(__name__)

DRAINED = 256 << 20
"""Most bytes of a refused request that are dropped, so that its client reads the reason."""


def make_app(
    service: Service,
    *,
    api_key: str | None = None,
    limits: Limits = Limits(),
    cors_origins: Sequence[str] = (),
    root_path: str = "",
    warm: bool = False,
    threads: int = 1,
    watched: Watched = Watched(),
) -> FastAPI:
    """The application; it owns the threads that compute.

    `cors_origins` are those whose pages may ask ("*": any), `root_path` is what a proxy puts before
    every path. With `warm` every shape is compiled first; /ready says when that is done.
    """
    batcher: Batcher[Any, Any] = Batcher(service.run, limits.waiting, limits.batch, threads)
    monitor = Monitor(lambda: batcher.waiting, watched.tracer)
    batcher.taken = monitor.count_batch
    state = State(service, batcher, monitor, limits, ready=not warm)
    app = FastAPI(
        title="edje",
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=ERROR_RESPONSES,
    )
    app.state.serving = state
    for routes in (search, rerank, images, videos, status):
        app.include_router(routes.router)
    # The middleware that is added last gets a request first.
    app.add_middleware(Body, limit=limits.body_bytes)
    app.add_middleware(Watch, monitor=state.monitor, api_key=api_key)
    app.add_middleware(Tracing, **watched._asdict())
    app.add_middleware(Drain, limit=DRAINED, seconds=limits.seconds)
    app.add_middleware(Paths, root_path=root_path, routes=app.routes)
    app.add_middleware(Head)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _failed)
    _state_limits(app, limits)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: State = app.state.serving
    state.batcher.start()
    compiling = None if state.ready else asyncio.create_task(_warm(state))
    yield
    # What compiles cannot be interrupted, and the jobs behind it are not waited for.
    if compiling is None or compiling.done():
        await state.batcher.stop()


async def _warm(state: State) -> None:
    try:
        await state.batcher.first(state.service.warm)
        state.ready = True
    except Exception:
        log.exception("compiling failed; /ready stays 503")


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"detail": [_field_error(one) for one in error.errors()]}, 422)


def _field_error(error: dict[str, Any]) -> dict[str, str]:
    """Place and reason of an error, without the value: it may be megabytes, or no JSON (NaN)."""
    where, what = ".".join(map(str, error["loc"])), error["msg"].removeprefix("Value error, ")
    if where == "body" and error["type"] == "missing":
        what = "the body is empty; send a JSON object"
    return {"where": where, "what": what}


async def _failed(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": FAILED}, 500)


def _state_limits(app: FastAPI, limits: Limits) -> None:
    """State the limits in the OpenAPI document."""
    write = app.openapi

    def openapi() -> dict[str, Any]:
        return state_limits(write(), limits)

    app.openapi = openapi
