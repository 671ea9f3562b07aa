"""Many strings in one buffer: small to hold, quick to pickle, nothing for the collector to walk."""

from collections.abc import Iterable

import numpy as np


class PackedStrings:
    """An immutable list of strings: UTF-8 bytes end to end, and int64 offsets [n + 1].

    A list of a million captions costs ~100 bytes each beyond its text; here it is 8, and worker
    processes receive two buffers instead of a million objects.
    """

    def __init__(self, strings: Iterable[str]):
        # File names and JSON may hold lone surrogates; this keeps them as they are.
        encoded = [text.encode("utf-8", "surrogatepass") for text in strings]
        self._text = b"".join(encoded)
        self._offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(text) for text in encoded], out=self._offsets[1:])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"{len(self)} strings, asked for {index}")
        start, end = self._offsets[index], self._offsets[index + 1]
        return self._text[start:end].decode("utf-8", "surrogatepass")
