"""The manifest of an index: the model that made it, the columns of its shards, and every file."""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from edje_jax.config.model import EmbeddingDtype, TokenDtype
from edje_jax.index.files import IndexFiles, files_of
from edje_jax.index.shard_files import BadStore
from edje_jax.models.token_formats import FORMATS
from edje_jax.system.files import BadJson

FORMAT = 3
"""Format 1 knew no stamps, digests, dropped images and faults. Shards of formats 1 and 2 have no
files of `row_lookup`, and no list of the rows that count no more."""

FRAME_TIMES, VIDEO_LENGTH = "frame_times", "video_length"
"""Columns of an index of videos, float32: seconds at which each frame is shown, NaN where there is
no frame, and those of the whole video; 0 and 0 for an image."""

Per = Literal["image", "caption"]


@dataclass(frozen=True)
class ColumnType:
    """Type of a column: an array in every shard, with a row for each image or each caption."""

    dtype: str
    """NumPy's name of the dtype; bfloat16 is stored as its bits, uint16."""
    shape: tuple[int, ...]
    """Shape of a row."""
    per: Per = "image"

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(self.shape))
        np.dtype(self.dtype)  # TypeError for an unknown one
        if self.per not in get_args(Per):
            raise TypeError(f"a column with a row for each {self.per!r}")


@dataclass(frozen=True)
class Manifest:
    """Content of `manifest.json`.

    A key of the file that this version does not know is kept, and one that is missing takes its
    default.
    """

    model: dict[str, Any]
    """`fingerprint`, `source`, and `deferred_layers`: those that the tokens have been through."""
    token_dtype: TokenDtype
    num_tokens: int
    width: int
    embedding_size: int
    spec: str
    """SPEC from which the images were read."""
    id: str = ""
    """16 hex digits that other services know the index by; "" until it has images."""
    shards: tuple[dict[str, Any], ...] = ()
    """{"number", "rows", "captions", "files": {name: {"bytes", "sha256"}}} of each."""
    removed: tuple[str, ...] = ()
    """Ids that are no longer part of the index."""
    rejected: dict[str, str] = dataclasses.field(default_factory=dict)
    """{id: why the image could not be read}"""
    dropped: tuple[str, ...] = ()
    """Ids of rows whose images are no longer in the source; back when the source has them again."""
    faults: dict[str, str] = dataclasses.field(default_factory=dict)
    """{record that the source left out, or id without some of its captions: why}"""
    embedding_dtype: EmbeddingDtype = "float32"
    """Data type of the embeddings of images and captions; int8 keeps their direction alone."""
    metadata: tuple[str, ...] = ()
    """Names of the values that are kept of images, for filters."""
    columns: dict[str, ColumnType] = dataclasses.field(default_factory=dict)
    """Columns beyond tokens and embeddings, which every index has. Shards may lack them."""
    unknown: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keys of the file that this version does not know."""
    format: int = FORMAT
    """Format of the file that was read; the newest one is written."""

    @property
    def hidden(self) -> frozenset[str]:
        """Ids that have rows, perhaps, but no part in any answer."""
        return frozenset((*self.removed, *self.rejected, *self.dropped))

    @property
    def frames(self) -> int:
        """Most frames of a video; 0 of an index of images."""
        times = self.columns.get(FRAME_TIMES)
        return times.shape[0] if times else 0

    @property
    def bytes_per_image(self) -> int:
        """Bytes of the compressed tokens of an image."""
        return FORMATS[self.token_dtype].bytes_per_image(self.num_tokens, self.width)

    @property
    def token_column_names(self) -> tuple[str, ...]:
        """Names of the columns that hold the compressed tokens."""
        return tuple(FORMATS[self.token_dtype].rows(self.num_tokens, self.width))

    @cached_property
    def column_types(self) -> dict[str, ColumnType]:
        """Types of all columns, by the name that begins the names of their files."""
        rows = FORMATS[self.token_dtype].rows(self.num_tokens, self.width)
        return {
            **{name: ColumnType(row.dtype.name, row.shape) for name, row in rows.items()},
            "embeddings": ColumnType(self.embedding_dtype, (self.embedding_size,)),
            "captions": ColumnType(self.embedding_dtype, (self.embedding_size,), per="caption"),
            **self.columns,
        }

    def identified(self) -> "Manifest":
        """Manifest with an id, which is made of the first images' rows and stays for ever."""
        if self.id or not self.shards:
            return self
        rows = {name: file for name, file in self.shards[0]["files"].items() if "rows-" in name}
        content = json.dumps([self.model["fingerprint"], rows], sort_keys=True)
        return dataclasses.replace(self, id=hashlib.sha256(content.encode()).hexdigest()[:16])

    def write(self, index: str | os.PathLike[str] | IndexFiles) -> None:
        """Write the manifest of an index."""
        raw = dataclasses.asdict(self.identified())
        unknown = raw.pop("unknown")
        del raw["format"]
        for name in ("columns", "metadata", "id"):
            if not raw[name]:
                del raw[name]
        files_of(index).write_json("manifest.json", {"format": FORMAT, **raw, **unknown})

    @classmethod
    def read(cls, index: str | os.PathLike[str] | IndexFiles) -> "Manifest":
        """An index's manifest.

        Raises:
            BadStore: there is none, it is damaged, or a newer version wrote it.
        """
        files = files_of(index)
        path = f"{files}/manifest.json"
        try:
            raw = files.read_json("manifest.json")
        except FileNotFoundError:
            begun = files.exists("build.json")
            raise BadStore(
                f"{files}: this index is unfinished; run the same `edje index build` again"
                if begun
                else f"{files}: no index here (no manifest.json); make one with"
                f" `edje index build MODEL IMAGES --out {files}`"
            ) from None
        except BadJson as error:
            raise BadStore(str(error)) from error
        if (format := raw.pop("format", None)) not in range(1, FORMAT + 1):
            raise BadStore(f"{path}: written by another version of edje_jax; update it")
        if (dtype := str(raw.get("token_dtype"))) not in FORMATS:
            raise BadStore(
                f"{path}: keeps tokens as {dtype}, and this version of edje_jax knows"
                f" {', '.join(FORMATS)}; update it"
            )
        if (dtype := raw.get("embedding_dtype", "float32")) not in get_args(EmbeddingDtype):
            raise BadStore(
                f"{path}: keeps embeddings as {dtype}, and this version of edje_jax knows"
                f" {', '.join(get_args(EmbeddingDtype))}; update it"
            )
        known = {field.name for field in dataclasses.fields(cls)} - {"unknown"}
        unknown = {name: value for name, value in raw.items() if name not in known}
        try:
            columns = {name: ColumnType(**one) for name, one in raw.get("columns", {}).items()}
            tuples = {
                name: tuple(raw.get(name, ()))
                for name in ("shards", "removed", "dropped", "metadata")
            }
            given = {name: value for name, value in raw.items() if name in known}
            return cls(
                **{**given, **tuples, "columns": columns, "unknown": unknown, "format": format}
            )
        except (TypeError, AttributeError) as error:
            raise BadStore(
                f"{path}: damaged, or written by a newer version of edje_jax ({error}); update it,"
                " or build the index again"
            ) from error
