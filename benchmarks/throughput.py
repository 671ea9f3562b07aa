"""Pairs that the scorer takes a second, by batch size, precision and attention.

    python benchmarks/throughput.py [--batches 256 1024] [--precisions bfloat16 int8]
                                    [--attention cudnn products] [--deferred 0 6] [--attended]
                                    [--seconds 1] [--limit 600] [--kernels]
                                    [--out throughput.json]

Tokens (bfloat16) and captions lie on the device, and calls are started one after the other, so that
what is timed is the device's part: what batches of `runtimes.scoring` should hold is read off here.
FLOPs are those of the matrix products on rows that count (`training.flops`), and a share is that of
the device's bfloat16 peak. Weights are random: MiniLM-L12, 64 tokens, captions of 22 pieces in the
bucket of 24. After --limit seconds what is left is not begun. With --kernels each row of the result
has the kernels that take longest, too.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from kernels import kernel_milliseconds
from pairs import CLS, CONFIG, SEP, TINY, Pairs
from rich.console import Console
from rich.table import Table
from side_by_side import machine

from edje_jax.config.model import EdjeConfig
from edje_jax.models.attention import IMPLEMENTATIONS
from edje_jax.models.edje import Edje
from edje_jax.runtimes.device_params import DeviceParams, Parts
from edje_jax.runtimes.devices import Compute
from edje_jax.runtimes.scoring import CHUNKS, encode_captions, gather_rows, score
from edje_jax.system.platform import platform
from edje_jax.training.flops import layers, peak_flops

BUCKET, PIECES = 24, 22


def main() -> None:
    """Time all, print a table, write JSON if asked to."""
    options = parser().parse_args()
    began, rows = time.perf_counter(), []
    layouts = [config_of(options, s, seen) for s, seen in deferrals(options)]
    for config in layouts:
        params = Pairs(1, 1, config).params
        ways = product(options.precisions, options.attention, options.batches)
        for precision, kernel, batch in ways:
            if time.perf_counter() - began > options.limit:
                break
            try:
                row = timed(config, params, precision, kernel, batch, options)
            except Exception as error:  # A row of the table, whatever it is
                row = {"why": str(error).splitlines()[0]}
            joint = config.joint_encoder
            rows.append(
                {"s": joint.deferred_layers, "online_vision": joint.online_vision}
                | {"precision": precision, "attention": kernel, "batch": batch}
                | row
            )
            print(json.dumps(rows[-1]), flush=True)
    show(rows)
    if options.out:
        options.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    out.add_argument("--batches", type=int, nargs="+", default=[256, 1024])
    out.add_argument("--precisions", nargs="+", default=["auto"])
    out.add_argument("--attention", nargs="+", default=["auto"], metavar="NAME")
    out.add_argument("--deferred", type=int, nargs="+", default=[0], metavar="S")
    out.add_argument("--attended", action="store_true", help="add attended vision rows to S > 0")
    out.add_argument("--seconds", type=float, default=1.0, help="time to measure a row for")
    out.add_argument("--limit", type=float, default=600.0, help="seconds for everything")
    out.add_argument("--kernels", action="store_true", help="profile each row's kernels")
    out.add_argument("--tiny", action="store_true", help="small shapes, which show that it works")
    out.add_argument("--out", type=Path, help="JSON file to write")
    return out


def deferrals(options: argparse.Namespace) -> list[tuple[int, Any]]:
    """Deferred layers, and what the others do with vision rows."""
    seen = ["updated", "attended"] if options.attended else ["updated"]
    return [(s, one) for s in options.deferred for one in (seen if s else seen[:1])]


def config_of(options: argparse.Namespace, deferred: int, seen: Any) -> EdjeConfig:
    """Shapes of a layout."""
    config = TINY if options.tiny else CONFIG
    joint = dataclasses.replace(config.joint_encoder, deferred_layers=deferred, online_vision=seen)
    return dataclasses.replace(config, joint_encoder=joint)


def timed(
    config: EdjeConfig,
    params: Any,
    precision: Any,
    kernel: str,
    batch: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Row of the table."""
    compute = Compute.of(precision)
    params = DeviceParams(Parts(params, {}, None), (None,), compute, compute).scoring[0]
    model = Edje(config, compute.dtype)
    rng = np.random.default_rng(0)
    shape = (batch, config.num_tokens, config.joint_encoder.hidden_size)
    tokens = jax.device_put(jnp.asarray(rng.normal(size=shape), jnp.bfloat16))
    words = rng.integers(1000, 30000, (batch, PIECES - 2))
    ids = np.zeros((batch, BUCKET), np.int32)
    ids[:, :PIECES] = np.hstack([np.full((batch, 1), CLS), words, np.full((batch, 1), SEP)])
    # A batch larger than a chunk would be cut.
    with only(kernel), mock.patch.dict(CHUNKS, {platform(): batch}):
        jax.clear_caches()  # The kernel is no part of a program's key
        text: Any = jax.device_put(ids)
        if config.joint_encoder.deferred_layers:
            encoded = encode_captions(model, params, 1, ids[:1])
            text = gather_rows(encoded, np.zeros(batch, np.int64))
        began = time.perf_counter()
        run = partial(score, model, params, batch, text, tokens)
        jax.block_until_ready(run())
        compile_seconds = time.perf_counter() - began
        call = seconds_of_a_call(run, options.seconds)
        longest = list(kernel_milliseconds(run).items())[:12] if options.kernels else []
    flops = flops_of_a_pair(config) * batch / call
    row = {"pairs_per_second": batch / call, "milliseconds": 1e3 * call, "flops_per_second": flops}
    if peak := peak_flops(jax.devices()[0].device_kind):
        row["share_of_peak"] = flops / peak
    if longest:
        row["kernel_milliseconds"] = dict(longest)
    return row | {"compile_seconds": compile_seconds}


def seconds_of_a_call(run: Callable[[], Any], seconds: float) -> float:
    """Shortest mean time of a call, of five times as many calls as fill a fifth of the time."""
    began = time.perf_counter()
    jax.block_until_ready([run() for _ in range(3)])
    calls = max(2, int(seconds / 5 / ((time.perf_counter() - began) / 3)))
    means = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready([run() for _ in range(calls)])
        means.append((time.perf_counter() - began) / calls)
    return min(means)


def only(kernel: str) -> AbstractContextManager[Any]:
    """Let `attend` take one implementation; "auto" is its own choice."""
    if kernel == "auto":
        return nullcontext()
    if kernel not in IMPLEMENTATIONS:
        raise ValueError(f"no attention is called {kernel!r}: give one of {[*IMPLEMENTATIONS]}")
    others = {
        name: way._replace(refuse=lambda call: "is left out")
        for name, way in IMPLEMENTATIONS.items()
        if name != kernel
    }
    return mock.patch.dict(IMPLEMENTATIONS, others)


def flops_of_a_pair(config: EdjeConfig) -> float:
    """Products of a pair's online layers over rows that count; the last one's are counted whole."""
    joint, text = config.joint_encoder, 1 + PIECES
    if joint.online_vision == "attended":
        return layers(joint, text, joint.online_layers, config.num_tokens)
    return layers(joint, config.num_tokens + text, joint.online_layers)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("s", "vision rows", "precision", "attention", "batch", "pairs/s", "share of peak")
    for row in rows:
        rate, share = row.get("pairs_per_second"), row.get("share_of_peak")
        table.add_row(
            str(row["s"]), row["online_vision"], row["precision"], row["attention"],
            str(row["batch"]), f"{rate:,.0f}" if rate else "none",
            f"{share:.0%}" if share else "",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
