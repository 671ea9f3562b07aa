"""Tables and plot of a scalability.json; with --out, a page whose tables are filled in anew.

    python benchmarks/scalability_report.py benchmarks/results/scalability.json
        [--out docs/scalability.md]

A page has a place for each table between <!-- scalability NAME --> and <!-- /scalability NAME -->.
The plot is drawn beside the JSON file.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pages
import scalability_published as published
from pages import markdown

GIB = 1 << 30
PAIRED_SIZES = ((1000, 5000), (10_000, 50_000), (100_000, 500_000), (1_000_000, 5_000_000))
"""Images and captions of `published.SIZES`."""
COLOURS = {
    "flat": "black",
    "hnsw": "tab:gray",
    "binary-flat": "tab:blue",
    "binary-ivf": "tab:green",
    "binary-hnsw": "tab:red",
}
MARKS = ("o", "s", "^", "D", "v")
Row = dict[str, Any]


def main() -> None:
    """Print the tables or fill them in, and draw the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("result", type=Path, help="scalability.json")
    parser.add_argument("--out", type=Path, help="page to fill in")
    options = parser.parse_args()
    result = json.loads(options.result.read_text("utf-8"))
    plot(options.result.with_suffix(".png"), result)
    if options.out:
        options.out.write_text(filled(options.out.read_text("utf-8"), result), "utf-8")
    else:
        show(result)


def show(result: Row) -> None:
    """Print all tables."""
    for name, table in tables(result).items():
        print(f"\n## {name}\n\n{table}")


def filled(page: str, result: Row) -> str:
    """Page with its tables those of a result."""
    return pages.filled(page, "scalability", tables(result))


def tables(result: Row) -> dict[str, str]:
    """All tables in Markdown, by name; published figures stand in tables of their own."""
    return {
        "run": about(result),
        "findings": findings(result),
        "search": search(result),
        "left out": left_out(result),
        "published search": published_search(),
        "storage": storage(result),
        "published storage": published_storage(),
        "rates": rates(result),
        "times": times(result),
        "published times": published_times(),
    }


def about(result: Row) -> str:
    """Machine and settings."""
    machine, rows = result["machine"], result["rows"]
    ivf = {row["size"]: row["settings"] for row in rows if row["index"] == "binary-ivf"}
    lists = "; ".join(
        f"{each['nprobe']:,} of {each['nlist']:,} for {size:,} vectors"
        for size, each in ivf.items()
    )
    graphs = [row["settings"] for row in rows if "M" in row["settings"]]
    text = (
        f"{machine['processor']}, {machine['cores']} cores, {result['threads']} threads, faiss"
        f" {result['faiss']}, {result['seconds'] / 60:.0f} minutes in all; synthetic vectors of"
        f" width {result['width']}, {result['queries']:,} queries, k = {result['k']:,}."
    )
    if lists:
        text += f"\nLists searched (nprobe of nlist): {lists}."
    if graphs:
        graph = graphs[0]
        text += (
            f"\nGraphs: M = {graph['M']}, efConstruction = {graph['efConstruction']},"
            f" efSearch = {graph['efSearch']}."
        )
    return text


def findings(result: Row) -> str:
    """Sentences about the largest synthetic set, and about the largest that has graphs."""
    synthetic = [row for row in result["rows"] if row["vectors"] == "synthetic"]
    lines = []
    graphs = [row["size"] for row in synthetic if "hnsw" in row["index"]]
    for size in sorted({max(row["size"] for row in synthetic), max(graphs, default=0)} - {0})[::-1]:
        rows = [row for row in synthetic if row["size"] == size]
        for what, form in (
            ("ms a query", lambda row: brief(row["ms_a_query"])),
            ("percent of the queries have their nearest among 100", lambda r: f"{r['R@100']:.1f}"),
            ("bytes a vector", lambda row: f"{row['bytes'] / row['size']:,.0f}"),
            ("seconds to build", lambda row: brief(row["build_seconds"])),
        ):
            lines.append(f"- {size:,} vectors, {what}: {by_index(rows, form)}.")
    return "\n".join(lines)


