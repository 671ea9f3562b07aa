"""Statistics of a data set, counted and shown."""

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from edje_jax.data.bad_records import caption_faults, left_out
from edje_jax.data.image_reader import cut_into, read_batches
from edje_jax.data.images import BadImage
from edje_jax.data.sources.captioned import lines_of
from edje_jax.data.sources.mixture import Mixture
from edje_jax.types import Source

TILE, LINES = 256, 4
"""Side of an image in a grid, in pixels, and lines of text below it."""
IMAGES, COLUMNS = 12, 4
_FONT_SIZE = 14


@dataclass(frozen=True)
class Statistics:
    """A set in numbers."""

    images: int
    places: int
    """Images of an epoch: more, where a mixture repeats some."""
    ids: int
    """Number of different ids that the images have."""
    captions_each: Counter[int]
    """{captions of an image: how many have so many}."""
    words_each: Counter[int]
    """{words of a caption: how many have so many}."""
    sizes: list[tuple[int, int]]
    """(width, height) of the images that were looked at and could be read."""
    bad: dict[str, str]
    """{id of one that could not: reason}."""
    left_out: dict[str, str]
    """{record that the source left out: reason}."""
    faults: dict[str, str]
    """{id of an image: what is wrong with captions of it that are left out}."""
    several_lines: int
    """Captions of more than one line."""

    @property
    def captions(self) -> int:
        """Number of captions."""
        return self.words_each.total()


def statistics(
    source: Source,
    look_at: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Count ids and captions of all images, and decode `look_at` spread evenly, or all.

    Args:
        progress: called with (images decoded, images to decode).
    """
    captions_each, words_each = Counter[int](), Counter[int]()
    several_lines, faults = 0, {}
    for index in range(len(source)):
        captions = source.captions(index)
        captions_each[len(captions)] += 1
        words_each.update(len(caption.split()) for caption in captions)
        several_lines += sum(len(lines_of([caption])) > 1 for caption in captions)
        if fault := caption_faults(source, index):
            faults[source.image_id(index)] = fault
    sizes, bad = _look(source, spread(len(source), look_at), progress)
    ids = {source.image_id(index) for index in range(len(source))}
    images = source.images if isinstance(source, Mixture) else len(source)
    return Statistics(
        images,
        len(source),
        len(ids),
        captions_each,
        words_each,
        sizes,
        bad,
        dict(left_out(source)),
        faults,
        several_lines,
    )


def spread(total: int, wanted: int | None) -> list[int]:
    """`wanted` indices spread evenly over `total`; all of them for None, and for 0."""
    count = min(wanted or total, total)
    return [i * total // count for i in range(count)]


def quantiles(values: Counter[int], at: Sequence[float]) -> list[int]:
    """The values below or at which these shares of all lie."""
    ordered = sorted(values)
    reached = np.cumsum([values[value] for value in ordered])
    return [ordered[np.searchsorted(reached, share * reached[-1])] for share in at]


def grid(source: Source) -> Image.Image:
    """Some images spread over the set, each with its first captions below."""
    rows = spread(len(source), IMAGES)
    height = TILE + LINES * (_FONT_SIZE + 4)
    sheet = Image.new("RGB", (COLUMNS * TILE, -(-len(rows) // COLUMNS) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for place, row in enumerate(rows):
        x, y = place % COLUMNS * TILE, place // COLUMNS * height
        try:
            image = ImageOps.contain(source.image(row), (TILE - 8, TILE - 8))
            sheet.paste(image, (x + (TILE - image.width) // 2, y + 4))
        except BadImage as error:
            draw.multiline_text((x + 4, y + 4), _wrapped([str(error)]), "red", font)
        draw.multiline_text((x + 4, y + TILE), _wrapped(source.captions(row)), "black", font)
    return sheet


def _wrapped(texts: Sequence[str]) -> str:
    lines = [line for text in texts for line in textwrap.wrap(f"- {text}", TILE // 7)]
    return "\n".join(lines[:LINES])


def _look(
    source: Source, records: list[int], progress: Callable[[int, int], None] | None
) -> tuple[list[tuple[int, int]], dict[str, str]]:
    """((width, height) of the images of some records, {id of one that cannot be read: reason})."""
    sizes: list[tuple[int, int]] = []
    bad: dict[str, str] = {}
    done = 0
    for batch in read_batches(lambda record: source.image(record).size, cut_into(records)):
        sizes += batch.values
        bad |= {source.image_id(record): reason for record, reason in batch.bad.items()}
        done += len(batch.values) + len(batch.bad)
        if progress:
            progress(done, len(records))
    return sizes, bad
