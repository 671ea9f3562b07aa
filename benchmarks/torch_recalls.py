"""The recalls of a model folder by its own PyTorch file, beside those of eval.py.

    python benchmarks/torch_recalls.py MODEL [--data shapes:test] [--k 10] [--out recalls.json]

Images, captions, first stage and reranking all go through `modeling_edje.py` as it lies in the
folder; only the ranking arithmetic is shared.
"""

import argparse
import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from edje_jax.cli.evaluate import evaluate_model
from edje_jax.data.sources.registry import open_captioned
from edje_jax.evaluate.measure import Protocol
from edje_jax.evaluation.retrieval import Gallery, Retrieval, rerank
from edje_jax.reports.tables import metrics_table
from edje_jax.types import Source
from edje_jax.weights.folder import model_folder


def main() -> None:
    """Evaluate twice and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="model folder or training workdir")
    parser.add_argument("--data", default="shapes:test")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    jax_metrics = evaluate_model(
        options.model, options.data, Protocol(k=options.k, similarity_weight=0.0)
    )
    source = open_captioned(options.data)
    torch_metrics = with_torch(model_folder(options.model), source, options.k).metrics()
    Console().print(metrics_table(torch_metrics), "above: PyTorch; before it: JAX")
    largest = max(_differences(jax_metrics, torch_metrics))
    print(f"largest difference of any recall: {largest:.3f} points")
    if options.out:
        result = {"jax": jax_metrics, "pytorch": torch_metrics, "largest_difference": largest}
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


@torch.inference_mode()
def with_torch(folder: Path, source: Source, k: int, batch: int = 64) -> Retrieval:
    """Encode and rerank a whole source with the folder's PyTorch module."""
    model = _module(folder).EdjeModel.from_folder(folder)
    gallery = Gallery.of(
        [source.image_id(i) for i in range(len(source))],
        [source.captions(i) for i in range(len(source))],
    )
    embeddings, tokens = [], []
    for rows in _chunks(len(source), batch):
        pixels = model.preprocess([source.image(int(i)) for i in rows])
        embeddings.append(model.embed_image(pixels))
        tokens.append(model.encode_image(pixels))
    all_tokens, captions = torch.cat(tokens), gallery.captions
    texts = [model.embed_text([captions[i] for i in rows]) for rows in _chunks(len(captions), 256)]

    def score_pairs(text_index: np.ndarray, image_index: np.ndarray) -> np.ndarray:
        out = np.empty(len(text_index), np.float32)
        # Captions of like length together: less padding, the same scores.
        order = np.argsort([len(captions[i]) for i in text_index], kind="stable")
        for rows in _chunks(len(out), 256):
            at = order[rows]
            ids = model.tokenize([captions[i] for i in text_index[at]])
            out[at] = model.score(**ids, tokens=all_tokens[image_index[at]]).numpy()
        return out

    return rerank(gallery, torch.cat(embeddings).numpy(), torch.cat(texts).numpy(), score_pairs, k)


def _module(folder: Path) -> Any:
    """`modeling_edje.py` of the folder itself, not the installed one."""
    spec = spec_from_file_location("folder_modeling_edje", folder / "modeling_edje.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _chunks(count: int, size: int) -> list[np.ndarray]:
    return [np.arange(i, min(i + size, count)) for i in range(0, count, size)]


def _differences(a: dict[str, Any], b: dict[str, Any]) -> list[float]:
    """Differences of every recall and ceiling, in points."""
    out = []
    for direction in ("t2i", "i2t"):
        ours, theirs = a[direction], b[direction]
        out.append(abs(ours["ceiling"] - theirs["ceiling"]))
        for stage in ("base", "reranked"):
            out += [abs(v - theirs[stage][name]) for name, v in ours[stage].items()]
    return out


if __name__ == "__main__":
    main()
