"""`edje search`: ask an index with words or with an image."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edje_jax.cli.first_stage_options import screening_of
from edje_jax.cli.program import UsageError
from edje_jax.cli.second_options import check_then
from edje_jax.cli.terminal import write_json
from edje_jax.evaluate.measure import scored_by
from edje_jax.index.image_index import ImageIndex
from edje_jax.index.store import Store
from edje_jax.runtimes import onnx
from edje_jax.search.query import Query
from edje_jax.search.reranker import Reranker
from edje_jax.search.second_reranker import SecondReranker


def search(asked: Any) -> None:
    """Print the results as a table, or as JSON alone.

    Raises:
        UsageError: neither a query nor an image, or options that do not go together.
        BadStore, FileNotFoundError: the index or its model cannot be opened.
    """
    query = query_of(asked)
    if asked.k < 1 or asked.top < 1:
        raise UsageError(f"--k {asked.k} --top {asked.top}: both count from 1")
    if asked.min_score is not None and not 0 <= asked.min_score <= 1:
        raise UsageError(f"--min-score {asked.min_score}: scores lie from 0 to 1")
    check_then(asked, "then_model")
    if asked.then and not (query and query.is_text):
        raise UsageError("--then reranks the images of a text; leave --not, --image and --like out")
    index = open_index(asked)
    reranker = model_of(index.store, asked)
    depth = {
        "k": asked.k,
        "top_k": asked.top,
        "min_score": asked.min_score,
        "ids": None if asked.ids is None else read_ids(asked.ids),
        "where": asked.where,
        "details": asked.details,
    }
    if query is None:
        found = reranker.search_captions(index, [asked.image], **depth)[0]
    elif asked.then:
        both = reranker.followed_by(open_second(asked))
        found = both.search(index, [query.text], **depth)[0]
    else:
        found = reranker.search(index, [query], **depth)[0]
    if asked.json:
        write_json(found)
        return
    if not found and (asked.ids is not None or asked.where is not None):
        Console().print("no image of the index is among those asked for", markup=False)
        return
    if not found and asked.min_score is not None:
        Console().print(f"nothing reaches a score of {asked.min_score:g}", markup=False)
        return
    Console().print(_table(index, found))


def query_of(asked: Any) -> Query | None:
    """The query that options make up; None for an image that is looked for among captions.

    Raises:
        UsageError: there is none, or its parts do not go together.
    """
    if not (asked.query or asked.image or asked.like):
        raise UsageError(
            'give a query, as in edje search INDEX "two dogs", or --image FILE, or --like ID'
        )
    parts = (asked.query, asked.negatives, asked.like)
    if asked.image and not any(parts) and asked.among == "captions":
        return None
    try:
        return Query(
            asked.query or "", asked.negatives, asked.image, asked.like, asked.image_weight
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def read_ids(path: str) -> list[str]:
    """Ids in a file, one on every line; empty lines are passed over.

    Raises:
        OSError: the file cannot be read.
        UsageError: it holds none.
    """
    text = Path(path).expanduser().read_text("utf-8", "surrogateescape")
    if not (ids := [line for line in text.splitlines() if line]):
        raise UsageError(f"--ids {path}: holds no ids; write one on every line")
    return ids


def open_index(asked: Any) -> ImageIndex:
    """The index of `edje search` or `edje serve`, with the first stage that its options ask for.

    Raises:
        UsageError: options of codes for a first stage without, or numbers below 1.
        BadStore: no finished index, a damaged one, or one without codes.
    """
    screening = screening_of(asked.first_stage, asked.bits, asked.by_codes, asked.by_projection)
    return ImageIndex.open(
        asked.index,
        tokens_on=asked.tokens_on,
        first_stage=asked.first_stage,
        bits=asked.bits,
        screening=screening,
        cache=asked.cache,
        cache_gigabytes=asked.cache_gigabytes,
    )


def open_second(asked: Any) -> SecondReranker:
    """The second model of `edje search`, with its index.

    Raises:
        BadStore, FileNotFoundError: the index or its model cannot be opened.
        UsageError: a score is asked for that the model has not.
    """
    index = ImageIndex.open(
        asked.then,
        tokens_on=asked.tokens_on,
        cache=asked.cache,
        cache_gigabytes=asked.cache_gigabytes,
    )
    reranker = model_of(index.store, asked, "then_model")
    weight = 1.0 if asked.then_weight is None else asked.then_weight
    second = reranker.second(index, k=asked.then_k, weight=weight)
    try:
        runtime, calibration = scored_by(
            second.runtime, second.calibration, asked.then_caption_score
        )
    except ValueError as error:
        raise UsageError(
            f"--then-caption-score {asked.then_caption_score}: {error}; leave the option out"
        ) from None
    return replace(second, runtime=runtime, calibration=calibration)


def model_of(store: Store, asked: Any, moved: str = "model") -> Reranker:
    """The model that an index was built with, from where it was then or, as the option `moved`
    says, is now, with the runtime and the precision of `edje search` or `edje serve`.

    Raises:
        FileNotFoundError: it is not there any more; the message says what to give.
        UsageError: the runtime has not that precision.
        ModuleNotFoundError: the runtime is not installed.
    """
    given = getattr(asked, moved)
    source = given or store.manifest.model["source"]
    if asked.runtime == "onnx" and asked.precision not in onnx.PRECISIONS:
        raise UsageError(
            f"--runtime onnx --precision {asked.precision}: give {', '.join(onnx.PRECISIONS)}"
        )
    try:
        return Reranker.from_pretrained(source, precision=asked.precision, runtime=asked.runtime)
    except FileNotFoundError as error:
        if given:
            raise
        raise FileNotFoundError(
            f"{store.files}: was built with the model {source}, which is not there"
            f" (any more); say where it is with --{moved.replace('_', '-')}"
        ) from error


def _table(index: ImageIndex, found: list[dict[str, Any]]) -> Table:
    has_moments = any("moment" in result for result in found)
    shown = ("moment", "video") if has_moments else ("image",)
    table = Table("", "score", "cosine", "before", *shown)
    for place, result in enumerate(found, start=1):
        moved = result["base_rank"] - place
        arrow = f" ↑{moved}" if moved > 0 else f" ↓{-moved}" if moved < 0 else ""
        row = index.store.row(index.store.image_of_id[result["id"]])
        name = Text(result["id"])
        if row.path:
            name.stylize(f"link {Path(row.path).absolute().as_uri()}")
        if "caption" in result:
            name = Text(result["caption"] + "  ").append(name)
        table.add_row(
            str(place),
            f"{result['score']:.3f}",
            f"{result['similarity']:.3f}",
            f"{result['base_rank']}{arrow}",
            *([clock(result["moment"])] if has_moments else []),
            name,
        )
    return table


def clock(seconds: float) -> str:
    """Time in a video as minutes and seconds, such as 1:05, and hours where there are some."""
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"
