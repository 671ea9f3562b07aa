"""A published Local checkpoint of full size, converted both ways and scored.

    python benchmarks/full_size_local.py [--folder /tmp] [--out full_size_local.json]

Random weights in the published layout: SigLIP2-L/16-384's vision tower (with a text tower of one
layer, which plays no part in a score), the local adapter, and MiniLM-L12 with the 640 rows of
positions that 64 + 576 take; 1.5 GB. It becomes a model folder and a checkpoint again, of which
every tensor must be bit-identical, and pairs are scored by JAX, by the folder's PyTorch module,
and by transformers' BERT over the published sequence, written down from its description. Takes
6 GB of disk, which are given back, and 6 GB of memory.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rich.console import Console
from side_by_side import machine
from transformers import BertConfig as HfBertConfig
from transformers import BertModel

from edje_jax.cli.convert import convert
from edje_jax.config.model import (
    AdapterConfig,
    BackboneConfig,
    BertConfig,
    EdjeConfig,
    ImageRecipe,
    TextConfig,
    VisionConfig,
)
from edje_jax.models.edje import Edje
from edje_jax.search.reranker import Reranker
from edje_jax.system.files import write_json
from edje_jax.weights import bert
from edje_jax.weights.backbone import expected_params, load_backbone, save_backbone
from edje_jax.weights.folder import Model
from edje_jax.weights.published import save_published
from edje_jax.weights.torch.modeling_edje import EdjeModel

VISION = VisionConfig(1024, 4096, 24, 16, image_size=384, patch_size=16)
CONFIG = EdjeConfig(
    BackboneConfig("siglip", VISION, TextConfig(1000, 1024, 4096, 1, 16, projection_size=1024)),
    AdapterConfig("local", 0, 8192),
    # Wide enough that logits differ from pair to pair
    BertConfig(initializer_range=0.05, max_position_embeddings=640),
    ImageRecipe(384),
)
CAPTIONS = ["word1 word22 word333", "word7 " * 20, "word5 " * 61]
"""Captions of three lengths; the last takes all positions: 63, 576 and the [SEP] behind them."""
IMAGES = 2
TOLERANCE = 2e-4
"""Largest error of a logit, as a multiple of the standard deviation of the logits."""


def main() -> None:
    """Make, convert, compare and score; print the figures, and write them as JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", default="", help="where the files lie meanwhile")
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder or None) as temporary:
        result = measured(Path(temporary))
    Console().print_json(json.dumps(result))
    if options.out:
        write_json(Path(options.out), result)
    agree = result["largest_difference"] < TOLERANCE * result["logits_deviation"]
    sys.exit(0 if result["bit_identical"] and agree else 1)


def measured(folder: Path) -> dict[str, Any]:
    """Every figure of the run."""
    source, model, back = folder / "edje.pth", folder / "model", folder / "back.pth"
    siglip, minilm = make_folders(folder)
    make_checkpoint(source, siglip, minilm)
    places, start = (str(siglip), str(minilm)), time.monotonic()
    convert(str(source), str(model), "edje", *places)
    there = time.monotonic()
    convert(str(model), str(back), "published")
    seconds = {"to_edje": there - start, "to_published": time.monotonic() - there}
    pixels = np.random.default_rng(1).normal(size=(IMAGES, 384, 384, 3)).astype(np.float32)
    ours = of_jax(model, pixels)
    theirs = {
        "torch module": of_module(model, pixels),
        "transformers": of_bert(source, model, pixels),
    }
    differences = {name: float(np.abs(ours - logits).max()) for name, logits in theirs.items()}
    return {
        "machine": machine(),
        "checkpoint_bytes": source.stat().st_size,
        "position_rows": len(tensors_of(source)["language_model." + bert.POSITIONS]),
        "seconds": seconds,
        "tensors": len(tensors_of(source)),
        "bit_identical": identical(tensors_of(source), tensors_of(back)),
        "pairs": ours.size,
        "logits_deviation": float(ours.std()),
        "differences": differences,
        "largest_difference": max(differences.values()),
        "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def make_folders(folder: Path) -> tuple[Path, Path]:
    """The two Hugging Face folders: a SigLIP with random weights, and what is read of a MiniLM,
    whose tokenizer serves both."""
    siglip, minilm = folder / "siglip", folder / "minilm"
    siglip.mkdir()
    minilm.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(30_517))]
    (minilm / "vocab.txt").write_text("\n".join(words) + "\n")
    write_json(minilm / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
    write_json(minilm / "config.json", {**bert.write_config(BertConfig()), "vocab_size": 30_522})
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: drawn(leaf, rng), expected_params(CONFIG.backbone))
    save_backbone(siglip, CONFIG.backbone, CONFIG.image, params, minilm)
    return siglip, minilm


