"""Milliseconds a query of ours, as candidates, captions, tokens and concurrent queries grow.

    python benchmarks/growth.py [--rounds 3] [--jax-python PYTHON ...] [--out growth.json]
                                [--plot growth.png]

One of the four grows, the others stay at 64 candidates, 14 words, 64 tokens and 1 query. Concurrent
queries are scored in one call, as the server does with those that wait; their time is divided by
their number. A caption of 64 words is cut to the 61 pieces that the joint encoder takes. Sides are
float32 and int8 in JAX, and int8 in ONNX Runtime, each in a process of its own; --jax-python names
further interpreters for JAX. A side that cannot run is left out, and the result says why. --only
takes the sides whose names contain a text, --tiny runs small shapes.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pairs import Pairs, Settings, save_folder, with_shipped_backbone
from rich.console import Console
from rich.table import Table
from side_by_side import machine
from side_workers import Work, Worker, timed_in_workers

BASE = {"k": 64, "words": 14, "tokens": 64, "queries": 1}
AXES = {
    "k": ("candidates of a query (k)", (10, 30, 100, 300, 1000)),
    "words": ("words of the caption", (4, 8, 16, 32, 64)),
    "tokens": ("tokens of an image", (16, 64, 144, 256, 576)),
    "queries": ("concurrent queries", (1, 2, 4, 8, 16, 32)),
}
"""Axis of the plot -> its title, and its values."""
FIXED = {"k": "{} candidates", "words": "{} words", "tokens": "{} tokens", "queries": "{} query"}
TINY = {"k": (4, 8), "words": (4, 8), "tokens": (4, 16), "queries": (1, 2)}
SIDES = (("jax", "float32"), ("jax", "int8"), ("onnx", "int8"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jax-python", nargs="*", default=[], metavar="PYTHON")
    parser.add_argument("--only", nargs="*", default=[""], metavar="TEXT", help="sides, by name")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    options = parser.parse_args(arguments)
    result = measure(options)
    show(result)
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    if options.plot:
        plot(result, options.plot)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every side at every point: {"points": [{"side", "axis", "value", "seconds"}]}."""
    axes = TINY if options.tiny else {name: values for name, (_, values) in AXES.items()}
    base = {name: values[0] for name, values in TINY.items()} if options.tiny else BASE
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(folder, tiny=options.tiny)
        for tokens in {base["tokens"], *axes["tokens"]}:
            save_with_tokens(settings, tokens)
        pythons = (sys.executable, *options.jax_python)
        workers = [Worker(python, "peers_ours", dataclasses.asdict(settings)) for python in pythons]
        try:
            sides = {
                name: side
                for name, side in all_sides(workers).items()
                if any(text in name for text in options.only)
            }
            told = timed_in_workers(
                {
                    (name, axis, value): Work(
                        worker, spec | workload(base | {axis: value}), "score"
                    )
                    for name, (worker, spec) in sides.items()
                    for axis, values in axes.items()
                    for value in values
                },
                options.rounds,
            )
        finally:
            for worker in workers:
                worker.close()
    points = [
        {"side": name, "axis": axis, "value": value}
        | {key: answer[key] for key in ("seconds", "why") if key in answer}
        for (name, axis, value), answer in told.items()
    ]
    return {"machine": machine(), "rounds": options.rounds, "base": base, "points": points}


def all_sides(workers: Sequence[Worker]) -> dict[str, tuple[Worker, dict[str, str]]]:
    """Workers, and runtimes and precisions as they take them, by name."""
    out = {}
    for number, worker in enumerate(workers):
        jax = worker.ask({"do": "about"}).get("jax", f"of interpreter {number + 1}")
        for runtime, precision in SIDES:
            name = f"JAX {jax}" if runtime == "jax" else "ONNX Runtime"
            spec = {"runtime": runtime, "precision": precision}
            out.setdefault(f"{name}, {precision}", (worker, spec))
    return out


def workload(point: Mapping[str, int]) -> dict[str, Any]:
    """Work of a point, as the worker takes it."""
    return {
        "layout": layout(point["tokens"]),
        "k": point["k"],
        "queries": point["queries"],
        "words": [point["words"], point["words"]],
        "together": True,
    }


def layout(tokens: int) -> str:
    """Name of the model with so many tokens an image."""
    return f"{tokens} tokens"


def save_with_tokens(settings: Settings, tokens: int) -> None:
    """Write the model folder of `layout`."""
    adapter = dataclasses.replace(settings.config.adapter, num_tokens=tokens)
    config = dataclasses.replace(settings.config, adapter=adapter)
    save_folder(Pairs(1, 1, with_shipped_backbone(config)), settings.model(layout(tokens)))


def curves(result: dict[str, Any], axis: str) -> dict[str, dict[int, float]]:
    """{side: {value: milliseconds a query}} of the sides that ran; medians of the rounds."""
    out: dict[str, dict[int, float]] = {}
    for point in result["points"]:
        if point["axis"] == axis and "seconds" in point:
            queries = point["value"] if axis == "queries" else result["base"]["queries"]
            milliseconds = 1000 * statistics.median(point["seconds"]) / queries
            out.setdefault(point["side"], {})[point["value"]] = milliseconds
    return out


def show(result: dict[str, Any]) -> None:
    """Print a table of each axis, and what did not run."""
    console = Console()
    for axis, (title, _) in AXES.items():
        lines = curves(result, axis)
        values = sorted({value for line in lines.values() for value in line})
        table = Table("milliseconds a query", *map(str, values), title=title)
        for side, line in lines.items():
            table.add_row(
                side, *(f"{line[value]:.1f}" if value in line else "" for value in values)
            )
        console.print(table)
    for side, why in {p["side"]: p["why"] for p in result["points"] if "why" in p}.items():
        console.print(f"{side}: {why}")


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw four panels, both scales logarithmic, with the same milliseconds in all."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sides = list(dict.fromkeys(point["side"] for point in result["points"]))
    figure, panels = plt.subplots(2, 2, figsize=(9, 6.6), sharey=True, layout="constrained")
    for (axis, (title, _)), panel in zip(AXES.items(), panels.flat, strict=True):
        lines = curves(result, axis)
        for side, line in lines.items():
            style = {"color": f"C{sides.index(side)}", "marker": "o", "markersize": 4}
            panel.plot(list(line), list(line.values()), label=side, **style)
        values = sorted({value for line in lines.values() for value in line})
        panel.set(xscale="log", yscale="log", xlabel=title)
        panel.set_xticks(values, [str(value) for value in values])
        panel.minorticks_off()
        fixed = [FIXED[name].format(result["base"][name]) for name in AXES if name != axis]
        panel.set_title(", ".join(fixed), fontsize=9)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylabel("milliseconds a query (median)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
