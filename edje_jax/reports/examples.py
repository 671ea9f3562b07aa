"""Example queries of the report, chosen by what reranking did to them, and a card of HTML for each.

A card holds the first places of a query's list before and after reranking. Right answers are
marked; one that stands outside the places shown stands apart, with its rank.
"""

import base64
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from edje_jax.evaluation.retrieval import Direction, Gallery

TOP = 5
"""Places shown of every list."""
THUMBNAIL = 208
"""Longest side of an embedded image in pixels: about twice the size that it is shown at."""

log = logging.getLogger(__name__)


MOVES = 20
"""Queries whose right answer rose the most, and as many that fell the most."""


@dataclass(frozen=True, eq=False)
class Section:
    """Queries of one kind: some to show, and the number of all."""

    key: str
    title: str
    kind: str
    choice: str
    shown: Int[np.ndarray, " s"]
    total: int


def sections(direction: Direction, examples: int, queries: str, seed: int = 0) -> list[Section]:
    """Choose gains, losses, queries still wrong, and random ones; right means right at rank 1.

    Gains and losses are sorted by places moved, equal moves as in `moves`. `seed` draws the queries
    of the other two kinds.
    """
    base, after, counted = direction.base_rank, direction.reranked_rank, direction.answered
    rng = np.random.default_rng(seed)
    won = _margins(direction)

    def largest(which: np.ndarray, ranks: np.ndarray, margins: np.ndarray) -> np.ndarray:
        rows = np.flatnonzero(which)
        return rows[np.lexsort((-margins[rows], -ranks[rows]))][:examples]

    def some(which: np.ndarray) -> np.ndarray:
        rows = np.flatnonzero(which)
        return np.sort(rng.choice(rows, min(examples, len(rows)), replace=False))

    gained, lost = (base > 1) & (after == 1), (base == 1) & (after > 1)
    wrong = (base > 1) & (after > 1)
    rows = [
        ("gains", "Gains", "wrong before, right after", "largest moves first", gained, (base, won)),
        (
            "losses",
            "Losses",
            "right before, wrong after",
            "largest moves first",
            lost,
            (after, -won),
        ),
        ("wrong", "Still wrong", "wrong before and after", "drawn at random", wrong, None),
        ("random", "Random", f"any of the {queries}", "drawn at random", counted, None),
    ]
    return [
        Section(
            key,
            title,
            kind,
            choice,
            some(which) if keys is None else largest(which, *keys),
            int(np.count_nonzero(which)),
        )
        for key, title, kind, choice, which, keys in rows
    ]


def moves(direction: Direction) -> tuple[np.ndarray, np.ndarray]:
    """Find the queries whose best right answer rose the most places, and those where it fell most.

    Furthest first; at most `MOVES` of either. Most moves tie, so of equal ones the most decided
    come first: queries whose best right candidate scores furthest above the best wrong one or,
    among those that fell, furthest below it.
    """
    risen, won = direction.base_rank - direction.reranked_rank, _margins(direction)
    sides = []
    for places, margins in ((risen, won), (-risen, -won)):
        order = np.lexsort((-margins, -places))[:MOVES]
        sides.append(order[places[order] > 0])
    return sides[0], sides[1]


def _margins(direction: Direction) -> Float[np.ndarray, " q"]:
    """Margin of each query: the best right candidate's reranking score less the best wrong one's,
    infinite where all candidates are right or all are wrong."""
    right, wrong = (
        np.where(kind, direction.combined, -np.inf).max(axis=1)
        for kind in (direction.hits, ~direction.hits)
    )
    return right - wrong


def moves_html(direction: Direction, gallery: Gallery, album: "Album", texts: bool) -> str:
    """Lists of the furthest moves side by side; queries are captions where `texts`, else images."""
    columns = []
    for title, rows in zip(("Rose", "Fell"), moves(direction), strict=True):
        lines = "".join(_moved(direction, q, gallery, album, texts) for q in rows.tolist())
        columns.append(f"<div><h5>{title}</h5><ol>{lines or '<li>none</li>'}</ol></div>")
    return f'<article class="moves">{"".join(columns)}</article>'


def _moved(direction: Direction, q: int, gallery: Gallery, album: "Album", texts: bool) -> str:
    """Line of a query that moved: image, name, rank before and after."""
    image = int(gallery.caption_image[q]) if texts else q
    name = gallery.captions[q] if texts else gallery.image_ids[q]
    before, after = int(direction.base_rank[q]), int(direction.reranked_rank[q])
    note = "The right image" if texts else "The query"
    return (
        f"<li>{album.thumbnail(image, note)}<span>{escape(name)}</span>"
        f"<p>{before:,} → <b>{after:,}</b> {_move(before - after)}</p></li>"
    )


