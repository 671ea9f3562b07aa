"""The token store: compressed tokens, embeddings, ids and captions of many pictures on disk.

    manifest.json             the model, the formats, every file with its size and SHA-256; replaced
                              in one go, so that an index is always a whole one
    tokens-00000.npy          [rows, m, d] in the token dtype (bfloat16 as its bits, uint16), after
                              the deferred layers, where the model has any
    scales-00000.npy          [rows, m] float16, for int8 and int4; each column of a token format
                              (`models.token_formats`) has a file that is called so
    embeddings-00000.npy      [rows, e] float32, unit length: the first stage
    captions-00000.npy        [captions, e] float32: those of the captions, picture by picture
    rows-00000.jsonl          {"id", "path", "captions", "thumbnail": [start, bytes], "stamp",
                              "digest"} a line
    thumbnails-00000.bin      JPEG files after each other
    rejected.csv              pictures that could not be read, records that the source left out,
                              images without some of their captions, and why

A shard is written whole or not at all. An image that changed has a row in a later shard, which
counts. Where only words changed (captions, paths, stamps), the shard's rows and captions are
written anew as `rows-00000.1.jsonl` and `captions-00000.1.npy`, and the manifest names these. What
counts no more stays until the index is compacted.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int

from edje_jax.config.model import TokenDtype
from edje_jax.index.mapped_files import map_bytes
from edje_jax.index.shard_files import BadStore, Row, checksum, file_of, map_file, read_rows
from edje_jax.models.token_formats import FORMATS, PackedTokens
from edje_jax.system.files import BadJson, read_json, write_json

FORMAT = 2
"""1 knew no stamps, digests, dropped images and faults."""


@dataclass(frozen=True)
class Manifest:
    """Content of `manifest.json`."""

    model: dict[str, Any]
    """`fingerprint`, `source`, and `deferred_layers`: those that the tokens have been through."""
    token_dtype: TokenDtype
    num_tokens: int
    width: int
    embedding_size: int
    spec: str
    """SPEC from which the images were read."""
    shards: tuple[dict[str, Any], ...] = ()
    """{"number", "rows", "captions", "files": {name: {"bytes", "sha256"}}} of each."""
    removed: tuple[str, ...] = ()
    """Ids that are no longer part of the index."""
    rejected: dict[str, str] = dataclasses.field(default_factory=dict)
    """{id: why the picture could not be read}"""
    dropped: tuple[str, ...] = ()
    """Ids of rows whose images are no longer in the source; back when the source has them again."""
    faults: dict[str, str] = dataclasses.field(default_factory=dict)
    """{record that the source left out, or id without some of its captions: why}"""

    @property
    def hidden(self) -> frozenset[str]:
        """Ids that have rows, perhaps, but no part in any answer."""
        return frozenset((*self.removed, *self.rejected, *self.dropped))

    @property
    def bytes_per_picture(self) -> int:
        """Bytes of the tokens and scales of an image."""
        return FORMATS[self.token_dtype].bytes_per_image(self.num_tokens, self.width)

    @property
    def token_rows(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of an image's row in each of the columns that hold its tokens."""
        return FORMATS[self.token_dtype].rows(self.num_tokens, self.width)

    def write(self, folder: Path) -> None:
        """Make it the index's."""
        write_json(folder / "manifest.json", {"format": FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """An index's manifest.

        Raises:
            BadStore: there is none, or a newer version wrote it.
        """
        path = folder / "manifest.json"
        if not path.exists():
            begun = (folder / "build.json").exists()
            raise BadStore(
                f"{folder}: this index is unfinished; run the same `edje index build` again"
                if begun
                else f"{folder}: no index here (no manifest.json); make one with"
                f" `edje index build MODEL IMAGES --out {folder}`"
            )
        try:
            raw = read_json(path)
        except BadJson as error:
            raise BadStore(str(error)) from error
        if (written := raw.pop("format", None)) not in (1, FORMAT):
            raise BadStore(f"{path}: written by another version of edje_jax; update it")
        if written == 1:
            raw |= {"dropped": [], "faults": {}}
        known = {field.name for field in dataclasses.fields(cls)}
        if raw.keys() != known:
            strange = ", ".join(sorted(raw.keys() ^ known))
            raise BadStore(f"{path}: damaged ({strange}); build the index again")
        if str(raw["token_dtype"]) not in FORMATS:
            raise BadStore(
                f"{path}: keeps tokens as {raw['token_dtype']}, and this version of edje_jax knows"
                f" {', '.join(FORMATS)}; update it"
            )
        for name in ("shards", "removed", "dropped"):
            raw[name] = tuple(raw[name])
        return cls(**raw)


class Shard:
    """Files of a shard, memory-mapped."""

    def __init__(self, folder: Path, record: dict[str, Any], manifest: Manifest):
        columns = {
            name: map_file(file_of(folder, record, name)).view(row.dtype)
            for name, row in manifest.token_rows.items()
        }
        self.tokens = PackedTokens(manifest.token_dtype, columns)
        self.embeddings = map_file(file_of(folder, record, "embeddings"))
        self.caption_embeddings = map_file(file_of(folder, record, "captions"))
        # Mapped too: a file that is deleted meanwhile is here until this is closed.
        self._thumbnails = map_bytes(file_of(folder, record, "thumbnails"))
        self.rows = list(read_rows(file_of(folder, record, "rows")))
        """In the order of the arrays."""

    def thumbnail(self, row: int) -> bytes:
        """A JPEG file."""
        start, length = self.rows[row].thumbnail
        return self._thumbnails[start : start + length].tobytes()


class Store:
    """A finished index's arrays and words; pictures count from 0, removed ones left out.

    Raises:
        BadStore: no finished index, or a file is missing or of another size than it had.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest = Manifest.read(folder)
        for record in self.manifest.shards:
            for name, expected in record["files"].items():
                _check_size(folder / name, expected["bytes"])
        self.shards = [Shard(folder, record, self.manifest) for record in self.manifest.shards]
        hidden = self.manifest.hidden
        rows = current(shard.rows for shard in self.shards)
        places = sorted(place for name, (place, _) in rows.items() if name not in hidden)
        self.places: Int[np.ndarray, "n 2"] = np.array(places, np.int64).reshape(-1, 2)
        """(shard, row in it) of each picture."""

    def __len__(self) -> int:
        return len(self.places)

    def row(self, picture: int) -> Row:
        """A picture's id, path and captions."""
        shard, row = self.places[picture]
        return self.shards[shard].rows[row]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Id -> picture."""
        return {self.row(picture).id: picture for picture in range(len(self))}

    def thumbnail(self, picture: int) -> bytes:
        """A JPEG file."""
        shard, row = self.places[picture]
        return self.shards[shard].thumbnail(row)

    def tokens(self, pictures: Int[np.ndarray, " k"]) -> PackedTokens:
        """Tokens of some pictures, read from disk: the rows asked for and no others."""
        places, manifest = self.places[pictures], self.manifest
        columns = {
            name: np.empty((len(places), *row.shape), row.dtype)
            for name, row in manifest.token_rows.items()
        }
        for number in np.unique(places[:, 0]):
            chosen = np.flatnonzero(places[:, 0] == number)
            found = self.shards[number].tokens[places[chosen, 1]]
            for name, column in columns.items():
                column[chosen] = found.columns[name]
        return PackedTokens(manifest.token_dtype, columns)

    @cached_property
    def embeddings(self) -> Float32[np.ndarray, "n e"]:
        """Embeddings of all images, in memory."""
        return self._stacked([shard.embeddings for shard in self.shards], self.places)

    @cached_property
    def captions(self) -> list[tuple[int, str]]:
        """(picture, caption) of every caption."""
        return [
            (picture, caption)
            for picture in range(len(self))
            for caption in self.row(picture).captions
        ]

    @cached_property
    def caption_embeddings(self) -> Float32[np.ndarray, "t e"]:
        """Embeddings of all captions, in the order of `captions`, in memory."""
        firsts = [
            np.cumsum([0, *(len(words.captions) for words in shard.rows)]) for shard in self.shards
        ]
        places = [
            (shard, row)
            for shard, picture in self.places
            for row in range(firsts[shard][picture], firsts[shard][picture + 1])
        ]
        arrays = [shard.caption_embeddings for shard in self.shards]
        return self._stacked(arrays, np.array(places, np.int64).reshape(-1, 2))

    def _stacked(self, arrays: list[np.ndarray], places: np.ndarray) -> np.ndarray:
        out = np.empty((len(places), self.manifest.embedding_size), np.float32)
        for number, array in enumerate(arrays):
            chosen = places[:, 0] == number
            out[chosen] = array[places[chosen, 1]]
        return out


def check_model(store: Store, stamp: dict[str, Any]) -> None:
    """Compare the model that an index was built with and the one at hand, by its `stamp`.

    Raises:
        BadStore: they differ.
    """
    own = store.manifest.model
    if own["fingerprint"] != stamp["fingerprint"]:
        built, given = map(_told, (own, stamp))
        raise BadStore(
            f"{store.folder}: built with another model ({built}) than this one ({given}); open it"
            " with its own, or build another index"
        )


def _told(stamp: dict[str, Any]) -> str:
    image = "".join(f", {name} {value}" for name, value in stamp.get("image", {}).items())
    return f"{stamp['source']}, {stamp.get('deferred_layers', 0)} deferred layers{image}"


Place = tuple[int, int]
"""(shard's place in the manifest, row in it)"""


def current(parts: Iterable[Iterable[Row]]) -> dict[str, tuple[Place, Row]]:
    """Every id's row that counts, of the rows of all shards: the last one."""
    return {
        row.id: ((shard, number), row)
        for shard, rows in enumerate(parts)
        for number, row in enumerate(rows)
    }


def current_rows(folder: Path, manifest: Manifest) -> dict[str, tuple[Place, Row]]:
    """Every id's row that counts, those of hidden ids too."""
    return current(read_rows(file_of(folder, record, "rows")) for record in manifest.shards)


def next_number(manifest: Manifest) -> int:
    """The first shard that the index has not."""
    return max((record["number"] for record in manifest.shards), default=-1) + 1


def verify(folder: Path) -> Iterator[tuple[str, str]]:
    """(file, what is wrong with it) for every file of a finished index that is not as written.

    Raises:
        BadStore: there is no finished index.
    """
    for record in Manifest.read(folder).shards:
        for name, expected in record["files"].items():
            path = folder / name
            if not path.exists():
                yield name, "missing"
            elif path.stat().st_size != expected["bytes"]:
                yield name, f"{path.stat().st_size} bytes, written with {expected['bytes']}"
            elif checksum(path) != expected["sha256"]:
                yield name, "not what was written: its checksum differs"


def _check_size(path: Path, size: int) -> None:
    if not path.exists():
        raise BadStore(f"{path}: missing; build the index again")
    if path.stat().st_size != size:
        raise BadStore(
            f"{path}: {path.stat().st_size} bytes, written with {size}: truncated or overwritten;"
            " build the index again"
        )
