"""Many strings in one buffer: small to hold, quick to pickle, nothing for the collector to walk."""

import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int64, UInt8

from edje_jax.types import Scalar


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

    @classmethod
    def from_arrays(
        cls, text: UInt8[np.ndarray, " bytes"], offsets: Int64[np.ndarray, " n+1"]
    ) -> "PackedStrings":
        """Strings of the two arrays that `to_arrays` returned."""
        packed = cls(())
        packed._text, packed._offsets = text.tobytes(), offsets
        return packed

    def to_arrays(self) -> tuple[UInt8[np.ndarray, " bytes"], Int64[np.ndarray, " n+1"]]:
        """(text, offsets), to be kept in a file."""
        return np.frombuffer(self._text, np.uint8), self._offsets

    @classmethod
    def concatenated(cls, parts: Sequence["PackedStrings"]) -> "PackedStrings":
        """The strings of all parts, one after another."""
        packed = cls(())
        packed._text = b"".join(part._text for part in parts)
        packed._offsets = concatenate_offsets([part._offsets for part in parts])
        return packed

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"{len(self)} strings, asked for {index}")
        start, end = self._offsets[index], self._offsets[index + 1]
        return self._text[start:end].decode("utf-8", "surrogatepass")


class PackedMetadata:
    """Immutable list of the metadata of images, as JSON; nothing is held where no image has any."""

    def __init__(self, records: Iterable[Mapping[str, Scalar]]):
        texts = [json.dumps(record, ensure_ascii=False) if record else "" for record in records]
        self._texts = PackedStrings(texts if any(texts) else ())

    def __getitem__(self, index: int) -> dict[str, Scalar]:
        text = self._texts[index] if len(self._texts) else ""
        return json.loads(text) if text else {}


def concatenate_offsets(parts: Sequence[Int64[np.ndarray, " _"]]) -> Int64[np.ndarray, " n+1"]:
    """Offsets of lists that follow each other: each list begins where the one before ends."""
    lengths = [np.diff(part) for part in parts]
    return np.concatenate([[0], *lengths], dtype=np.int64).cumsum()
