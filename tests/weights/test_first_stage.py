"""Heads of the first stage in a model folder: they come back, and those of another are refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from edje_jax.config.first_stage import FirstStageConfig
from edje_jax.weights.first_stage import WEIGHTS, backbone_stamp, rules
from edje_jax.weights.folder import load_model
from edje_jax.weights.mapping import WeightMismatch
from edje_jax.weights.tensors import BadWeights, Safetensors
from tests.small_runs import save_with_heads


@pytest.fixture(scope="module", params=[0, 4], ids=["linear", "hidden layer"])
def folder(trained, request, tmp_path_factory) -> Path:
    """A model folder with heads of random weights."""
    stage = FirstStageConfig((8, 64), request.param, reads_tokens=bool(request.param))
    return save_with_heads(trained, stage, tmp_path_factory.mktemp("models") / "heads")


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_heads_come_back_and_published_tensors_stay_what_they_are(folder, trained):
    model, plain = load_model(str(folder)), load_model(str(trained))
    assert model.config.first_stage.code_lengths == (8, 64)
    assert json.loads((folder / "config.json").read_text())["format"] == 5
    own, theirs = (
        Safetensors([path / "model.safetensors"]) for path in (folder, trained / "model")
    )
    assert set(own) == set(theirs)
    assert all(np.array_equal(own[name], theirs[name]) for name in own)
    kernel = np.asarray(model.heads["image"]["code"]["out"]["kernel"])
    stored = Safetensors([folder / WEIGHTS])["image.code.out.weight"]
    np.testing.assert_array_equal(stored, kernel.T)
    assert kernel.shape[1] == 64 and plain.heads is None


def test_a_folder_without_heads_is_written_as_before(trained):
    config = json.loads((trained / "model" / "config.json").read_text())
    assert config["format"] == 1 and "first_stage" not in config
    assert not (trained / "model" / WEIGHTS).exists()


def test_heads_of_another_backbone_are_refused(folder, tmp_path):
    other = copied(folder, tmp_path / "other")
    path = other / "backbone" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-400:] = bytes(400)  # Other weights of the same shapes
    path.write_bytes(raw)
    with pytest.raises(BadWeights, match=f"{re.escape(str(other / WEIGHTS))}.*another backbone"):
        load_model(str(other))


def test_a_missing_or_misshapen_file_is_named(folder, tmp_path):
    lacking = copied(folder, tmp_path / "lacking")
    (lacking / WEIGHTS).unlink()
    with pytest.raises(BadWeights, match=f"{re.escape(str(lacking / WEIGHTS))}: missing"):
        load_model(str(lacking))
    longer = copied(folder, tmp_path / "longer")
    raw = json.loads((longer / "config.json").read_text())
    raw["first_stage"]["code_lengths"] = [8, 128]
    (longer / "config.json").write_text(json.dumps(raw))
    with pytest.raises(WeightMismatch, match=r"image\.code\.out\.weight gives"):
        load_model(str(longer))
    raw["first_stage"]["code_lengths"] = [7]
    (longer / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r'"first_stage" of .* multiples of 8'):
        load_model(str(longer))


def test_every_parameter_has_a_rule_without_codes_too():
    for config in (FirstStageConfig(()), FirstStageConfig((8,), 3)):
        names = [rule.theirs for rule in rules(config)]
        assert len(set(names)) == len(names)
        assert any("code" in name for name in names) == bool(config.bits)


def test_a_stamp_does_not_depend_on_the_layout_in_memory():
    values = np.random.default_rng(0).normal(size=(300, 40)).astype(np.float32)
    same = {"a": {"kernel": np.asfortranarray(values)}}
    assert backbone_stamp({"a": {"kernel": values}}) == backbone_stamp(same)
    assert backbone_stamp({"a": {"kernel": values + 1}}) != backbone_stamp(same)
