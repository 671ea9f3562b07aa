"""Cost of the recipes, computed: no run of them has been timed.

    python benchmarks/recipe_cost.py [--out recipe_cost.json]

Model FLOPs of a step (`step_flops` in `edje_jax.training.losses.table`: a backward pass counts
twice its forward pass) times the images of an epoch, over `UTILISATION` of NVIDIA's figure for an
H100 in bfloat16.
Captions count at their full length; K = 3 negatives; reading images and evaluating are not in it.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from edje_jax.cli.named_configs import load_config
from edje_jax.config.model import (
    AdapterConfig,
    BackboneConfig,
    EdjeConfig,
    TextConfig,
    VisionConfig,
)
from edje_jax.training import flops
from edje_jax.training.losses.table import step_flops

UTILISATION = 0.4
"""Assumed share of the peak; none has been measured with this code."""
PRETRAIN, COCO = 14_000_000, 113_287
"""Images of an epoch: the paper's pre-training mix, and Karpathy's COCO training split."""


def tower(width: int, depth: int, heads: int, size: int, patch: int, inner: int = 0):
    """A ViT by its numbers."""
    return VisionConfig(width, inner or 4 * width, depth, heads, size, patch)


def text(width: int, depth: int, heads: int, length: int, inner: int = 0) -> TextConfig:
    """A text tower by its numbers; its vocabulary costs nothing."""
    shape = (width, inner or 4 * width, depth, heads, length)
    return TextConfig(32_000, *shape, projection_size=width)


SIGLIP_B, SIGLIP_L = text(768, 12, 12, 64), text(1024, 24, 16, 64)
CLIP_B, CLIP_L = text(512, 12, 8, 77), text(768, 12, 12, 77)
BACKBONES = {
    "SigLIP2 B/16-384": BackboneConfig("siglip", tower(768, 12, 12, 384, 16), SIGLIP_B),
    "SigLIP2 L/16-384": BackboneConfig("siglip", tower(1024, 24, 16, 384, 16), SIGLIP_L),
    "SigLIP2 So400m/14-384": BackboneConfig(
        "siglip", tower(1152, 27, 16, 384, 14, 4304), text(1152, 27, 16, 64, 4304)
    ),
    "CLIP B/32": BackboneConfig("clip", tower(768, 12, 12, 224, 32), CLIP_B),
    "CLIP B/16": BackboneConfig("clip", tower(768, 12, 12, 224, 16), CLIP_B),
    "CLIP, DFN, MetaCLIP L/14": BackboneConfig("clip", tower(1024, 24, 16, 224, 14), CLIP_L),
    "CLIP L/14@336": BackboneConfig("clip", tower(1024, 24, 16, 336, 14), CLIP_L),
}
"""Shapes as their Hugging Face configs state them."""


@dataclass(frozen=True)
class Cost:
    """Cost of a recipe: FLOPs of one image's share of a step, and H100-hours of an epoch."""

    recipe: str
    backbone: str
    images: int
    flops: float

    @property
    def hours(self) -> float:
        """Device-hours of one epoch."""
        return self.images * self.flops / (UTILISATION * flops.PEAKS["H100"]) / 3600


def student(backbone: str, adapter: AdapterConfig) -> EdjeConfig:
    """An EDJE on MiniLM-L12."""
    return EdjeConfig(BACKBONES[backbone], adapter)


def costs() -> list[Cost]:
    """Every recipe on the paper's main backbone, then the Local one on every backbone."""
    main = "SigLIP2 L/16-384"
    out = []
    pretrain, finetune = load_config("pretrain_local"), load_config("finetune_coco")
    for stage, run, images in (("pre-train", pretrain, PRETRAIN), ("fine-tune", finetune, COCO)):
        local = student(main, AdapterConfig("local"))
        alone = step_flops(local, run.loss, 1, teacher=None)
        out.append(Cost(f"{stage} Local", main, images, alone))
        for tokens in (32, 64, 128):
            compressed = student(main, AdapterConfig("compress", tokens))
            step = step_flops(compressed, run.loss, 1, teacher=local)
            out.append(Cost(f"{stage} Compressed-{tokens}, distilled", main, images, step))
    for backbone in BACKBONES:
        if backbone != main:
            local = student(backbone, AdapterConfig("local"))
            step = step_flops(local, pretrain.loss, 1, teacher=None)
            out.append(Cost("pre-train Local", backbone, PRETRAIN, step))
    return out


def markdown() -> str:
    """The table of docs/guide/recipes.md."""
    lines = ["| recipe | backbone | GFLOP an image | H100-hours an epoch |", "|---|---|---|---|"]
    for cost in costs():
        hours = f"{cost.hours:.2f}" if cost.hours < 1 else f"{cost.hours:.1f}"
        lines.append(f"| {cost.recipe} | {cost.backbone} | {cost.flops / 1e9:,.0f} | {hours} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table; write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    table = Table("recipe", "backbone", "GFLOP an image", "H100-hours an epoch")
    for cost in costs():
        numbers = f"{cost.flops / 1e9:,.0f}", f"{cost.hours:,.2f}"
        table.add_row(cost.recipe, cost.backbone, *numbers)
    Console().print(table)
    if options.out:
        rows = [
            {
                "recipe": cost.recipe,
                "backbone": cost.backbone,
                "pictures": cost.images,
                "flops_a_picture": cost.flops,
                "h100_hours_an_epoch": cost.hours,
            }
            for cost in costs()
        ]
        content = {"computed_not_measured": True, "utilisation_assumed": UTILISATION, "rows": rows}
        Path(options.out).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
