"""Files of tensors: what is damaged, missing or hostile is refused with its name."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edje_jax.weights.backbone import read_backbone_config
from edje_jax.weights.bert import load_language_model
from edje_jax.weights.files import (
    BadWeights,
    open_weights,
    read_json,
    read_torch,
    write_json,
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


# --- refused --------------------------------------------------------------------------------------


def test_an_empty_folder(tmp_path):
    with pytest.raises(
        BadWeights,
        match=rf"{tmp_path}: no weights here; looked for model\.safetensors and pytorch_model\.bin",
    ):
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
    with pytest.raises(BadWeights, match=r"pytorch_model-00001-of-00002\.bin: no such file"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    "index, message",
    [
        ("{", r"not valid JSON \(.*\); fetch or write it again"),
        ("\ufeff", "not valid JSON"),
        ("[1]", r"expected a JSON object, got \[1\]"),
        ("{}", 'has no "weight_map" of shards; fetch the model again'),
    ],
)
def test_an_index_that_is_none(index, message, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BadWeights, match=rf"model\.safetensors\.index\.json: {message}"):
        open_weights(tmp_path)


def test_bytes_that_are_no_text_are_not_json(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(BadWeights, match=r"config\.json: not valid JSON"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("read", [read_backbone_config, lambda folder: load_language_model(folder)])
def test_a_config_that_is_not_json(read, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(BadWeights, match=r"config\.json: not valid JSON"):
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


@pytest.mark.parametrize("value, kind", [(torch.ones(2), "Tensor"), ([torch.ones(2)], "list")])
def test_a_torch_file_that_is_no_state_dict(value, kind, tmp_path):
    torch.save(value, tmp_path / "a.pth")
    with pytest.raises(BadWeights, match=rf"a\.pth: holds a {kind}, not tensors by name"):
        read_torch(tmp_path / "a.pth")


def test_a_torch_file_that_is_not_there(tmp_path):
    with pytest.raises(BadWeights, match=r"a\.pth: no such file"):
        read_torch(tmp_path / "a.pth")
