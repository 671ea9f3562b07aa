"""`edje serve`: an index behind HTTP."""

import contextlib
import errno
import logging
import os
import re
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

from edje_jax.cli.program import UsageError
from edje_jax.cli.search import model_of, open_index
from edje_jax.index.store import check_model

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger(__name__)

ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#]+")
_REFUSED = {
    errno.EADDRINUSE: "is in use; choose another with --port, or end what listens there",
    errno.EACCES: "may not be listened on by this user; choose one above 1023 with --port",
    errno.EADDRNOTAVAIL: "cannot be listened on: --host is no address of this machine",
}


def serve(asked: Any) -> None:
    """Serve until SIGINT or SIGTERM; requests at hand are answered first.

    Raises:
        UsageError: an option makes no sense, or what serving needs is not installed.
        RuntimeError: the port cannot be listened on, which is told before anything is loaded; or a
            cluster's processes do not start.
        BadStore, FileNotFoundError: the index or its model cannot be opened.
    """
    check_server_is_installed()
    from edje_jax.cli.serve_on_ray import service_on_ray
    from edje_jax.serving.app import make_app
    from edje_jax.serving.service import Service

    limits, root_path = _limits(asked), _root_path(asked.root_path)
    _check_spread(asked)
    _check_origins(asked.cors_origin)
    listening = listen(asked.host, asked.port)
    with contextlib.ExitStack() as ending:
        if asked.on:
            service, threads = service_on_ray(asked, ending)
        else:
            index = open_index(asked)
            index.store.fetch()
            reranker = model_of(index.store, asked)
            check_model(index.store, reranker.stamp)
            service, threads = Service(reranker, index), 1
        app = make_app(
            service,
            api_key=asked.api_key or os.environ.get("EDJE_API_KEY"),
            limits=limits,
            cors_origins=asked.cors_origin,
            root_path=root_path,
            warm=asked.warm,
            threads=threads,
            watched=_watched(asked),
        )
        if asked.warm and not asked.on:
            log.info("compiling every shape; --no-warm leaves that to the first requests")
        log.info("%d images on %s%s", len(service.index), url_of(asked.host, listening), root_path)
        answer(app, listening)


def check_server_is_installed() -> None:
    """Raise an error if the libraries of the extra `serve` are missing.

    Raises:
        UsageError: one of them cannot be imported.
    """
    try:
        import uvicorn  # noqa: F401

        import edje_jax.serving.app  # noqa: F401
    except ImportError as error:
        raise UsageError(f"serving needs more ({error}); pip install 'edje-jax[serve]'") from error


def answer(app: "FastAPI", listening: socket.socket) -> None:
    """Answer requests until SIGINT or SIGTERM; those at hand are answered first.

    Raises:
        RuntimeError: the server does not start.
    """
    import uvicorn

    end_on_sigterm()
    config = uvicorn.Config(
        app,
        log_config=None,  # Its lines are written as all others are
        log_level="warning",
        timeout_graceful_shutdown=30,
    )
    server = uvicorn.Server(config)
    with contextlib.suppress(SystemExit, KeyboardInterrupt):
        server.run(sockets=[listening])
    if not server.started:
        raise RuntimeError("the server did not start; the log says why")
    if not app.state.serving.ready:
        # Python would wait for the compiler, which takes minutes and cannot be interrupted.
        os._exit(0)


def end_on_sigterm() -> None:
    """Take SIGTERM as a request to end, which is a success; uvicorn hands it on once all requests
    are answered."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def url_of(host: str, listening: socket.socket) -> str:
    """URL of what listens on a host, an address of IPv6 in brackets; this machine's for a host that
    stands for all of its addresses."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}"


def _watched(asked: Any) -> Any:
    """Logging and tracing of requests.

    Raises:
        UsageError: what tracing needs is not installed.
    """
    from edje_jax.serving.tracing import Watched, log_lines_of_json, make_tracer

    if asked.log_json:
        log_lines_of_json()
    try:
        return Watched(asked.log_json, make_tracer() if asked.traces else None)
    except ImportError as error:
        why = f"--traces needs more ({error}); pip install 'edje-jax[otel]'"
        raise UsageError(why) from error


def listen(host: str, port: int) -> socket.socket:
    """Socket that listens; it holds the port while an index is loaded.

    Raises:
        UsageError: there is no such address or port.
        RuntimeError: the port is in use, or this user may not listen on it.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: ports count from 0 to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host}: no such address ({error})") from error
    # Of both, as localhost has, the one that clients try in any case.
    family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        why = _REFUSED.get(error.errno or 0, f"cannot be listened on ({error.strerror})")
        raise RuntimeError(f"port {port} of {host} {why}") from error
    return listening


def _limits(asked: Any) -> Any:
    from edje_jax.serving.limits import Limits

    flags = {
        "waiting": "max_waiting", "batch": "max_batch", "documents": "max_documents",
        "images": "max_images", "pixels": "max_pixels", "k": "max_k", "seconds": "timeout",
    }  # fmt: skip
    for flag in (*flags.values(), "max_body_mib"):
        value = getattr(asked, flag)
        if not value > 0:
            raise UsageError(f"--{flag.replace('_', '-')} {value}: has to be more than 0")
    limits = {limit: getattr(asked, flag) for limit, flag in flags.items()}
    return Limits(**limits, body_bytes=asked.max_body_mib << 20)


def _check_spread(asked: Any) -> None:
    for flag in ("partitions", "replicas"):
        value = getattr(asked, flag)
        if value < 1:
            raise UsageError(f"--{flag} {value}: has to be more than 0")
        if value > 1 and not asked.on:
            raise UsageError(f"--{flag} {value}: goes with --on ray")


def _root_path(given: str) -> str:
    """Root path with a slash before it and none behind."""
    path = given.strip("/")
    if re.search(r"[^\w./~%-]", path):
        raise UsageError(f"--root-path {given}: give a path alone, such as /search")
    return f"/{path}" if path else ""


def _check_origins(origins: tuple[str, ...]) -> None:
    for origin in origins:
        if not ORIGIN.fullmatch(origin):
            raise UsageError(
                f"--cors-origin {origin}: give scheme and host as browsers send them, such as"
                ' https://shop.example (no path, no slash at the end), or "*"'
            )
