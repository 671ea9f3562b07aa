"""Tensors on disk -> numpy arrays, one at a time, never through a pickle that could run code."""

import errno
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
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
        return Safetensors(_shards(index))
    if (single := folder / "model.safetensors").exists():
        return Safetensors([single])
    if (index := folder / "pytorch_model.bin.index.json").exists():
        return {k: v for shard in _shards(index) for k, v in read_torch(shard).items()}
    if (single := folder / "pytorch_model.bin").exists():
        return read_torch(single)
    raise BadWeights(
        f"{folder}: no weights here; looked for model.safetensors and pytorch_model.bin,"
        " whole or sharded"
    )


class Safetensors(Mapping[str, np.ndarray]):
    """Tensors of one or more safetensors files as read-only views of the mapped files.

    Nothing is read before it is used, and what is read is the page cache's: no copy in this
    process's own memory.
    """

    def __init__(self, paths: list[Path]):
        self._where: dict[str, tuple[np.memmap, dict[str, Any]]] = {}
        for path in paths:
            if not path.exists():
                raise BadWeights(f"{path}: this shard is missing; fetch the model again")
            for name, entry in _entries(path).items():
                self._where[name] = entry

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
    """The tensors of a torch file; {"model": ...} is unwrapped.

    Raises:
        BadWeights: see `open_torch`.
    """
    return tensors_of(open_torch(path), str(path))


def open_torch(path: Path) -> Any:
    """What a torch file holds, opened with `weights_only=True`.

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
    try:
        # Files of before 2020 are no zip archives and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadWeights(
            f"{path}: damaged, or not a plain file of tensors; nothing in it was run ({reason})"
        ) from error


def tensors_of(loaded: Any, source: str) -> dict[str, np.ndarray]:
    """The tensors of a loaded torch file, as float32 where they are floats.

    Raises:
        BadWeights: it does not hold tensors by name.
    """
    import torch

    if isinstance(loaded, dict):
        loaded = loaded.get("model", loaded)
    if not isinstance(loaded, dict):
        raise BadWeights(f"{source}: holds a {type(loaded).__name__}, not tensors by name")
    return {
        name: (value.float() if value.is_floating_point() else value).numpy()
        for name, value in loaded.items()
        if isinstance(value, torch.Tensor)
    }


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write through a temporary name, so that a file with this name is always whole."""
    with replacing(path) as temporary:
        save_file(tensors, str(temporary), metadata={"format": "pt"})
        # safetensors lets nobody but the owner read; a model is shared like any other file.
        temporary.chmod(path.parent.stat().st_mode & 0o644)


def write_json(path: Path, value: object) -> None:
    """Pretty JSON through a temporary name."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which becomes `path` when the block ends well.

    Raises:
        OSError: see `naming`.
    """
    # Of this process alone: another may be writing the same file.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with naming(path):
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def is_abandoned(temporary: Path) -> bool:
    """Whether no process of this machine writes to a temporary name of `replacing` any more."""
    writer = temporary.suffixes[-2][1:]
    try:
        os.kill(int(writer), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, ValueError):
        return False
    return False


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors of the system name `path`: Python's say where only if a file cannot be opened.

    Raises:
        OSError: whatever failed in the block, safetensors' failures included.
    """
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        FileNotFoundError: no such file.
        BadWeights: not JSON, or no object.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise BadWeights(f"{path}: not valid JSON ({error}); fetch or write it again") from error
    if not isinstance(value, dict):
        raise BadWeights(f"{path}: expected a JSON object, got {value!r}")
    return value


def _shards(index: Path) -> list[Path]:
    """The files that an index names."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict):
        raise BadWeights(f'{index}: has no "weight_map" of shards; fetch the model again')
    return [index.parent / name for name in sorted(set(names.values()))]
