"""Places where a Milvus keeps vectors: a file on this machine (Milvus Lite), or a server.

milvus:photos.db              a file, which one process opens at a time
milvus:http://host:19530      a server; MILVUS_TOKEN in the environment, as user:password or a
                              key, where it asks for one
milvus:photos.db#dogs         collections called dogs_... instead of after the index
milvus:photos.db?index=HNSW   collections that get this index at the next sync; goes before a #
"""

import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args
from urllib.parse import urlsplit

from edje_jax.first_stage.milvus_vectors import IndexKind
from edje_jax.system.files import first_line

SCHEME = "milvus:"
CONNECT_SECONDS = 10

_opened: Counter[Path] = Counter()
"""Clients of this process for each file, which share its engine."""
_opening = threading.Lock()


@dataclass(frozen=True)
class MilvusAddress:
    """Place of a Milvus, and the beginning of its collections' names, if one was given."""

    location: str
    """Path of a file, or URL of a server."""
    prefix: str | None = None
    kind: IndexKind | None = None
    """Index of the vectors, if one was given."""

    @classmethod
    def parse(cls, uri: str) -> "MilvusAddress":
        """Address from its text, with or without "milvus:" in front.

        Raises:
            ValueError: it is no such address.
        """
        location, hash_sign, prefix = uri.removeprefix(SCHEME).partition("#")
        location, mark, option = location.partition("?")
        kind = option.removeprefix("index=")
        if mark and (kind == option or kind not in get_args(IndexKind)):
            raise ValueError(
                f"{uri}: ?{option}: write ?index= and one of {', '.join(get_args(IndexKind))}"
            )
        if hash_sign and not re.fullmatch(r"[A-Za-z_]\w{0,150}", prefix, re.ASCII):
            raise ValueError(
                f"{uri}: #{prefix} names no collection; write letters, digits and _ after the #"
            )
        address = cls(location, prefix or None, cast(IndexKind, kind) if kind else None)
        if not address.is_file:
            if "@" in urlsplit(location).netloc:
                raise ValueError(
                    f"milvus:{urlsplit(location).scheme}://: leave the password out of the address;"
                    " set MILVUS_TOKEN=user:password"
                )
        elif not location.endswith(".db") or location == ".db":
            raise ValueError(f"{uri}: a Milvus is a file NAME.db, or http://HOST:19530")
        return address

    @property
    def is_file(self) -> bool:
        """Whether it is a file on this machine."""
        return not self.location.startswith(("http://", "https://"))

    @property
    def path(self) -> Path:
        """Path of the file, where it is one."""
        return Path(self.location).expanduser().absolute()

    def __str__(self) -> str:
        """Text that `parse` takes."""
        option = f"?index={self.kind}" if self.kind else ""
        return f"{SCHEME}{self.location}{option}" + (f"#{self.prefix}" if self.prefix else "")

    def collection(self, identity: str, column: str) -> str:
        """Name of the collection of an index's column: edje_0123456789abcdef_embeddings."""
        return re.sub(r"\W", "_", f"{self.prefix or f'edje_{identity[:16]}'}_{column}")


def connect(address: MilvusAddress) -> Any:
    """Client (`pymilvus.MilvusClient`) of a Milvus; `disconnect` closes it.

    Raises:
        ModuleNotFoundError: pymilvus or, for a file, milvus-lite is not installed.
        OSError: the file cannot be opened, or another process has it open.
        ConnectionError: no server answers.
    """
    # A file's engine imports faiss, which tells which of its builds it tried.
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    kind = _import_client(address)
    if not address.is_file:
        token = os.environ.get("MILVUS_TOKEN", "")
        with told(address):
            return kind(address.location, token=token, timeout=CONNECT_SECONDS)
    with _opening:
        if not _opened[address.path]:
            _check_opens(address)
        with told(address):
            client = kind(str(address.path))
        _opened[address.path] += 1
    return client


def disconnect(address: MilvusAddress, client: Any) -> None:
    """Close a client; the last one of a file lets other processes open it."""
    client.close()
    if not address.is_file:
        return
    from milvus_lite.server_manager import server_manager_instance

    with _opening:
        _opened[address.path] -= 1
        if not _opened[address.path]:
            server_manager_instance.release_server(str(address.path))


@contextmanager
def told(address: MilvusAddress) -> Iterator[None]:
    """Errors of the client, as errors of one line that name the address.

    Raises:
        ConnectionError: no server answers, or it takes too long.
        FileNotFoundError: there is no such collection.
        ValueError: the engine cannot make sense of a request, such as a filter.
        RuntimeError: anything else that the engine refuses.
    """
    import grpc
    from pymilvus.exceptions import ErrorCode, MilvusException

    try:
        yield
    except grpc.RpcError as error:
        raise ConnectionError(f"{address}: no Milvus answers ({error.code().name})") from error
    except MilvusException as error:
        text = first_line(Exception(error.message))
        if error.code == CONNECT_FAILED or isinstance(error.__cause__, grpc.RpcError):
            raise ConnectionError(f"{address}: no Milvus answers ({text})") from error
        if error.code == ErrorCode.COLLECTION_NOT_FOUND:
            raise FileNotFoundError(f"{address}: {text}") from error
        if error.is_input_error or error.code in _INPUT or "cannot parse" in text:
            raise ValueError(f"{address}: {text}") from error
        raise RuntimeError(f"{address}: {text}") from error


CONNECT_FAILED = 2
"""Code of a server that cannot be reached."""
_INPUT = (6, 1100)
"""Codes of errors in a request: IllegalArgument of Milvus Lite, ParameterInvalid of servers."""


def _check_opens(address: MilvusAddress) -> None:
    """Open a file for a moment: the client does not say why it cannot."""
    from milvus_lite import MilvusLite
    from milvus_lite.exceptions import DataDirLockedError, MilvusLiteError

    path = address.path
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{address}: no folder {path.parent}")
    if path.is_file():
        raise FileExistsError(
            f"{address}: a file of something else; Milvus Lite 3 keeps a folder of that name"
        )
    try:
        MilvusLite(str(path)).close()
    except DataDirLockedError as error:
        raise BlockingIOError(
            f"{address}: another process has it open, and a file serves one at a time; end that one"
            " or use a server (milvus:http://HOST:19530)"
        ) from error
    except (MilvusLiteError, OSError) as error:
        raise OSError(f"{address}: cannot be opened ({first_line(error)})") from error


def _import_client(address: MilvusAddress) -> Any:
    try:
        from pymilvus import MilvusClient

        if address.is_file:
            import milvus_lite  # noqa: F401
    except ImportError as error:
        raise ModuleNotFoundError(
            "a Milvus first stage needs more: pip install 'edje-jax[milvus]'"
        ) from error
    # They log the stack of every error that they raise, and of what Milvus Lite does not answer.
    for name in ("pymilvus", "pymilvus.milvus_client", "milvus_lite", "grpc._server"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MilvusClient
