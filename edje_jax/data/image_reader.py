"""Reading a source's pictures in order, decoded in threads, in chunks of bounded memory."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from edje_jax.config.model import ImageRecipe
from edje_jax.data.bad_pictures import BadPictures, caption_faults
from edje_jax.data.images import BadImage, image_of, resize
from edje_jax.types import Source

CHUNK = 256
"""Pictures of a chunk; two chunks are what memory holds of pixels."""


def read_pictures(
    source: Source, recipe: ImageRecipe, bad: BadPictures, rows: range | None = None
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Chunks of (indices, uint8 [n, S, S, 3]) over `rows` of a source (default: all), decoded in
    threads.

    Raises:
        TooManyBadPictures: see `BadPictures`.
    """

    def read(index: int) -> np.ndarray | str:
        try:
            return resize(image_of(source, index, recipe), recipe)
        except BadImage as error:
            return str(error)

    rows = range(len(source)) if rows is None else rows
    chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    with ThreadPoolExecutor() as pool:
        coming = [pool.map(read, indices) for indices in chunks[:1]]
        for number, indices in enumerate(chunks):
            # The next chunk is decoded while this one is worked on.
            coming += [pool.map(read, following) for following in chunks[number + 1 : number + 2]]
            read_back = dict(zip(indices, coming.pop(0), strict=True))
            good = {i: x for i, x in read_back.items() if isinstance(x, np.ndarray)}
            reasons = {
                source.image_id(i): x if isinstance(x, str) else caption_faults(source, i)
                for i, x in read_back.items()
            }
            bad.add({name: reason for name, reason in reasons.items() if reason})
            if good:
                yield list(good), np.stack(list(good.values()))
