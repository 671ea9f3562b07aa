"""Joint encoders side by side: time, bytes and parameters of reranking 64 images for a caption.

    python benchmarks/peers.py [--rounds 3] [--jax-python PYTHON ...] [--out peers.json]
                               [--markdown docs/peers.md]

The baselines of EDJE's poster (BLIP, BLIP-2, an ALBEF-shaped encoder), ViLT, the published EDJE,
and ours: float32 and int8, in JAX and in ONNX Runtime, with deferred layers or none. Weights are
random, shapes are those of the published checkpoints; captions have 8 to 20 words. Every side is
timed with what is kept of images given ("cached"). What it takes without is computed: that time
and, for each candidate, the time in which the vision tower reads an image.

Sides live in worker processes, and take their turn in every round. --jax-python names further
interpreters to run ours in: JAX's int8 needs jax 0.12, which needs Python 3.12. A side that cannot
be built or does not fit into memory is a row that says why. On a GPU half precision is timed too.
--read FILE.json makes tables of an earlier run, --topic names the marks that --markdown fills
(<!-- peers times --> are those of "peers"), --only takes the sides whose names contain a text,
and --tiny runs small shapes, which show that the script works and nothing else.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from pages import filled
from pairs import Pairs, Settings, save_folder, with_shipped_backbone
from peers_report import show, tables
from side_by_side import machine
from side_workers import Work, Worker, timed_in_workers

from edje_jax.config.model import BertConfig, OnlineVision

EDJE = "EDJE Compressed-64"
PEERS = (
    ("ALBEF-shaped, ViT-B/16", "albef", "ViT-B/16-384", "ALBEF B/16"),
    ("BLIP, ViT-B/16", "blip-b", "ViT-B/16-384", "BLIP B/16"),
    ("BLIP, ViT-L/16", "blip-l", "ViT-L/16-384", "BLIP L/16"),
    ("BLIP-2, ViT-L/16", "blip2-l", "ViT-L/16-384", "BLIP-2 L/16"),
    ("BLIP-2, ViT-g/14", "blip2-g", "ViT-g/14-364", ""),
    ("ViLT-B/32", "vilt", "patch embedding of ViLT-B/32", ""),
)
"""Row of the table, name in `peers_torch.PEERS`, vision tower, row of the poster. Of peers with a
tower of the same shape the first one's is timed."""


class Row(NamedTuple):
    """Side of the table."""

    work: Work
    tower: str = ""
    """Name of the side that reads an image for it."""
    poster: str = ""
    """Row of EDJE's poster."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all sides or read a result, print tables, and write what was asked for."""
    options = parser().parse_args(arguments)
    read = options.read and options.read.read_text("utf-8")
    result = json.loads(read) if read else measure(options)
    show(result)
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    if options.markdown:
        page = filled(options.markdown.read_text("utf-8"), options.topic, tables(result))
        options.markdown.write_text(page, "utf-8")


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    out.add_argument("--rounds", type=int, default=3)
    out.add_argument("--queries", type=int, default=2, help="captions a round")
    out.add_argument("--k", type=int, default=64, help="candidates of a caption")
    out.add_argument("--images", type=int, default=4, help="images a call of a vision tower")
    out.add_argument("--jax-python", nargs="*", default=[], metavar="PYTHON")
    out.add_argument("--only", nargs="*", default=[""], metavar="TEXT")
    out.add_argument("--tiny", action="store_true")
    out.add_argument("--read", type=Path, help="JSON file of an earlier run")
    out.add_argument("--out", type=Path, help="JSON file to write")
    out.add_argument("--markdown", type=Path, help="page to fill in")
    out.add_argument("--topic", default="peers", help="beginning of the page's marks")
    return out


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time every side."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(folder, options.queries, options.k, options.images, options.tiny)
        save_layouts(settings)
        workers = [Worker(sys.executable, "peers_torch", dataclasses.asdict(settings))]
        workers += [
            Worker(python, "peers_ours", dataclasses.asdict(settings))
            for python in (sys.executable, *options.jax_python)
        ]
        try:
            return timed(options, *all_sides(workers, settings))
        finally:
            for worker in workers:
                worker.close()


