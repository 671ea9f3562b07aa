"""Seconds to compile a full-size train step for this machine, its layers one by one or as a loop.

    python benchmarks/compile_seconds.py [--backbone "SigLIP2 B/16-384"] [--rows 16]
                                         [--out compile_seconds.json]

Only shapes are at hand, no weights. Each program is compiled in a process of its own, without a
cache; "processor" counts the seconds of all cores. The same for TPUs: `tpu_compile.py`.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
from recipe_cost import BACKBONES
from rich.console import Console
from rich.table import Table
from side_by_side import machine
from tpu_programs import Program, trace


def main() -> None:
    """Compile both, print a table, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", default="SigLIP2 B/16-384", choices=list(BACKBONES))
    parser.add_argument("--rows", type=int, default=16, help="images of a batch")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(compiled(options.backbone, options.rows, options.one == "loop")))
        return
    rows = {}
    for layers in ("unrolled", "loop"):
        own = ("--one", layers, "--backbone", options.backbone, "--rows", str(options.rows))
        done = subprocess.run(
            [sys.executable, __file__, *own], check=True, stdout=subprocess.PIPE, text=True
        )
        rows[layers] = json.loads(done.stdout.splitlines()[-1])
    show(rows)
    if options.out:
        result = {"machine": machine(), "backbone": options.backbone, "rows": options.rows}
        Path(options.out).write_text(json.dumps(result | {"programs": rows}, indent=2) + "\n")


def compiled(backbone: str, rows: int, scan: bool) -> dict[str, Any]:
    """Seconds and sizes of the step in float32."""
    jax.config.update("jax_enable_compilation_cache", False)
    program = Program("step", backbone, 64, "", rows, precision="float32", scan=scan)
    seconds, last, processor = {}, time.perf_counter(), time.process_time()

    def lap(name: str) -> None:
        nonlocal last
        seconds[name], last = round(time.perf_counter() - last, 1), time.perf_counter()

    traced = trace(program, jax.devices()[:1])
    lap("trace")
    lowered = traced.lower()
    lap("lower")
    whole = lowered.compile()
    lap("compile")
    memory = whole.memory_analysis()
    return {
        "seconds": seconds | {"processor": round(time.process_time() - processor, 1)},
        "text_bytes": len(lowered.as_text()),
        "temporaries": memory.temp_size_in_bytes if memory else None,
    }


def show(rows: dict[str, Any]) -> None:
    """Print the table."""
    table = Table("layers", "trace s", "lower s", "compile s", "processor s", "text MB", "temp GB")
    for name, row in rows.items():
        seconds = (str(value) for value in row["seconds"].values())
        sizes = f"{row['text_bytes'] / 1e6:.1f}", f"{(row['temporaries'] or 0) / 1e9:.1f}"
        table.add_row(name, *seconds, *sizes)
    Console().print(table)


if __name__ == "__main__":
    main()
