"""The programs of docs/guide/integrations.md run as they stand, and find the right scene."""

import re

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "guide" / "integrations.md").read_text("utf-8")
PREPARE, *PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
NAMES = ("langchain", "llamaindex", "haystack", "rerankers")


def test_every_library_has_a_program():
    found = [re.findall(r"edje_jax\.integrations\.(\w+)", program)[0] for program in PROGRAMS]
    assert tuple(found) == NAMES


@pytest.mark.parametrize(("name", "program"), list(zip(NAMES, PROGRAMS, strict=True)), ids=NAMES)
def test_the_programs_run(name, program, tmp_path, monkeypatch, capsys):
    for library in re.findall(
        r"^from (langchain_\w+|llama_index|haystack|rerankers)", program, re.M
    ):
        pytest.importorskip(library, reason=f"pip install 'edje-jax[{name}]'")
    monkeypatch.chdir(tmp_path)
    exec(compile(PREPARE, "integrations.md", "exec"), {})
    capsys.readouterr()
    exec(compile(program, f"integrations.md, {name}", "exec"), {"__name__": name})
    path, score = capsys.readouterr().out.split()
    assert path == "photos/37.png" and float(score) == pytest.approx(0.435, abs=0.01)