class Album:
    """Images of a page; each is loaded and embedded once, when it is first asked for."""

    def __init__(self, gallery: Gallery, load_image: Callable[[int], Image.Image]):
        self._gallery = gallery
        self._load = load_image
        self._uris: dict[int, str | None] = {}
        owners, first = np.unique(gallery.caption_image, return_index=True)
        self._first_caption = dict(zip(owners.tolist(), first.tolist(), strict=True))

    def thumbnail(self, index: int, note: str = "") -> str:
        """HTML of an image or of its placeholder, with the first caption as text alternative."""
        name = self._gallery.image_ids[index]
        caption = self._first_caption.get(index)
        about = f"{name}: {self._gallery.captions[caption]}" if caption is not None else name
        if note:
            about = f"{note}. {about}"
        if index not in self._uris:
            self._uris[index] = self._uri(index)
        if self._uris[index] is None:
            label = escape(f"{about} (the image could not be read)")
            return (
                f'<div class="pic missing" role="img" aria-label="{label}" title="{label}"></div>'
            )
        label = escape(about)
        return f'<div class="pic p{index}" role="img" aria-label="{label}" title="{label}"></div>'

    def style(self) -> str:
        """CSS rules, one for each image asked for so far."""
        return "\n".join(
            f".p{index}{{background-image:url({uri})}}" for index, uri in self._uris.items() if uri
        )

    def _uri(self, index: int) -> str | None:
        """Data URI of a thumbnail; None, and a warning, if the image cannot be read."""
        try:
            image = self._load(index).convert("RGB")
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            data = io.BytesIO()
            image.save(data, "JPEG", quality=85)
        except Exception as error:  # A decoder may raise anything; no report is lost to an image.
            log.warning("report: image %s left out: %s", self._gallery.image_ids[index], error)
            return None
        return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def text_card(direction: Direction, q: int, gallery: Gallery, album: Album) -> str:
    """Card of a caption with its first images before reranking and, below them, after it."""

    def slot(place: int, note: str) -> str:
        kind, mark = ("hit", "Right") if direction.hits[q, place] else ("miss", "")
        image = album.thumbnail(int(direction.candidates[q, place]), mark)
        return f'<li><div class="{kind}">{image}</div><p>{note}</p></li>'

    base, after = ([slot(*place) for place in row] for row in _places(direction, q))
    for row, rank in ((base, direction.base_rank[q]), (after, direction.reranked_rank[q])):
        if rank > len(row):
            image = album.thumbnail(int(gallery.caption_image[q]), "The right image")
            row.append(f'<li class="apart"><div class="hit">{image}</div><p>rank {rank:,}</p></li>')
    return f"""
<article><header><h4>{escape(gallery.captions[q])}</h4>{_verdict(direction, q)}</header>
<div class="row"><h5>Base <small>cosine</small></h5><ol class="thumbs">{"".join(base)}</ol></div>
<div class="row"><h5>Reranked <small>score</small></h5>\
<ol class="thumbs">{"".join(after)}</ol></div>
</article>"""


def image_card(direction: Direction, q: int, gallery: Gallery, album: Album) -> str:
    """Card of an image with its first captions before reranking and, beside them, after it."""

    def line(place: int, note: str) -> str:
        kind = ' class="hit"' if direction.hits[q, place] else ""
        caption = escape(gallery.captions[direction.candidates[q, place]])
        return f"<li{kind}><span>{caption}</span><p>{note}</p></li>"

    base, after = ([line(*place) for place in row] for row in _places(direction, q))
    best_base = best_after = direction.base_best[q]
    if direction.hits[q].any():
        best_after = direction.candidates[q, direction.order[q, direction.reranked_rank[q] - 1]]
    for row, rank, best in (
        (base, direction.base_rank[q], best_base),
        (after, direction.reranked_rank[q], best_after),
    ):
        if rank > len(row):
            caption = escape(gallery.captions[best])
            row.append(f'<li class="hit apart"><span>{caption}</span><p>rank {rank:,}</p></li>')
    return f"""
<article class="wide"><div class="query">{album.thumbnail(q, "The query")}
{_verdict(direction, q)}</div>
<div class="lists"><div><h5>Base <small>cosine</small></h5><ol>{"".join(base)}</ol></div>
<div><h5>Reranked <small>score</small></h5><ol>{"".join(after)}</ol></div></div>
</article>"""


Place = tuple[int, str]
"""Column in `candidates`, and the note under it."""


def _places(direction: Direction, q: int) -> tuple[list[Place], list[Place]]:
    """First places of a query's list before and after reranking."""
    cosines, scores = direction.similarities[q].tolist(), direction.combined[q].tolist()
    base = [(place, _number(cosine, 3)) for place, cosine in enumerate(cosines)]
    after = [
        (place, f"{_number(scores[place], 2)} {_move(place - rank)}")
        for rank, place in enumerate(direction.order[q].tolist())
    ]
    return base[:TOP], after[:TOP]


def _verdict(direction: Direction, q: int) -> str:
    """HTML of the rank of a query's best right answer before and after."""
    before, after = int(direction.base_rank[q]), int(direction.reranked_rank[q])
    kind = "better" if after < before else "worse" if after > before else "same"
    reach = "" if direction.hits[q].any() else "<br>out of reach"
    return f'<p class="verdict {kind}">rank {before:,} <span>→</span> <b>{after:,}</b>{reach}</p>'


def _move(places: int) -> str:
    """HTML of the number of places that a candidate has risen."""
    if places > 0:
        return f'<em class="up"><span class="vh">up </span>▲{places}</em>'
    if places < 0:
        return f'<em class="down"><span class="vh">down </span>▼{-places}</em>'
    return '<em><span class="vh">unmoved</span><span aria-hidden="true">&ndash;</span></em>'


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "&minus;")
