"""The program of `make demo`, which imports JAX late."""

import os
import subprocess
import sys

import pytest

from edje_jax.cli import demo, make_demo
from edje_jax.cli.program import UsageError
from tests.conftest import ROOT

KEPT = "JAX_COMPILATION_CACHE_DIR"


def test_it_is_the_demo(monkeypatch):
    with pytest.raises(UsageError, match="takes no arguments"):
        make_demo.main(["--steps", "2"])
    monkeypatch.setattr(demo, "main", lambda arguments: len(arguments) + 7)
    assert make_demo.main([]) == 7


def test_jax_is_imported_after_the_place_of_compiled_programs_is_known(tmp_path):
    """Else it would keep none, and compile everything anew at the next call."""
    program = (
        "import sys; from edje_jax.cli import make_demo; assert 'jax' not in sys.modules;"
        "from edje_jax.cli.program import _set_up; _set_up();"
        "from edje_jax.cli import demo; import jax; print(jax.config.jax_compilation_cache_dir)"
    )
    env = {name: value for name, value in os.environ.items() if name != KEPT}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True,
        env=env | {"XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert run.stdout.strip() == str(tmp_path / "edje_jax" / "jax")
