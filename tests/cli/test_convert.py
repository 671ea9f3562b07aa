"""`edje convert` between every two kinds of checkpoint, and what it refuses.

Covers cli/commands/models.py.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edje_jax.cli.convert import convert
from edje_jax.cli.edje import main
from edje_jax.cli.program import UsageError
from edje_jax.config.model import EdjeConfig
from edje_jax.config.run import BackboneRun
from edje_jax.config.saved_run import run_to_dict
from edje_jax.search.reranker import Reranker
from edje_jax.system.files import write_json
from edje_jax.training.checkpoint import CheckpointError
from edje_jax.weights.folder import load_model
from edje_jax.weights.mapping import WeightMismatch
from edje_jax.weights.tensors import BadWeights

TINY = Path(__file__).parents[1] / "goldens" / "reference_tiny"
FOLDERS = ("--backbone", str(TINY / "siglip"), "--language-model", str(TINY / "bert"))


def published(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


@pytest.mark.parametrize("kind", ["local", "compressed"])
def test_there_and_back_every_tensor_is_bit_identical(kind, tmp_path):
    source, folder, back = TINY / f"{kind}.pth", tmp_path / "model", tmp_path / "back.pth"
    main(["convert", str(source), str(folder), "--to", "edje", *FOLDERS])
    main(["convert", str(folder), str(back), "--to", "published"])
    before, after = published(source), published(back)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name


@pytest.mark.parametrize("kind", ["local", "compressed"])
@pytest.mark.parametrize("style", ["old names", "no towers", "vision tower only", "bfloat16"])
def test_checkpoints_of_every_age(kind, style, tmp_path):
    """All of them give the same logits."""
    tensors = published(TINY / f"{kind}.pth")
    old, changed = "vision_encoder.", {}
    for name, tensor in tensors.items():
        if style == "no towers" and name.startswith((old, "clip.")):
            continue
        if style == "vision tower only" and name.startswith("clip."):
            continue
        if style == "old names" and name.startswith(old):
            name = old + "vision_model." + name.removeprefix(old)
        changed[name] = tensor.bfloat16() if style == "bfloat16" else tensor
    torch.save({"model": changed, "config": {"num_compressed_tokens": 6}}, tmp_path / "x.pth")
    convert(str(tmp_path / "x.pth"), str(tmp_path / "model"), "edje", FOLDERS[1], FOLDERS[3])
    convert(str(TINY / f"{kind}.pth"), str(tmp_path / "new"), "edje", FOLDERS[1], FOLDERS[3])
    ours, expected = (logits(tmp_path / name) for name in ("model", "new"))
    # 8 bits of mantissa, through weights that amplify.
    np.testing.assert_allclose(ours, expected, atol=0.3 if style == "bfloat16" else 1e-6)


def logits(folder: Path) -> np.ndarray:
    reranker = Reranker.from_pretrained(folder)
    pixels = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    side = reranker.config.image.size
    tokens = reranker.encode_images(pixel_values=pixels[:, :side, :side])
    return reranker.score_matrix(["a dog", "two cats on a mat"], tokens)


def test_the_checkpoint_s_own_config_names_the_folders(tmp_path):
    whole = torch.load(TINY / "local.pth", weights_only=True)
    stated = {"siglip_path": FOLDERS[1], "language_model_path": FOLDERS[3]}
    torch.save({**whole, "config": stated}, tmp_path / "local.pth")
    convert(str(tmp_path / "local.pth"), str(tmp_path / "model"), "edje")
    assert (tmp_path / "model" / "modeling_edje.py").exists()
    with pytest.raises(BadWeights, match="which model its language_model_path was"):
        convert(str(TINY / "local.pth"), str(tmp_path / "other"), "edje")


def test_a_training_checkpoint_is_the_model_that_the_run_exported(trained, tmp_path):
    # Neither the set nor the model folder of the run is needed.
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir, ignore=shutil.ignore_patterns("model"))
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["train"] = "blip:/nowhere.json"
    (workdir / "config.json").write_text(json.dumps(config))
    newest = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    for source in (workdir, workdir / "checkpoints" / str(newest)):
        out = tmp_path / f"from-{source.name}"
        convert(str(source), str(out), "edje")
        ours, theirs = (load_file(f / "model.safetensors") for f in (out, trained / "model"))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_keeps_the_rows_of_positions_that_it_has(trained, tmp_path, monkeypatch):
    """As one of an earlier version, which lengthened no table."""
    rows = load_model(str(trained)).config.joint_encoder.max_position_embeddings
    monkeypatch.setattr(EdjeConfig, "num_positions", property(lambda config: rows + 10))
    convert(str(trained), str(tmp_path / "model"), "edje")
    model = load_model(str(tmp_path / "model"))
    assert model.config.joint_encoder.max_position_embeddings == rows
    table = model.params["joint_encoder"]["embeddings"]["position"]["embedding"]
    assert len(table) == rows


def test_what_it_refuses(trained, tmp_path):
    model = str(trained / "model")
    with pytest.raises(UsageError, match="is there already"):
        convert(model, str(tmp_path), "published")
    with pytest.raises(UsageError, match=r"x: a published checkpoint is one file; .* NAME\.pth"):
        convert(model, str(tmp_path / "x"), "published")
    with pytest.raises(UsageError, match=r"--backbone and --language-model are for published"):
        convert(model, str(tmp_path / "x"), "edje", backbone="somewhere")
    with pytest.raises(FileNotFoundError, match="nowhere: the model: no such folder"):
        convert("./nowhere", str(tmp_path / "x"), "edje")
    (tmp_path / "backbone" / "checkpoints" / "4").mkdir(parents=True)
    write_json(tmp_path / "backbone" / "config.json", run_to_dict(BackboneRun()))
    for source in ("backbone", "backbone/checkpoints/4"):
        with pytest.raises(CheckpointError, match=r'"backbone".*; its model is .*e/model, wri'):
            convert(str(tmp_path / source), str(tmp_path / "x"), "edje")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="holds no checkpoint yet"):
        convert(str(tmp_path / "empty"), str(tmp_path / "x"), "edje")
    assert not (tmp_path / "x").exists()


def test_a_checkpoint_of_another_shape_is_listed(tmp_path):
    tensors = published(TINY / "local.pth")
    tensors["text_projection.bias"] = torch.zeros(3)
    tensors["surprise"] = torch.zeros(1)
    torch.save({"model": tensors}, tmp_path / "odd.pth")
    with pytest.raises(WeightMismatch, match=r"surprise\n.*text_projection\.bias gives \(3,\)"):
        convert(str(tmp_path / "odd.pth"), str(tmp_path / "x"), "edje", FOLDERS[1], FOLDERS[3])


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["convert", "--help"])
    assert stop.value.code == 0 and "edje convert model/ onnx/ --to onnx" in capsys.readouterr().out
