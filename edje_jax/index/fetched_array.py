"""Arrays in the files of a remote index: fetched at their first use."""

from pathlib import Path
from typing import Any

import numpy as np

from edje_jax.index.file_cache import FileCache, RemoteFile
from edje_jax.index.shard_files import map_whole


class FetchedArray:
    """An array in a remote file; `array[rows]` fetches the file if there is no copy of it.

    A large file is mapped for each use alone, so that its copy can be deleted in between.
    """

    def __init__(self, cache: FileCache, file: RemoteFile, dtype: np.dtype, shape: tuple[int, ...]):
        self.shape, self.dtype = shape, dtype
        self._cache, self._file = cache, file
        self._mapped: np.ndarray | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._array()[rows]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._array().astype(dtype or self.dtype, copy=bool(copy))

    @property
    def is_here(self) -> bool:
        """Whether the file need not be fetched."""
        return self._mapped is not None or self._cache.has(self._file)

    def fetch(self) -> None:
        """Fetch the file, if it is not here."""
        self._cache.path(self._file)

    def beginning(self, width: int) -> "FetchedArray":
        """The first `width` numbers of each row."""
        return _Beginning(self._cache, self._file, self.dtype, (self.shape[0], width))

    def _array(self) -> np.ndarray:
        if self._mapped is not None:
            return self._mapped
        array = self._cache.use(self._file, self._map)
        if not self._file.is_large:
            self._mapped = array
        return array

    def _map(self, path: Path) -> np.ndarray:
        return map_whole(path, self.dtype)


class _Beginning(FetchedArray):
    def _map(self, path: Path) -> np.ndarray:
        return super()._map(path)[:, : self.shape[1]]
