"""Train a model on captioned images.

Examples:
    {program} debug                                       # seconds, on built-in scenes
    {program} tiny_backbone --data.train blip:train.json --workdir runs/backbone
    {program} tiny --data.train blip:train.json --model.backbone runs/backbone/model
"""

import dataclasses
import sys
from pathlib import Path

import tyro

from edje_jax.cli.named_configs import choose_config, config_names
from edje_jax.cli.program import UsageError
from edje_jax.config.run import EdjeRun, RunConfig
from edje_jax.config.saved_run import run_to_dict


def main(arguments: list[str], program: str = "edje train", runs: Path = Path("runs")) -> int:
    """Parse, build the task, run it. `runs` is the folder of workdirs that are not named."""
    usage = f"{program} CONFIG [--workdir DIR] [--data.train SPEC] ..."
    if arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write(f"usage: {usage}\n\n{help_text(program)}")
        return 0
    name, default = choose_config(arguments, usage)
    if "--init" in given(arguments):
        default = without_own_parts(default)
    config = tyro.cli(type(default), default=default, args=arguments[1:], prog=f"{program} {name}")
    workdir = Path(config.workdir or runs / name).expanduser()
    # Imported late, so that a mistyped option is reported at once.
    from edje_jax.training.loop import run
    from edje_jax.training.processes import process_group
    from edje_jax.training.tasks.registry import make_task

    with process_group(config):
        task = make_task(config, workdir)
        check_followed(config, task.config, arguments)
        run(task, workdir)
    return 0


def given(arguments: list[str]) -> set[str]:
    """Options that a command line names, spelled with hyphens."""
    return {argument.partition("=")[0].replace("_", "-") for argument in arguments}


def without_own_parts(config: RunConfig) -> RunConfig:
    """A config without the backbone, the adapter's width and the captions' length that it names, so
    that a run with --init keeps those of the model that it starts from."""
    if not isinstance(config, EdjeRun):
        return config
    adapter = dataclasses.replace(config.model.adapter, intermediate_size=None)
    model = dataclasses.replace(config.model, backbone=None, adapter=adapter, max_text_length=None)
    return dataclasses.replace(config, model=model)


def check_followed(asked: RunConfig, run: RunConfig, arguments: list[str]) -> None:
    """Refuse options on a command line that a run does not follow, as what it starts from decides.

    Raises:
        UsageError: the message names the first of them.
    """
    from edje_jax.training.loop import differences

    options = given(arguments)
    for name, (value, of_run) in differences(run_to_dict(asked), run_to_dict(run)).items():
        if (option := "--" + name.replace("_", "-")) in options:
            raise UsageError(
                f"{option} {value}: the model of --init has {of_run}; leave the option out"
            )


def help_text(program: str) -> str:
    """Help text of a training program, with the names of its configs."""
    names = "\n".join(f"    {name}" for name in config_names())
    described = (__doc__ or "").format(program=program)
    return f"{described}\nConfigs; `{program} CONFIG --help` lists its options:\n{names}\n"
