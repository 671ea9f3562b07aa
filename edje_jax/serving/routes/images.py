"""Images of the index, whole and small."""

import io
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse
from PIL import Image

from edje_jax.data.decoders import open_image
from edje_jax.serving.state import Shared

SHOWN = {
    "JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp",
    "GIF": "image/gif", "BMP": "image/bmp", "AVIF": "image/avif",
}  # fmt: skip
"""Formats that browsers show, and their media types; of any other image a thumbnail is sent."""
IMAGE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
}
CACHED = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}

router = APIRouter()


@router.get("/images/{name:path}", response_class=FileResponse, responses=IMAGE)
def image(
    name: str, state: Shared, thumbnail: Annotated[int | None, Query(ge=0, le=4096)] = None
) -> Response:
    """An image of the index as its file has it, or as a JPEG of at most `thumbnail` pixels a side;
    a file that is gone, or that browsers do not show, as its stored thumbnail."""
    number = state.number(name)
    path = Path(state.store.row(number).path or "/nonexistent")
    if not thumbnail and (kind := _media_type(path)):
        return FileResponse(path, headers=CACHED, media_type=kind)
    small = state.store.thumbnail(number)
    if thumbnail:
        small = _within(small, thumbnail)
    return Response(small, media_type="image/jpeg", headers=CACHED)


def _media_type(path: Path) -> str:
    """Media type by content; empty if the file is missing, unreadable or unknown to browsers."""
    try:
        with path.open("rb") as file, open_image(file) as found:
            return SHOWN.get(found.format or "", "")
    except Exception:
        return ""


def _within(data: bytes, side: int) -> bytes:
    image = Image.open(io.BytesIO(data))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return out.getvalue()
