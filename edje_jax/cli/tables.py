"""Tables on the terminal, beside files that are written."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table


@contextmanager
def print_tables_after(tables: Iterable[Table]) -> Iterator[None]:
    """Write files in the block and print tables after it, even if one of the two fails: no numbers
    are lost to a full disk, and no files to a terminal that is gone."""
    try:
        yield
    finally:
        console = Console()
        for table in tables:
            console.print(table)
