"""Example queries of the report: their choice, and a card of HTML for each.

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
"""Longest side of an embedded picture in pixels: about twice what it is shown at."""

log = logging.getLogger(__name__)


MOVES = 20
"""Queries whose right answer rose the most, and as many that fell the most."""


@dataclass(frozen=True, eq=False)
class Section:
    """Queries of one kind: those shown, and how many there are of the kind in all."""

    key: str
    title: str
    kind: str
    choice: str
    shown: Int[np.ndarray, " s"]
    total: int


def sections(direction: Direction, examples: int, seed: int, queries: str) -> list[Section]:
    """Gains, losses, what is still wrong, and random queries; right means right at rank 1.

    Gains and losses by places moved, equal moves as in `moves`.
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
    """Queries whose best right answer rose by the most places, and those where it fell by the most.

    Furthest first; at most `MOVES` of either. Most moves tie, so of equal ones the most decided
    come first: where the best right candidate's score stands furthest above the best wrong one's,
    or, of those that fell, furthest below it.
    """
    risen, won = direction.base_rank - direction.reranked_rank, _margins(direction)
    sides = []
    for places, margins in ((risen, won), (-risen, -won)):
        order = np.lexsort((-margins, -places))[:MOVES]
        sides.append(order[places[order] > 0])
    return sides[0], sides[1]


def _margins(direction: Direction) -> Float[np.ndarray, " q"]:
    """The best right candidate's reranking score less the best wrong one's; infinite where all
    candidates are of one kind."""
    right, wrong = (
        np.where(kind, direction.combined, -np.inf).max(axis=1)
        for kind in (direction.hits, ~direction.hits)
    )
    return right - wrong


def moves_html(direction: Direction, gallery: Gallery, album: "Album", texts: bool) -> str:
    """Both lists side by side; queries are captions where `texts`, else pictures."""
    columns = []
    for title, rows in zip(("Rose", "Fell"), moves(direction), strict=True):
        lines = "".join(_moved(direction, q, gallery, album, texts) for q in rows.tolist())
        columns.append(f"<div><h5>{title}</h5><ol>{lines or '<li>none</li>'}</ol></div>")
    return f'<article class="moves">{"".join(columns)}</article>'


def _moved(direction: Direction, q: int, gallery: Gallery, album: "Album", texts: bool) -> str:
    picture = int(gallery.caption_image[q]) if texts else q
    said = gallery.captions[q] if texts else gallery.image_ids[q]
    before, after = int(direction.base_rank[q]), int(direction.reranked_rank[q])
    note = "The right picture" if texts else "The query"
    return (
        f"<li>{album.thumbnail(picture, note)}<span>{escape(said)}</span>"
        f"<p>{before:,} → <b>{after:,}</b> {_move(before - after)}</p></li>"
    )


class Album:
    """The pictures of a page: each is loaded and embedded once, when it is first asked for."""

    def __init__(self, gallery: Gallery, load_picture: Callable[[int], Image.Image]):
        self._gallery = gallery
        self._load = load_picture
        self._uris: dict[int, str | None] = {}
        owners, first = np.unique(gallery.caption_image, return_index=True)
        self._first_caption = dict(zip(owners.tolist(), first.tolist(), strict=True))

    def thumbnail(self, index: int, note: str = "") -> str:
        """Markup of a picture, or of its placeholder. Its first caption is the text alternative."""
        name = self._gallery.image_ids[index]
        caption = self._first_caption.get(index)
        about = f"{name}: {self._gallery.captions[caption]}" if caption is not None else name
        if note:
            about = f"{note}. {about}"
        if index not in self._uris:
            self._uris[index] = self._uri(index)
        if self._uris[index] is None:
            label = escape(f"{about} (the picture could not be read)")
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
        try:
            picture = self._load(index).convert("RGB")
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
            data = io.BytesIO()
            picture.save(data, "JPEG", quality=85)
        except Exception as error:  # A decoder may raise anything; no report is lost to a picture.
            log.warning("report: picture %s left out: %s", self._gallery.image_ids[index], error)
            return None
        return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def text_card(direction: Direction, q: int, gallery: Gallery, album: Album) -> str:
    """A caption; its first pictures before, and below them after."""

    def slot(place: int, aside: str) -> str:
        kind, note = ("hit", "Right") if direction.hits[q, place] else ("miss", "")
        picture = album.thumbnail(int(direction.candidates[q, place]), note)
        return f'<li><div class="{kind}">{picture}</div><p>{aside}</p></li>'

    base, after = ([slot(*place) for place in row] for row in _places(direction, q))
    for row, rank in ((base, direction.base_rank[q]), (after, direction.reranked_rank[q])):
        if rank > len(row):
            picture = album.thumbnail(int(gallery.caption_image[q]), "The right picture")
            row.append(
                f'<li class="apart"><div class="hit">{picture}</div><p>rank {rank:,}</p></li>'
            )
    return f"""
<article><header><h4>{escape(gallery.captions[q])}</h4>{_verdict(direction, q)}</header>
<div class="row"><h5>Base <small>cosine</small></h5><ol class="thumbs">{"".join(base)}</ol></div>
<div class="row"><h5>Reranked <small>score</small></h5>\
<ol class="thumbs">{"".join(after)}</ol></div>
</article>"""


def picture_card(direction: Direction, q: int, gallery: Gallery, album: Album) -> str:
    """A picture; its first captions before, and beside them after."""

    def line(place: int, aside: str) -> str:
        kind = ' class="hit"' if direction.hits[q, place] else ""
        caption = escape(gallery.captions[direction.candidates[q, place]])
        return f"<li{kind}><span>{caption}</span><p>{aside}</p></li>"

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


def _places(direction: Direction, q: int) -> tuple[list[Place], list[Place]]:
    """The first places before and after: where in `candidates`, and what is said of it."""
    cosines, scores = direction.similarities[q].tolist(), direction.combined[q].tolist()
    base = [(place, _number(cosine, 3)) for place, cosine in enumerate(cosines)]
    after = [
        (place, f"{_number(scores[place], 2)} {_move(place - rank)}")
        for rank, place in enumerate(direction.order[q].tolist())
    ]
    return base[:TOP], after[:TOP]


def _verdict(direction: Direction, q: int) -> str:
    before, after = int(direction.base_rank[q]), int(direction.reranked_rank[q])
    kind = "better" if after < before else "worse" if after > before else "same"
    reach = "" if direction.hits[q].any() else "<br>out of reach"
    return f'<p class="verdict {kind}">rank {before:,} <span>→</span> <b>{after:,}</b>{reach}</p>'


def _move(places: int) -> str:
    """How many places a candidate has risen."""
    if places > 0:
        return f'<em class="up"><span class="vh">up </span>▲{places}</em>'
    if places < 0:
        return f'<em class="down"><span class="vh">down </span>▼{-places}</em>'
    return '<em><span class="vh">unmoved</span><span aria-hidden="true">&ndash;</span></em>'


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "&minus;")
