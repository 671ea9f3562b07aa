"""How much a request may ask for, and how much of one is read."""

import io
from dataclasses import dataclass

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass(frozen=True)
class Limits:
    """What one request, and all that wait, may ask for."""

    body_bytes: int = 32 << 20
    documents: int = 1000
    pictures: int = 64
    """Of the documents, those that are sent and not indexed: each is decoded and encoded."""
    pixels: int = 32_000_000
    """Of one sent picture."""
    k: int = 1000
    waiting: int = 64
    """Requests in the queue; one more gets a 429."""
    batch: int = 16
    """Requests computed together."""
    seconds: float = 30.0
    """Until a request is given up with a 503."""


class BodyLimit:
    """Middleware that answers 413 as soon as a body is longer than allowed, stated or not."""

    def __init__(self, app: ASGIApp, limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > self.limit:
            return await self._refuse(scope, receive, send)
        body, more = io.BytesIO(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # The client has gone
                return await JSONResponse({"detail": "cut short"}, 400)(scope, receive, send)
            body.write(message.get("body", b""))
            more = message.get("more_body", False)
            if body.tell() > self.limit:
                return await self._refuse(scope, receive, send)
        whole: list[Message] = [{"type": "http.request", "body": body.getvalue()}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        return await self.app(scope, replay, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"more than {self.limit} bytes"
        await JSONResponse({"detail": detail}, 413)(scope, receive, send)
