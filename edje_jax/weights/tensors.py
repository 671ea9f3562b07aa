"""Tensors on disk -> numpy arrays, one at a time, never through a pickle that could run code."""

import json
import logging
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from edje_jax.system.files import BadJson, atomic_path, read_json
from edje_jax.weights.other_formats import other_format
from edje_jax.weights.torch_states import refusal, unwrapped, wrappings

log = logging.getLogger(__name__)


class BadWeights(ValueError):
    """A weights file is missing, damaged or of a refused kind; the message names it."""


def open_weights(folder: str | os.PathLike[str]) -> Mapping[str, np.ndarray]:
    """The tensors of a model folder: safetensors, its sharded form, or `pytorch_model.bin`.

    Raises:
        BadWeights: nothing there, a shard is missing, or a file is damaged.
        BadJson: there is nothing but an index that cannot be read.
    """
    paths = [path for path in weight_files(Path(folder)) if path.suffix != ".json"]
    if paths[0].suffix == ".safetensors":
        return Safetensors(paths)
    return {name: value for path in paths for name, value in read_torch(path).items()}


def weight_files(folder: Path) -> list[Path]:
    """The files of the one set of weights that a folder is read from.

    `model.safetensors` goes before `pytorch_model.bin`, and a whole file before shards, as in
    transformers. Shards come behind their index. Weights that lack a shard, and an index that
    cannot be read or is of no use, are passed over and named in a log line.

    Raises:
        BadWeights, BadJson: there are no weights, or none that are complete.
    """
    faults: list[ValueError] = []
    for name in ("model.safetensors", "pytorch_model.bin"):
        whole, index = folder / name, folder / f"{name}.index.json"
        if not (whole.exists() or index.exists()):
            continue
        try:
            paths = [whole] if whole.exists() else [index, *_shards(index)]
        except (BadWeights, BadJson) as fault:
            faults.append(fault)
            continue
        for fault in faults:
            log.warning("%s; %s is read instead", fault, paths[0].name)
        if whole.exists() and index.exists():
            log.warning("%s: passed over, as the whole %s lies beside it", index, name)
        return paths
    if faults:
        raise faults[0]
    raise BadWeights(
        f"{folder}: no weights here; looked for model.safetensors and pytorch_model.bin, whole or"
        f" sharded{other_format(folder)}"
    )


class Safetensors(Mapping[str, np.ndarray]):
    """Tensors of one or more safetensors files as read-only views of the mapped files.

    Nothing is read before it is used, and what is read is the page cache's: no copy in this
    process's own memory. Names are those that the tensors had before a model was wrapped for
    training; `as_stored` says whether the files have the same.

    Raises:
        BadWeights: a file is damaged, or holds two tensors of one name.
    """

    def __init__(self, paths: list[Path]):
        self._where: dict[str, tuple[np.memmap, dict[str, Any]]] = {}
        self.as_stored = True
        for path in paths:
            for stored, entry in _entries(path).items():
                name = unwrapped(stored)
                if name in self._where:
                    raise BadWeights(f"{path}: holds {name} twice; save one model alone")
                self._where[name] = entry
                self.as_stored &= name == stored

    def __getitem__(self, name: str) -> np.ndarray:
        mapped, entry = self._where[name]
        start, end = entry["data_offsets"]
        # One dtype that NumPy does not know is common: bfloat16.
        dtype = jnp.dtype(_DTYPES[entry["dtype"]])
        return mapped[start:end].view(np.ndarray).view(dtype).reshape(entry["shape"])

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def _entries(path: Path) -> dict[str, tuple[np.memmap, dict[str, Any]]]:
    """Name -> the mapped data of a file and the header's entry, checked by safetensors itself."""
    _check_pointer(path)
    try:
        safe_open(str(path), framework="numpy")
    except (SafetensorError, OSError) as error:
        raise BadWeights(
            f"{path}: damaged or truncated ({error}); fetch or export it again"
        ) from error
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    if strange := {entry["dtype"] for entry in header.values()} - set(_DTYPES):
        raise BadWeights(
            f"{path}: tensors of type {', '.join(sorted(strange))} are not read; export the model"
            " in float32 or bfloat16"
        )
    if path.stat().st_size == 8 + size:
        return {}
    mapped = np.memmap(path, np.uint8, "r", offset=8 + size)
    return {name: (mapped, entry) for name, entry in header.items()}


