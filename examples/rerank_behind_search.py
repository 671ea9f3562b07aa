"""Rerank what another search engine found.

    python examples/rerank_behind_search.py photos/ "a red star left of a blue circle"

Any engine that returns images will do: Elasticsearch, a vector database, a folder of files as here.
"""

import sys
from pathlib import Path

from edje_jax import Reranker


def your_search_engine(folder: str, query: str) -> list[str]:
    """Candidates for a query, at most 100 or so. Put a call of your own engine here."""
    return [str(path) for path in sorted(Path(folder).glob("*.png"))][:100]


def main(folder: str, query: str) -> None:
    """Print the candidates, best first."""
    reranker = Reranker.from_pretrained("shapes-demo")

    # Offline, once for every image. Keep the tokens wherever your engine keeps its records.
    tokens = {path: reranker.encode_images([path])[0] for path in your_search_engine(folder, "")}

    # Online, for every query: no image is opened, only the tokens of the candidates are read.
    candidates = your_search_engine(folder, query)
    logits = reranker.score_matrix([query], [tokens[path] for path in candidates])[0]
    for logit, path in sorted(zip(logits, candidates, strict=True), reverse=True):
        print(f"{logit:7.2f}  {path}")  # Match logit: the higher, the better they match


if __name__ == "__main__":
    main(*sys.argv[1:])
