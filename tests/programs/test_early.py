"""Errors of a command are reported before the work, not after it."""

import sys
from pathlib import Path

import pytest
from PIL import Image

import eval as evaluation
import train
from edje_jax.cli.program import run_program
from tests.small_runs import COMMAND


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a program's command line; (exit code, standard output, standard error)."""

    def run(main, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            run_program(main)
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run


@pytest.fixture
def folder(tmp_path) -> Path:
    """Folder with one image and no captions."""
    path = tmp_path / "images"
    path.mkdir()
    Image.new("RGB", (4, 4)).save(path / "a.png")
    return path


def test_help_lists_the_configs(call):
    code, out, err = call(train.main, "--help")
    assert code == 0 and not err
    assert "python train.py debug" in out and "\n    tiny_backbone\n" in out


@pytest.mark.parametrize("config", ["debug", "tiny_backbone"])
@pytest.mark.parametrize("flag", ["--data.train", "--data.val"])
def test_sets_without_captions_or_without_a_file(config, flag, call, folder, tmp_path):
    workdir, missing = tmp_path / "run", tmp_path / "missing.json"
    backbone = COMMAND[3:5] if config == "debug" else ("--data.train", "shapes:val")
    common = (config, "--steps", "1", *backbone, "--workdir", workdir)
    code, _, err = call(train.main, *common, flag, f"folder:{folder}")
    assert code == 1 and err.startswith(f'error: "folder:{folder}": no captions in this set')
    code, _, err = call(train.main, *common, flag, f"blip:{missing}")
    assert code == 1 and err.startswith(f"error: {missing}: no such file")
    assert not workdir.exists()


def test_evaluating_a_set_without_captions(call, folder, trained):
    code, _, err = call(evaluation.main, trained, "--data", f"folder:{folder}")
    assert code == 1 and "no captions in this set" in err and err.count("\n") == 1


def test_a_place_that_cannot_be_written_to(call, trained, folder):
    taken = folder / "a.png" / "eval"
    code, _, err = call(evaluation.main, trained, "--data", "shapes:val", "--out", taken)
    assert code == 1 and err == f"error: {taken}: not a directory\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("m", "--compare", "a", "b", "--data", "x:y", "--k-sweep", "1"),
            "--compare takes two folders of --out, and no MODEL, --data, --k-sweep",
        ),
        (("--compare", "a", "b", "--max-bad", "0"), "and no --max-bad"),
        (
            ("m", "--compositional", "a.json", "--k", "5", "--folds", "2", "--eccv", "x"),
            "--compositional takes no --k, --folds, --eccv",
        ),
        (("m", "--data", "x:y", "--similarity-weight", "nan"), "--similarity-weight nan: give a"),
        (("m", "--data", "x:y", "--max-bad", "nan"), "--max-bad nan: a share from 0 to 1"),
        (("m", "--data", "x:y", "--similarity-weights", "0,nan,1"), "must be finite"),
        (("m", "--data", "x:y", "--similarity-weights=-inf,1"), "must be finite"),
    ],
)
def test_options_that_do_not_apply_are_bad_usage(arguments, told, call):
    code, out, err = call(evaluation.main, *arguments)
    assert code == 2
    assert told in " ".join((out + err).replace("│", " ").split())


@pytest.mark.parametrize(
    ("flag", "value", "least"),
    [
        ("--data.batch-size", 0, 1),
        ("--data.block-size", 0, 1),
        ("--data.workers", -1, 0),
        ("--data.max-bad", "nan", 0),
        ("--steps", -3, 1),
        ("--log-every", 0, 1),
        ("--eval-every", 0, 1),
        ("--checkpoint-every", 0, 1),
        ("--keep-checkpoints", 0, 1),
    ],
)
def test_numbers_out_of_range_are_bad_usage(flag, value, least, call, tmp_path):
    command = (*COMMAND[:1], "--workdir", tmp_path / "run", flag, value)
    code, out, err = call(train.main, *command)
    assert code == 2
    told = " ".join((out + err).replace("│", " ").split())
    assert f"{flag} {value}: the least is {least}" in told
    assert not (tmp_path / "run").exists()


def test_shapes_that_init_decides_are_refused_by_name(call, tmp_path):
    start = ("tiny_backbone", "--init", "shapes-backbone", "--workdir", tmp_path / "run")
    for option, value, theirs in (
        ("--vision.hidden-size", "32", "96"),
        ("--text.vocab-size=70", "", "149"),
        ("--vision.image_size", "24", "64"),
        ("--transparency", "white", "dropped"),
    ):
        code, _, err = call(train.main, *start, option, *([value] if value else []))
        name = option.partition("=")[0].replace("_", "-")
        value = value or option.partition("=")[2]
        told = f"{name} {value}: the model of --init has {theirs}; leave the option out"
        assert code == 2 and told in err
    assert not (tmp_path / "run").exists()
