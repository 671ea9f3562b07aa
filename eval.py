"""Evaluate a model from a checkout: `python eval.py MODEL --data SPEC [--k 10] [--out DIR]`

`python eval.py --help` lists all options. An installed package has `edje eval` for the same.
"""

from edje_jax.cli import eval_options
from edje_jax.cli.program import run_program


def main(arguments: list[str]) -> int:
    """Evaluate."""
    return eval_options.main(arguments, "python eval.py")


if __name__ == "__main__":
    run_program(main)
