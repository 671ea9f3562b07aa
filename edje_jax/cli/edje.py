"""The `edje` command: convert and share models. Each command lists its options with --help."""

import inspect
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from edje_jax.cli.program import run_program


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
    """What to write: a model folder, the published code's checkpoint, or ONNX files."""
    backbone: str = ""
    """Folder or hub id of the backbone that a published .pth was trained on."""
    language_model: str = ""
    """Folder or hub id of the BERT that a published .pth started from."""

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
    metrics: str = ""
    """metrics.json of an evaluation, for the card."""
    private: bool = False
    """Make the repository private if it is new."""
    dry_run: str = ""
    """Write the card to this file and upload nothing."""

    def run(self) -> None:
        from edje_jax.cli.push import push

        push(self.model, self.hub_id, self.metrics, self.private, self.dry_run)


def _named(name: str, command: type) -> Any:
    """A subcommand whose help keeps its examples line by line."""
    told = inspect.cleandoc(command.__doc__ or "")
    return Annotated[command, tyro.conf.subcommand(name, description=told)]


COMMANDS = _named("convert", Convert) | _named("push", Push)


def main(arguments: list[str]) -> int:
    """Parse, then let the command do its work."""
    tyro.cli(COMMANDS, args=arguments, prog="edje", description=__doc__).run()
    return 0


def entry() -> None:
    """The console script."""
    run_program(main)


if __name__ == "__main__":
    entry()
