"""Commands that make, measure and hand on models."""

from dataclasses import dataclass
from typing import Literal

import tyro

from edje_jax.config.model import TokenDtype


@dataclass(frozen=True)
class Train:
    """Train a model: `edje train --help` lists the configs, `edje train CONFIG --help` its options.

    Examples:
        edje train debug
        edje train tiny_backbone --data.train blip:train.json --workdir runs/backbone
    """

    arguments: tyro.conf.Positional[tuple[str, ...]] = ()
    """CONFIG and its options."""

    def run(self) -> None:
        from edje_jax.cli.train import main

        main(list(self.arguments))


@dataclass(frozen=True)
class Eval:
    """Evaluate a model, base beside reranked: `edje eval --help` lists the options.

    Examples:
        edje eval runs/mine --data blip:val.json --out runs/mine/eval
    """

    arguments: tyro.conf.Positional[tuple[str, ...]] = ()
    """MODEL and options."""

    def run(self) -> None:
        from edje_jax.cli.eval_options import main

        main(list(self.arguments))


@dataclass(frozen=True)
class Tune:
    """Choose how to rerank: measure models, token dtypes and depths on a set.

    Prints R@1 against pairs per second and bytes, with the Pareto front marked.

    Examples:
        edje tune runs/demo --data shapes:val
        edje tune runs/s0 runs/s6 --data blip:val.json --k 10 50 100 --out runs/tune
        edje tune runs/demo --data shapes:val --k 100 --token-dtypes bfloat16 --queries 500 --save
        edje tune runs/heads --data blip:val.json --first-stages exact codes-64 codes-256
    """

    models: tyro.conf.Positional[tuple[str, ...]]
    """Model folders, training workdirs or hub ids: several compare, say, deferred layers."""
    data: str
    """SPEC of a validation set: what is best on a test set was fitted to it."""
    k: tuple[int, ...] = (5, 10, 20)
    """Depths."""
    token_dtypes: tuple[TokenDtype, ...] = ("bfloat16", "int8", "int4")
    """Data types of stored tokens."""
    first_stages: tuple[str, ...] = ("exact",)
    """First stages that find the candidates, codes with their length: exact codes-64 codes-256."""
    out: str | None = None
    """Folder for tune.json and tune.png (default: nothing is written)."""
    image_root: str | None = None
    """Folder that relative image paths start from (default: the JSON's own)."""
    max_bad: float = 0.01
    """Share of the images that may be unreadable."""
    precision: float = 0.9
    """Share of the results above the least score that should be right."""
    queries: int | None = None
    """Captions, and images, that are asked for, spread over the set, all of which stays to be found
    (default: all, as with 0)."""
    save: bool = False
    """Write each model's calibration.json, by which search and scores go from then on."""

    def run(self) -> None:
        from edje_jax.cli.tune import first_stages, tune
        from edje_jax.evaluate.tuning import Choices

        tune(
            self.models, self.data,
            Choices(self.k, self.token_dtypes, self.queries, first_stages(self.first_stages)),
            out=self.out, image_root=self.image_root, max_bad=self.max_bad,
            precision=self.precision, save=self.save,
        )  # fmt: skip


@dataclass(frozen=True)
class Convert:
    """Convert a model; what SRC is, is recognised.

    Examples:
        edje convert runs/coco model/ --to edje
        edje convert edje_b.pth model/ --to edje --backbone google/siglip2-base-patch16-384 \
--language-model microsoft/MiniLM-L12-H384-uncased
        edje convert model/ edje.pth --to published
        edje convert model/ onnx/ --to onnx
    """

    src: tyro.conf.Positional[str]
    """Model folder or hub id, training workdir or one of its checkpoints, or published .pth."""
    dst: tyro.conf.Positional[str]
    """Folder (edje, onnx) or file (published) to write; must not exist yet."""
    to: Literal["edje", "published", "onnx"]
    """Format to write: a model folder, the published code's checkpoint, or ONNX files."""
    backbone: str | None = None
    """Folder or hub id of the backbone that a published .pth was trained on (default: the one that
    the file names)."""
    language_model: str | None = None
    """Folder or hub id of the BERT that a published .pth started from (default: the one that the
    file names)."""

    def run(self) -> None:
        from edje_jax.cli.convert import convert

        convert(self.src, self.dst, self.to, self.backbone, self.language_model)


@dataclass(frozen=True)
class Push:
    """Upload a model folder to the hub, its card written anew.

    Examples:
        edje push runs/coco me/edje-coco --metrics runs/coco/eval/metrics.json
        edje push runs/coco me/edje-coco --dry-run card.md
    """

    model: tyro.conf.Positional[str]
    """Model folder or training workdir."""
    hub_id: tyro.conf.Positional[str]
    """OWNER/NAME on the hub."""
    metrics: str | None = None
    """metrics.json of an evaluation, for the card (default: that of the workdir's eval/, if it has
    one)."""
    private: bool = False
    """Make the repository private if it is new."""
    dry_run: str | None = None
    """Write the card to this file and upload nothing (default: upload)."""

    def run(self) -> None:
        from edje_jax.cli.push import push

        push(self.model, self.hub_id, self.metrics, self.private, self.dry_run)
