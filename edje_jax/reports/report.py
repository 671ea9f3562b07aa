"""Report of an evaluation: one page of HTML without scripts, for light and dark, desk and phone.

Images are CSS classes that carry a data URI, so each is embedded once however often it is shown.
Every text that comes from the data goes through `escape`. The page's frame and its style are
`report_template.html`; single queries come from `examples`.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from edje_jax.evaluation.measures import MEASURES
from edje_jax.evaluation.retrieval import Direction, Gallery, Retrieval
from edje_jax.reports.examples import Album, Section, image_card, moves_html, sections, text_card
from edje_jax.reports.figures import figures
from edje_jax.reports.word_maps import WordMaps, word_card, word_style
from edje_jax.system.files import atomic_text

WORD_CARDS = 4
"""Captions whose words are shown over their image."""

log = logging.getLogger(__name__)

Card = Callable[[Direction, int, Gallery, Album], str]


@dataclass(frozen=True)
class Names:
    """Names of a direction and of its queries."""

    key: str
    title: str
    queries: str
    question: str


NAMES = {
    "t2i": Names("t2i", "Text to image", "captions", "Which image does this describe?"),
    "i2t": Names("i2t", "Image to text", "images", "Which captions describe this?"),
}


@dataclass(frozen=True)
class Heading:
    """Title of a report, and the facts under it in their order: model, data, time taken."""

    title: str = "Base and reranked"
    facts: Mapping[str, str] = field(default_factory=dict)

    def facts_html(self, further: Mapping[str, str]) -> str:
        """HTML of the facts, then of further ones."""
        return "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
            for name, value in {**self.facts, **further}.items()
        )


def write_report(
    out: str | Path,
    retrieval: Retrieval,
    gallery: Gallery,
    load_image: Callable[[int], Image.Image],
    heading: Heading = Heading(),
    *,
    examples: int = 12,
    metrics: Mapping[str, Any] | None = None,
    word_maps: Callable[[int], WordMaps] | None = None,
) -> Path:
    """Write `report.html`: the numbers, and queries with what stood first before and after.

    `load_image(i)` gives the gallery's image i; one that cannot be loaded is shown as missing.
    Up to `examples` queries a section are shown. Figures are drawn of `metrics`, as metrics.json
    has them (default: the measures alone); `word_maps(q)` tells where the words of caption q look
    in their image.

    Raises:
        ValueError: `examples` is negative.
        OSError: the file cannot be written; nothing half-written is left.
    """
    if examples < 0:
        raise ValueError(f"examples = {examples}; give the number of queries to show a section")
    album = Album(gallery, load_image)
    facts = {
        "Images": f"{len(gallery.image_ids):,}",
        "Captions": f"{len(gallery.captions):,}",
        "Reranked": f"first {retrieval.k:,} of each list",
        "Similarity weight": f"{retrieval.similarity_weight:g}",
    }
    chosen = {key: sections(getattr(retrieval, key), examples, NAMES[key].queries) for key in NAMES}
    cards = {"t2i": text_card, "i2t": image_card}
    directions = [
        _direction_html(
            NAMES[key], getattr(retrieval, key), chosen[key], cards[key], gallery, album
        )
        for key in NAMES
    ]
    words, word_styles = _words_html(chosen["t2i"], gallery, word_maps)
    template = resources.files("edje_jax.reports").joinpath("report_template.html")
    content = Template(template.read_text("utf-8")).substitute(
        title=escape(heading.title),
        facts=heading.facts_html(facts),
        panels="".join(_panel(NAMES[key], getattr(retrieval, key), retrieval.k) for key in NAMES),
        contents="".join(_contents(NAMES[key], chosen[key]) for key in NAMES)
        + ('<p><a class="to" href="#words">Where words look</a></p>' if words else ""),
        figures=_figures_html(metrics or retrieval.metrics()),
        directions="".join(directions),
        words=words,
        # Last, as it holds what the parts above have asked for.
        images="\n".join([album.style(), *word_styles]),
    )
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_text(out / "report.html") as file:
        file.write(content)
    return out / "report.html"


def _figures_html(metrics: Mapping[str, Any]) -> str:
    try:
        made = figures(metrics)
    except ImportError:
        return (
            '<p class="note">The figures are missing, as matplotlib is not installed: '
            "<code>pip install 'edje-jax[eval]'</code>, then evaluate again.</p>"
        )
    return "".join(
        f"<figure><figcaption><b>{one.title}</b> {one.about}</figcaption>{one.svg}</figure>"
        for one in made
    )


def _words_html(
    chosen: list[Section], gallery: Gallery, word_maps: Callable[[int], WordMaps] | None
) -> tuple[str, list[str]]:
    """HTML of the words of a few captions, gains before others; CSS rules of their images."""
    queries = list(dict.fromkeys(q for section in chosen for q in section.shown[:2].tolist()))
    cards, styles = [], []
    for q in queries[:WORD_CARDS] if word_maps else []:
        assert word_maps
        try:
            one = word_maps(q)
        except Exception as error:  # A decoder may raise anything; no report is lost to an image.
            log.warning("report: words of caption %d left out: %s", q, error)
            continue
        if not one.words:
            continue
        styles.append(word_style(one, len(cards)))
        cards.append(word_card(gallery.captions[q], one, len(cards)))
    if not cards:
        return "", []
    return (
        '<section class="direction" id="words" aria-labelledby="words-title">'
        '<h2 id="words-title">Where words look <small>in the image they describe</small></h2>'
        '<p class="note">A word\'s attention to the compressed tokens, the mean over heads and '
        "layers, times theirs to the patches; lit where a word looks more than the caption's words "
        "do on average, each tile scaled by its own maximum. Attention shows where information may "
        "come from, not what decided the score.</p>"
        f"{''.join(cards)}</section>"
    ), styles


def _panel(names: Names, direction: Direction, k: int) -> str:
    """Headline of one direction: R@1 as bars, then every measure, base beside reranked."""
    result = direction.metrics()
    base, after, ceiling = result["base"], result["reranked"], result["ceiling"]
    bars = "".join(
        f'<div class="bar {kind}"><span class="name">{name}</span>'
        f'<span class="track"><i style="width:{value:.2f}%"></i></span><b>{value:.2f}</b></div>'
        for kind, name, value in (
            ("base", "Base", base["R@1"]),
            ("after", "Reranked", after["R@1"]),
            ("ceiling", "Ceiling", ceiling),
        )
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(measure.label)}</th><td>{base[measure.name]:.2f}</td>'
        f"<td>{after[measure.name]:.2f}</td>"
        f"<td>{_gain(after[measure.name] - base[measure.name], measure.higher_is_better)}</td></tr>"
        for measure in MEASURES
    )
    return f"""
