"""A file imports only from floors below its own, and the product never from tests or programs."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import edje_jax

ROOT = Path(__file__).parents[1]
FLOORS = (
    "system", "config", "types", "models", "evaluation", "reports", "scenes", "data", "weights",
    "first_stage", "runtimes", "index", "evaluate", "search", "training", "integrations", "serving",
    "cli",
)  # fmt: skip
EXPORTED = {f"edje_jax.{name}": f"{home}.{name}" for name, home in edje_jax._EXPORTS.items()}
FILES = sorted((ROOT / "edje_jax").rglob("*.py"))


def floor(module: str) -> int:
    return FLOORS.index(module.split(".")[1])


def imported(path: Path) -> set[str]:
    """Every module that a file names, wherever it does; for a name that the package exports, the
    module that defines it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {EXPORTED.get(name, name) for name in names}


def test_every_folder_has_a_floor():
    folders = {path.relative_to(ROOT / "edje_jax").parts[0].removesuffix(".py") for path in FILES}
    assert folders - {"__init__"} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_looks_up(path):
    module = path.relative_to(ROOT).with_suffix("").parts
    names = imported(path)
    assert not {name.split(".")[0] for name in names} & {"tests", "train", "eval", "benchmarks"}
    if module == ("edje_jax", "__init__"):
        return
    above = [
        name
        for name in names
        if name.startswith("edje_jax.") and name.split(".")[1] in FLOORS
        and floor(name) > FLOORS.index(module[1])
    ]  # fmt: skip
    assert not above, f"{path} imports from above: {above}"


def test_a_name_that_the_package_exports_is_found_where_it_is_defined(tmp_path):
    path = tmp_path / "low.py"
    path.write_text("def late():\n    from edje_jax import Reranker\n")
    assert imported(path) == {"edje_jax.search.reranker.Reranker"}


def test_there_is_no_circle():
    """Every file can be read after all that it imports, late imports included."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    below = {
        module: {
            name if name in modules else name.rpartition(".")[0]
            for name in imported(path)
            if name.startswith("edje_jax.")
        }
        for module, path in modules.items()
        if not module.endswith("__init__")
    }
    assert len(list(TopologicalSorter(below).static_order())) >= len(below)


def test_models_open_no_file():
    for path in (ROOT / "edje_jax" / "models").rglob("*.py"):
        assert not imported(path) & {"os", "pathlib", "io"}, path
