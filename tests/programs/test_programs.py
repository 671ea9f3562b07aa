"""`train.py` and `eval.py` as users call them: bad input gets one line, an exit code, no loss.

Covers cli/eval_options.py and cli/evaluate.py.
"""

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
from edje_jax.scenes.shapes import Shapes

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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--loss.negatives", "0"], "--loss.negatives 0: the least is 1"),
        (
            ["--loss.hardest-of", "2", "--loss.negatives", "3"],
            "--loss.hardest-of 2: the least is 3",
        ),
        (["--loss.queue", "-1"], "--loss.queue -1: the least is 0"),
        (
            ["--loss.random-negatives", "7", "--data.batch-size", "8"],
            "--loss.random-negatives 7 cannot be found in batches of 8; raise --data.batch-size",
        ),
    ],
)
def test_negatives_that_cannot_be_are_told(call, tmp_path, flags, message):
    code, _, err = call("train.py", "debug", "--workdir", tmp_path / "run", *flags)
    assert code != 0 and message in " ".join(err.split())


def test_no_backbone_says_how_to_get_one(call, tmp_path):
    code, _, err = call("train.py", "tiny", "--workdir", tmp_path / "run")
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


def odd_images(folder: Path) -> list[str]:
    """Images that a collection from the wild holds."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    image = Image.fromarray(noise)
    image.save(folder / "plain.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("L").save(folder / "gray.png")
    image.convert("P").save(folder / "palette.gif")
    image.save(folder / "animated.gif", save_all=True, append_images=[image.rotate(90)])
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "turned.jpg", exif=exif)
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    Image.new("RGB", (20_000, 30), "red").save(folder / "wide.png")
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_odd_images_and_captions_are_evaluated(call, trained, tmp_path):
    (folder := tmp_path / "images").mkdir()
    texts = ["cat " * 2500, "🙂 dog 🐕", "两只狗", "plain", "", "<script>", "a_b", "&amp;", "x"]
    names = odd_images(folder)
    entries = [
        {"image": f"images/{name}", "caption": text or "empty"}
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
def test_bad_images_are_skipped_up_to_a_share(call, trained, tmp_path, caplog):
    (tmp_path / "images").mkdir()
    odd_images(tmp_path / "images")
    (tmp_path / "images" / "text.png").write_text("not an image")
    whole = (tmp_path / "images" / "plain.png").read_bytes()
    (tmp_path / "images" / "cut.png").write_bytes(whole[: len(whole) // 2])
    names = ["plain", "gray", "one", "text", "cut", "missing"]
    entries = [{"image": f"images/{name}.png", "caption": name} for name in names]
    spec = captions(tmp_path / "set.json", entries)
    code, _, err = call("eval.py", trained, "--data", spec)
    assert code == 1 and "3 of 6 records are bad" in err
    assert all(f"images/{name}.png" in err for name in names[3:])
    code, _, err = call("eval.py", trained, "--data", spec, "--max-bad", "0.5")
    assert code == 0, err
    assert "missing.png: no such file" in caplog.text


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "name a MODEL, and --data"),
        (("m",), "name a MODEL, and --data"),
        (("m", "--data", "shapes:val", "--k-sweep", "1,ten"), "--k-sweep 1,ten: numbers with"),
        (("m", "--data", "shapes:val", "--k-sweep", "0,5"), "at least 1"),
        (("m", "--data", "shapes:val", "--similarity-weights", "0,inf"), "must be finite"),
        (("m", "--data", "shapes:val", "--k", "0"), "--k 0: the least is 1"),
        (("m", "--data", "shapes:val", "--folds", "1"), "2 or more parts"),
        (("m", "--data", "x:y", "--folds", "5", "--pool", "x:z"), "without a --pool"),
        (("m", "--data", "x:y", "--compositional", "a.json"), "name a MODEL, and --data"),
        (("m", "--data", "x:y", "--eccv", "no.json"), "--eccv no.json: needs COCO's"),
        (("m", "--compare", "a", "b"), "no MODEL"),
    ],
)
def test_what_eval_cannot_do_is_bad_usage(call, arguments, message):
    code, _, err = call("eval.py", *arguments)
    assert code == 2 and message in err and err.count("\n") == 1


@pytest.mark.slow
def test_protocols_and_a_comparison(call, trained, tmp_path):
    """Folds, depths, weights and a pool, and two such evaluations side by side."""
    entries = []
    for name, split in (("own", "val"), ("more", "test")):
        for i in range(12):
            Shapes(split, image_size=32).image(i).save(tmp_path / f"{name}{i}.png")
            texts = Shapes(split).captions(i)[:2]
            entries.append({"image": f"{name}{i}.png", "caption": list(texts)})
    data = captions(tmp_path / "own.json", entries[:12])
    pool = captions(tmp_path / "all.json", entries)
    common = (trained, "--data", data, "--k", 3)
    code, shown, err = call(
        "eval.py", *common, "--folds", 2, "--k-sweep", "1,6", "--similarity-weights", "0,4",
        "--out", tmp_path / "a",
    )  # fmt: skip
    assert code == 0, err
    assert "Mean of 2 folds of 6 images" in shown and "by depth" in shown and "weight" in shown
    a = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert a["k"] == a["folds"]["k"] == 3
    assert [at["k"] for at in a["k_sweep"]["at"]] == [1, 6]
    assert a["k_sweep"]["pairs_per_second"] > 0
    assert a["similarity_weights"][0]["t2i"] == a["t2i"]
    code, _, err = call("eval.py", *common, "--similarity-weight", 4, "--out", tmp_path / "b")
    assert code == 0, err
    code, shown, err = call(
        "eval.py", "--compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path
    )
    assert code == 0 and "B - A" in shown, err
    result = json.loads((tmp_path / "comparison.json").read_text())
    assert result["t2i"]["a"] == a["t2i"]["reranked"]
    assert result["t2i"]["b"] == a["similarity_weights"][1]["t2i"]["reranked"]
    code, _, err = call("eval.py", *common, "--pool", pool, "--out", tmp_path / "pooled")
    assert code == 0, err
    pooled = json.loads((tmp_path / "pooled" / "metrics.json").read_text())
    assert (pooled["pictures"], pooled["captions"]) == (24, 24)
    assert pooled["pool"] == {"data": pool, "left_out": 12}
    code, _, err = call("eval.py", "--compare", tmp_path / "a", tmp_path / "pooled")
    assert code == 1 and "searched different galleries" in err


def test_compositional_files(call, trained, tmp_path):
    entries = []
    for i in range(3):
        Shapes("val", image_size=32).image(i).save(tmp_path / f"{i}.png")
        own, other = (Shapes("val").captions(j)[0] for j in (i, i + 1))
        entries.append({"filename": f"{i}.png", "caption": own, "negative_caption": other})
    (tmp_path / "swap.json").write_text(json.dumps(entries))
    arguments = (trained, "--compositional", tmp_path / "swap.json", "--out", tmp_path / "out")
    code, shown, err = call("eval.py", *arguments)
    assert code == 0 and "text reranked" in " ".join(shown.split()), err
    metrics = json.loads((tmp_path / "out" / "compositional.json").read_text())
    assert metrics["items"] == 3 and set(metrics["text"]) == {"base", "reranked"}
    (tmp_path / "1.png").write_text("no image")
    code, _, err = call("eval.py", *arguments)
    assert code == 1 and "1.png" in err and err.count("\n") == 1
