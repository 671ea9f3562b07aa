"""Named configs are found from a checkout, an editable install and an installed package."""

import os
import shutil
import subprocess
import sys

import pytest

from edje_jax.cli.named_configs import choose_config, config_names, configs_folder, load_config
from edje_jax.cli.program import UsageError
from edje_jax.config.run import EdjeRun
from tests.conftest import ROOT

NAMES = "from edje_jax.cli.named_configs import config_names, configs_folder, load_config; "


def test_every_config_is_a_run_and_can_be_chosen():
    names = config_names()
    assert {"debug", "tiny", "tiny_backbone", "video"} <= set(names) and "__init__" not in names
    for name in names:
        chosen, config = choose_config([name, "--rest"], "usage")
        assert chosen == name and config.data.batch_size > 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "which config?\nusage\nconfigs: captioner, debug, "),
        (["--lr", "1"], "which config?\nusage\nconfigs: captioner, debug, "),
        (["debgu"], "no config called 'debgu'. Did you mean 'debug'?\nconfigs: "),
        (["tiny-backbone"], "Did you mean 'tiny_backbone'?"),
        (["zzz"], "no config called 'zzz'.\nconfigs: "),
        (["nowhere/mine.py"], "nowhere/mine.py: no such config file"),
    ],
)
def test_a_config_that_is_not_there(arguments, told):
    with pytest.raises(UsageError) as caught:
        choose_config(arguments, "usage")
    assert told in str(caught.value)


def test_a_config_may_be_a_file_of_one_s_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from edje_jax.config.run import EdjeRun\nconfig = EdjeRun(seed=41)\n")
    assert choose_config([str(path)], "usage") == ("mine", EdjeRun(seed=41))
    path.write_text("confg = 1\n")
    with pytest.raises(UsageError, match=r"mine\.py: defines no value called `config`"):
        choose_config([str(path)], "usage")


@pytest.mark.parametrize("name", config_names())
def test_a_copy_of_a_config_is_that_config(name, tmp_path):
    """Wherever it lies: configs that build on others import them relatively."""
    path = shutil.copy(configs_folder() / f"{name}.py", tmp_path / "mine.py")
    assert choose_config([str(path)], "usage") == ("mine", load_config(name))


def test_a_checkout_has_its_configs_at_the_top():
    assert configs_folder() == ROOT / "configs"
    assert load_config("finetune_flickr").loss == load_config("finetune_coco").loss


@pytest.mark.parametrize("installed", [True, False], ids=["in the package", "beside the package"])
def test_configs_are_found_in_the_package_and_beside_it(installed, tmp_path):
    """As a wheel and as a checkout lay them out; a folder of the user's with that name is none."""
    shutil.copytree(ROOT / "edje_jax", tmp_path / "edje_jax", ignore=_no_caches)
    configs = tmp_path / ("edje_jax/configs" if installed else "configs")
    shutil.copytree(ROOT / "configs", configs, ignore=_no_caches)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "configs").mkdir(parents=True)
    (elsewhere / "configs" / "__init__.py").write_text("raise SystemExit('not these')")
    code = NAMES + "print(configs_folder(), len(config_names()), load_config('debug').steps)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    expected = f"{configs} {len(config_names())} {load_config('debug').steps}"
    assert (done.stdout.strip(), done.stderr) == (expected, "")


def test_a_package_without_configs_says_so(tmp_path):
    shutil.copytree(ROOT / "edje_jax", tmp_path / "edje_jax", ignore=_no_caches)
    done = subprocess.run(
        [sys.executable, "-c", NAMES + "config_names()"], capture_output=True, text=True,
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert "edje_jax/configs: no configs here, nor beside the package" in done.stderr


def _no_caches(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name in ("__pycache__", "assets")]
