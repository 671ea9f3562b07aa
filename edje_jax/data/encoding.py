"""A picture as the bytes of a file, whatever its source keeps."""

import io

from edje_jax.types import Encoded, Source


def file_bytes(source: Source, index: int) -> bytes:
    """The file that a source keeps, else a PNG of the picture.

    Raises:
        BadImage: it cannot be read.
    """
    if isinstance(source, Encoded):
        return source.encoded(index)
    stream = io.BytesIO()
    source.image(index).save(stream, "PNG")
    return stream.getvalue()
