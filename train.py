"""Train a backbone or an EDJE from a checkout: `python train.py CONFIG [--workdir DIR] ...`

`python train.py --help` lists the configs. An installed package has `edje train` for the same.
"""

from pathlib import Path

from edje_jax.cli import train
from edje_jax.cli.program import run_program
from edje_jax.system.allocator import start_with_huge_pages


def main(arguments: list[str]) -> int:
    """Train; a run whose --workdir is not named goes into runs/ of the checkout."""
    return train.main(arguments, "python train.py", Path(__file__).resolve().parent / "runs")


if __name__ == "__main__":
    start_with_huge_pages()
    run_program(main)
