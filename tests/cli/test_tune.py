"""`edje tune`: what it measures is what evaluation measures, and the front holds what is best."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edje_jax.cli import edje, tune
from edje_jax.cli.choice import Choice, front_of, short_names
from edje_jax.cli.evaluate import evaluate_model
from edje_jax.cli.program import UsageError
from edje_jax.cli.tune_plot import draw, mark_of
from edje_jax.evaluate.measure import Protocol
from edje_jax.evaluation.metrics import pareto_front
from edje_jax.models.token_formats import FORMATS
from edje_jax.scenes.shapes import Shapes
from edje_jax.search.reranker import Reranker
from edje_jax.weights.tensors import BadWeights


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
        speeds = [choice[f"{which}pairs_per_second"] for which in ("slowest_", "", "fastest_")]
        assert 0 < speeds[0] <= speeds[1] <= speeds[2] and speeds[0] < speeds[2]
        assert choice["deferred_layers"] == 0 and choice["online_vision"] == "updated"
    for choice in choices[:2]:
        expected = evaluate_model(str(trained), data, Protocol(k=choice["k"]))
        for direction in ("t2i", "i2t"):
            assert choice[direction] == pytest.approx(
                expected[direction]["reranked"]["R@1"], abs=2.0
            )
    with Image.open(tmp_path / "tune.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    assert "* on the front" in capsys.readouterr().out


def test_models_compare(trained, data, tmp_path, capsys):
    """Without deferred layers, with one, and with one beside attended vision, which a name, a
    colour and a row each tell apart."""
    models = [str(trained)]
    for online_vision in ("updated", "attended"):
        other = tmp_path / online_vision / "s1"
        shutil.copytree(trained / "model", other)
        config = json.loads((other / "config.json").read_text())
        config["joint_encoder"] |= {"deferred_layers": 1, "online_vision": online_vision}
        (other / "config.json").write_text(json.dumps(config))
        models.append(str(other))
    arguments = ["--k", "5", "--token-dtypes", "int8", "--out", str(tmp_path / "out")]
    edje.main(["tune", *models, "--data", data, *arguments])
    choices = json.loads((tmp_path / "out" / "tune.json").read_text())["choices"]
    told = [(choice["deferred_layers"], choice["online_vision"]) for choice in choices]
    assert told == [(0, "updated"), (1, "updated"), (1, "attended")]
    assert len({choice["bytes_per_picture"] for choice in choices}) == 1
    out = capsys.readouterr().out
    assert "1 attended" in out and "\n *" in out  # Nothing squeezed away
    assert "trained" in out


def a_choice(recall: float, speed: float, size: int, model: str = "a") -> Choice:
    return Choice(model, 0, "updated", "int8", 10, recall, recall, size, 10 * speed)


def test_the_front_is_of_recall_time_and_bytes():
    choices = [
        a_choice(80, 100, 50),
        a_choice(80, 100, 100),  # as good, and larger
        a_choice(79, 101, 50),  # its time is another's but for noise
        a_choice(79, 200, 100),
        a_choice(90, 50, 100),
        a_choice(90, 40, 100),
    ]
    assert front_of(choices) == [True, False, False, True, True, False]


def test_the_plot_names_every_model_once(tmp_path):
    choices = [
        a_choice(80, 100, 50, "x/s2/model"),
        a_choice(70, 200, 50, "y/s2/model"),
        a_choice(60, 300, 25, "z/model"),
    ]
    assert short_names(["."]) == {".": "."}
    names = short_names([choice.model for choice in choices])
    assert list(names.values()) == ["x/s2/model", "y/s2/model", "z"]
    draw(choices, front_of(choices), tmp_path / "tune.png")
    with Image.open(tmp_path / "tune.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ((31, 119, 180), (255, 127, 14), (44, 160, 44)):  # C0, C1, C2 at full strength
        assert (pixels == colour).all(axis=1).sum() > 100


def test_every_token_format_has_a_mark_of_its_own():
    assert [mark_of(dtype) for dtype in FORMATS] == ["o", "D", "^", "v"]


def test_a_model_that_fails_loses_nothing_before_it(trained, data, tmp_path, capsys, caplog):
    broken = shutil.copytree(trained / "model", tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    arguments = ["--k", "5", "100", "--token-dtypes", "int8", "--out", str(tmp_path / "out")]
    with pytest.raises(BadWeights, match="broken"):
        edje.main(["tune", str(trained), str(broken), "--data", data, *arguments])
    choices = json.loads((tmp_path / "out" / "tune.json").read_text())["choices"]
    # There is no deeper than all pictures, nor is it timed.
    assert [choice["k"] for choice in choices] == [5, 30]
    assert "--k 100: all of the 30 pictures are reranked" in caplog.text
    assert "* on the front" in capsys.readouterr().out


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


# --- calibration ----------------------------------------------------------------------------------


def ranking(engine, encoded, progress=None):
    """Scores that rank a set, in the place of a model that has learned next to nothing."""
    owner = encoded.gallery.caption_image
    noise = np.random.default_rng(0).normal(size=(len(owner), len(encoded.tokens)))

    def score(text_index, image_index):
        right = owner[text_index] == image_index
        return (noise[text_index, image_index] + 1.5 * right).astype(np.float32)

    return score


@pytest.fixture(scope="module")
def tuned(trained, data, tmp_path_factory) -> Path:
    """A copy of the trained model with a calibration saved to it, and tune.json beside it."""
    folder = tmp_path_factory.mktemp("tuned")
    model = shutil.copytree(trained / "model", folder / "model")
    arguments = ["--k", "5", "30", "--token-dtypes", "float16", "--precision", "0.3", "--save"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "second_stage", ranking)
        edje.main(["tune", str(model), "--data", data, "--out", str(folder), *arguments])
    return folder


def test_a_calibration_is_saved_and_used(tuned, trained, data):
    told = json.loads((tuned / "tune.json").read_text())["calibrations"]
    written = json.loads((tuned / "model" / "calibration.json").read_text())
    assert told == {str(tuned / "model"): written}
    record = written["fitted"]
    assert (record["data"], record["k"], record["precision"]) == (data, 30, 0.3)
    before, after = (Reranker.from_pretrained(one) for one in (trained, tuned / "model"))
    assert not before.calibration.is_fitted and after.calibration.is_fitted
    # Indexes made before stay valid.
    assert before.fingerprint == after.fingerprint
    image = Shapes("val").image(0)
    pair = ("a red circle", image)
    logit = before.predict(pair, raw_scores=True)
    assert after.predict(pair, raw_scores=True) == logit
    cosine = float(before.embed_texts(pair[:1])[0] @ before.embed_images([image])[0])
    value = logit + written["similarity_weight"] * cosine
    expected = 1 / (1 + np.exp(-(value / written["temperature"] + written["bias"])))
    assert after.predict(pair) == pytest.approx(expected, abs=1e-6)
    assert before.predict(pair) == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)


def test_evaluation_uses_the_calibration(tuned, trained, data, tmp_path):
    calibrated = evaluate_model(str(tuned / "model"), data, Protocol(k=30), out=tmp_path)
    plain = evaluate_model(str(trained), data, Protocol(k=30))
    assert set(plain) & {"uncalibrated", "min_score"} == set()
    written = json.loads((tuned / "model" / "calibration.json").read_text())
    assert calibrated["similarity_weight"] == written["similarity_weight"]
    for key in ("t2i", "i2t"):
        after, before = (calibrated[name][key] for name in ("calibration", "uncalibrated"))
        assert after["ece"] < before["ece"]
    assert calibrated["min_score"]["asked_precision"] == 30
    assert "sigmoid of the logit: ECE" in (tmp_path / "report.html").read_text("utf-8")
    # A weight that is given goes before the model's own.
    other = evaluate_model(str(tuned / "model"), data, Protocol(k=30, similarity_weight=0.0))
    assert other["t2i"] == plain["t2i"]


def test_a_model_that_ranks_nothing_is_not_calibrated(trained, data, tmp_path, caplog):
    model = shutil.copytree(trained / "model", tmp_path / "model")
    arguments = ["--k", "1", "--token-dtypes", "float16", "--queries", "1", "--save"]
    edje.main(["tune", str(model), "--data", data, *arguments])
    assert "no calibration: no query has right and wrong candidates" in caplog.text
    assert not (model / "calibration.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "0"], "--precision 0: a share above 0, up to 1"),
        (["--precision", "90"], "--precision 90: a share"),
        (["--queries", "-1"], "--queries -1"),
    ],
)
def test_wrong_settings_of_a_calibration_are_bad_usage(trained, data, arguments, message):
    with pytest.raises(UsageError, match=message):
        edje.main(["tune", str(trained), "--data", data, *arguments])


def test_a_calibration_is_not_saved_to_a_hub_id(data):
    with pytest.raises(UsageError, match="--save: some/model is no folder here"):
        edje.main(["tune", "some/model", "--data", data, "--save"])
