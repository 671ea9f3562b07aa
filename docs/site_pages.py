"""Pages of the site that are files elsewhere: README, CONTRIBUTING, benchmarks, examples, the API.

A hook of MkDocs (`mkdocs.yml`). Links between files of the repository become links between pages.
"""

import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""File of the repository -> page."""
API = ("search", "index", "first_stage", "models", "runtimes", "weights", "data", "config",
       "training", "evaluate", "serving", "integrations")  # fmt: skip
"""Packages with a page of their own."""
LINK = re.compile(r"(?<=\]\()([^)\s:#]+)(?=[#)])")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add pages that are made here to the navigation."""
    nav: Any = config.nav
    nav.append({"Examples": [f"examples/{path.stem}.md" for path in examples()]})
    nav.append({"API": [{name: f"api/{name}.md"} for name in API]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, and images of results."""
    made = {page: (ROOT / source).read_text("utf-8") for source, page in PAGES.items()}
    made |= {f"examples/{path.stem}.md": example(path) for path in examples()}
    made |= {f"api/{name}.md": api(name) for name in API}
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    for path in (ROOT / "benchmarks" / "results").glob("*.png"):
        place = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links to pages."""
    own = page.file.src_uri
    sources = {name: source for source, name in PAGES.items()}
    folder = PurePosixPath(sources.get(own, f"docs/{own}")).parent

    def lead(match: re.Match[str]) -> str:
        target = posixpath.normpath(str(folder / match[1]))
        return posixpath.relpath(place_of(target), posixpath.dirname(own) or ".")

    return LINK.sub(lead, markdown)


def place_of(path: str) -> str:
    """Place in the site of a file of the repository."""
    if path.startswith("examples/"):
        return path.replace(".py", ".md")
    return PAGES.get(path, path.removeprefix("docs/"))


def examples() -> list[Path]:
    """Example programs, in order."""
    return sorted((ROOT / "examples").glob("*.py"))


def example(path: Path) -> str:
    """Page of an example."""
    return f"# {path.stem.replace('_', ' ')}\n\n```python\n{path.read_text('utf-8')}```\n"


def api(package: str) -> str:
    """Page of a package: each module's public names with their docstrings."""
    folder = ROOT / "edje_jax" / package
    modules = sorted(path for path in folder.rglob("*.py") if not path.name.startswith("_"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules]
    return "\n\n".join([f"# edje_jax.{package}", *(f"::: {name}" for name in names)]) + "\n"
