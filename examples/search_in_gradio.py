"""Search a folder of photos in a page of Gradio.

    python examples/search_in_gradio.py photos/

Needs `pip install gradio`. For a server, `edje serve` has a page of its own.
"""

import sys

import gradio

from edje_jax import ImageIndex, Reranker
from edje_jax.cli.edje import main as edje


def main(folder: str) -> None:
    """Index the folder, then show a page that searches it."""
    edje(["index", "build", "shapes-demo", folder, "--out", "photos.index"])
    reranker, index = Reranker.from_pretrained("shapes-demo"), ImageIndex.open("photos.index")

    def search(query: str) -> list[tuple[str, str]]:
        # The 100 nearest images by embedding are read again together with the query.
        results = reranker.search(index, [query], k=100, top_k=12)[0]
        told = "{score:.3f} (by embedding: {base_rank})"
        return [(f"{folder}/{one['id']}", told.format_map(one)) for one in results]

    page = gradio.Interface(search, "text", gradio.Gallery(columns=4))
    page.launch(allowed_paths=[folder])


if __name__ == "__main__":
    main(*sys.argv[1:])
