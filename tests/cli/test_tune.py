"""`edje tune`: what it measures is what evaluation measures, and the front holds what is best.

Covers evaluate/tuning.py.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edje_jax.cli import edje
from edje_jax.cli.evaluate import evaluate_model
from edje_jax.cli.program import UsageError
from edje_jax.config.saved_run import read_run
from edje_jax.evaluate import tuning
from edje_jax.evaluate.first_stage import StageChoice
from edje_jax.evaluate.measure import Protocol
from edje_jax.scenes.shapes import Shapes
from edje_jax.search.reranker import Reranker
from edje_jax.weights.card import model_card
from edje_jax.weights.folder import load_model
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
    with Image.open(tmp_path / "tune.png") as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 10
    assert "* on the front" in " ".join(capsys.readouterr().out.split())


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


def test_first_stages_stand_beside_each_other(coded, data, tmp_path, capsys):
    stages = ["exact", "codes-8", "codes", "codes-64"]  # The last two are the same here
    arguments = ["--k", "3", "7", "--token-dtypes", "float16", "--out", str(tmp_path)]
    edje.main(["tune", str(coded), "--data", data, *arguments, "--first-stages", *stages])
    choices = json.loads((tmp_path / "tune.json").read_text())["choices"]
    assert [(c["k"], c["first_stage"]) for c in choices] == [
        (k, label) for k in (3, 7) for label in ("exact", "codes-8", "codes-64")
    ]
    width = Reranker.from_pretrained(coded).config.backbone.text.projection_size
    assert [c["first_stage_bytes"] for c in choices[:3]] == [4 * width, 1, 8]
    # Reranking takes as long whoever found the candidates.
    assert len({c["pairs_per_second"] for c in choices}) == 2
    for choice in choices:
        protocol = Protocol(k=choice["k"], first_stage=StageChoice.named(choice["first_stage"]))
        expected = evaluate_model(str(coded), data, protocol)
        for key in ("t2i", "i2t"):
            assert choice[key] == pytest.approx(expected[key]["reranked"]["R@1"], abs=2.0)
    assert len({(c["t2i"], c["i2t"]) for c in choices[:3]}) > 1
    out = capsys.readouterr().out
    assert "first stage" in out and "codes-64" in out and "+ stage" in out


def test_a_model_without_codes_is_told_before_the_work(trained, coded, data):
    arguments = ["--data", data, "--first-stages", "exact", "codes-8"]
    told = "first stage codes-8: the model has no codes; train heads for it with edje train first_s"
    with pytest.raises(UsageError, match=f"^{re.escape(str(trained))}: {told}"):
        edje.main(["tune", str(coded), str(trained), *arguments])
    with pytest.raises(UsageError, match="codes-32: the model's codes have 8, 64 bits"):
        edje.main(["tune", str(coded), "--data", data, "--first-stages", "codes-32"])


@pytest.mark.parametrize("label", ["fast", "codes-", "codes-x"])
def test_a_first_stage_that_there_is_not_is_bad_usage(trained, data, label):
    with pytest.raises(UsageError, match=f"--first-stages: no first stage called '{label}'; there"):
        edje.main(["tune", str(trained), "--data", data, "--first-stages", label])


def test_a_model_that_fails_loses_nothing_before_it(trained, data, tmp_path, capsys, caplog):
    broken = shutil.copytree(trained / "model", tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    arguments = ["--k", "5", "100", "--token-dtypes", "int8", "--out", str(tmp_path / "out")]
    with pytest.raises(BadWeights, match="broken"):
        edje.main(["tune", str(trained), str(broken), "--data", data, *arguments])
    choices = json.loads((tmp_path / "out" / "tune.json").read_text())["choices"]
    # There is no deeper than all images, nor is it timed.
    assert [choice["k"] for choice in choices] == [5, 30]
    assert "--k 100: all of the 30 images are reranked" in caplog.text
    assert "* on the front" in " ".join(capsys.readouterr().out.split())


def test_nothing_to_measure(data):
    with pytest.raises(UsageError, match="at least one model"):
        edje.main(["tune", "--data", data])


def test_a_model_that_is_not_there_is_told_before_the_work(trained, data, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        edje.main(["tune", str(trained), str(tmp_path / "nowhere"), "--data", data])


def test_depths_start_at_one(trained, data):
    with pytest.raises(UsageError, match="--k 0 5: give depths from 1 on"):
        edje.main(["tune", str(trained), "--data", data, "--k", "0", "5"])


# --- calibration ----------------------------------------------------------------------------------


def ranking(runtime, encoded, progress=None):
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
        patch.setattr(tuning, "pair_scorer", ranking)
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


def test_the_model_card_says_that_scores_are_calibrated(tuned, trained):
    before, after = (folder / "model" / "README.md" for folder in (trained, tuned))
    run = read_run(trained / "config.json")
    assert before.read_text("utf-8") == model_card(load_model(str(trained)), run)
    assert after.read_text("utf-8") == model_card(load_model(str(tuned / "model")), run)
    assert "Scores are calibrated" in after.read_text("utf-8")


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
