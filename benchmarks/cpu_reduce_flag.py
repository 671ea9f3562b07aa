"""Cost of the XLA flag that jaxlib 0.10.2 needs on CPUs (`edje_jax/system/xla_flags.py`).

    python benchmarks/cpu_reduce_flag.py [--rounds 9] [--out cpu_reduce_flag.json]

Reranking (one query of 100 candidates, as in rerank.py) and a train step (as in train_step.py),
each in two processes, with the flag and without. They take turns, so that what slows the machine
for a while slows both; figures are medians, and the ratio that of the rounds' ratios.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path

SIDES = ("with", "without")


def main() -> None:
    """Time both sides of both kinds of work, print a table, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", default="", help="JSON file to write")
    parser.add_argument("--work", choices=["rerank", "train step"], help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    from process_turns import in_turns, serve

    if options.work:
        if options.side == "without":
            # Once the backend runs, edje_jax can set no flag any more; it warns.
            import jax

            jax.devices()
        serve(job(options.work))
        return
    from rich.console import Console
    from rich.table import Table
    from side_by_side import machine

    result = {"machine": machine(), "rounds": options.rounds, "work": {}}
    table = Table("", *(f"seconds {side} the flag" for side in SIDES), "with / without", "range")
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    for work in ("rerank", "train step"):
        seconds = in_turns(
            {side: [__file__, "--work", work, "--side", side] for side in SIDES},
            dict.fromkeys(SIDES, environment),
            options.rounds,
        )
        ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
        result["work"][work] = {"seconds": seconds, "ratio": statistics.median(ratios)}
        table.add_row(
            work,
            *(f"{statistics.median(values):.3f}" for values in seconds.values()),
            f"{statistics.median(ratios):.3f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
        )
    Console().print(table)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def job(work: str) -> Callable[[], object]:
    """The work as the benchmarks of that name do it."""
    from edje_jax.system.allocator import keep_freed_memory

    keep_freed_memory()  # As the programs do
    if work == "rerank":
        import rerank

        return rerank.ours(rerank.Pairs(queries=1, k=100))
    import train_step

    return train_step.ours(train_step.Work("small", 16))


if __name__ == "__main__":
    main()
