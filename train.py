"""Train a backbone or an EDJE: `python train.py CONFIG [--workdir DIR] [--data.train SPEC] ...`

Examples:
    python train.py debug                                       # seconds, on built-in scenes
    python train.py tiny_backbone --data.train blip:train.json --workdir runs/backbone
    python train.py tiny --data.train blip:train.json --model.backbone runs/backbone/model
"""

import sys
from pathlib import Path

import tyro

from edje_jax.cli.program import choose_config, run_program
from edje_jax.config import BackboneRun, EdjeRun

ROOT = Path(__file__).resolve().parent


def main(arguments: list[str]) -> int:
    """Parse, build the task, run it."""
    if arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write(__doc__ or "")
    name, default = choose_config(ROOT / "configs", arguments, (__doc__ or "").splitlines()[0])
    config = tyro.cli(type(default), default=default, args=arguments[1:], prog=f"train.py {name}")
    workdir = Path(config.workdir or ROOT / "runs" / name).expanduser()
    # Late, so that a typo is told in a moment.
    from edje_jax.training.loop import run

    run(build_task(config, workdir), workdir)
    return 0


def build_task(config: BackboneRun | EdjeRun, workdir: Path):
    """The task a config describes."""
    if isinstance(config, BackboneRun):
        from edje_jax.training.backbone import BackboneTask

        return BackboneTask(config, workdir)
    from edje_jax.training.edje import EdjeTask

    return EdjeTask(config, workdir)


if __name__ == "__main__":
    run_program(main)
