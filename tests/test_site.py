"""The documentation site is built without a warning, and holds what it should."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Site, built strictly: a link that leads nowhere or a page without a place is an error."""
    pytest.importorskip("mkdocs")
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(out),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return out


def text_of(page: Path) -> str:
    """Text of a page without its tags."""
    return re.sub(r"<[^>]+>", "", page.read_text("utf-8"))


def test_the_readme_is_its_front_page_and_links_lead_to_pages(site):
    html = (site / "index.html").read_text("utf-8")
    assert 'href="guide/first-steps.html"' in html
    assert 'href="examples/search_photos.html"' in html
    assert "docs/guide" not in re.sub(r"<code>.*?</code>", "", html, flags=re.DOTALL)


def test_the_reference_holds_the_public_names_with_their_docstrings(site):
    text = text_of(site / "api" / "search.html")
    assert "from_pretrained" in text and "Raises" in text
    assert "attend" in text_of(site / "api" / "models.html")


def test_examples_are_pages(site):
    for path in (ROOT / "examples").glob("*.py"):
        assert (site / "examples" / f"{path.stem}.html").exists()


def test_nothing_is_fetched_from_other_hosts(site):
    html = (site / "index.html").read_text("utf-8")
    assert not re.findall(r'<(?:script|link rel="stylesheet")[^>]+https?://', html)