def by_index(rows: Sequence[Row], form: Callable[[Row], str]) -> str:
    """Value of every index, those of all lengths of its codes together."""
    names = dict.fromkeys(row["index"] for row in rows)
    return "; ".join(
        f"{name} {' / '.join(form(row) for row in rows if row['index'] == name)}" for name in names
    )


def search(result: Row) -> str:
    """A table for each set of vectors."""
    parts = []
    for vectors, size in dict.fromkeys((row["vectors"], row["size"]) for row in result["rows"]):
        rows = [r for r in result["rows"] if (r["vectors"], r["size"]) == (vectors, size)]
        named = next(s for s in result["sets"] if (s["vectors"], s["size"]) == (vectors, size))
        cells = [
            (
                label(row), brief(row["build_seconds"]), brief(row["search_seconds"]),
                brief(row["ms_a_query"]), *(f"{row[f'R@{k}']:.1f}" for k in (1, 100, 1000)),
                amount(row["bytes"]),
            )
            for row in rows
        ]  # fmt: skip
        head = ("index", "build s", "search s", "ms a query", "R@1", "R@100", "R@1000", "size")
        parts.append(
            f"**{size:,} vectors, {vectors}, width {named['width']}** (making all codes took"
            f" {named['code_seconds']:,.1f} s)\n\n{markdown(head, cells)}"
        )
    return "\n\n".join(parts)


def left_out(result: Row) -> str:
    """Measurements that were asked for and left out."""
    reasons: dict[str, list[str]] = {}
    for row in result["left_out"]:
        reasons.setdefault(row["why"], []).append(f"{label(row)}, of {row['size']:,} vectors")
    lines = [f"- {'; '.join(names)}: {why}" for why, names in reasons.items()]
    return "\n".join(lines) or "Nothing was left out."


def published_search() -> str:
    """FiCo-ITR's search times and recalls, as published."""
    head = ("queries/vectors", "index", "build s", "search s", "ms a query (computed)")
    cells = [
        (
            size, index, "<0.01" if build == 0.01 else f"{build:g}", f"{seconds:,g}",
            f"{1000 * seconds / published.QUERIES[size]:.3f}", *(f"{r:g}" for r in recalls),
        )
        for size, index, recalls, build, seconds in published.SEARCH
    ]  # fmt: skip
    return titled(published.SEARCH_LABEL, markdown((*head, "R@1", "R@100", "R@1000"), cells))


def storage(result: Row) -> str:
    """Bytes of our models, computed."""
    head = ("1M images, 5M captions: GiB, computed", *result["storage"])
    values = list(result["storage"].values())
    sizes = [f"{v['embedding_width']} / {v['tokens'][0]} x {v['tokens'][1]}" for v in values]
    cells: list[Sequence[str]] = [("width of embeddings / tokens of an image", *sizes)]
    for key, what in (
        ("embeddings", "embeddings, {}"),
        ("codes", "codes, packed, {} bits"),
        ("tokens_of_images", "tokens of the images, {}"),
    ):
        for kind in values[0][key]:
            named = f"{int(kind):,}" if str(kind).isdigit() else kind
            cells.append((what.format(named), *(f"{v[key][kind] / GIB:,.3g}" for v in values)))
    return markdown(head, cells)


def published_storage() -> str:
    """FiCo-ITR's bytes, as published."""
    head = ("1M images, 5M captions: GiB", "embeddings or codes", "features for fusion")
    cells = [
        (name, f"{small:g}", "" if features is None else f"{features:,g}")
        for name, (small, features) in published.STORAGE.items()
    ]
    return titled(published.MODELS_LABEL, markdown(head, cells))