def timed(
    options: argparse.Namespace, rows: dict[str, Row], towers: dict[str, Work]
) -> dict[str, Any]:
    """Result of the sides that were asked for, and of the towers that these need."""
    rows = {name: row for name, row in rows.items() if any(text in name for text in options.only)}
    needed = {row.tower for row in rows.values()}
    towers = {name: work for name, work in towers.items() if name in needed}
    works = {name: row.work for name, row in rows.items()} | towers
    told = timed_in_workers(works, options.rounds)
    return {
        "machine": machine(),
        **{key: getattr(options, key) for key in ("queries", "k", "images", "rounds", "tiny")},
        "rows": {
            name: told[name] | {"tower": row.tower, "poster": row.poster}
            for name, row in rows.items()
        },
        "towers": {name: told[name] for name in towers},
    }


def all_sides(
    workers: Sequence[Worker], settings: Settings
) -> tuple[dict[str, Row], dict[str, Work]]:
    """Rows of the table and towers, by name; the first worker is PyTorch's."""
    rows, towers = peers(workers[0])
    siglip = "SigLIP2-L/16-384, PyTorch"
    towers[siglip] = Work(workers[0], {"peer": "siglip"}, "read")
    for name, adapter, poster in (
        ("published EDJE, patch tokens kept", True, ""), ("published EDJE", False, EDJE),
    ):  # fmt: skip
        work = Work(workers[0], {"peer": "published", "adapter": adapter}, "score")
        rows[name] = Row(work, siglip if adapter else "", poster)
    for number, worker in enumerate(workers[1:]):
        jax = worker.ask({"do": "about"}).get("jax", f"of interpreter {number + 1}")
        tower = f"SigLIP2-L/16-384 and adapter, JAX {jax}"
        towers[tower] = Work(worker, {"tower": True}, "read")
        for runtime, label in (("jax", f"JAX {jax}"), ("onnx", "ONNX Runtime"))[: 2 - bool(number)]:
            for layout, precision in product(layouts(settings), precisions(runtime)):
                spec = {"layout": layout, "runtime": runtime, "precision": precision}
                work = Work(worker, spec, "score")
                poster = EDJE if layout == "ours" else ""
                rows[f"{layout}, {precision} ({label})"] = Row(work, tower, poster)
    return rows, towers


def peers(worker: Worker) -> tuple[dict[str, Row], dict[str, Work]]:
    """Rows and towers of the other papers' joint encoders."""
    rows, towers = {}, {}
    for dtype in ("float32", "bfloat16")[: 1 + torch.cuda.is_available()]:
        mark = "" if dtype == "float32" else f", {dtype}"
        for name, peer, tower, poster in PEERS:
            spec = {"peer": peer, "dtype": dtype}
            towers.setdefault(f"{tower}{mark}", Work(worker, spec, "read"))
            work = Work(worker, spec, "score")
            rows[f"{name}{mark}"] = Row(work, f"{tower}{mark}", poster)
    return rows, towers


def precisions(runtime: str) -> tuple[str, ...]:
    """Precisions in which ours is timed."""
    half = runtime == "jax" and torch.cuda.is_available()
    return ("float32", "bfloat16", "int8") if half else ("float32", "int8")


def layouts(settings: Settings) -> dict[str, BertConfig]:
    """Joint encoders of ours by name: s deferred layers, of which there may be none."""
    joint = settings.config.joint_encoder
    out = {"ours": joint}
    for layers in (joint.num_hidden_layers // 2, 3 * joint.num_hidden_layers // 4):
        for vision in get_args(OnlineVision):
            name = f"ours, s = {layers}" + (", attended" if vision == "attended" else "")
            changed = {"deferred_layers": layers, "online_vision": vision}
            out[name] = dataclasses.replace(joint, **changed)
    return out


def save_layouts(settings: Settings) -> None:
    """Write a model folder for each layout, all with the same weights."""
    params = None
    for name, joint in layouts(settings).items():
        config = dataclasses.replace(settings.config, joint_encoder=joint)
        task = Pairs(1, 1, with_shipped_backbone(config))
        task.params = params = params or task.params
        save_folder(task, settings.model(name))


if __name__ == "__main__":
    main()
