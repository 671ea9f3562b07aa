"""`edje serve`: an index behind HTTP."""

import logging
import os
import signal
import sys
from typing import Any

from edje_jax.cli.program import UsageError
from edje_jax.cli.search import model_of
from edje_jax.retrieval.index import ImageIndex
from edje_jax.retrieval.store import check_model

log = logging.getLogger(__name__)


def serve(asked: Any) -> None:
    """Serve until SIGINT or SIGTERM; requests at hand are answered first.

    Raises:
        UsageError: what serving needs is not installed.
        BadStore, FileNotFoundError: the index or its model cannot be opened.
    """
    try:
        import uvicorn

        from edje_jax.serving.app import make_app
        from edje_jax.serving.limits import Limits
        from edje_jax.serving.service import Service
    except ImportError as error:
        raise UsageError(f"serving needs more ({error}); pip install 'edje-jax[serve]'") from error
    index = ImageIndex.open(asked.index, tokens_on=asked.tokens_on, first_stage=asked.first_stage)
    reranker = model_of(index, asked.model)
    check_model(index.store, reranker.stamp)
    service = Service(reranker, index)
    if asked.warm:
        log.info("compiling every shape; --no-warm leaves that to the first requests")
        service.warm()
    limits = Limits(waiting=asked.max_waiting, batch=asked.max_batch, seconds=asked.timeout)
    app = make_app(
        service, api_key=asked.api_key or os.environ.get("EDJE_API_KEY", ""), limits=limits
    )
    log.info("%d pictures on http://%s:%d", len(index), asked.host, asked.port)
    # uvicorn hands a signal on once all is answered; asked to end and done is a success.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(
        app, host=asked.host, port=asked.port, log_level="warning", timeout_graceful_shutdown=30
    )