_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Names in a safetensors header -> ours; position ids are integers, weights are floats."""


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a torch file; see `tensors_of`.

    Raises:
        BadWeights: see `open_torch`.
    """
    return tensors_of(open_torch(path), str(path))


def open_torch(path: Path) -> Any:
    """Content of a torch file, opened with `weights_only=True`.

    Raises:
        BadWeights: torch is not installed, or the file is damaged or wants to run code.
    """
    try:
        import torch
    except ImportError as error:
        raise BadWeights(
            f"{path}: reading this needs PyTorch; pip install 'edje-jax[torch]'"
        ) from error
    if not path.exists():
        raise BadWeights(f"{path}: no such file")
    _check_pointer(path)
    try:
        # Files of before 2020 are no zip archives and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        raise BadWeights(
            f"{path}: damaged, or not a plain file of tensors; nothing in it was run"
            f" ({refusal(error)})"
        ) from error


def tensors_of(loaded: Any, source: str) -> dict[str, np.ndarray]:
    """The tensors of a loaded torch file, as float32 where they are floats.

    They are those of the innermost of `wrappings`, under the names that they had before a model
    was wrapped for training.

    Raises:
        BadWeights: it does not hold tensors by name, or two of one name.
    """
    import torch

    *_, state = None, *wrappings(loaded)
    if state is None:
        raise BadWeights(f"{source}: holds a {type(loaded).__name__}, not tensors by name")
    out: dict[str, np.ndarray] = {}
    for name, value in state.items():
        # torch's own AveragedModel counts beside its weights.
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or name == "n_averaged":
            continue
        name = unwrapped(name)
        if name in out:
            raise BadWeights(f"{source}: holds {name} twice, once wrapped; save one model alone")
        if value.layout != torch.strided or value.is_quantized:
            raise BadWeights(f"{source}: {name} is sparse or quantized; save plain tensors")
        value = value.detach()
        out[name] = (value.float() if value.is_floating_point() else value).numpy()
    if not out:
        keys = ", ".join(map(str, list(state)[:8])) or "nothing"
        raise BadWeights(f"{source}: holds no tensors by name, but {keys}; save the weights alone")
    return out


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write through a temporary name, so that a file with this name is always whole."""
    with atomic_path(path) as temporary:
        save_file(tensors, str(temporary), metadata={"format": "pt"})
        # safetensors lets nobody but the owner read; a model is shared like any other file. Mounts
        # of buckets know no modes.
        with suppress(OSError):
            temporary.chmod(path.parent.stat().st_mode & 0o644)


def _shards(index: Path) -> list[Path]:
    """The files that an index names, which lie beside it.

    Raises:
        BadWeights, BadJson: the index names none, or one is missing.
    """
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise BadWeights(f'{index}: has no "weight_map" of shards; fetch the model again')
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise BadWeights(f"{index}: {name!r} is no name of a shard; fetch the model again")
    shards = [index.parent / name for name in sorted(set(names.values()))]
    if missing := [path for path in shards if not path.exists()]:
        raise BadWeights(f"{missing[0]}: this shard is missing; fetch the model again")
    return shards


def _check_pointer(path: Path) -> None:
    """
    Raises:
        BadWeights: the file is what Git keeps in the place of a large one.
    """
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise BadWeights(f"{path}: a pointer of Git LFS, not the weights; run git lfs pull")


_POINTER = b"version https://git-lfs"
