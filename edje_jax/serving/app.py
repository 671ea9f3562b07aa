"""The HTTP of `edje serve`: a FastAPI application around a `Service`."""

import asyncio
import hmac
import io
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse
from PIL import Image

from edje_jax.data.decoders import open_image
from edje_jax.retrieval.reranker import listed, sigmoid
from edje_jax.serving.batcher import Batcher, Busy
from edje_jax.serving.documents import BadDocument, read_documents
from edje_jax.serving.forms import PROBLEMS, CaptionsRequest, RerankRequest, SearchRequest
from edje_jax.serving.limits import BodyLimit, Limits
from edje_jax.serving.monitor import Monitor
from edje_jax.serving.service import Captions, Rerank, Search, Service

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page.html"
OPEN = {"/", "/healthz"}
"""Paths that need no key: the page itself, which asks for one, and the sign of life."""


def make_app(service: Service, *, api_key: str = "", limits: Limits = Limits()) -> FastAPI:
    """The application; it owns the thread that computes."""
    batcher: Batcher[Any, Any] = Batcher(service.run, limits.waiting, limits.batch)
    monitor = Monitor(lambda: batcher.waiting)
    store = service.index.store
    decoding = asyncio.Semaphore(2)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()

    app = FastAPI(
        title="edje", lifespan=lifespan, docs_url=None, redoc_url=None, responses=PROBLEMS
    )
    app.add_middleware(BodyLimit, limit=limits.body_bytes)

    @app.middleware("http")
    async def watch(request: Request, call_next: Any) -> Response:
        began = time.perf_counter()
        # Not the address as put together from the Host header, which the client chooses.
        path = request.scope["path"]
        if api_key and path not in OPEN and not _has_key(request, api_key):
            response: Response = JSONResponse({"detail": "this server wants its API key"}, 401)
        else:
            try:
                response = await call_next(request)
            except Exception:
                monitor.request(request, 500, time.perf_counter() - began)
                raise
        monitor.request(request, response.status_code, time.perf_counter() - began)
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # Not what was sent, which may be megabytes, or no JSON (NaN).
        told = [{"where": ".".join(map(str, e["loc"])), "what": e["msg"]} for e in error.errors()]
        return JSONResponse({"detail": told}, 422)

    async def ask(job: Any) -> Any:
        try:
            return await asyncio.wait_for(batcher.submit(job), limits.seconds)
        except Busy:
            raise HTTPException(429, "too many requests wait", {"Retry-After": "1"}) from None
        except TimeoutError:
            raise HTTPException(503, f"not done within {limits.seconds:g} seconds") from None

    @app.post("/search")
    async def search(asked: SearchRequest) -> dict[str, Any]:
        _at_most(limits.k, k=asked.k)
        began = time.perf_counter()
        answer = await ask(Search(asked.query, asked.k))
        monitor.answer(answer.seconds, len(answer.found.rows))
        return {
            "query": asked.query,
            "k": len(answer.found.rows),
            "results": service.results(answer.found, asked.top_k),
            "base": service.base_order(answer.found, asked.top_k),
            "seconds": asdict(answer.seconds) | {"total": time.perf_counter() - began},
        }

    @app.post("/captions")
    async def captions(asked: CaptionsRequest) -> dict[str, Any]:
        _at_most(limits.k, k=asked.k)
        began = time.perf_counter()
        if not store.captions:
            raise HTTPException(422, "the pictures of this index have no captions")
        answer = await ask(Captions(_number(store, asked.id), asked.k))
        monitor.answer(answer.seconds, len(answer.found.rows))
        results = []
        for row, scores in listed(answer.found, asked.top_k):
            picture, caption = store.captions[row]
            results.append({"id": store.row(picture).id, "caption": caption, **scores})
        total = time.perf_counter() - began
        return {
            "id": asked.id,
            "k": len(answer.found.rows),
            "results": results,
            "seconds": asdict(answer.seconds) | {"total": total},
        }

    @app.post("/v1/rerank")
    @app.post("/v2/rerank")
    async def rerank(asked: RerankRequest) -> dict[str, Any]:
        _at_most(limits.documents, documents=len(asked.documents))
        try:
            # A few at a time: decoded pictures are many times larger than what was sent.
            async with decoding:
                pictures = await asyncio.wait_for(
                    asyncio.to_thread(
                        read_documents,
                        asked.documents,
                        store.numbers,
                        service.reranker.config.image,
                        limits.pictures,
                        limits.pixels,
                    ),
                    limits.seconds,
                )
        except TimeoutError:
            raise HTTPException(503, f"not done within {limits.seconds:g} seconds") from None
        except BadDocument as error:
            raise HTTPException(422, str(error)) from None
        logits = await ask(Rerank(asked.query, pictures))
        monitor.pairs(len(logits))
        scores = logits if asked.raw_scores else sigmoid(logits)
        order = (-logits).argsort(kind="stable")[: asked.top_n]
        results = [{"index": int(i), "relevance_score": float(scores[i])} for i in order]
        if asked.return_documents:
            results = [one | {"document": _echo(asked.documents[one["index"]])} for one in results]
        tokens = service.reranker.config.num_tokens + service.text_tokens(asked.query)
        return {
            "id": uuid.uuid4().hex,
            "model": service.reranker.source,
            "results": results,
            "usage": {"pairs": len(logits), "total_tokens": len(logits) * tokens},
        }

    @app.get("/images/{name:path}", response_class=FileResponse, responses=PICTURE)
    def image(name: str, thumbnail: Annotated[int, Query(ge=0, le=4096)] = 0) -> Response:
        number = _number(store, name)
        path = Path(store.row(number).path or "/nonexistent")
        # Only what was indexed, and of that only what a browser takes for a picture.
        if not thumbnail and (media_type := _shown_as(path)):
            return FileResponse(path, media_type=media_type, headers=CACHED)
        small = store.thumbnail(number)
        if thumbnail:
            small = _within(small, thumbnail)
        return Response(small, media_type="image/jpeg", headers=CACHED)

    @app.get("/healthz")
    def healthz() -> dict[str, Any]:
        return {"status": "ok", "pictures": len(service.index), "waiting": batcher.waiting}

    @app.get("/info")
    def info() -> dict[str, Any]:
        return {
            "model": Path(service.reranker.source).name,
            "pictures": len(service.index),
            "captions": len(store.captions),
            "examples": service.examples(),
        }

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        return PlainTextResponse(monitor.page(), media_type="text/plain; version=0.0.4")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        return PAGE.read_text("utf-8")

    return app