def rates(result: Row) -> str:
    """Rates that were measured."""
    r = result["rates"]
    head = (f"`{r['model']}` on {r['data']}, measured", "number", "per second")
    cells = [
        (what, f"{r[key]:,}", f"{r[f'{key}_per_second']:,.0f}")
        for what, key in (
            ("images encoded", "images"), ("captions encoded", "captions"),
            ("pairs scored", "pairs"),
        )
    ]  # fmt: skip
    return markdown(head, cells)


def times(result: Row) -> str:
    """Seconds computed from the rates."""
    r = result["rates"]
    encode, attend = [], []
    for images, captions in PAIRED_SIZES:
        encode.append(images / r["images_per_second"] + captions / r["captions_per_second"])
        attend.append(r["reranked"] * (images + captions) / r["pairs_per_second"])
    head = (f"`{r['model']}`: seconds, computed from its rates", *published.SIZES)
    return markdown(
        head,
        [
            ("encoding", *(f"{s:,.0f}" for s in encode)),
            (f"attention, k = {r['reranked']}", *(f"{s:,.0f}" for s in attend)),
        ],
    )


def published_times() -> str:
    """FiCo-ITR's seconds of encoding and attention, as published."""
    cells = [
        (f"{what}, {name}", *("over 80 GiB" if v is None else f"{v:,g}" for v in seconds))
        for what, each in (("encoding", published.ENCODING), ("attention", published.ATTENTION))
        for name, seconds in each.items()
    ]
    return titled(published.MODELS_LABEL, markdown(("seconds", *published.SIZES), cells))


def titled(label: str, table: str) -> str:
    """Table of published figures with its label above."""
    return f"*{label}*\n\n{table}"


def label(row: Row) -> str:
    """Name of an index with its bits."""
    return f"{row['index']}, {row['bits']:,} bits" if row["bits"] else row["index"]


def brief(value: float) -> str:
    """Number of three digits, or to a thousandth where it is small."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f}"


def amount(count: int) -> str:
    """Bytes in a unit that fits."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.3g} {unit}"
    return f"{count / 1e3:,.3g} kB"


def plot(path: Path, result: Row) -> None:
    """Milliseconds against size, and R@100 against milliseconds at the two largest sizes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator

    rows = [row for row in result["rows"] if row["vectors"] == "synthetic"]
    sizes = sorted({row["size"] for row in rows})
    lengths = sorted({row["bits"] for row in rows if row["bits"]})
    marks: dict[int | None, str] = {None: "*", **dict(zip(lengths, MARKS, strict=False))}
    shown = sizes[-2:]
    figure, axes = plt.subplots(
        1, 1 + len(shown), figsize=(4.6 * (1 + len(shown)), 4.4), layout="constrained"
    )
    first, *others = axes
    for name, bits in dict.fromkeys((row["index"], row["bits"]) for row in rows):
        line = [row for row in rows if (row["index"], row["bits"]) == (name, bits)]
        style: dict[str, Any] = {"color": COLOURS[name], "marker": marks[bits], "alpha": 0.8}
        first.plot([r["size"] for r in line], [r["ms_a_query"] for r in line], **style)
        for axis, size in zip(others, shown, strict=True):
            at = [row for row in line if row["size"] == size]
            axis.plot([r["ms_a_query"] for r in at], [r["R@100"] for r in at], ms=9, ls="", **style)
    first.set(xscale="log", yscale="log", xlabel="synthetic vectors")
    first.set_title("ms a query")
    first.yaxis.set_major_formatter("{x:g}")
    first.set_xticks(sizes, [f"{size:,}" for size in sizes])
    for axis, size in zip(others, shown, strict=True):
        axis.set(xscale="log", xlabel="ms a query", ylim=(-3, 105))
        axis.set_title(f"R@100, percent, of {size:,} vectors")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
    names = [name for name in COLOURS if any(row["index"] == name for row in rows)]
    handles = [Line2D([], [], color=COLOURS[name], label=name) for name in names]
    handles += [
        Line2D([], [], color="black", ls="", marker=marks[bits], label=f"{bits:,} bits")
        for bits in lengths
    ]
    handles.append(Line2D([], [], color="black", ls="", marker="*", label="float32"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
