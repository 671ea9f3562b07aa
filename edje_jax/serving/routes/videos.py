"""Videos of the index: their files, which browsers play from any time, and strips of their frames.

A browser that plays from a time asks for a part of the file (RFC 9110, section 14), and gets that
part alone; so memory does not grow with the length of a video.
"""

import os
import stat
from typing import Any

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import FileResponse

from edje_jax.serving.routes.images import CACHED
from edje_jax.serving.state import Shared
from edje_jax.serving.videos import media_type

_BINARY = {"schema": {"type": "string", "format": "binary"}}
VIDEO: dict[int | str, dict[str, Any]] = {
    200: {"content": {"video/*": _BINARY}, "description": "The whole file"},
    206: {"content": {"video/*": _BINARY}, "description": "The part that Range asks for"},
    404: {"description": "No such video in this index, or its file is gone"},
    416: {"description": "The file is shorter than what Range asks for"},
}
STRIP: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": _BINARY}}}

router = APIRouter()


@router.get("/videos/{name:path}", response_class=FileResponse, responses=VIDEO)
def video(name: str, state: Shared) -> FileResponse:
    """The file of a video of the index, or the part of it that is asked for.

    Raises:
        HTTPException: 404 where the index has no such video, or its file is not there to be read.
    """
    path = state.store.row(state.number(name)).path
    if not (kind := media_type(path)):
        raise HTTPException(
            404,
            "not a video with a file of its own; /images has an image of it, /strips its frames",
        )
    return FileResponse(path, headers=CACHED, media_type=kind, stat_result=_readable(path))


@router.get("/strips/{name:path}", responses=STRIP, response_class=Response)
def strip(name: str, state: Shared) -> Response:
    """Frames of a video that the model has read, beside each other from left to right, as JPEG.

    Raises:
        HTTPException: 404 where the index has no such video, or a model of images built it.
    """
    number = state.number(name)
    if not state.store.frames:
        raise HTTPException(404, "no frames are kept: a model of images built this index")
    return Response(state.store.strip(number), media_type="image/jpeg", headers=CACHED)


def _readable(path: str) -> os.stat_result:
    """Facts of a file that can be read.

    Raises:
        HTTPException: 404 where it is none.
    """
    try:
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode):
            with open(path, "rb"):
                return found
        reason = "is no file now"
    except FileNotFoundError:
        reason = "is gone since it was indexed"
    except (OSError, ValueError):
        reason = "cannot be read by the server"
    raise HTTPException(404, f"the file of this video {reason}")
