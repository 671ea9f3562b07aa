"""Tensors on disk -> numpy arrays, one at a time, never through a pickle that could run code."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file


class BadWeights(ValueError):
    """A weights file is missing, damaged or of a refused kind; the message names it."""


def open_weights(folder: str | os.PathLike[str]) -> Mapping[str, np.ndarray]:
    """The tensors of a model folder: safetensors, its sharded form, or `pytorch_model.bin`.

    Raises:
        BadWeights: nothing there, a shard is missing, or a file is damaged.
    """
    folder = Path(folder)
    if (index := folder / "model.safetensors.index.json").exists():
        shards = sorted(set(_read_json(index)["weight_map"].values()))
        return Safetensors([folder / shard for shard in shards])
    if (single := folder / "model.safetensors").exists():
        return Safetensors([single])
    if (index := folder / "pytorch_model.bin.index.json").exists():
        shards = sorted(set(_read_json(index)["weight_map"].values()))
        return {k: v for shard in shards for k, v in read_torch(folder / shard).items()}
    if (single := folder / "pytorch_model.bin").exists():
        return read_torch(single)
    raise BadWeights(
        f"{folder}: no weights here; looked for model.safetensors and pytorch_model.bin,"
        " whole or sharded"
    )


class Safetensors(Mapping[str, np.ndarray]):
    """Tensors of one or more safetensors files, read when asked for."""

    def __init__(self, paths: list[Path]):
        self._files, self._where = [], {}
        for path in paths:
            if not path.exists():
                raise BadWeights(f"{path}: this shard is missing; fetch the model again")
            try:
                file = safe_open(str(path), framework="numpy")
            except (SafetensorError, OSError) as error:
                raise BadWeights(
                    f"{path}: damaged or truncated ({error}); fetch or export it again"
                ) from error
            self._files.append(file)
            self._where.update(dict.fromkeys(file.keys(), file))

    def __getitem__(self, name: str) -> np.ndarray:
        return self._where[name].get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """A torch file of tensors, opened with `weights_only=True`; {"model": ...} is unwrapped.

    Raises:
        BadWeights: torch is not installed, or the file is damaged or holds more than tensors.
    """
    try:
        import torch
    except ImportError as error:
        raise BadWeights(
            f"{path}: reading this needs PyTorch; pip install 'edje-jax[torch]'"
        ) from error
    if not path.exists():
        raise BadWeights(f"{path}: no such file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BadWeights(
            f"{path}: damaged, or not a plain file of tensors; nothing in it was run"
            f" ({str(error).splitlines()[0]})"
        ) from error
    loaded = loaded.get("model", loaded)
    return {
        name: (value.float() if value.is_floating_point() else value).numpy()
        for name, value in loaded.items()
        if isinstance(value, torch.Tensor)
    }


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write through a temporary name, so that a file with this name is always whole."""
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, str(temporary), metadata={"format": "pt"})
    os.replace(temporary, path)


def write_json(path: Path, value: object) -> None:
    """Pretty JSON through a temporary name."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def _read_json(path: Path):
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise BadWeights(f"{path}: not valid JSON ({error})") from error
