"""Time of a train step on a CPU with glibc's huge pages and without (Linux alone).

    python benchmarks/huge_pages.py [--rounds 9] [--out huge_pages.json]

The step is that of `make demo` once matching is trained, on features of a few scenes. Two processes
take turns of eight steps; figures are medians of a turn's mean, and the ratio that of the turns'
ratios.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb"
SIDES = {"with": 1, "without": 0}
BATCHES = 8


def main() -> None:
    """Time both sides, print a table, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", default="", help="JSON file to write")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    from process_turns import in_turns, serve

    if options.serve:
        with tempfile.TemporaryDirectory() as folder:
            serve(matching_steps(Path(folder)))
        return
    from rich.console import Console
    from rich.table import Table
    from side_by_side import machine

    seconds = in_turns(
        {side: [__file__, "--serve"] for side in SIDES},
        {side: os.environ | {"GLIBC_TUNABLES": f"{TUNABLE}={SIDES[side]}"} for side in SIDES},
        options.rounds,
    )
    seconds = {side: [took / BATCHES for took in rounds] for side, rounds in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
    table = Table(*(f"seconds {side} huge pages" for side in SIDES), "with / without")
    medians = (f"{statistics.median(values):.3f}" for values in seconds.values())
    table.add_row(*medians, f"{ratio:.2f}")
    Console().print(table)
    if options.out:
        result = {"machine": machine(), "seconds": seconds, "ratio": ratio}
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def matching_steps(folder: Path) -> Callable[[], object]:
    """Function that takes eight steps of the demo with all losses, and waits for their end."""
    import jax

    from edje_jax.cli.named_configs import load_config
    from edje_jax.system.allocator import keep_freed_memory
    from edje_jax.training.tasks.edje import EdjeTask

    keep_freed_memory()  # As train.py does
    config = load_config("demo")
    data = replace(
        config.data, limit=BATCHES * config.data.batch_size, cache_features=str(folder / "features")
    )
    task = EdjeTask(replace(config, data=data), folder)
    batches = [task.reader[number][0] for number in range(BATCHES)]
    state = task.init()

    def steps() -> None:
        nonlocal state
        for batch in batches:
            state, losses = task.step(state, batch, config.steps - 1)
            jax.block_until_ready((state, losses))

    return steps


if __name__ == "__main__":
    main()
