"""Train a backbone or an EDJE: `python train.py CONFIG [--workdir DIR] [--data.train SPEC] ...`

Examples:
    python train.py debug                                       # seconds, on built-in scenes
    python train.py tiny_backbone --data.train blip:train.json --workdir runs/backbone
    python train.py tiny --data.train blip:train.json --model.backbone runs/backbone/model
"""

import sys
from pathlib import Path

import tyro

from edje_jax.cli.program import choose_config, config_names, run_program
from edje_jax.config.run import BackboneRun, EdjeRun
from edje_jax.system.allocator import start_with_huge_pages

ROOT = Path(__file__).resolve().parent


def main(arguments: list[str]) -> int:
    """Parse, build the task, run it."""
    configs, usage = ROOT / "configs", __doc__ or ""
    if arguments[:1] in (["-h"], ["--help"]):
        names = "\n".join(f"    {name}" for name in config_names(configs))
        sys.stdout.write(
            f"{usage}\nConfigs; `train.py CONFIG --help` lists its options:\n{names}\n"
        )
        return 0
    name, default = choose_config(configs, arguments, usage.splitlines()[0])
    config = tyro.cli(type(default), default=default, args=arguments[1:], prog=f"train.py {name}")
    workdir = Path(config.workdir or ROOT / "runs" / name).expanduser()
    # Late, so that a typo is told in a moment.
    from edje_jax.training.loop import run
    from edje_jax.training.processes import joined

    with joined(config):
        run(build_task(config, workdir), workdir)
    return 0


def build_task(config: BackboneRun | EdjeRun, workdir: Path):
    """The task a config describes."""
    if isinstance(config, BackboneRun):
        from edje_jax.training.tasks.backbone import BackboneTask

        return BackboneTask(config, workdir)
    from edje_jax.training.tasks.edje import EdjeTask

    return EdjeTask(config, workdir)


if __name__ == "__main__":
    start_with_huge_pages()
    run_program(main)
