"""Search a folder of photos by what they show.

    python examples/search_photos.py photos/ "a red star left of a blue circle"

The model that ships with the package knows only drawings of coloured shapes. For photographs, put
a model that was trained on photographs in its place.
"""

import sys

from edje_jax import ImageIndex, Reranker
from edje_jax.cli.edje import main as edje

MODEL = "shapes-demo"


def main(folder: str, query: str) -> None:
    """Index the folder, then print the five best images for the query."""
    # Every image is encoded once. The same call again encodes only what is new or has changed.
    edje(["index", "build", MODEL, folder, "--out", "photos.index"])

    reranker = Reranker.from_pretrained(MODEL)
    index = ImageIndex.open("photos.index")
    # The 100 nearest images by embedding are read again together with the query.
    for result in reranker.search(index, [query], k=100, top_k=5)[0]:
        before = result["base_rank"]  # Place of the image among the embeddings, from 1
        print(f"{result['score']:.3f}  {result['id']}  (by embedding: {before})")


if __name__ == "__main__":
    main(*sys.argv[1:])
