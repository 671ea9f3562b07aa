"""Memory and time of a train step whose batch is worked through in parts (`--accumulate`).

    python benchmarks/accumulate.py [--size small] [--batch 32] [--parts 1 2 4 8] [--out FILE]

Every number of parts has a process of its own, whose resident peak during the second step is told,
and what it held before that step. Losses and gradients are the same (tests say how closely).
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from side_by_side import forget_peak, machine, resident_peak
from train_step import Work, ours

from edje_jax.system.allocator import give_back_freed_memory


def main() -> None:
    """Measure, print a table, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=["small", "B", "L"], default="small")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--only", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(step_in_parts(options.size, options.batch, options.only)))
        return
    command = [sys.executable, __file__, "--size", options.size, "--batch", str(options.batch)]
    rows = {}
    for parts in options.parts:
        alone = [*command, "--only", str(parts)]
        done = subprocess.run(alone, stdout=subprocess.PIPE, text=True, check=True)
        rows[parts] = json.loads(done.stdout.splitlines()[-1])
    table = Table("parts", "peak MB", "of which the step's own", "seconds", "loss")
    for parts, row in rows.items():
        peak, before = (row[name] / 1e6 for name in ("peak_bytes", "bytes_before"))
        own = f"{peak - before:,.0f}"
        table.add_row(
            str(parts), f"{peak:,.0f}", own, f"{row['seconds']:.2f}", f"{row['loss']:.6f}"
        )
    Console().print(table)
    if options.out:
        told = {"machine": machine(), "size": options.size, "batch": options.batch, "parts": rows}
        Path(options.out).write_text(json.dumps(told, indent=2) + "\n")


def step_in_parts(size: str, batch: int, parts: int) -> dict[str, float]:
    """A step's peak, with what came before it given back to the system."""
    run = ours(Work(size, batch), parts)
    run()  # Compiles, which takes memory of its own
    give_back_freed_memory()
    forget_peak()
    before, began = resident_peak(), time.perf_counter()
    loss = run()
    seconds = time.perf_counter() - began
    return {
        "peak_bytes": resident_peak(), "bytes_before": before, "seconds": seconds, "loss": loss
    }  # fmt: skip


if __name__ == "__main__":
    main()
