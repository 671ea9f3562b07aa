"""`train.py` and `eval.py` as users call them: bad input gets one line, an exit code, no loss."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eval as evaluation
import train
from edje_jax.cli.program import run_program

TINY = Path(__file__).parents[1] / "goldens" / "reference_tiny"
PROGRAMS = {"train.py": train.main, "eval.py": evaluation.main}


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a program's command line; (exit code, standard output, standard error)."""

    def run(program: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            run_program(PROGRAMS[program])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run


def captions(path: Path, entries: object) -> str:
    path.write_text(json.dumps(entries), "utf-8")
    return f"blip:{path}"


def test_an_unknown_config_suggests_the_nearest(call):
    code, _, err = call("train.py", "tiny_backbon")
    assert code == 2 and "no config called 'tiny_backbon'. Did you mean 'tiny_backbone'?" in err


def test_no_config_lists_them(call):
    code, _, err = call("train.py")
    assert code == 2 and "finetune_coco" in err and "Traceback" not in err


def test_an_unknown_flag_suggests_the_nearest(call):
    code, out, err = call("train.py", "debug", "--optm.lr", "1")
    assert code == 2 and "--optim.lr" in out + err


def test_help_has_examples(call):
    code, out, _ = call("eval.py", "--help")
    assert code == 0 and "--similarity-weight" in out and "shapes:test" in out


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no such file"),
        ([], "empty"),
        ([{"image": "a.png", "caption": []}], "caption"),
        ([{"image": "a.png"}], "caption"),
        ([{"url": "https://x/a.png", "caption": "cat"}], "download"),
    ],
)
def test_a_bad_set_is_named(call, tmp_path, content, message):
    path = tmp_path / "set.json"
    spec = f"blip:{path}" if content is None else captions(path, content)
    workdir = tmp_path / "run"
    code, _, err = call(
        "train.py", "debug", "--data.train", spec, "--workdir", workdir,
        "--model.backbone", TINY / "siglip",
    )  # fmt: skip
    assert code == 1
    assert err.startswith("error: ") and str(path) in err and message in err.lower()
    assert "Traceback" not in err and not (workdir / "model").exists()


def test_no_backbone_says_how_to_get_one(call, tmp_path):
    code, _, err = call("train.py", "debug", "--workdir", tmp_path / "run")
    assert code == 1 and "--model.backbone" in err and "tiny_backbone" in err


@pytest.mark.parametrize("kind", ["siglip", "bert"])
def test_a_model_of_another_architecture(call, kind):
    code, _, err = call("eval.py", TINY / kind, "--data", "shapes:val")
    assert code == 1 and f"model_type is '{kind}', not 'edje'" in err


def test_a_missing_model_and_a_misspelt_set(call, tmp_path):
    code, _, err = call("eval.py", tmp_path / "nowhere", "--data", "shapes:val")
    assert code == 1 and "nowhere" in err
    code, _, err = call("eval.py", tmp_path, "--data", "shape:val")
    assert code == 1 and "shapes" in err


def odd_pictures(folder: Path) -> list[str]:
    """Pictures that a collection from the wild holds."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    picture = Image.fromarray(noise)
    picture.save(folder / "plain.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("L").save(folder / "gray.png")
    picture.convert("P").save(folder / "palette.gif")
    picture.save(folder / "animated.gif", save_all=True, append_images=[picture.rotate(90)])
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "turned.jpg", exif=exif)
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    Image.new("RGB", (20_000, 30), "red").save(folder / "wide.png")
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_odd_pictures_and_captions_are_evaluated(call, trained, tmp_path):
    (folder := tmp_path / "pictures").mkdir()
    texts = ["cat " * 2500, "🙂 dog 🐕", "两只狗", "plain", "", "<script>", "a_b", "&amp;", "x"]
    names = odd_pictures(folder)
    entries = [
        {"image": f"pictures/{name}", "caption": text or "empty"}
        for name, text in zip(names, texts, strict=True)
    ]
    spec, out = captions(tmp_path / "set.json", entries), tmp_path / "eval"
    code, shown, err = call("eval.py", trained, "--data", spec, "--k", 50, "--out", out)
    assert code == 0, err
    assert "reranked" in shown
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["pictures"] == metrics["captions"] == 9 and metrics["k"] == 50
    assert metrics["t2i"]["ceiling"] == metrics["i2t"]["ceiling"] == 100.0
    for name in ("t2i.run", "i2t.run", "t2i.base.run", "i2t.base.run", "t2i.qrels", "i2t.qrels"):
        assert (out / name).stat().st_size > 0
    page = (out / "report.html").read_text("utf-8")
    assert "两只狗" in page and "<script>" not in page
    with (out / "per_query.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 18


@pytest.mark.slow
def test_bad_pictures_are_skipped_up_to_a_share(call, trained, tmp_path, caplog):
    (tmp_path / "pictures").mkdir()
    odd_pictures(tmp_path / "pictures")
    (tmp_path / "pictures" / "text.png").write_text("not a picture")
    whole = (tmp_path / "pictures" / "plain.png").read_bytes()
    (tmp_path / "pictures" / "cut.png").write_bytes(whole[: len(whole) // 2])
    names = ["plain", "gray", "one", "text", "cut", "missing"]
    entries = [{"image": f"pictures/{name}.png", "caption": name} for name in names]
    spec = captions(tmp_path / "set.json", entries)
    code, _, err = call("eval.py", trained, "--data", spec)
    assert code == 1 and "3 of 6 pictures could not be read" in err
    assert all(f"pictures/{name}.png" in err for name in names[3:])
    code, _, err = call("eval.py", trained, "--data", spec, "--max-bad", "0.5")
    assert code == 0, err
    assert "missing.png: no such file" in caplog.text
