"""Subcommands as tyro takes them."""

import inspect
from typing import Annotated, Any

import tyro


def subcommand(name: str, command: type) -> Any:
    """A subcommand whose help keeps the lines of its docstring, examples above all."""
    description = inspect.cleandoc(command.__doc__ or "")
    return Annotated[command, tyro.conf.subcommand(name, description=description)]
