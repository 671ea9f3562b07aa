"""Middleware between the network and the routes: paths, HEAD, keys, bodies, and requests that are
counted or ended."""

import asyncio
import contextlib
import hmac
import io
import re
import time
from collections.abc import Callable, Sequence

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edje_jax.serving.monitor import Monitor

OPEN = {"/", "/healthz", "/health", "/ready"}
"""Paths that need no key: the page itself, which asks for a key, and the health checks."""


class Paths:
    """Map each path to that of a route, below `root_path`.

    The prefix of a proxy may be present or not, as some proxies strip it and others leave it.
    Repeated slashes, which clients make when they join addresses, are merged. A path that matches
    a route as it is takes precedence, as ids of images may contain slashes.
    """

    def __init__(self, app: ASGIApp, root_path: str, routes: Sequence[BaseRoute]):
        self.app, self.root_path, self.routes = app, root_path, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = max(self._readings(scope["path"]), key=lambda path: self._match(scope, path))
            scope = {**scope, "root_path": self.root_path, "path": self.root_path + path}
        await self.app(scope, receive, send)

    def _readings(self, path: str) -> list[str]:
        """Paths of routes that a path may stand for, the likeliest first."""
        found = [path]
        if self.root_path and f"{path}/".startswith(f"{self.root_path}/"):
            found.insert(0, path[len(self.root_path) :] or "/")
        return found + [re.sub("//+", "/", one).rstrip("/") or "/" for one in found]

    def _match(self, scope: Scope, path: str) -> int:
        """Best match of the routes for a path: none, with another method only, or full."""
        asked = {**scope, "path": path, "root_path": ""}
        return max(route.matches(dict(asked))[0].value for route in self.routes)


class Head:
    """Answer HEAD like GET, without the body."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self.app(scope, receive, send)

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.pathsend":
                message = {"type": "http.response.body"}
            await send({**message, "body": b""} if "body" in message else message)

        # Ranges are of GET alone. A file is named and not read, as videos are large.
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        extensions = {**scope.get("extensions", {}), "http.response.pathsend": {}}
        asked = {"method": "GET", "headers": headers, "extensions": extensions}
        await self.app({**scope, **asked}, receive, without_body)


class Drain:
    """Read and drop what a client still sends when its answer is ready, up to a limit.

    A client whose connection closes while it sends reports that, and not the answer.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float):
        self.app, self.limit, self.seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A client that sends "Expect" waits for the answer before it sends the body.
        if scope["type"] != "http" or b"expect" in dict(scope["headers"]):
            return await self.app(scope, receive, send)
        done = False

        async def watched() -> Message:
            nonlocal done
            message = await receive()
            done = done or not message.get("more_body", False)
            return message

        async def drained(message: Message) -> None:
            if message["type"] == "http.response.start" and not done:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._drop(watched, lambda: done), self.seconds)
            await send(message)

        await self.app(scope, watched, drained)

    async def _drop(self, receive: Receive, done: Callable[[], bool]) -> None:
        dropped = 0
        while not done() and dropped <= self.limit:
            dropped += len((await receive()).get("body", b""))


class Watch:
    """Count requests, and refuse those without the key if the server has one."""

    def __init__(self, app: ASGIApp, monitor: Monitor, api_key: str | None):
        self.app, self.monitor, self.api_key = app, monitor, api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._answerer(scope)(scope, receive, noted)
        finally:
            self.monitor.count_request(scope, status, time.perf_counter() - began)

    def _answerer(self, scope: Scope) -> ASGIApp:
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        # Browsers send OPTIONS without a key, to ask which requests are allowed.
        free = scope["method"] == "OPTIONS" or path in OPEN
        if not self.api_key or free or _has_key(Request(scope), self.api_key):
            return self.app
        return JSONResponse({"detail": "this server wants its API key"}, 401)


def _has_key(request: Request, api_key: str) -> bool:
    """Whether a request has the key, as "Authorization: Bearer KEY" or "X-API-Key: KEY".

    Keys are compared in constant time.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    given = [request.headers.get("x-api-key", ""), token if scheme.lower() == "bearer" else ""]
    # Both are looked at: a proxy may send a token of its own.
    matches = [hmac.compare_digest(one.encode("latin-1"), api_key.encode()) for one in given]
    return any(matches)


class Body:
    """Read each body whole, as JSON whatever its type, and refuse more than `limit` bytes."""

    def __init__(self, app: ASGIApp, limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        stated = headers.get(b"content-length", b"0")
        # Few digits, as Python refuses to read a number of thousands of them.
        if stated.isdigit() and int(stated[:19]) > self.limit:
            return await self._refuse(scope, receive, send)
        body, more = io.BytesIO(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # The client has disconnected
                return await JSONResponse({"detail": "cut short"}, 400)(scope, receive, send)
            body.write(message.get("body", b""))
            more = message.get("more_body", False)
            if body.tell() > self.limit:
                return await self._refuse(scope, receive, send)
        whole: list[Message] = [{"type": "http.request", "body": body.getvalue()}]
        # Replace the type "form", which curl sends by default: only JSON is read here.
        headers[b"content-type"] = b"application/json"
        scope["headers"] = list(headers.items())

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        return await self.app(scope, replay, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"the body has more than {self.limit} bytes (edje serve --max-body-mib)"
        await JSONResponse({"detail": detail}, 413)(scope, receive, send)
