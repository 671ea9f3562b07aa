"""JSON bodies, read whatever their content type says; errors name the line and column."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute


class JsonRoute(APIRoute):
    """A route whose body is read by `parse`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def read(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return read


class _JsonRequest(Request):
    async def json(self) -> Any:
        try:
            return parse(await self.body())
        except ValueError as error:
            packed = self.headers.get("content-encoding", "")[:40]
            what = f"Content-Encoding {packed} is not read; send plain JSON" if packed else error
            raise HTTPException(422, [{"where": "body", "what": str(what)}]) from None


def parse(body: bytes) -> Any:
    """JSON of any of its encodings, with whole characters.

    Raises:
        ValueError: it is no JSON; the message says where.
    """
    try:
        return whole_characters(json.loads(body))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno} (character {error.pos})"
        raise ValueError(f"no JSON: {error.msg} at {where}") from None
    except UnicodeDecodeError as error:
        where = f"byte {error.start}"
        raise ValueError(f"no JSON: {error.encoding} cannot be decoded at {where}") from None
    except RecursionError:
        raise ValueError("no JSON that is read: objects and lists are nested too deep") from None
    except ValueError:
        raise ValueError("no JSON that is read: a number has too many digits") from None


def whole_characters(value: Any) -> Any:
    """JSON whose strings can be encoded: half surrogate pairs become U+FFFD."""
    if isinstance(value, str):
        # A fast check, also for strings of megabytes.
        if value.isascii():
            return value
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [whole_characters(item) for item in value]
    if isinstance(value, dict):
        return {whole_characters(key): whole_characters(one) for key, one in value.items()}
    return value
