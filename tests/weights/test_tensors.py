"""Files of tensors: what is damaged, missing or hostile is refused with its name.

Covers weights/other_formats.py and weights/torch_states.py.
"""

import argparse
import errno
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edje_jax.system.files import BadJson, write_json
from edje_jax.weights.backbone import read_backbone_config
from edje_jax.weights.bert import load_language_model
from edje_jax.weights.tensors import (
    BadWeights,
    open_weights,
    read_torch,
    weight_files,
    write_safetensors,
)

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.tensor([1.5, -2.0])}


def assert_equal(tensors, expected: dict[str, torch.Tensor] = TENSORS) -> None:
    assert set(tensors) == set(expected) and len(tensors) == len(expected)
    for name, value in expected.items():
        assert name in tensors
        np.testing.assert_array_equal(tensors[name], value.float().numpy())


def write_sharded(folder: Path) -> None:
    for i, (name, value) in enumerate(TENSORS.items(), start=1):
        save_file({name: value}, folder / f"model-0000{i}-of-00002.safetensors")
    where = {name: f"model-0000{i}-of-00002.safetensors" for i, name in enumerate(TENSORS, start=1)}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})


def write_sharded_torch(folder: Path) -> None:
    for i, (name, value) in enumerate(TENSORS.items(), start=1):
        torch.save({name: value}, folder / f"pytorch_model-0000{i}-of-00002.bin")
    where = {name: f"pytorch_model-0000{i}-of-00002.bin" for i, name in enumerate(TENSORS, start=1)}
    write_json(folder / "pytorch_model.bin.index.json", {"weight_map": where})


