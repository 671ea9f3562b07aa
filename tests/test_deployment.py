"""Dockerfiles, the compose file, GitHub's workflows and CITATION.cff: what they name is there.

None of them is built or run here.
"""

import json
import re
from pathlib import Path

import pytest
import tyro
import yaml

import edje_jax
from edje_jax.cli.edje import COMMANDS
from tests.conftest import ROOT
from tests.test_docs import test_other_commands_name_what_is_there as check_command

DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text("utf-8"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_copy_what_is_there_and_start_a_command(path):
    text = path.read_text("utf-8")
    copied = [line.split()[1:-1] for line in re.findall(r"^COPY (?!--from).*", text, re.MULTILINE)]
    assert copied and all((ROOT / name).exists() for names in copied for name in names)
    extras = re.search(r"\[\w[\w,]*\]", text)
    assert extras
    check_command(path, f"pip install '.{extras[0]}'")
    (program,), command = map(json.loads, re.findall(r"^(?:ENTRYPOINT|CMD) (.*)", text, re.M))
    assert program == "edje" and tyro.cli(COMMANDS, args=command).host == "0.0.0.0"
    # The build's own sources are enough to build a wheel from.
    assert {"pyproject.toml", "README.md", "LICENSE", "edje_jax", "configs"} == {
        name for names in copied for name in names
    }


def test_services_build_images_and_start_commands():
    services = read(ROOT / "docker" / "compose.yaml")["services"]
    assert set(services) == {"demo", "search", "search-cuda"}
    for name, service in services.items():
        assert (ROOT / service["build"]["dockerfile"]).exists()
        # Reachable from this machine alone until a user says otherwise.
        assert service["ports"] == ["127.0.0.1:8000:8000"]
        if name != "demo":
            assert tyro.cli(COMMANDS, args=service["command"]).index == "/data/photos.index"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_goals_and_files_that_are_there(path):
    jobs = read(path)["jobs"].values()
    called = [job["uses"] for job in jobs if "uses" in job]
    assert all((ROOT / name).exists() for name in called)
    steps = [step for job in jobs for step in job.get("steps", ())]
    run = [step["run"] for step in steps if "run" in step]
    for command in run:
        if command.startswith("make "):
            check_command(path, command)
        for name in re.findall(r"\b(?:tests|edje_jax)/[\w/]+\.py", command):
            assert (ROOT / name).exists()
    assert all(re.fullmatch(r"[\w./-]+@[\w./]+", step["uses"]) for step in steps if "uses" in step)


def test_the_wheel_is_tried_on_every_python_that_is_named():
    matrix = read(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["wheel"]["strategy"]
    assert matrix["matrix"]["python"] == ["3.11", "3.12", "3.13", "3.14"]


def test_a_release_is_checked_before_it_is_published():
    jobs = read(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    commands = [step.get("run", "") for step in jobs["build"]["steps"]]
    assert "python -m twine check --strict dist/*" in commands
    assert jobs["publish"]["needs"] == "build" and jobs["build"]["needs"] == "tests"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}


def test_the_citation_names_this_version_and_the_paper_of_the_readme():
    told = read(ROOT / "CITATION.cff")
    readme = (ROOT / "README.md").read_text("utf-8")
    assert told["version"] == edje_jax.__version__
    assert [author["name"] for author in told["authors"]] == ["The edje_jax authors"]
    (paper,) = told["references"]
    assert f"{{{paper['title']}}}" in readme and paper["url"] in readme
    names = [f"{one['family-names']}, {one['given-names']}" for one in paper["authors"]]
    assert f"{{{' and '.join(names)}}}" in readme


def test_the_changelog_has_a_place_for_what_comes():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    first, *_ = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert first == "[Unreleased]" and edje_jax.__version__ in text
