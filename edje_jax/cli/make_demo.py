"""The program of `make demo`: starts `cli.demo` with huge pages and kept compiled programs."""

from edje_jax.cli.program import run_program
from edje_jax.system.allocator import start_with_huge_pages


def main(arguments: list[str]) -> int:
    """Train, evaluate, search.

    Raises:
        UsageError: there are arguments.
    """
    # Late: JAX reads where compiled programs are kept, which `run_program` says, when it is
    # imported.
    from edje_jax.cli import demo

    return demo.main(arguments)


if __name__ == "__main__":
    start_with_huge_pages()
    run_program(main)
