"""Documents: the commands in them parse, and their numbers are those that the code computes."""

import importlib.util
import pkgutil
import re
import shlex
import sys
import tomllib
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

import pytest
import tyro

from edje_jax.cli import eval_options
from edje_jax.cli.edje import COMMANDS
from edje_jax.cli.named_configs import choose_config, config_names
from edje_jax.config.model import AdapterConfig
from edje_jax.models.token_formats import FORMATS

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)

OURS = (
    "benchmarks/", "configs/", "docs/", "edje_jax/", "examples/", "test_", "tests/",
    *(f"{path.name}/" for path in (ROOT / "edje_jax").iterdir()),
)  # fmt: skip
"""How the names of files of this project begin."""
EARLIER = ROOT / "tests" / "goldens" / "make_old_index.py"
"""A script for an earlier version, whose modules it names."""
SOURCES = [
    path
    for top in ("edje_jax", "tests", "benchmarks", "examples")
    for path in (ROOT / top).rglob("*.py")
    if path != EARLIER
]


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks of a page, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def shell_lines(page: Path) -> list[str]:
    """Lines of the fenced blocks that name no language."""
    text = "\n".join(block for language, block in blocks(page) if not language)
    return text.replace("\\\n", " ").splitlines()


def commands(page: Path) -> list[str]:
    """Lines of fenced blocks that call train.py, eval.py or edje; a synopsis with [..] is none."""
    calls = [
        line for line in shell_lines(page) if re.match(r"(python (train|eval)\.py|edje) ", line)
    ]
    return [line for line in calls if not re.search(r"\[|CONFIG|\|", line)]


CASES = [(page, line) for page in PAGES for line in commands(page)]


def test_there_are_commands_to_test():
    assert len(CASES) > 15 and {page.name for page, _ in CASES} >= {"README.md", "recipes.md"}


@pytest.mark.parametrize(
    ("page", "line"), CASES, ids=[f"{page.name}: {line}" for page, line in CASES]
)
def test_commands_parse(page, line):
    first, program, *arguments = shlex.split(line.split("   ")[0], comments=True)
    if first == "edje":
        if "..." not in line:
            tyro.cli(COMMANDS, args=[program, *arguments])
        return
    if program == "eval.py":
        options = tyro.cli(eval_options.Options, args=arguments)
        eval_options.check(options)
        return
    _, default = choose_config(arguments, "")
    tyro.cli(type(default), default=default, args=arguments[1:])


OTHER = re.compile(
    r"(?:python (?:benchmarks|examples)/\w+\.py|make [a-z]|pip install |pytest tests/)[^`\n]*"
)
"""Commands that are not parsed by the program itself."""


def other_commands(page: Path) -> list[str]:
    """Such commands of fenced blocks and between backticks."""
    lines = [*shell_lines(page), *re.findall(r"`([^`\n]+)`", page.read_text("utf-8"))]
    if page.parent.name == "benchmarks":
        lines = [re.sub(r"^(?=\w+\.py )", "python benchmarks/", line) for line in lines]
    lines = [line.split("   ")[0].strip() for line in lines]
    return [line for line in lines if OTHER.fullmatch(line)]


@pytest.mark.parametrize(
    ("page", "command"), [(page, command) for page in PAGES for command in other_commands(page)]
)
def test_other_commands_name_what_is_there(page, command):
    """Scripts and their options, goals of make, extras of pip, files of tests."""
    program, *arguments = shlex.split(command, comments=True)
    if program == "make":
        goals = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert arguments[0] in goals
        return
    if program == "pip":
        known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        extras = re.search(r"\[([\w,-]+)\]", command)
        names = extras[1].split(",") if extras else []
        assert set(names) <= set(known["optional-dependencies"]), command
        return
    script = (ROOT / arguments[0]).read_text("utf-8")
    for flag in (each for each in arguments[1:] if each.startswith("--")):
        assert f'"{flag}"' in script, (command, flag)


def test_the_readme_prints_what_it_says(capsys):
    (program,) = (block for language, block in blocks(ROOT / "README.md") if language == "python")
    (printed,) = (block for language, block in blocks(ROOT / "README.md") if language == "text")
    exec(compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out == printed


def test_the_readme_makes_at_most_eight_claims():
    text = (ROOT / "README.md").read_text("utf-8")
    table = text.split("| claim | measured | command that shows it |\n")[1].split("\n\n")[0]
    rows = table.splitlines()[1:]
    assert 4 < len(rows) <= 8
    assert all(OTHER.fullmatch(row.split("`")[-2]) for row in rows)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_are_narrow_and_links_lead_somewhere(page):
    text = page.read_text("utf-8")
    if page.parent.name != "benchmarks":
        assert not [line for line in text.splitlines() if line[:1] == "|" and len(line) > 160]
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)", found.read_text("utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
            assert anchor in slugs, target


def test_every_page_is_linked_from_the_readme():
    text = (ROOT / "README.md").read_text("utf-8")
    for page in PAGES[1:]:
        assert f"({page.relative_to(ROOT)})" in text, page


def test_every_benchmark_and_every_result_is_in_the_table_of_benchmarks():
    text = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    names = set(re.findall(r"`([\w*]+\.(?:py|json|png))", text))
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    assert scripts == {name for name in names if name.endswith(".py")}
    results = [path.name for path in (ROOT / "benchmarks" / "results").iterdir()]
    patterns = {name for name in names if not name.endswith(".py")}
    for result in results:
        assert any(fnmatch(result, pattern) for pattern in patterns), result
    for pattern in patterns:
        assert any(fnmatch(result, pattern) for result in results), pattern


