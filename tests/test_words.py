"""Sizes and words of the code, counted: `python tests/test_words.py` prints the table."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FILES = {path: path.read_text("utf-8") for path in sorted((ROOT / "edje_jax").rglob("*.py"))}
TREES = {path: ast.parse(text) for path, text in FILES.items()}
ALONE = ROOT / "edje_jax" / "weights" / "torch" / "modeling_edje.py"
"""Module that travels with converted weights, and so cannot be cut into several."""

OPENERS = re.compile(r"(What|Where|Of|Those|That|These|The same|One|Its|Their|Whose|Who)\b")
"""Beginnings of docstrings that lean on the line above them."""

WORDS = [
    path
    for pattern in (
        "edje_jax/**/*.py", "edje_jax/**/*.html", "docs/**/*.md", "configs/*.py", "benchmarks/*.py",
        "benchmarks/*.md", "tests/**/*.py", "examples/*.py", "README.md", "CONTRIBUTING.md",
    )
    for path in sorted(ROOT.glob(pattern))
    if path != Path(__file__)
]  # fmt: skip

KEPT = {
    "keys of JSON files and of the feature cache": (
        r'"pictures"', r"\['pictures'\]", "bytes_per_picture", "flops_a_picture",
        '"pictures per second"',
    ),
    "names and headers of packed shards": ("edje_jax pictures", r"pictures-(?=[\d{])"),
    "fields of HTTP answers": (
        r"^    pictures: int", r"\bpictures=len", r"\b(info|told)\.pictures",
    ),
    "columns of other people's sets": ('"picture", "photo"',),
    "an axis of ONNX files": ('{0: "pictures"}', "`pictures`, `captions`"),
    "names inside a golden file": ('"picture-',),
    "the SPEC that help and error messages give as an example": ("folder:/pictures",),
}  # fmt: skip
"""Strings with the word "picture" that files, programs and people rely on, as expressions."""


class Count(NamedTuple):
    what: str
    limit: float
    found: list[str]
    total: int = 0
    """Number of the things looked at, where the limit is a share of them."""

    @property
    def value(self) -> float:
        return len(self.found) / self.total if self.total else len(self.found)


def nodes(kind: type | tuple[type, ...]) -> Iterator[tuple[Path, ast.AST]]:
    return (
        (path, node)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, kind)
    )


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno} {getattr(node, 'name', '')}"


def long_functions() -> Count:
    found = [
        place(path, node)
        for path, node in nodes((ast.FunctionDef, ast.AsyncFunctionDef))
        if node.end_lineno - node.lineno >= 60
    ]
    return Count("functions over 60 lines", 0, found)


def long_files() -> Count:
    found = [
        f"{path.relative_to(ROOT)}: {text.count(chr(10))}"
        for path, text in FILES.items()
        if text.count("\n") > 400 and path != ALONE
    ]
    return Count("files over 400 lines", 0, found)


def many_parameters() -> Count:
    found = []
    for path, node in nodes((ast.FunctionDef, ast.AsyncFunctionDef)):
        given = node.args
        names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
        if len([name for name in names if name not in ("self", "cls")]) > 8 and path != ALONE:
            found.append(place(path, node))
    return Count("functions with more than 8 parameters", 0, found)


def leaning_docstrings() -> Count:
    texts = [
        (path, node)
        for path, node in nodes(ast.Expr)
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    found = [
        f"{place(path, node)}{node.value.value.splitlines()[0]}"
        for path, node in texts
        if OPENERS.match(node.value.value.strip())
    ]
    return Count("docstrings that lean on the line above", 0.02, found, len(texts))


def shared_class_names() -> Count:
    places = defaultdict(list)
    for path, node in nodes(ast.ClassDef):
        if path != ALONE:
            places[node.name].append(place(path, node))
    return Count("class names in two senses", 0, [str(p) for p in places.values() if len(p) > 1])


def pictures() -> Count:
    kept = re.compile("|".join(part for group in KEPT.values() for part in group), re.MULTILINE)
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in WORDS
        for line in kept.sub("", path.read_text("utf-8")).splitlines()
        for _ in re.finditer("picture", line, re.IGNORECASE)
    ]
    return Count('the word "picture"', 20, found)


COUNTS = (
    long_functions, long_files, many_parameters, leaning_docstrings, shared_class_names, pictures,
)  # fmt: skip


@pytest.mark.parametrize("count", COUNTS, ids=lambda count: count.__name__)
def test_sizes_and_words_stay_within_their_limits(count):
    counted = count()
    assert counted.value <= counted.limit, "\n".join([counted.what, *counted.found])


def test_every_kept_string_is_in_use():
    text = "\n".join(path.read_text("utf-8") for path in WORDS)
    for group in KEPT.values():
        for part in group:
            assert re.search(part, text, re.MULTILINE), f"{part}: no longer there; take it off"


if __name__ == "__main__":
    for count in COUNTS:
        counted = count()
        print(f"{counted.what:40} {counted.value:8.3g}   at most {counted.limit:g}")