<section class="panel" aria-labelledby="panel-{names.key}">
<h2 id="panel-{names.key}">{names.title}</h2>
<p class="hero"><b>{after["R@1"]:.2f}</b><span>R@1 after reranking<br>
{_gain(after["R@1"] - base["R@1"])} points on the base</span></p>
<div class="bars" role="img" aria-label="R@1: base {base["R@1"]:.2f}, reranked {after["R@1"]:.2f}, \
ceiling {ceiling:.2f} percent">{bars}</div>
<table><thead><tr><th scope="col"><span class="vh">Measure</span></th><th scope="col">Base</th>
<th scope="col">Reranked</th><th scope="col">Gain</th></tr></thead><tbody>{rows}</tbody>
<tfoot><tr><th scope="row" colspan="2">Ceiling (hit@{k})</th><td>{ceiling:.2f}</td><td></td></tr>
</tfoot></table>
</section>"""


def _outcomes(names: Names, direction: Direction) -> str:
    """Numbers of queries that were right before and after, as a bar and in words."""
    base, after = direction.base_rank, direction.reranked_rank
    total = int(np.count_nonzero(direction.answered))
    out_of_reach = direction.answered & ~direction.hits.any(axis=1)
    # Every query is in exactly one part: a lost one was first, so among the candidates.
    parts = (
        ("kept", "right before and after", (base == 1) & (after == 1)),
        ("gained", "gained", (base > 1) & (after == 1)),
        ("lost", "lost", (base == 1) & (after > 1)),
        (
            "wrong",
            "still wrong, though among the candidates",
            (base > 1) & (after > 1) & ~out_of_reach,
        ),
        ("unreached", "out of reach, no right candidate", out_of_reach),
    )
    counts = [(key, name, int(np.count_nonzero(which))) for key, name, which in parts]
    bar = "".join(f'<i class="{key}" style="flex-grow:{n}"></i>' for key, _, n in counts if n)
    words = "".join(
        f'<li><i class="{key}"></i><b>{n:,}</b> {name} <span>{100 * n / total:.1f}%</span></li>'
        for key, name, n in counts
    )
    return (
        f'<p class="lead">What reranking did to {total:,} {names.queries}, at rank 1:</p>'
        f'<div class="outcomes" aria-hidden="true">{bar}</div><ul class="legend">{words}</ul>'
    )


def _contents(names: Names, chosen: list[Section]) -> str:
    """Links to the sections of a direction."""
    links = "".join(
        f'<a href="#{names.key}-{s.key}">{s.title}{_count(s)}</a>' for s in chosen if len(s.shown)
    )
    links = f'<a href="#{names.key}-moves">Moved furthest</a>{links}'
    return f'<p><a class="to" href="#{names.key}">{names.title}</a>{links}</p>'


def _count(section: Section) -> str:
    return "" if section.key == "random" else f" <span>{section.total:,}</span>"


def _direction_html(
    names: Names,
    direction: Direction,
    chosen: list[Section],
    card: Card,
    gallery: Gallery,
    album: Album,
) -> str:
    """Section of a direction: its outcomes, the furthest moves, and examples."""
    parts = [
        f'<section class="direction" id="{names.key}" aria-labelledby="{names.key}-title">'
        f'<h2 id="{names.key}-title">{names.title} <small>{names.question}</small></h2>',
        _outcomes(names, direction),
        f'<section class="examples" id="{names.key}-moves"><h3>Moved furthest</h3>'
        '<p class="about">Where the best right answer stood before and after.</p>'
        f"{moves_html(direction, gallery, album, names.key == 't2i')}</section>",
    ]
    for s in chosen:
        shown = f"{len(s.shown):,} of {s.total:,} shown, {s.choice}." if s.total else "None."
        parts.append(
            f'<section class="examples" id="{names.key}-{s.key}">'
            f'<h3>{s.title}</h3><p class="about">{s.kind[0].upper()}{s.kind[1:]}. {shown}</p>'
        )
        parts.extend(card(direction, q, gallery, album) for q in s.shown.tolist())
        parts.append("</section>")
    return "".join([*parts, "</section>"])


def _gain(points: float, higher_is_better: bool = True) -> str:
    """Difference of a measure, marked as better or worse."""
    text = f"{points:+.2f}"
    if float(text) == 0:
        return '<em class="none">0.00</em>'
    kind = "up" if (points > 0) == higher_is_better else "down"
    return f'<em class="{kind}">{text.replace("-", "&minus;")}</em>'
