"""Serve an index of images over HTTP, and ask it.

    edje index build shapes-demo photos/ --out photos.index
    python examples/serve_and_ask.py photos.index "a red star left of a blue circle"

Needs `pip install "edje-jax[serve]"`. While it runs, the address in a browser is a search page.
"""

import json
import subprocess
import sys
import time
from contextlib import suppress
from urllib.request import urlopen


def main(index: str, query: str) -> None:
    """Start the server, wait until it is ready, and print the answer to one search."""
    serve = [sys.executable, "-m", "edje_jax.cli.edje", "serve", index, "--port", "8765"]
    with subprocess.Popen(serve) as server:  # In a shell: edje serve photos.index --port 8765
        try:
            while ask("/ready") is None and server.poll() is None:
                time.sleep(0.5)  # The model is being compiled
            answer = ask("/search", {"query": query, "k": 100, "top_k": 5})
            for result in answer["results"] if answer else []:
                print(f"{result['score']:.3f}  {result['id']}")
        finally:
            server.terminate()


def ask(path: str, body: dict | None = None) -> dict | None:
    """Answer of the server; None if it has none to give yet."""
    data = json.dumps(body).encode() if body else None
    with suppress(OSError), urlopen(f"http://127.0.0.1:8765{path}", data) as answer:
        return json.load(answer)
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
