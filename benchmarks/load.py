"""Time and host memory of loading a dual encoder, beside transformers on the same folder.

    python benchmarks/load.py [FOLDER] [--out load.json]

Each loads in a process of its own, twice: the first run fills the page cache and is not counted.
Memory is anonymous resident memory (RssAnon) above what the process held before loading, sampled
every few milliseconds; on a CPU the loaded parameters themselves are part of it. Without FOLDER,
a SigLIP2-B/16 of full size (256,000 words, 375M parameters) is made of random weights.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import SiglipModel

from edje_jax.config.model import BackboneConfig, ImageRecipe, TextConfig, VisionConfig
from edje_jax.weights.backbone import expected_params, load_backbone, save_backbone
from edje_jax.weights.mapping import to_device

WIDTH = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
SIGLIP2_B16 = BackboneConfig(
    "siglip",
    VisionConfig(**WIDTH, image_size=384, patch_size=16),
    TextConfig(**WIDTH, vocab_size=256_000, projection_size=768, pad_token_id=0),
)


def main() -> None:
    """Time both, print a table, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", default="")
    parser.add_argument("--out", default="", help="JSON file to write")
    parser.add_argument("--only", choices=list(LOADERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        json.dump(measured(LOADERS[options.only], options.folder), sys.stdout)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or str(make_siglip2(Path(temporary)))
        result = compare(folder)
    table = Table("", "seconds", "peak MB", "peak / parameters", title="loading")
    for name, row in result.items():
        table.add_row(
            name, *(f"{row[k]:.2f}" for k in ("seconds", "peak_megabytes", "peak_over_parameters"))
        )
    Console().print(table)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def compare(folder: str) -> dict[str, dict[str, float]]:
    """{loader: {"seconds", "peak_megabytes", "peak_over_parameters"}}."""
    return {name: alone(name, folder) for name in LOADERS for _ in range(2)}


def alone(name: str, folder: str) -> dict[str, float]:
    """Measure one loader in a fresh process."""
    command = [sys.executable, __file__, folder, "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(load: Callable[[str], int], folder: str) -> dict[str, float]:
    """Run a loader, which returns the bytes of its parameters, under a sampler of memory."""
    done, peak, before = threading.Event(), 0, anonymous_bytes()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.003):
            peak = max(peak, anonymous_bytes())

    sampler = threading.Thread(target=sample)
    sampler.start()
    start = time.perf_counter()
    size = load(folder)
    seconds = time.perf_counter() - start
    done.set()
    sampler.join()
    peak = max(peak, anonymous_bytes()) - before
    return {
        "seconds": seconds,
        "peak_megabytes": peak / 1e6,
        "peak_over_parameters": peak / size,
    }


def anonymous_bytes() -> int:
    """Resident memory of this process that no file stands behind (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: this needs Linux 4.5 or newer")


def with_edje_jax(folder: str) -> int:
    """This project's way, onto the default device."""
    params = jax.block_until_ready(to_device(load_backbone(folder).params))
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def with_transformers(folder: str) -> int:
    """transformers' way: the file stays mapped, a weight is read when it is first used."""
    return _size(SiglipModel.from_pretrained(folder))


def with_transformers_read(folder: str) -> int:
    """The same, and then every weight used once."""
    model = SiglipModel.from_pretrained(folder)
    for parameter in model.parameters():
        parameter.sum()
    return _size(model)


def _size(model: SiglipModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def make_siglip2(folder: Path) -> Path:
    """A random SigLIP2-B/16-384 in Hugging Face's format."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32),
        expected_params(SIGLIP2_B16),
    )
    save_backbone(folder, SIGLIP2_B16, ImageRecipe(size=384), params, tokenizer=folder)
    return folder


LOADERS = {
    "edje_jax": with_edje_jax,
    "transformers": with_transformers,
    "transformers, weights read": with_transformers_read,
}


if __name__ == "__main__":
    main()