FORMS = {
    "safetensors": lambda folder: save_file(TENSORS, folder / "model.safetensors"),
    "sharded safetensors": write_sharded,
    "bin": lambda folder: torch.save(TENSORS, folder / "pytorch_model.bin"),
    "sharded bin": write_sharded_torch,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_folder_gives_the_same_tensors(form, tmp_path):
    FORMS[form](tmp_path)
    assert_equal(open_weights(tmp_path))
    assert "d" not in open_weights(str(tmp_path))


def test_safetensors_go_before_a_bin(tmp_path):
    FORMS["safetensors"](tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    assert_equal(open_weights(tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_keep_their_values(dtype, tmp_path):
    other = {name: value.to(dtype) for name, value in TENSORS.items()}
    save_file(other, tmp_path / "model.safetensors")
    read = open_weights(tmp_path)
    assert_equal({name: np.asarray(read[name], np.float32) for name in read})
    torch.save({**other, "steps": torch.tensor(3)}, tmp_path / "a.bin")
    from_torch = read_torch(tmp_path / "a.bin")
    assert from_torch["a"].dtype == np.float32 and from_torch.pop("steps") == 3
    assert_equal(from_torch)


def test_a_torch_file_is_unwrapped_and_what_is_no_tensor_left_out(tmp_path):
    torch.save({"model": {**TENSORS, "note": "x"}, "config": {"k": 1}}, tmp_path / "a.pth")
    assert_equal(read_torch(tmp_path / "a.pth"))


def test_what_is_written_is_whole_and_readable_by_torch(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {name: value.numpy() for name, value in TENSORS.items()})
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert_equal(open_weights(tmp_path))
    # transformers refuses a file that does not say so.
    header = path.read_bytes()
    assert json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"] == {
        "format": "pt"
    }


# --- what trainers wrap around a model ------------------------------------------------------------


def renamed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in TENSORS.items()}


WRAPPED = {
    "DDP": {"model": renamed("module.")},
    "torch.compile": {"model": renamed("_orig_mod.")},
    "both": {"model": renamed("_orig_mod.module.")},
    "compiled inside": {"model": {"a": TENSORS["a"], "b._orig_mod.c": TENSORS["b.c"]}},
    "FSDP": {"model": renamed("_fsdp_wrapped_module.")},
    "bare": renamed("module."),
    "state_dict": {"state_dict": TENSORS, "epoch": 3},
    "model_state_dict": {"model_state_dict": TENSORS, "optimizer": {"state": {0: torch.ones(2)}}},
    "DeepSpeed": {"module": TENSORS, "dp_world_size": 8},
    "Lightning": {"state_dict": renamed("model."), "pytorch-lightning_version": "2.5"},
    "nested": {"model": {"state_dict": renamed("model._orig_mod.module.")}},
    "averaged": {"ema": TENSORS, "optimizer": {"state": {0: torch.ones(2)}}},
    "AveragedModel": {"model_ema": {"n_averaged": torch.tensor(5)} | renamed("module.")},
    "checkpoint": {"checkpoint": {"model": TENSORS}},
    "settings called model": {"model": {"width": 7}, "params": {}, "state_dict": TENSORS},
    "numbers for names": {"model": {0: torch.ones(2), **TENSORS}},
    "parameters": {"model": {name: torch.nn.Parameter(v) for name, v in TENSORS.items()}},
}


@pytest.mark.parametrize("trainer", WRAPPED)
def test_tensors_have_the_names_that_they_had_before_a_trainer_wrapped_them(trainer, tmp_path):
    torch.save(WRAPPED[trainer], tmp_path / "a.pth")
    assert_equal(read_torch(tmp_path / "a.pth"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "_orig_mod.module."])
def test_safetensors_are_unwrapped_too(prefix, tmp_path):
    """As accelerate saves a compiled model."""
    save_file(renamed(prefix), tmp_path / "model.safetensors")
    assert_equal(open_weights(tmp_path))
    twice = {prefix + "a": torch.ones(2), "a": torch.zeros(2)}
    save_file(twice, tmp_path / "model.safetensors")
    with pytest.raises(
        BadWeights, match=r"model\.safetensors: holds a twice; save one model alone"
    ):
        open_weights(tmp_path)


def test_two_models_under_one_name_are_refused(tmp_path):
    torch.save({"model": TENSORS | renamed("module.")}, tmp_path / "a.pth")
    with pytest.raises(BadWeights, match=r"a\.pth: holds a twice, once wrapped; save one model al"):
        read_torch(tmp_path / "a.pth")


# --- several sets of weights in one folder --------------------------------------------------------

OTHERS = {name: value + 1 for name, value in TENSORS.items()}
STALE = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}


@pytest.mark.parametrize("index", [json.dumps(STALE), "not JSON"])
def test_an_index_beside_a_whole_file_is_passed_over_and_told(index, tmp_path, caplog):
    FORMS["safetensors"](tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    assert_equal(open_weights(tmp_path))
    assert (
        f"{tmp_path / 'model.safetensors.index.json'}: passed over, as the whole model.safetensors"
        " lies beside it" in caplog.text
    )


def test_shards_come_with_their_index(tmp_path, caplog):
    write_sharded(tmp_path)
    torch.save(OTHERS, tmp_path / "pytorch_model.bin")
    names = [path.name for path in weight_files(tmp_path)]
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert names == ["model.safetensors.index.json", *shards]
    assert_equal(open_weights(tmp_path))
    assert not caplog.text


def test_a_set_that_lacks_a_shard_gives_way_to_one_that_is_whole(tmp_path, caplog):
    write_sharded(tmp_path)
    missing = tmp_path / "model-00002-of-00002.safetensors"
    missing.unlink()
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    assert_equal(open_weights(tmp_path))
    assert f"{missing}: this shard is missing; fetch the model again" in caplog.text
    assert "pytorch_model.bin is read instead" in caplog.text


@pytest.mark.parametrize("index", ["not JSON", "[1]", "{}", '{"weight_map": {"a": "../b"}}'])
def test_an_index_that_cannot_be_read_gives_way_to_weights_that_can(index, tmp_path, caplog):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index)
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    assert_equal(open_weights(tmp_path))
    assert f"{path}: " in caplog.text and "pytorch_model.bin is read instead" in caplog.text
    # Alone, or beside another that cannot be read, it is the fault that is told.
    (tmp_path / "pytorch_model.bin").unlink()
    (tmp_path / "pytorch_model.bin.index.json").write_text("not JSON either")
    with pytest.raises((BadJson, BadWeights), match=r"model\.safetensors\.index\.json: "):
        open_weights(tmp_path)


# --- file systems that refuse ---------------------------------------------------------------------


@pytest.mark.parametrize("call", ["chmod", "chown", "utime", "link", "fsync"])
def test_a_file_is_written_where_modes_and_owners_cannot_be_set(call, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, call, refuse)
    write_safetensors(tmp_path / "model.safetensors", {"a": np.ones(2, np.float32)})
    write_json(tmp_path / "config.json", {"k": 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    np.testing.assert_array_equal(open_weights(tmp_path)["a"], [1, 1])


# --- refused --------------------------------------------------------------------------------------


def test_an_empty_folder(tmp_path):
    with pytest.raises(
        BadWeights,
        match=rf"{tmp_path}: no weights here; looked for model\.safetensors and pytorch_model\.bin",
    ):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    "name, message",
    [
        ("open_clip_model.safetensors", r"in open_clip's \(OpenCLIP's\) format: take the transfor"),
        ("open_clip_pytorch_model.bin", r"in open_clip's \(OpenCLIP's\) format: take the transfor"),
        ("siglip_l.npz", "in big_vision's format: take the transformers version of the same weig"),
        ("tf_model.h5", "in TensorFlow's format: open it with a transformers older than 5, and s"),
        ("flax_model.msgpack", "in Flax's format: open it with a transformers older than 5"),
        ("adapter_model.safetensors", "a LoRA adapter: merge it into its model"),
        ("weights.safetensors", "not called so: call it model.safetensors if it is the whole mod"),
        ("ViT-L-14.pt", "a single file of PyTorch: take the transformers version"),
    ],
)
def test_weights_of_another_library_are_told_apart(name, message, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(BadWeights, match=rf"no weights here; looked for .* \({name} is {message}"):
        open_weights(tmp_path)
    for read in (read_backbone_config, load_language_model):
        with pytest.raises(
            FileNotFoundError, match=rf"config\.json: missing; .*{name} is {message}"
        ):
            read(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs(name, tmp_path):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9")
    with pytest.raises(BadWeights, match=rf"{name}: a pointer of Git LFS, .*; run git lfs pull"):
        open_weights(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_truncated_safetensors(keep, tmp_path):
    FORMS["safetensors"](tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        BadWeights, match=r"model\.safetensors: damaged or truncated \(.*\); fetch or export it ag"
    ):
        open_weights(tmp_path)


@pytest.mark.parametrize("keep", [0, 40, -200])
def test_truncated_torch_file(keep, tmp_path):
    FORMS["bin"](tmp_path)
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadWeights, match=r"pytorch_model\.bin: damaged, or not a plain file of te"):
        open_weights(tmp_path)


def test_a_page_of_html_in_place_of_weights(tmp_path):
    (tmp_path / "model.safetensors").write_text("<html>404 Not Found</html>")
    with pytest.raises(BadWeights, match=r"model\.safetensors: damaged or truncated"):
        open_weights(tmp_path)


def test_a_missing_shard(tmp_path):
    write_sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        BadWeights, match=r"model-00002-of-00002\.safetensors: this shard is missing; fetch the mo"
    ):
        open_weights(tmp_path)


def test_a_missing_torch_shard(tmp_path):
    write_sharded_torch(tmp_path)
    (tmp_path / "pytorch_model-00001-of-00002.bin").unlink()
    with pytest.raises(BadWeights, match=r"pytorch_model-00001-of-00002\.bin: this shard is miss"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    "index, message",
    [
        ("{", r"not valid JSON \(.*\); fetch or write it again"),
        ("\ufeff", "not valid JSON"),
        ("[1]", r"expected a JSON object, got \[1\]"),
        ("{}", 'has no "weight_map" of shards; fetch the model again'),
        (
            '{"weight_map": {"a": "../b.safetensors"}}',
            "'../b.safetensors' is no name of a shard; f",
        ),
        ('{"weight_map": {"a": 1}}', "1 is no name of a shard; fetch the model again"),
    ],
)
def test_an_index_that_is_none(index, message, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises((BadJson, BadWeights), match=rf"model\.safetensors\.index\.json: {message}"):
        open_weights(tmp_path)


@pytest.mark.parametrize("read", [read_backbone_config, lambda folder: load_language_model(folder)])
def test_a_config_that_is_not_json(read, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(BadJson, match=r"config\.json: not valid JSON"):
        read(tmp_path)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def write_pickle(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))


@pytest.mark.parametrize("write", [torch.save, write_pickle])
def test_a_pickle_that_wants_to_run_code_is_refused_and_runs_none(write, tmp_path):
    target, path = tmp_path / "it-ran", tmp_path / "pytorch_model.bin"
    write({**TENSORS, "x": Bomb(target)}, path)
    with pytest.raises(
        BadWeights,
        match=r"pytorch_model\.bin: .*not a plain file of tensors; nothing in it was run",
    ):
        open_weights(tmp_path)
    assert not target.exists()
    # The bomb is live: a plain load would have set it off.
    torch.load(path, weights_only=False) if write is torch.save else pickle.loads(path.read_bytes())
    assert target.exists()


@pytest.mark.parametrize(
    "extra, named",
    [
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (np.float64(0.5), "numpy"),
        (Path("runs"), "pathlib"),
    ],
)
def test_what_is_no_tensor_is_named_with_a_remedy_of_our_own(extra, named, tmp_path):
    torch.save({"model": TENSORS, "args": extra}, tmp_path / "a.pth")
    with pytest.raises(BadWeights) as caught:
        read_torch(tmp_path / "a.pth")
    message = str(caught.value)
    assert re.search(
        rf"nothing in it was run \(it holds {named}\S*, which is no tensor; save ", message
    )
    assert message.isprintable() and "weights_only" not in message


@pytest.mark.filterwarnings("ignore")  # PyTorch's, of TorchScript's age
def test_a_torchscript_archive(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "ViT-B-32.pt")
    with pytest.raises(BadWeights, match="it is a TorchScript archive; save the weights alone, as"):
        read_torch(tmp_path / "ViT-B-32.pt")


@pytest.mark.parametrize("value, kind", [(torch.ones(2), "Tensor"), ([torch.ones(2)], "list")])
def test_a_torch_file_that_is_no_state_dict(value, kind, tmp_path):
    torch.save(value, tmp_path / "a.pth")
    with pytest.raises(BadWeights, match=rf"a\.pth: holds a {kind}, not tensors by name"):
        read_torch(tmp_path / "a.pth")


def test_a_torch_file_without_weights(tmp_path):
    torch.save({"optimizer": {"state": {0: {"m": torch.ones(2)}}}, "epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(BadWeights, match=r"holds no tensors by name, but optimizer, epoch; save"):
        read_torch(tmp_path / "a.pth")


def test_a_sparse_tensor_is_named(tmp_path):
    torch.save(TENSORS | {"module.c": torch.eye(3).to_sparse()}, tmp_path / "a.pth")
    with pytest.raises(BadWeights, match=r"a\.pth: c is sparse or quantized; save plain tensors"):
        read_torch(tmp_path / "a.pth")


def test_a_torch_file_that_is_not_there(tmp_path):
    with pytest.raises(BadWeights, match=r"a\.pth: no such file"):
        read_torch(tmp_path / "a.pth")
