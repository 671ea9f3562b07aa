"""Tables are printed after files are written, and also when they cannot be."""

import pytest
from rich.table import Table

from edje_jax.cli.tables import print_tables_after


def test_tables_come_after_the_block_even_if_it_fails(capsys):
    table = Table("recall")
    table.add_row("82.0")
    with print_tables_after([table]):
        assert not capsys.readouterr().out
    assert "82.0" in capsys.readouterr().out
    with pytest.raises(OSError, match="full"), print_tables_after([table]):
        raise OSError("the disk is full")
    assert "82.0" in capsys.readouterr().out