def drawn(leaf: jax.ShapeDtypeStruct, rng: np.random.Generator) -> np.ndarray:
    """Random numbers that keep the scale of what goes through many layers of them."""
    values = rng.standard_normal(leaf.shape, np.float32)
    if values.ndim == 1:  # Norms and biases
        return values / 10 + 1
    return values / np.float32(max(leaf.shape[0], 64) ** 0.5)


def make_checkpoint(path: Path, siglip: Path, minilm: Path) -> None:
    """Random weights in the published layout, in which every row of positions is another."""
    shapes = jnp.zeros((1, 576, 1024)), jnp.ones((1, 3), jnp.int32)
    params = jax.jit(Edje(CONFIG).init)(jax.random.key(0), *shapes)["params"]
    save_published(path, Model(CONFIG, params, load_backbone(str(siglip)), minilm, "random"))


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True, mmap=True)["model"]


def identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        tensor.dtype == b[name].dtype and torch.equal(tensor, b[name]) for name, tensor in a.items()
    )


def of_jax(model: Path, pixels: np.ndarray) -> np.ndarray:
    """Match logits [captions, images] of the model folder."""
    reranker = Reranker.from_pretrained(str(model), precision="float32")
    return reranker.score_matrix(CAPTIONS, reranker.encode_images(pixel_values=pixels))


@torch.inference_mode()
def of_module(model: Path, pixels: np.ndarray) -> np.ndarray:
    """Match logits [captions, images] of the PyTorch module that lies in the model folder."""
    module = EdjeModel.from_folder(model)
    tokens = module.encode_image(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    return np.stack(
        [
            module.score(
                **module.tokenize([caption] * IMAGES), tokens=tokens
            ).numpy()
            for caption in CAPTIONS
        ]
    )  # fmt: skip


@torch.inference_mode()
def of_bert(source: Path, model: Path, pixels: np.ndarray) -> np.ndarray:
    """Match logits [captions, images] of transformers' BERT, with weights from the `.pth`.

    It reads [CLS] caption [SEP] v_1..v_m [SEP].
    """
    module, tensors = EdjeModel.from_folder(model), tensors_of(source)
    start = "language_model.bert."
    trunk = {n.removeprefix(start): x for n, x in tensors.items() if n.startswith(start)}
    rows = len(tensors["language_model." + bert.POSITIONS])
    config = HfBertConfig(**vars(BertConfig(max_position_embeddings=rows)))
    language = BertModel(config, add_pooling_layer=False).eval()
    language.load_state_dict(trunk)
    vision = module.encode_image(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    head = {n.removeprefix("classification_head."): x for n, x in tensors.items() if "head." in n}
    out = []
    for caption in CAPTIONS:
        ids = module.tokenize([caption])["input_ids"]
        text, sep = (language.embeddings.word_embeddings(x) for x in (ids, ids[:, -1:]))
        rows_of = [part.expand(IMAGES, -1, -1) for part in (text, vision, sep)]
        embedded = torch.cat(rows_of, dim=1)
        segments = torch.ones(embedded.shape[:2], dtype=torch.long)
        segments[:, : ids.shape[1]] = 0
        states = language(inputs_embeds=embedded, token_type_ids=segments).last_hidden_state
        pooled = torch.tanh(states[:, 0] @ head["0.dense.weight"].T + head["0.dense.bias"])
        out.append((pooled @ head["1.weight"].T + head["1.bias"])[:, 0].numpy())
    return np.stack(out)


if __name__ == "__main__":
    main()
