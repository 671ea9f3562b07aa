"""Search page, health, model and metrics of the server."""

import html
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse

from edje_jax.serving.schemas import Health, Info, Models, Ready, ServedModel
from edje_jax.serving.state import Shared

PAGE = Path(__file__).parents[1] / "page.html"

router = APIRouter()


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
def page(request: Request) -> str:
    """The search page, whose addresses are relative: to the path of a proxy where one is given."""
    text, root = PAGE.read_text("utf-8"), request.scope.get("root_path", "")
    base = f'<head>\n<base href="{html.escape(root)}/">' if root else "<head>"
    return text.replace("<head>", base, 1)


@router.get("/health")
@router.get("/healthz")
def health(state: Shared) -> Health:
    """Health of the server, and the length of its queue."""
    return Health(status="ok", pictures=len(state.service.index), waiting=state.batcher.waiting)


@router.get("/ready")
def ready(state: Shared) -> Ready:
    """Whether every shape is compiled: 503 until then."""
    if not state.ready:
        raise HTTPException(503, "compiling", {"Retry-After": "5"})
    return Ready(status="ready")


@router.get("/info")
def info(state: Shared) -> Info:
    """Model, counts and examples that the search page shows."""
    config = state.service.reranker.config
    return Info(
        model=state.service.name,
        pictures=len(state.service.index),
        captions=len(state.store.captions),
        frames=config.frames if config.video else 0,
        examples=state.service.examples(),
        calibrated=state.service.reranker.calibration.is_fitted,
        min_score=state.service.reranker.calibration.least_score,
    )


@router.get("/v1/models")
def models(state: Shared) -> Models:
    """The one model, in OpenAI's form."""
    return Models(data=[ServedModel(id=state.service.name, created=state.started)])


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(state: Shared) -> Response:
    """Counters in the text format of Prometheus."""
    return PlainTextResponse(
        state.monitor.prometheus_text(), media_type="text/plain; version=0.0.4"
    )
