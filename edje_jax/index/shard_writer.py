"""Writing of a shard, part by part: what was killed goes on after the last whole part.

While a shard is being written, its files are called `tokens-00000.npy.partial` and so on, and
`shard-00000.partial.json` says how much of each is whole. What lies beyond that is cut off before
the next part is appended. The files take their names once the shard is complete.
"""

import io
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from edje_jax.index.derived import write_derived
from edje_jax.index.shard_files import ImageRecord, file_entry, row_line
from edje_jax.system.files import errors_name, lock_file, read_json, write_json

HEADER = 128
"""Bytes before the numbers of a .npy file."""


class ShardWriter:
    """A shard that grows by parts; `finish` makes its files whole ones.

    Raises:
        OSError: the shard's files cannot be written, or another process is writing it.
    """

    def __init__(self, folder: Path, number: int):
        self.folder, self.number = folder, number
        self._lock = ExitStack()
        self._lock.enter_context(lock_file(self._name("lock")))
        self._progress = self._name("partial.json")
        done = read_json(self._progress) if self._progress.exists() else {}
        self.parts: int = done.get("parts", 0)
        """Number of parts that are whole."""
        self.rejected: dict[str, str] = done.get("rejected", {})
        """{id: why the image could not be read} of all parts."""
        self._rows: int = done.get("rows", 0)
        self._captions: int = done.get("captions", 0)
        self._arrays: dict[str, dict[str, Any]] = done.get("arrays", {})
        self._sizes: dict[str, int] = done.get("sizes", {})
        for name, size in self._sizes.items():
            path = self._partial(name)
            if not path.exists():  # It was being finished, and may be about to grow again
                os.replace(folder / name, path)
            os.truncate(path, size)

    def append(
        self,
        columns: Mapping[str, np.ndarray],
        rows: Sequence[ImageRecord],
        thumbnails: Sequence[bytes],
        rejected: Mapping[str, str] | None = None,
        strips: Sequence[bytes] | None = None,
    ) -> None:
        """Write a part: from now on it is there, whatever happens.

        Args:
            columns: {name: array with a row for each image or for each caption}.
            rejected: {id: why the image could not be read}.
            strips: the videos' frames beside each other, of an index of videos.
        """
        for kind, array in columns.items():
            if array.dtype.kind == "V":  # bfloat16 and the like, which .npy files know as bits
                array = array.view(f"u{array.dtype.itemsize}")
            name = f"{kind}-{self.number:05d}.npy"
            known = self._arrays.setdefault(
                name, {"dtype": array.dtype.str, "row": list(array.shape[1:]), "length": 0}
            )
            self._grow(name, np.ascontiguousarray(array).data.cast("B") if array.size else b"")
            known["length"] += len(array)
        spans = self._grow_files("thumbnails", thumbnails)
        placed = [row._replace(thumbnail=span) for row, span in zip(rows, spans, strict=True)]
        if strips is not None:
            spans = self._grow_files("strips", strips)
            placed = [row._replace(strip=span) for row, span in zip(placed, spans, strict=True)]
        self._grow(self._rows_name, b"".join(map(row_line, placed)))
        self.parts += 1
        self.rejected |= rejected or {}
        self._rows += len(rows)
        self._captions += sum(len(row.captions) for row in rows)
        self._note()

    def finish(self, metadata: Sequence[str] = ()) -> dict[str, Any]:
        """Complete the shard's files and return its record; it counts once a manifest holds it.

        `metadata` names the values that filters can ask for.
        """
        for name, array in self._arrays.items():
            path = self._partial(name)
            with errors_name(path), path.open("r+b") as file:
                file.write(_header(array["dtype"], (array["length"], *array["row"])))
        for name in self._sizes:
            os.replace(self._partial(name), self.folder / name)
        written = [self.folder / name for name in self._sizes]
        rows = self.folder / self._rows_name
        written += write_derived(rows, self.number, metadata, self.folder.joinpath)
        return {
            "number": self.number,
            "rows": self._rows,
            "captions": self._captions,
            "files": {path.name: file_entry(path) for path in written},
        }

    def clear(self) -> None:
        """Delete what says how far the shard is, once its record is kept elsewhere."""
        self._progress.unlink(missing_ok=True)
        self._name("lock").unlink(missing_ok=True)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.close()

    @property
    def _rows_name(self) -> str:
        return f"rows-{self.number:05d}.jsonl"

    def _name(self, ending: str) -> Path:
        return self.folder / f"shard-{self.number:05d}.{ending}"

    def _partial(self, name: str) -> Path:
        return self.folder / f"{name}.partial"

    def _grow_files(self, kind: str, images: Sequence[bytes]) -> list[tuple[int, int]]:
        """Append JPEG files, and return where each lies: (start, length)."""
        name = f"{kind}-{self.number:05d}.bin"
        starts = np.cumsum([self._sizes.get(name, 0), *map(len, images)]).tolist()
        self._grow(name, b"".join(images))
        return [(start, len(one)) for start, one in zip(starts, images, strict=False)]

    def _grow(self, name: str, data: bytes | memoryview) -> None:
        path = self._partial(name)
        with errors_name(path), path.open("ab" if name in self._sizes else "wb") as file:
            if file.tell() != self._sizes.get(name, 0):
                raise FileNotFoundError(
                    f"{path}: another process has deleted or changed it; run the same again"
                )
            if name not in self._sizes and name in self._arrays:
                file.write(bytes(HEADER))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            self._sizes[name] = file.tell()

    def _note(self) -> None:
        write_json(
            self._progress,
            {
                "parts": self.parts,
                "rows": self._rows,
                "captions": self._captions,
                "arrays": self._arrays,
                "sizes": self._sizes,
                "rejected": self.rejected,
            },
        )


def parts_done(folder: Path, number: int) -> int:
    """Number of whole parts of a shard that is being written."""
    path = folder / f"shard-{number:05d}.partial.json"
    return int(read_json(path)["parts"]) if path.exists() else 0


def unfinished(folder: Path) -> list[int]:
    """Numbers of the shards that are being written, or were when a process was killed."""
    names = [path.name for path in folder.glob("shard-*.partial.json")]
    return sorted(int(name.removeprefix("shard-").partition(".")[0]) for name in names)


def clear_unfinished(folder: Path) -> None:
    """Delete whatever belongs to shards that are not complete."""
    for pattern in ("*.partial", "shard-*.partial.json", "shard-*.lock"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Beginning of a .npy file."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    if len(out.getvalue()) != HEADER:
        raise ValueError(f"the header of an array {dtype} {shape} is not {HEADER} bytes long")
    return out.getvalue()
