"""Runs of captioners: as users start them, stopped, on kept features, from other models.

Covers training/captioner_start.py.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

import train
from configs.captioner import config as captioner_config
from configs.debug import config as debug
from edje_jax.config.model import SimilarityPrior
from edje_jax.config.parts import AdapterSpec, CaptionerSpec
from edje_jax.config.run import EdjeRun
from edje_jax.data.feature_cache import OtherFeatures
from edje_jax.scenes.shapes import Shapes
from edje_jax.training.assemble import assemble
from edje_jax.training.load_checkpoint import load_checkpoint
from edje_jax.training.tasks.edje import EdjeTask
from edje_jax.weights.edje import expected_params
from edje_jax.weights.folder import load_model, save_model
from tests.small_runs import TINY, read_log
from tests.training.captioner_runs import COMMAND, STEPS
from tests.training.captioner_runs import captioner as captioner  # a fixture

SIGLIP, BERT = str(TINY / "siglip"), str(TINY / "bert")


def asked(*more: str) -> EdjeRun:
    """The tiny run with other options."""
    return tyro.cli(EdjeRun, default=captioner_config, args=[*COMMAND[1:], *more])


def assembled(tmp_path: Path, *more: str):
    return assemble(asked(*more), Shapes("val"), tmp_path)


def figures(workdir: Path) -> list[dict]:
    """Everything logged but the speed."""
    return [
        {name: value for name, value in line.items() if not name.endswith("_per_second")}
        for line in read_log(workdir)
    ]


# --- a run ----------------------------------------------------------------------------------------


def test_a_run_is_evaluated_on_the_way_and_exported(captioner):
    told = figures(captioner)
    assert [line["step"] for line in told if "loss" in line] == list(range(1, STEPS + 1))
    assert told[-2]["loss/captioning"] < told[0]["loss/captioning"]
    evaluated = [line["step"] for line in told if "val/t2i/R@1" in line]
    assert evaluated == [3, 6]
    model = load_model(str(captioner))
    assert model.config.kind == "captioner" and model.config.captioner.score == "pmi"
    assert model.config.adapter.upsampling == 2 and model.config.num_tokens == 4 * 16
    assert model.config.backbone.earlier_layers == (-2,)
    assert set(model.params) == {"adapter", "captioner"}


def test_a_stopped_run_goes_on_bit_for_bit(captioner, tmp_path):
    run = shutil.copytree(captioner, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / str(STEPS))
    shutil.rmtree(run / "model")
    val = json.loads((captioner / "config.json").read_text())["data"]["val"]
    more = ("--data.val", val, "--eval-every", "3", "--checkpoint-every", "3", "--k", "4")
    assert train.main([*COMMAND, *more, "--workdir", str(run)]) == 0
    assert figures(run) == figures(captioner)
    names = ("model.safetensors", "config.json")
    ours, theirs = (
        [(folder / "model" / name).read_bytes() for name in names] for folder in (run, captioner)
    )
    assert ours == theirs


def test_a_checkpoint_is_the_model(captioner):
    model, _ = load_checkpoint(captioner)
    exported = load_model(str(captioner))
    assert model.config == exported.config
    jax.tree.map(np.testing.assert_array_equal, dict(model.params), dict(exported.params))


def test_kept_features_hold_the_earlier_layers_too(captioner, tmp_path):
    cache = ("--data.cache-features", str(tmp_path / "features"))
    assert train.main([*COMMAND, *cache, "--workdir", str(tmp_path / "kept")]) == 0
    kept, images = (
        [line["loss"] for line in read_log(folder) if "loss" in line]
        for folder in (tmp_path / "kept", captioner)
    )
    np.testing.assert_allclose(kept, images, rtol=2e-5)
    manifest = json.loads((tmp_path / "features" / "manifest.json").read_text())
    assert manifest["stamp"]["vision_tokens"]["earlier_layers"] == [-2]
    table = np.load(tmp_path / "features" / "vision_tokens.npy", mmap_mode="r")
    assert table.shape == (48, 16, 2 * 48)
    with pytest.raises(OtherFeatures, match="earlier_layers"):
        EdjeTask(asked(*cache, "--model.adapter.upsampling", "1"), tmp_path / "plain")


@pytest.mark.extra
def test_an_edje_upsamples_too(tmp_path):
    spec = dataclasses.replace(
        debug.model,
        backbone=SIGLIP,
        adapter=AdapterSpec("local", intermediate_size=32, upsampling=4),
    )
    config = dataclasses.replace(debug, model=spec, precision="float32")
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, data=1))
    task = EdjeTask(config, tmp_path)
    state = task.init()
    before = jax.device_get(state.params["adapter"])
    after, told = task.step(state, task.reader[0][0], 0)
    assert task.model_config.num_tokens == 16 * 16 and np.isfinite(told["loss"])
    moved = flatten_dict(
        jax.tree.map(
            lambda a, b: np.abs(a - b).max(), before, jax.device_get(after.params["adapter"])
        ),
        sep="/",
    )
    assert moved["upsampling/lateral_1/kernel"] > 0 and moved["upsampling/lateral_2/kernel"] > 0


# --- starts ---------------------------------------------------------------------------------------


def test_init_starts_from_all_of_a_captioner(captioner, tmp_path):
    """Kind, score and grid come along where the run says nothing."""
    quiet = dataclasses.replace(
        captioner_config,
        init=str(captioner),
        model=dataclasses.replace(
            captioner_config.model, kind=None, backbone=None, max_text_length=None,
            adapter=AdapterSpec(),
        ),
    )  # fmt: skip
    parts = assemble(quiet, None, tmp_path)
    model = load_model(str(captioner))
    assert parts.config == model.config
    jax.tree.map(np.testing.assert_array_equal, dict(parts.params), dict(model.params))
    stored = dataclasses.replace(
        quiet, model=dataclasses.replace(quiet.model, captioner=CaptionerSpec(score="mean"))
    )
    assert assemble(stored, None, tmp_path).config.captioner.score == "mean"


@pytest.mark.parametrize(
    ("directions", "behind", "fresh"),
    [
        ("forward", "backward, cross_key, cross_value", "none"),
        ("both", "cross_key, cross_value", "none"),
    ],
)
def test_init_leaves_behind_what_another_captioner_has_not(
    directions, behind, fresh, captioner, tmp_path, caplog
):
    more = ("--model.captioner.directions", directions, "--model.captioner.cross-attention")
    parts = assembled(tmp_path, "--init", str(captioner), *more, "stored")
    theirs, ours = (
        flatten_dict(params["captioner"], sep="/")
        for params in (load_model(str(captioner)).params, parts.params)
    )
    assert f"--init {captioner} is another; stay behind: {behind}; start fresh: {fresh}" in (
        caplog.text
    )
    expected = flatten_dict(expected_params(parts.config)["captioner"], sep="/")
    assert ours.keys() == expected.keys() and "forward/layers_0/cross_query/kernel" in ours
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name])


def test_init_says_which_decoders_and_keys_start_fresh(captioner, tmp_path, caplog):
    small = EdjeTask(
        asked("--init", str(captioner), "--model.captioner.directions", "backward",
              "--model.captioner.cross-attention", "stored"), tmp_path / "small"
    )  # fmt: skip
    (tmp_path / "model").mkdir()
    small.export(small.fetch(small.init()), tmp_path / "model")
    caplog.clear()
    more = ("--model.captioner.directions", "both", "--model.captioner.cross-attention")
    task = EdjeTask(asked("--init", str(tmp_path / "model"), *more, "projected"), tmp_path / "big")
    told = "is another; stay behind: none; start fresh: cross_key, cross_value, forward"
    assert told in caplog.text
    theirs, ours = (
        flatten_dict(params["captioner"], sep="/")
        for params in (load_model(str(captioner)).params, task.init().params)
    )
    for name, moved in (("backward/layers_0/query", False), ("forward/layers_0/query", True)):
        assert (np.asarray(ours[f"{name}/kernel"]) != theirs[f"{name}/kernel"]).any() == moved


def test_a_captioner_leaves_the_similarity_prior_of_init_behind(trained, tmp_path, caplog):
    caplog.set_level("INFO")
    model = load_model(str(trained))
    config = dataclasses.replace(model.config, similarity_prior=SimilarityPrior(0.1, 0.2))
    joint = expected_params(config)["joint_encoder"]["similarity_prior"]
    joint = {
        **model.params["joint_encoder"],
        "similarity_prior": jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), joint),
    }
    folder = tmp_path / "model"
    folder.mkdir()
    params = {**model.params, "joint_encoder": joint}
    save_model(folder, dataclasses.replace(model, config=config, params=params), "A card.\n")
    parts = assembled(tmp_path, "--init", str(folder))
    assert parts.config.similarity_prior is None
    assert f"the similarity prior of --init {folder} stays behind" in caplog.text
    assert not any("prior" in path for path in flatten_dict(parts.params, sep="/"))
    with pytest.raises(ValueError, match=r"^--model\.similarity-prior True: a captioner has no"):
        assembled(tmp_path, "--init", str(folder), "--model.similarity-prior", "True")


def test_a_captioner_defers_no_layers_of_init(trained, tmp_path, caplog):
    """A run that asks for some is refused."""
    caplog.set_level("INFO")
    model = load_model(str(trained))
    joint = dataclasses.replace(
        model.config.joint_encoder, deferred_layers=1, online_vision="attended"
    )
    config = dataclasses.replace(model.config, joint_encoder=joint)
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(folder, dataclasses.replace(model, config=config), "A card.\n")
    parts = assembled(tmp_path, "--init", str(folder))
    assert parts.config.joint_encoder.is_published_layout
    assert "layers of the EDJE are not deferred any more" in caplog.text
    with pytest.raises(ValueError, match="a captioner has no deferred layers"):
        assembled(tmp_path, "--init", str(folder), "--model.deferred-layers", "1")


def test_decoders_start_as_an_edje_s_layers(trained, tmp_path):
    """Both directions as copies; what looks at the image is fresh."""
    task = EdjeTask(asked("--init", str(trained)), tmp_path)
    params = flatten_dict(task.init().params["captioner"], sep="/")
    theirs = flatten_dict(load_model(str(trained)).params["joint_encoder"], sep="/")
    for direction in ("forward", "backward"):
        for name in ("query/kernel", "output/kernel", "output_norm/scale"):
            ours = params[f"{direction}/layers_1/{name}"]
            np.testing.assert_array_equal(ours, theirs[f"layers_1/{name}"])
    word = theirs["embeddings/word/embedding"]
    np.testing.assert_array_equal(params["embeddings/word/embedding"], word)
    head = theirs["masked_lm_head/dense/kernel"]
    np.testing.assert_array_equal(params["word_head/dense/kernel"], head)
    assert task.parts.tokenizer == trained / "model"


def test_decoders_start_as_a_language_model(tmp_path):
    parts = assembled(tmp_path, "--model.joint-encoder", BERT)
    tensors = load_file(TINY / "bert" / "model.safetensors")
    query = tensors["bert.encoder.layer.2.attention.self.query.weight"]
    params = flatten_dict(parts.params, sep="/")
    for direction in ("forward", "backward"):
        np.testing.assert_array_equal(
            params[f"captioner/{direction}/layers_2/query/kernel"], query.T
        )
    assert parts.tokenizer == Path(BERT) and parts.config.joint_encoder.num_hidden_layers == 3


def test_a_text_recipe_and_long_captions_are_a_captioner_s_too(tmp_path):
    """A caption's length is all that positions are for."""
    config = assembled(
        tmp_path / "a", "--model.text-recipe", "as_written", "--model.max-text-length", "300"
    ).config
    assert config.text_recipe == "as_written"
    assert config.num_positions == 300 == config.joint_encoder.max_position_embeddings
    with pytest.raises(ValueError, match=r"max_text_length 600: the decoders have 512 positions"):
        assembled(tmp_path / "b", "--model.joint-encoder", BERT, "--model.max-text-length", "600")


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            ("--loss.masked-lm", "1"),
            r"^--loss\.masked-lm 1: a model of the kind captioner has no such loss; set it to 0, or"
            r" train another with --model\.kind edje$",
        ),
        (
            ("--loss.text-recovery", "0.5"),
            r"^--loss\.text-recovery 0\.5: a model of the kind captioner has no such loss",
        ),
        (
            ("--model.kind", "edje"),
            r"^--loss\.captioning 1: a model of the kind edje has no such loss; .* captioner$",
        ),
        (
            ("--loss.unconditional-captioning", "0"),
            r"^--model\.captioner\.score pmi takes away .*; set --loss\.unconditional-captioning",
        ),
        (
            ("--loss.binary-match", "1", "--model.captioner.score", "sum"),
            r"^--loss\.binary-match 1: takes scores for logits of a match, and log-probabilities"
            r" are never above 0; set --model\.captioner\.score to pmi instead of sum, or the",
        ),
        (
            ("--model.kind", "edje", "--model.captioner.score", "sum"),
            r"^--model\.captioner: this run trains a model of the kind \"edje\"; add --model\.kind",
        ),
        (("--model.deferred-layers", "1"), r"deferred"),
        (
            ("--model.similarity-prior", "True"),
            r"^--model\.similarity-prior True: a captioner has no match head for it; leave it out$",
        ),
    ],
)  # fmt: skip
def test_what_a_captioner_has_not_is_refused_in_one_line(more, told, tmp_path):
    with pytest.raises(ValueError, match=told) as caught:
        assembled(tmp_path, *more)
    assert "\n" not in str(caught.value)


def test_a_joint_encoder_does_not_start_from_a_captioner(captioner, tmp_path):
    told = rf"^--init {captioner}: a captioner, whose decoders no joint encoder can start from"
    with pytest.raises(ValueError, match=told):
        assembled(tmp_path, "--init", str(captioner), "--model.kind", "edje")
