"""Every file of the package has its tests where its name leads.

The tests of `edje_jax/FOLDER/NAME.py` are `tests/FOLDER/test_NAME.py`, or the file of tests whose
first lines say that it "Covers FOLDER/NAME.py": `grep -rl FOLDER/NAME.py tests` finds it.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = {
    path.relative_to(ROOT / "edje_jax").as_posix()
    for path in (ROOT / "edje_jax").rglob("*.py")
    if path.name != "__init__.py"
}
TESTS = {
    path.relative_to(ROOT / "tests").as_posix(): path
    for path in (ROOT / "tests").rglob("test_*.py")
}


def namesake(file: str) -> str:
    """Test file of the same folder and name."""
    folder, _, name = file.rpartition("/")
    return f"{folder}/test_{name}" if folder else f"test_{name}"


def covered(docstring: str) -> list[str]:
    """Files that a docstring's sentence "Covers ..." names."""
    _, _, sentence = f"\n{docstring}".partition("\nCovers ")
    return re.findall(r"[\w/]+\.py", sentence)


NAMED = {
    test: covered(ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "")
    for test, path in TESTS.items()
}


def test_every_file_is_named_by_the_tests_that_cover_it():
    named = {file for files in NAMED.values() for file in files}
    lost = [file for file in sorted(FILES - named) if namesake(file) not in TESTS]
    assert not lost, 'name each in the sentence "Covers ..." of the file that tests it'


def test_tests_name_files_that_are_there_and_have_no_tests_of_their_own_name():
    wrong = [
        f"tests/{test}: {file}"
        for test, files in NAMED.items()
        for file in files
        if file not in FILES or namesake(file) in TESTS
    ]
    assert not wrong


def test_a_sentence_may_go_over_several_lines():
    assert covered("Sums.\n\nCovers a.py, b/c_d.py\nand e/f.py.") == ["a.py", "b/c_d.py", "e/f.py"]
    assert covered("Sums of x.py.\n\nBut for y.py.") == []
