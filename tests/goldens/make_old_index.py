"""Write old_index/: a tiny model, indexes of it, and what `edje search --json` answered from them.

For commit 28fc415, whose module names it uses (indexes of format 1), with the XLA flag that
`edje_jax` sets itself since then:

    git worktree add --detach OLD 28fc415
    cd OLD && XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=-reduce PYTHONPATH=$PWD \
        python ABOVE/tests/goldens/make_old_index.py
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from edje_jax.retrieval import build as building
from edje_jax.retrieval.reranker import Reranker
from edje_jax.retrieval.upkeep import remove
from PIL import Image, ImageDraw

from edje_jax.config import (
    AdapterConfig,
    BackboneConfig,
    BertConfig,
    EdjeConfig,
    ImageRecipe,
    TextConfig,
    VisionConfig,
)
from edje_jax.data.sources.blip_json import BlipJson
from edje_jax.weights import edje
from edje_jax.weights.backbone import expected_params, load_backbone, save_backbone
from edje_jax.weights.folder import Model, save_model

HERE = Path(__file__).parent
OUT, TINY = HERE / "old_index", HERE / "reference_tiny"
INDEXED, IMAGES = 8, 10
"""The indexes hold the first images; the last ones are there to be added."""
COLOURS = ("red", "green", "blue", "yellow", "white")
QUERIES = ("a red circle left of a blue square", "two dogs", "a large green bus")


class WithoutPaths:
    """A source whose images are no files, so that an index holds no path of this machine."""

    def __init__(self, source, count: int):
        self.source, self.count = source, count

    def __len__(self) -> int:
        return self.count

    def image_id(self, index: int) -> str:
        return self.source.image_id(index)

    def captions(self, index: int) -> list[str]:
        return self.source.captions(index)

    def image(self, index: int) -> Image.Image:
        return self.source.image(index)


def draw_images(folder: Path) -> None:
    """PNG files of a circle and a square each, and set.json with one or two captions of each."""
    folder.mkdir()
    entries = []
    for i in range(IMAGES):
        first, second = COLOURS[i % 5], COLOURS[(i + 1 + i // 5) % 5]
        image = Image.new("RGB", (40, 32), (25 * i, 250 - 20 * i, 60))
        draw = ImageDraw.Draw(image)
        draw.ellipse((2, 4 + i, 16, 18 + i), fill=first)
        draw.rectangle((22, 18 - i, 36, 30 - i), fill=second)
        image.save(folder / f"{i:02d}.png")
        captions = [f"a {first} circle left of a {second} square", f"a {second} square"]
        entries.append({"image": f"{i:02d}.png", "caption": captions[: 1 + i % 2]})
    (folder / "set.json").write_text(json.dumps(entries, indent=1) + "\n")


def random_like(shapes, rng: np.random.Generator):
    """Float32 parameters around 0, those of norms around 1."""

    def leaf(path, shape):
        centre = 1.0 if jax.tree_util.keystr(path).endswith("['scale']") else 0.0
        return (centre + rng.normal(0, 0.3, shape.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def write_model(folder: Path) -> None:
    """A model folder of width 16 with a SigLIP backbone, without the PyTorch code beside it."""
    rng = np.random.default_rng(0)
    towers = BackboneConfig(
        "siglip",
        VisionConfig(16, 32, 2, 2, image_size=32, patch_size=8),
        TextConfig(64, 16, 32, 2, 2, max_position_embeddings=32, projection_size=16),
    )
    backbone = HERE / "old_index_backbone"
    backbone.mkdir()
    params = random_like(expected_params(towers), rng)
    save_backbone(backbone, towers, ImageRecipe(size=32), params, TINY / "siglip")
    loaded = load_backbone(str(backbone))
    config = EdjeConfig(
        loaded.config,
        AdapterConfig("compress", num_tokens=4, intermediate_size=32),
        BertConfig(68, 16, 32, 2, 2, max_position_embeddings=64),
        loaded.image,
        max_text_length=24,
    )
    params = random_like(edje.expected_params(config), rng)
    folder.mkdir()
    save_model(folder, Model(config, params, loaded, TINY / "bert", "old_index"), "A card.\n")
    shutil.rmtree(backbone)
    for path in folder.glob("*.py"):
        path.unlink()


def search(*arguments: str) -> list[dict]:
    command = [sys.executable, "-m", "edje_jax.cli.edje", "search", *arguments, "--json"]
    command += ["--k", "6", "--top", "5", "--model", str(OUT / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Write everything anew."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    draw_images(OUT / "images")
    write_model(OUT / "model")
    reranker = Reranker.from_pretrained(str(OUT / "model"))
    reranker.source = "old_index"  # Instead of a path of this machine
    source = WithoutPaths(BlipJson(str(OUT / "images" / "set.json")), INDEXED)
    building.SHARD_ROWS = 5
    answers = {}
    for dtype in ("bfloat16", "int8", "int4"):
        index = OUT / dtype
        assert building.build(reranker, source, "blip:set.json", index, token_dtype=dtype)
        if dtype == "bfloat16":
            remove(index, ["03.png"])
        asked = {query: search(str(index), query) for query in QUERIES}
        asked["09.png"] = search(str(index), "--image", str(OUT / "images" / "09.png"))
        answers[dtype] = asked
    (OUT / "answers.json").write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()
