"""Evaluate a model in both directions, base beside reranked.

Examples:
    python eval.py runs/demo/model --data shapes:test
    python eval.py runs/coco --data blip:val.json --k 20 --out runs/coco/eval
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from edje_jax.cli.program import run_program


@dataclass(frozen=True)
class Options:
    """What `eval.py` takes."""

    model: tyro.conf.Positional[str]
    """Model folder, training workdir, or hub id."""
    data: str
    """SPEC to evaluate on, as `kind:path[#split]`."""
    k: int = 10
    """Candidates reranked per query."""
    out: str = ""
    """Folder for metrics.json, TREC files, per_query.csv and report.html."""
    image_root: str = ""
    """Folder that relative picture paths start from (default: the JSON's own)."""
    similarity_weight: float = 0.0
    """The first stage's cosine times this is added to the match logit."""
    max_bad: float = 0.01
    """Share of the pictures that may turn out unreadable before the evaluation stops."""


def main(arguments: list[str]) -> int:
    """Parse, load, evaluate, write."""
    options = tyro.cli(Options, args=arguments, prog="eval.py", description=__doc__)
    # Late, so that a typo is told in a moment.
    from edje_jax.cli.evaluate import evaluate_model

    evaluate_model(
        options.model,
        options.data,
        k=options.k,
        out=Path(options.out).expanduser() if options.out else None,
        image_root=options.image_root,
        similarity_weight=options.similarity_weight,
        max_bad=options.max_bad,
    )
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    run_program(main)