def test_recipes_start_from_what_they_made():
    """Each run that a recipe starts from or evaluates is a --workdir above it, and each comparison
    is of folders that an evaluation above it wrote."""
    made, written, asked = set(), set(), []
    for line in commands(ROOT / "docs" / "guide" / "recipes.md"):
        first, program, *arguments = shlex.split(line, comments=True)
        if first == "edje":
            continue
        named = dict(pairwise(arguments))
        if "--compare" in named:
            place = arguments.index("--compare")
            assert set(arguments[place + 1 : place + 3]) <= written, line
            continue
        runs = [named[flag] for flag in ("--init", "--teacher") if flag in named]
        runs += arguments[:1] if program == "eval.py" else []
        assert set(runs) <= made, line
        asked += runs
        made.add(named.get("--workdir"))
        written.add(named.get("--out"))
    assert len(set(asked)) > 15
    # Every run is used: evaluated as it is, or started from.
    assert made - {None} == set(asked)


def test_recipes_train_the_adapters_that_they_are_named_after():
    """Through fine-tuning too, which names none; only runs with --init leave the backbone out."""
    adapters: dict[str, AdapterConfig] = {}
    for line in commands(ROOT / "docs" / "guide" / "recipes.md"):
        first, program, *arguments = shlex.split(line, comments=True)
        if (first, program) != ("python", "train.py"):
            continue
        _, default = choose_config(arguments, "")
        run = tyro.cli(type(default), default=default, args=arguments[1:])
        assert run.init or run.model.backbone, line
        adapters[run.workdir] = run.model.adapter.resolve(adapters.get(run.init))
    for workdir, adapter in adapters.items():
        stated = re.match(r"runs/c(\d+)", workdir)
        assert (adapter.kind == "compress") == bool(stated), workdir
        assert not stated or adapter.num_tokens == int(stated[1]), workdir
    assert {"runs/local_coco", "runs/c128_coco"} <= set(adapters)


@pytest.mark.parametrize(
    "line", ["python train.py pretrain_local --model.tokens 64", "edje tune runs/s0 --depth 10"]
)
def test_a_command_that_does_not_parse_is_found(line):
    with pytest.raises(SystemExit):
        test_commands_parse(None, line)


def test_configs_that_are_named_exist():
    text = "".join(page.read_text("utf-8") for page in PAGES)
    named = set(re.findall(r"`((?:pretrain|finetune|distil)_\w+)`", text))
    assert named and named <= set(config_names())


def test_files_that_are_named_exist():
    """Paths from the top of a checkout or from the package, a test file also from the folder of the
    one before it; modules by their import names."""
    missing = []
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        text, before = page.read_text("utf-8"), ROOT
        drawn = re.findall(r"^((?:\w+/)+\w+\.py) ", text, re.MULTILINE)
        named = re.findall(r"`((?:[\w.-]+/)+[\w-]*(?:\.py)?|test_\w+\.py)`", text)
        for name in (*drawn, *named):
            if not name.startswith(OURS) or "NAME" in name or name == "edje_jax/configs":
                continue
            places = [place / name for place in (ROOT, ROOT / "edje_jax", before)]
            found = next((place for place in places if place.exists()), None)
            missing += [] if found else [f"{page.name}: {name}"]
            before = found.parent if found else before
    assert not missing


@pytest.mark.parametrize(
    "path",
    [*PAGES, ROOT / "CONTRIBUTING.md", *SOURCES],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_modules_that_are_named_exist(path):
    """In prose, in examples and in programs that tests start, which no import checks."""
    named = set(re.findall(r"\bedje_jax(?:\.\w+)+", path.read_text("utf-8")))
    for name in named - {"edje_jax.plain", "edje_jax.configs"}:
        pkgutil.resolve_name(name)


def test_the_folders_of_the_quick_tests_exist():
    names = re.search(
        r"^NEWEST_TESTS := \$\(addprefix tests/,(.*?)\)",
        (ROOT / "Makefile").read_text(),
        re.M | re.S,
    )
    assert names
    for name in names[1].replace("\\\n", " ").split():
        assert (ROOT / "tests" / name).exists(), name


def test_the_costs_are_those_of_the_script(monkeypatch):
    path = ROOT / "benchmarks" / "recipe_cost.py"
    spec = importlib.util.spec_from_file_location("recipe_cost", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "recipe_cost", module)  # Where dataclasses look themselves up
    spec.loader.exec_module(module)
    text = (ROOT / "docs" / "guide" / "recipes.md").read_text("utf-8")
    stated = re.search(r"<!-- recipe_cost -->\n(.*?)\n<!-- /recipe_cost -->", text, re.DOTALL)
    assert stated and stated[1] == module.markdown()
    # Linear in the images, and more tokens cost more.
    local, few, some, many = module.costs()[:4]
    assert few.flops < some.flops < many.flops < local.flops
    assert local.hours == pytest.approx(14e6 * local.flops / (0.4 * 989e12) / 3600)


def test_the_bytes_of_videos_are_those_of_the_store():
    text = (ROOT / "docs" / "video.md").read_text("utf-8")
    rows = re.findall(
        r"^\| \d+ x \d+[^|]*\| (\d+) \| ([\d,]+)[^|]*\| ([\d,]+) \| ([\d,]+) \|$", text, re.M
    )
    assert len(rows) == 6
    for tokens, *stated in rows:
        sizes = [
            FORMATS[name].bytes_per_image(int(tokens), 384) for name in ("bfloat16", "int8", "int4")
        ]
        assert [int(one.replace(",", "")) for one in stated] == sizes
