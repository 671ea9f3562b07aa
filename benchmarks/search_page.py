"""Image of the search page: the scenes of the test set, drawn large, in a real browser.

    python benchmarks/search_page.py [--out docs/search-page.png]

Indexes the scenes with the shipped model, serves them and asks. Needs `chromium` on the PATH, and
an idle machine: the page tells how long the search took.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

from edje_jax.scenes.shapes import Shapes

QUERY = "a purple square overlapping a dotted blue circle"
PORT = 28766
ADDRESS = f"http://127.0.0.1:{PORT}/"
EDJE = (sys.executable, "-m", "edje_jax.cli.edje")


def main() -> None:
    """Write the image."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default="docs/search-page.png", help="PNG file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder)
        photograph_set("shapes-demo", folder / "scenes.json", QUERY, Path(options.out))


def photograph_set(model: str, captions: Path, query: str, path: Path) -> None:
    """Index a set in the form of `blip:`, serve it, and write a PNG file of the page's answer."""
    index = captions.with_suffix(".index")
    build = ("index", "build", model, f"blip:{captions}", "--out", str(index))
    subprocess.run([*EDJE, *build], check=True)
    server = subprocess.Popen([*EDJE, "serve", str(index), "--port", str(PORT)])
    try:
        while not is_ready():
            if server.poll() is not None:
                sys.exit("the server did not start; the lines above say why")
            time.sleep(1)
        photograph(path, query)
    finally:
        server.terminate()
        server.wait()


def draw(folder: Path, side: int = 256) -> None:
    """Write the scenes of the test set as images of `side` pixels, and scenes.json of them."""
    scenes, records = Shapes("test", side), []
    for number in range(len(scenes)):
        image = f"{number:03}.png"
        scenes.image(number).save(folder / image)
        records.append({"image": image, "caption": list(scenes.captions(number))})
    (folder / "scenes.json").write_text(json.dumps(records))


def photograph(path: Path, query: str) -> None:
    """Write a PNG file of the page with the answer to a query, two pixels for each of its own."""
    look = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
    size = ("--window-size=1280,720", "--force-device-scale-factor=2")
    for _ in range(3):  # The first searches are slower
        asked = (
            "--virtual-time-budget=10000",
            f"--screenshot={path}",
            f"{ADDRESS}?q={quote(query)}",
        )
        subprocess.run(["chromium", *look, *size, *asked], check=True)


def is_ready() -> bool:
    """Whether the server has compiled every shape."""
    try:
        with urlopen(f"{ADDRESS}ready") as answer:
            return answer.status == 200
    except URLError:
        return False


if __name__ == "__main__":
    main()
