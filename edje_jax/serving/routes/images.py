"""Images of the index, whole and small."""

import io
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse
from PIL import Image

from edje_jax.serving.state import Shared

SHOWN = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
"""Formats that browsers show; of other images, and of those that are gone, there is a thumbnail."""
IMAGE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
}
CACHED = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}

router = APIRouter()


@router.get("/images/{name:path}", response_class=FileResponse, responses=IMAGE)
def image(
    name: str, state: Shared, thumbnail: Annotated[int, Query(ge=0, le=4096)] = 0
) -> Response:
    """An image of the index as it is, or at most `thumbnail` wide and high."""
    number = state.number(name)
    path = Path(state.store.row(number).path or "/nonexistent")
    if not thumbnail and (kind := _media_type(path)):
        return FileResponse(path, headers=CACHED, media_type=kind)
    small = state.store.thumbnail(number)
    if thumbnail:
        small = _within(small, thumbnail)
    return Response(small, media_type="image/jpeg", headers=CACHED)


def _media_type(path: Path) -> str:
    """By content; empty where the file is gone, cannot be read or is nothing that browsers show."""
    try:
        with Image.open(path, formats=SHOWN) as found:
            return Image.MIME[str(found.format)]
    except Exception:
        return ""


def _within(data: bytes, side: int) -> bytes:
    image = Image.open(io.BytesIO(data))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return out.getvalue()
