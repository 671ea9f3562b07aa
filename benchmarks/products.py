"""Parts of a train step on a CPU, timed one by one in JAX and in PyTorch.

    python benchmarks/products.py [--rounds 9] [--jax-python PYTHON ...] [--out products.json]

The parts are those of the joint encoder in `train_step.py`: the products of a layer forward and
backward, attention, the norm, the activation, the vocabulary, and the optimiser on the word table.
Each library runs in processes of its own, which take turns; --jax-python names further interpreters
to run JAX in. Figures are medians in milliseconds, and GFLOP/s for products.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from products_sides import PARTS, flops
from rich.console import Console
from rich.table import Table
from side_by_side import machine
from side_workers import Work, Worker, timed_in_workers


def main() -> None:
    """Time all parts, print a table, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--jax-python", nargs="*", default=[], metavar="PYTHON")
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    workers = {"torch": Worker(sys.executable, "products_sides", {"library": "torch"})}
    for python in (sys.executable, *options.jax_python):
        worker = Worker(python, "products_sides", {"library": "jax"})
        workers[f"jax {worker.ask({'do': 'about'}).get('jax', python)}"] = worker
    try:
        works = {
            (part, name): Work(worker, {}, part)
            for part in PARTS
            for name, worker in workers.items()
        }
        timed = timed_in_workers(works, options.rounds)
    finally:
        for worker in workers.values():
            worker.close()
    parts = {part: {name: timed[part, name] for name in workers} for part in PARTS}
    result = {"machine": machine(), "parts": parts}
    show(result)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    names = list(next(iter(result["parts"].values())))
    table = Table("", *names)
    for part, sides in result["parts"].items():
        cells = []
        for side in sides.values():
            if "why" in side:
                cells.append(side["why"])
                continue
            seconds = statistics.median(side["seconds"])
            speed = f" ({flops(part) / seconds / 1e9:.0f} GFLOP/s)" if flops(part) else ""
            cells.append(f"{1e3 * seconds:.2f} ms{speed}")
        table.add_row(part, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
