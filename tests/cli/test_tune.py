"""`edje tune`: what it measures is what evaluation measures, and the front holds what is best."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from edje_jax.cli import edje
from edje_jax.cli.evaluate import Protocol, evaluate_model
from edje_jax.cli.program import UsageError
from edje_jax.data.sources.shapes import Shapes
from edje_jax.evaluation.pareto import pareto_front
from edje_jax.retrieval.reranker import Reranker
from tests.small_runs import trained as trained


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    folder, scenes = tmp_path_factory.mktemp("set"), Shapes("val")
    for i in range(30):
        scenes.image(i).save(folder / f"{i}.png")
    records = [{"image": f"{i}.png", "caption": list(scenes.captions(i))} for i in range(30)]
    (folder / "val.json").write_text(json.dumps(records))
    return f"blip:{folder / 'val.json'}"


def test_every_choice_is_measured(trained, data, tmp_path, capsys):
    arguments = ["--k", "3", "7", "--token-dtypes", "float16", "int4", "--out", str(tmp_path)]
    assert edje.main(["tune", str(trained), "--data", data, *arguments]) == 0
    choices = json.loads((tmp_path / "tune.json").read_text())["choices"]
    assert [(c["token_dtype"], c["k"]) for c in choices] == [
        ("float16", 3), ("float16", 7), ("int4", 3), ("int4", 7)
    ]  # fmt: skip
    config = Reranker.from_pretrained(trained).config
    numbers = config.num_tokens * config.joint_encoder.hidden_size
    for choice in choices:
        scales = 0 if choice["token_dtype"] == "float16" else 2 * config.num_tokens
        each = 2 if choice["token_dtype"] == "float16" else 0.5
        assert choice["bytes_per_picture"] == numbers * each + scales
        assert choice["pairs_per_second"] > 0 and choice["deferred_layers"] == 0
    for choice in choices[:2]:
        expected = evaluate_model(str(trained), data, Protocol(k=choice["k"]))
        for direction in ("t2i", "i2t"):
            assert choice[direction] == pytest.approx(
                expected[direction]["reranked"]["R@1"], abs=2.0
            )
    with Image.open(tmp_path / "tune.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    assert "Pareto front" in capsys.readouterr().out


def test_models_compare(trained, data, tmp_path):
    """One with a deferred layer beside the one without."""
    other = tmp_path / "s1"
    shutil.copytree(trained / "model", other)
    config = json.loads((other / "config.json").read_text())
    config["joint_encoder"]["deferred_layers"] = 1
    (other / "config.json").write_text(json.dumps(config))
    arguments = ["--k", "5", "--token-dtypes", "int8", "--out", str(tmp_path / "out")]
    edje.main(["tune", str(trained), str(other), "--data", data, *arguments])
    choices = json.loads((tmp_path / "out" / "tune.json").read_text())["choices"]
    assert [choice["deferred_layers"] for choice in choices] == [0, 1]
    assert choices[0]["bytes_per_picture"] == choices[1]["bytes_per_picture"]
    values = [
        ((c["t2i"] + c["i2t"]) / 2, c["pairs_per_second"] / c["k"], -c["bytes_per_picture"])
        for c in choices
    ]
    assert [choice["on_front"] for choice in choices] == pareto_front(values).tolist()


def test_nothing_to_measure(data):
    with pytest.raises(UsageError, match="at least one model"):
        edje.main(["tune", "--data", data])


def test_a_model_that_is_not_there_is_told_before_the_work(trained, data, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        edje.main(["tune", str(trained), str(tmp_path / "nowhere"), "--data", data])


def test_depths_start_at_one(trained, data):
    with pytest.raises(UsageError, match="--k 0 5: give depths from 1 on"):
        edje.main(["tune", str(trained), "--data", data, "--k", "0", "5"])


def test_the_front():
    points = [(3, 1), (2, 2), (1, 3), (1, 2), (2, 2), (0, 0)]
    assert pareto_front(points).tolist() == [True, True, True, False, True, False]
    rng = np.random.default_rng(0)
    many = rng.integers(0, 6, (60, 3))
    for point, best in zip(many, pareto_front(many), strict=True):
        beaten = any((o >= point).all() and (o > point).any() for o in many)
        assert best != beaten
