"""Programs compiled for TPUs, without a TPU: memory, FLOPs, collectives, and a bound on their time.

    python benchmarks/tpu_compile.py [--out tpu_compile.json] [--only WORDS ...] [--limit 3600]

Needs the extra `tpu`, whose libtpu compiles for chips that are not there. Each program is compiled
in a process of its own, and its row is added to `--out` as soon as it is done: a run that was
interrupted goes on. `--only` takes the programs whose name holds all the words. `--keep DIR` keeps
the text of each compiled program; rows are then made anew from texts that are there.

Figures are of one chip. The time is a roofline: the longest of the FLOPs over the chip's peak, the
bytes that move between its memory and its cores over that bandwidth, and the bytes of collectives
over that of its links, each as if nothing else took time. No program was run.
"""

import argparse
import dataclasses
import gzip
import json
import os
import re
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import jax
import tpu_hlo
from rich.console import Console
from rich.table import Table
from tpu_programs import PROGRAMS, Program, product_flops, trace

from edje_jax.models.attention_plain import SHORT
from edje_jax.system.files import write_json
from edje_jax.system.platform import programs_for


@dataclass(frozen=True)
class Chip:
    """Figures of a generation of TPUs, as Google states them for a chip."""

    bfloat16: float
    """FLOP/s."""
    int8: float
    """Operations/s."""
    memory: float
    """Bytes of HBM."""
    memory_bandwidth: float
    """Bytes/s of HBM."""
    link_bandwidth: float
    """Bytes/s to other chips, both directions together."""


CHIPS = {
    "v5e": Chip(197e12, 393e12, 16e9, 800e9, 400e9),
    "v5p": Chip(459e12, 918e12, 95e9, 2765e9, 1200e9),
    "v6e": Chip(918e12, 1836e12, 32e9, 1600e9, 800e9),
}
"""By the name of their topologies; from docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e."""


def compile_program(program: Program, text_file: Path | None) -> dict[str, Any]:
    """Compile a program and measure it; what does not fit tells the compiler's message."""
    devices, seconds = program.devices(), {}
    row = {"name": program.name, **dataclasses.asdict(program), "chips": len(devices)}
    with programs_for("tpu"):
        traced = _timed(seconds, "trace", lambda: trace(program, devices))
        lowered = _timed(seconds, "lower", traced.lower)
    row["seconds"] = seconds
    row["flops"] = product_flops(traced.jaxpr.jaxpr) / len(devices)
    row["model_flops"] = program.model_flops(len(devices))
    try:
        compiled = _timed(seconds, "compile", lowered.compile)
    except jax.errors.JaxRuntimeError as error:
        if "hbm" not in str(error):
            raise
        return row | {"fits": False, "reason": too_large(str(error))}
    finally:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        seconds["processor"] = round(usage.ru_utime + usage.ru_stime, 1)
    text = compiled.as_text()
    if text_file:
        text_file.write_bytes(gzip.compress(text.encode(), 1))
    sizes = compiled.memory_analysis()
    names = "argument", "output", "alias", "temp", "generated_code"
    row["bytes"] = {name: getattr(sizes, f"{name}_size_in_bytes") for name in names}
    row["flops_of_compiler"] = compiled.cost_analysis()["flops"]
    return row | {"fits": True, "program_bytes": len(text)}


def _timed(seconds: dict[str, float], name: str, call: Any) -> Any:
    began = time.perf_counter()
    out = call()
    seconds[name] = round(time.perf_counter() - began, 1)
    return out


def too_large(message: str) -> str:
    """Sentence of the compiler's message that tells what a program would need."""
    found = re.search(r"Used [\d.]+\w of [\d.]+\w hbm", message)
    return found[0] if found else message.splitlines()[0][:200]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--one")
    parser.add_argument("--keep", default="")
    options = parser.parse_args()
    program = next(p for p in PROGRAMS if p.name == options.one)
    keep = Path(options.keep)
    keep.mkdir(exist_ok=True)
    stem = re.sub(r"[^\w.-]+", "_", program.name)
    row = compile_program(program, keep / f"{stem}.hlo.gz")
    write_json(keep / f"{stem}.json", row)
    print(row)


if __name__ == "__main__":
    main()
