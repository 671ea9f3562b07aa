"""Programs compiled for TPUs, without a TPU: memory, FLOPs, collectives, and a bound on their time.

    pip install -e ".[tpu]"       (into an environment of its own)
    python benchmarks/tpu_compile.py [--out tpu_compile.json] [--only WORDS] [--limit 3600]

libtpu compiles for chips that are not there. Each program is compiled in a process of its own, and
its row is added to `--out` as soon as it is done: a run that was interrupted goes on. `--only`
takes the programs whose name holds all the words. `--keep DIR` keeps what was compiled: rows of
programs that are there are made anew from their text. `--table` prints the tables of
docs/guide/training.md.

Figures are those of one chip. The time is a roofline: the longest of three times, each as if
nothing else took any. `compute` is the products at the chip's peak, `memory` what moves between its
memory (HBM) and its cores, `links` what collectives send and receive by rings over all of its
links. No program was run.
"""

import argparse
import dataclasses
import gzip
import importlib.metadata
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # There is no chip to fight over

import jax
import tpu_hlo
from rich.console import Console
from rich.table import Table
from side_by_side import machine
from tpu_programs import PROGRAMS, SO400M, B, L, Program, held, product_flops, trace

from edje_jax.models.attention_plain import SHORT
from edje_jax.system.files import read_json, write_json
from edje_jax.system.platform import programs_for


@dataclass(frozen=True)
class Chip:
    """Figures of a chip, as Google states them."""

    bfloat16: float
    """FLOP/s; float32 products take one pass of bfloat16 unless told otherwise."""
    int8: float
    """Operations/s."""
    memory: float
    """Bytes of HBM."""
    memory_bandwidth: float
    """Bytes/s of HBM."""
    link_bandwidth: float
    """Bytes/s over all links to other chips, both directions together."""


CHIPS = {
    "v5e": Chip(197e12, 393e12, 16e9, 800e9, 400e9),
    "v5p": Chip(459e12, 918e12, 95e9, 2765e9, 1200e9),
    "v6e": Chip(918e12, 1836e12, 32e9, 1600e9, 800e9),
}
"""By the name of their topologies; from docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e."""


def measure(program: Program, keep: Path | None) -> dict[str, Any]:
    """The row of a program, compiled now or kept from before."""
    stem = re.sub(r"[^\w.-]+", "_", program.name)
    if keep is None:
        row, text = compile_program(program)
    elif (keep / f"{stem}.json").exists():
        row = read_json(keep / f"{stem}.json") | dataclasses.asdict(program)
        text = gzip.decompress((keep / f"{stem}.hlo.gz").read_bytes()).decode()
    else:
        row, text = compile_program(program)
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{stem}.hlo.gz").write_bytes(gzip.compress(text.encode(), 1))
        write_json(keep / f"{stem}.json", row)
    row["model_flops"] = program.model_flops(row["chips"])
    return row | figures(program, row, text) if row["fits"] else row


def compile_program(program: Program) -> tuple[dict[str, Any], str]:
    """(what the compiler tells, the compiled program's text); the text of what does not fit is
    empty."""
    devices, seconds = program.devices(), {}
    row = {"name": program.name, **dataclasses.asdict(program), "chips": len(devices)}
    with programs_for("tpu"):
        traced = _timed(seconds, "trace", lambda: trace(program, devices))
        lowered = _timed(seconds, "lower", traced.lower)
    row["seconds"] = seconds
    row["flops"] = product_flops(traced.jaxpr.jaxpr) / len(devices)
    try:
        compiled = _timed(seconds, "compile", lowered.compile)
    except jax.errors.JaxRuntimeError as error:
        if "hbm" not in str(error):
            raise
        return row | {"fits": False, "reason": too_large(str(error))}, ""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds["processor"] = round(usage.ru_utime + usage.ru_stime, 1)
    sizes, text = compiled.memory_analysis(), compiled.as_text()
    names = "argument", "output", "alias", "temp", "generated_code"
    row["bytes"] = {name: getattr(sizes, f"{name}_size_in_bytes") for name in names}
    row["flops_of_compiler"] = compiled.cost_analysis()["flops"]
    return row | {"fits": True, "text_bytes": len(text)}, text


def _timed(seconds: dict[str, float], name: str, call: Callable[[], Any]) -> Any:
    began = time.perf_counter()
    out = call()
    seconds[name] = round(time.perf_counter() - began, 1)
    return out


def too_large(message: str) -> str:
    """Sentence of the compiler's message that tells how much a program would need."""
    found = re.search(r"Used [\d.]+\w of [\d.]+\w hbm", message)
    return found[0] if found else message.splitlines()[0][:200]


def figures(program: Program, row: dict[str, Any], text: str) -> dict[str, Any]:
    """Collectives, attention arrays and the roofline of a program's text."""
    module = tpu_hlo.parse(text)
    joint = program.config.num_tokens + 1 + program.config.max_text_length
    vision = program.config.backbone.num_vision_tokens
    sent = tpu_hlo.collectives(module)
    chip = CHIPS[program.topology.partition(":")[0]]
    memory = tpu_hlo.traffic(module)
    times = {
        "compute": row["flops"] / (chip.int8 if program.precision == "int8" else chip.bfloat16),
        "memory": memory / chip.memory_bandwidth,
        "links": link_bytes(sent, row["chips"]) / chip.link_bandwidth,
    }
    return {
        "products": tpu_hlo.products(module),
        "collectives": sent,
        "float32_attention": tpu_hlo.squares(
            module, "f32", {length for length in (vision, joint, joint - 1) if length > SHORT}
        ),
        "memory_traffic": memory,
        "milliseconds": {name: round(1000 * value, 3) for name, value in times.items()},
    }


