"""The `edje` command: train and evaluate models, index, search and serve images.

Each command lists its options with --help.
"""

import sys
from dataclasses import dataclass

import tyro

from edje_jax.cli.commands.data import Data
from edje_jax.cli.commands.demo import Demo
from edje_jax.cli.commands.index import Index
from edje_jax.cli.commands.models import Convert, Eval, Push, Train, Tune
from edje_jax.cli.commands.search import Search, Serve
from edje_jax.cli.commands.subcommand import subcommand
from edje_jax.cli.program import FAILED, run_program
from edje_jax.system.allocator import start_with_huge_pages


@dataclass(frozen=True)
class Doctor:
    """Tell what is installed and where it computes, and known trouble with its remedy.

    The exit code is 1 if there is trouble.

    Examples:
        edje doctor
    """

    def run(self) -> None:
        from edje_jax.cli.doctor import doctor

        if not doctor():
            sys.exit(FAILED)


COMMANDS = (
    subcommand("demo", Demo)
    | subcommand("train", Train)
    | subcommand("eval", Eval)
    | subcommand("data", Data)
    | subcommand("index", Index)
    | subcommand("search", Search)
    | subcommand("serve", Serve)
    | subcommand("tune", Tune)
    | subcommand("convert", Convert)
    | subcommand("push", Push)
    | subcommand("doctor", Doctor)
)


PARSED_LATER = ("train", "eval")
"""Commands that parse what follows their names: a config decides what its options are."""


def main(arguments: list[str]) -> int:
    """Parse, then let the command do its work."""
    if arguments and arguments[0] in PARSED_LATER:
        arguments = [arguments[0], "--", *arguments[1:]]
    tyro.cli(COMMANDS, args=arguments, prog="edje", description=__doc__).run()
    return 0


def entry() -> None:
    """The console script."""
    if sys.argv[1:2] == ["train"]:
        start_with_huge_pages()
    run_program(main)


if __name__ == "__main__":
    entry()