SHOWN = {
    "JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp",
    "GIF": "image/gif", "BMP": "image/bmp", "AVIF": "image/avif",
}  # fmt: skip
"""Formats that browsers show, and their media types; of any other a thumbnail is sent."""
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
}
CACHED = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}


def _shown_as(path: Path) -> str:
    """The media type of a file that browsers show, told by its content; "" of any other."""
    try:
        with path.open("rb") as file, open_image(file) as image:
            return SHOWN.get(image.format or "", "")
    except Exception:  # No such file, or nearly anything that a decoder raises of a damaged one
        return ""


def _has_key(request: Request, api_key: str) -> bool:
    """By "Authorization: Bearer KEY" or "X-API-Key: KEY", compared in constant time."""
    given = request.headers.get("x-api-key") or ""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        given = token
    return hmac.compare_digest(given.encode(), api_key.encode())


def _echo(document: dict[str, Any]) -> dict[str, Any]:
    """What was understood of a document, and nothing else."""
    return {key: document[key] for key in ("id", "image", "content") if key in document}


def _at_most(limit: int, **values: int) -> None:
    for name, value in values.items():
        if value > limit:
            raise HTTPException(422, f"{name}: {value} is more than {limit}")


def _number(store: Any, name: str) -> int:
    if name not in store.numbers:
        raise HTTPException(404, "no such picture in this index")
    return store.numbers[name]


def _within(data: bytes, side: int) -> bytes:
    picture = Image.open(io.BytesIO(data))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return out.getvalue()
