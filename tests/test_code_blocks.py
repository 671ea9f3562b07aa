"""Blocks of code in documents: each parses, and calls what is there with right arguments."""

import ast
import importlib
import importlib.util
import inspect
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edje_jax

ROOT = Path(__file__).parents[1]
PAGES = (*ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md", *(ROOT / "docs").rglob("*.md"))
OURS = {"reranker": edje_jax.Reranker, "index": edje_jax.ImageIndex}
"""Names of variables, and of which class documents let them be."""
OTHERS = {"", "text", "bibtex", "yaml", "dockerfile"}
"""Blocks of commands, which `test_docs.py` parses, of drawings and output, and of others' files."""


def blocks() -> Iterator[tuple[str, str, str]]:
    """(page and line, language, text) of every fenced block."""
    for page in PAGES:
        text = page.read_text("utf-8")
        for found in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, found.start()) + 1
            yield f"{page.relative_to(ROOT)}:{line}", found[1], found[2]


BLOCKS = {place: (language, text) for place, language, text in blocks()}


def of(language: str) -> dict[str, str]:
    """Blocks in a language, by place."""
    return {place: text for place, (one, text) in BLOCKS.items() if one == language}


def test_every_block_is_in_a_language_that_is_checked():
    found = {language for language, _ in BLOCKS.values()}
    assert found <= {"python", "json", "sh"} | OTHERS
    assert len(of("python")) > 8 and of("json") and of("sh")


@pytest.mark.parametrize("text", of("json").values(), ids=of("json"))
def test_json_is_json(text):
    json.loads(text)


@pytest.mark.parametrize("text", of("sh").values(), ids=of("sh"))
def test_shell_scripts_parse(text):
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize("text", of("python").values(), ids=of("python"))
def test_python_names_what_is_there_and_calls_it_as_it_is(text):
    known: dict[str, Any] = dict(OURS)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                assert importlib.util.find_spec(alias.name), alias.name
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            known |= {one.asname or one.name: getattr(module, one.name) for one in node.names}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and (function := called(node.func, known)):
            check_arguments(function, node)


def called(node: ast.expr, known: dict[str, Any]) -> Any:
    """Function of ours that a call names; None for others'."""
    if isinstance(node, ast.Name):
        function = known.get(node.id)
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        owner = known.get(node.value.id)
        function = owner and getattr(owner, node.attr)
    else:
        return None
    return function if getattr(function, "__module__", "").startswith("edje_jax") else None


def check_arguments(function: Any, call: ast.Call) -> None:
    """Bind a call's arguments to a signature; a method of an instance gets one more."""
    plain = inspect.isfunction(function) and "." in function.__qualname__
    given = ([None] if plain else []) + [None for _ in call.args]
    inspect.signature(function).bind(*given, **{str(one.arg): None for one in call.keywords})


def test_a_wrong_argument_is_found():
    call = ast.parse("reranker.rank('two dogs', [], k=3)").body[0]
    assert isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)
    with pytest.raises(TypeError, match="unexpected keyword argument 'k'"):
        check_arguments(called(call.value.func, OURS), call.value)