def link_bytes(sent: dict[str, dict[str, float]], chips: int) -> float:
    """Bytes that a chip sends and receives if collectives go round a ring: an all-reduce passes an
    array twice, the others once."""
    share = (chips - 1) / chips
    return sum(
        (4 if kind == "all-reduce" else 2) * share * one["bytes"] for kind, one in sent.items()
    )


def bound(row: dict[str, Any]) -> str:
    """The roofline's time, and what it is the time of."""
    what, time = max(row["milliseconds"].items(), key=lambda item: item[1])
    return f"{time:.1f} ms ({what})"


def run_all(options: argparse.Namespace) -> dict[str, Any]:
    """Add the rows of all programs asked for that `--out` does not have."""
    out = Path(options.out) if options.out else None
    result = read_json(out) if out and out.exists() else {"rows": []}
    result["held"] = {backbone: held(backbone) for backbone in (B, L, SO400M)}
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    result["machine"] = machine() | versions
    done = {row["name"] for row in result["rows"]}
    for program in PROGRAMS:
        if program.name in done or not all(word in program.name for word in options.only):
            continue
        row = _in_a_process(program, options)
        if row is None:
            print(f"not done: {program.name}", file=sys.stderr)
            continue
        result["rows"].append(row)
        if out:
            write_json(out, result)
    return result


def _in_a_process(program: Program, options: argparse.Namespace) -> dict[str, Any] | None:
    """The row of a program; None if its process failed, which tells why, or took too long."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        command = [sys.executable, __file__, "--one", program.name, "--out", str(file)]
        command += ["--keep", options.keep] if options.keep else []
        try:
            subprocess.run(command, timeout=options.limit, check=True)
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            print(str(error).rpartition(" ")[2], file=sys.stderr)
            return None
        return read_json(file)


def markdown(result: dict[str, Any]) -> str:
    """The tables of docs/guide/training.md: what every step holds, and compiled steps."""
    held_rows = [
        f"| {backbone} | {one['frozen_bytes'] / 1e9:.1f} GB | {one['trained_bytes'] / 1e9:.1f} GB |"
        f" {one['vision_tokens_bytes'] / 1e6:.1f} MB | {one['compressed_flops'] / 1e12:.1f} TFLOP"
        f" (Local: {one['local_flops'] / 1e12:.1f}) |"
        for backbone, one in result["held"].items()
    ]
    steps = [_compiled(row) for row in result["rows"] if row["kind"] == "step"]
    heads = (
        ("backbone", "frozen", "trained, with moments", "vision tokens an image, bfloat16",
         "a step of 32 images, K = 3"),
        ("step", "chips", "images a chip", "arguments", "temporaries", "TFLOP", "bound"),
    )  # fmt: skip
    tables = (
        "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *rows])
        for head, rows in zip(heads, (held_rows, steps), strict=True)
    )
    return "\n\n".join(tables)


def _compiled(row: dict[str, Any]) -> str:
    adapter = f"Compressed-{row['tokens']}" if row["tokens"] else "Local"
    shared = f", fsdp {row['fsdp']}" if row["fsdp"] > 1 else ""
    chips = f"{row['chips']} {row['topology'].partition(':')[0]}{shared}"
    loop = ", layers as a loop" if row["scan"] else ""
    begin = f"| {row['backbone']}, {adapter}{loop} | {chips} | {row['rows']} |"
    work = f"{row['flops'] / 1e12:.1f}"
    if not row["fits"]:
        return f"{begin} does not fit: {row['reason']} | | {work} | |"
    sizes = (f"{row['bytes'][name] / 1e9:.1f} GB" for name in ("argument", "temp"))
    return f"{begin} {' | '.join(sizes)} | {work} | {bound(row)} |"


def show(result: dict[str, Any]) -> None:
    """Print every program's figures."""
    table = Table(
        "program", "compile s", "processor s", "arguments GB", "temporaries GB", "GFLOP",
        "of our count", "collectives MB", "float32 attention", "bound",
    )  # fmt: skip
    for row in result["rows"]:
        work = f"{row['flops'] / 1e9:,.0f}", f"{row['flops'] / row['model_flops']:.3f}"
        seconds = row["seconds"]["compile"] if row["fits"] else None
        if not row["fits"]:
            table.add_row(row["name"], "", "", row["reason"], "", *work)
            continue
        sizes = (f"{row['bytes'][name] / 1e9:.2f}" for name in ("argument", "temp"))
        sent = ", ".join(
            f"{one['count']} {kind} {one['bytes'] / 1e6:.1f}"
            for kind, one in row["collectives"].items()
        )
        table.add_row(
            row["name"], str(seconds), str(row["seconds"]["processor"]), *sizes, *work, sent,
            " ".join(row["float32_attention"]) or "none", bound(row),
        )  # fmt: skip
    Console(width=200).print(table)


def main() -> None:
    """Compile what is not there yet, print a table, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default="", help="JSON file to write, or to add to")
    parser.add_argument("--only", nargs="*", default=[], help="words of the programs' names")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for a program")
    parser.add_argument("--keep", default="", help="folder of compiled programs")
    parser.add_argument("--table", action="store_true", help="print the rows of --out as Markdown")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        print(markdown(read_json(Path(options.out))))
    elif options.one:
        program = next(one for one in PROGRAMS if one.name == options.one)
        write_json(
            Path(options.out), measure(program, Path(options.keep) if options.keep else None)
        )
    else:
        show(run_all(options))


if __name__ == "__main__":
    main()
