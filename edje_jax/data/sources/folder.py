"""Files below a folder as sources without captions, and the `folder:` source, of its images."""

import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator

from PIL import Image

from edje_jax.data.decoders import endings, why_no_image
from edje_jax.data.images import BadImage, load_image, read_file
from edje_jax.data.sources.packed import PackedStrings
from edje_jax.data.sources.passed_over import PassedOver
from edje_jax.data.sources.texts import printable, text_fault
from edje_jax.data.stamps import file_stamp

log = logging.getLogger(__name__)

SIDECARS = (
    ".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".html", ".md", ".npy", ".npz", ".parquet",
)  # fmt: skip
"""Endings of what often lies beside images by the million: not opened to see whether it is one."""
_OF_AN_INDEX = re.compile(r"(thumbnails|strips)-\d+\.bin.*")
"""Files of an index, in which JPEG files follow each other: it may lie among its images."""
LISTED = 20
"""Endings that the log counts."""


class FilesOfFolder:
    """Files of a kind below a folder, sorted by path, without captions.

    Links are followed. A folder is read once, by its own path if that is below this one, else by
    the first link to it: links that lead back or to the same place add nothing. `passed_over`
    counts and names all other files, and the log says so.

    An id is the path below the folder, with "/" on every system.

    Raises:
        FileNotFoundError: no such folder.
        NotADirectoryError: it is a file.
        ValueError: it holds no such file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        kind: str,
        why_not: Callable[[os.DirEntry[str]], str],
    ):
        self.folder = os.path.expanduser(path)
        self.kind = kind
        self.passed_over = PassedOver()
        self._paths = PackedStrings(files_below(self.folder, kind, why_not, self.passed_over))

    def __len__(self) -> int:
        return len(self._paths)

    def image_id(self, index: int) -> str:
        """The file's path below the folder."""
        return self._paths[self._checked(index)]

    def captions(self, index: int) -> tuple[str, ...]:
        """None: an empty tuple."""
        self._checked(index)
        return ()

    def path(self, index: int) -> str:
        """Path of the file."""
        return os.path.join(self.folder, self._paths[self._checked(index)])

    def stamp(self, index: int) -> str:
        """The file's size and modification time."""
        return file_stamp(self.path(index))

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder} has {len(self)} {self.kind}s, asked for {index}")
        return index


class Folder(FilesOfFolder):
    """Images below a folder.

    A file with an ending of the decoders' (`data.decoders`), in either case, is taken as it is; one
    with `SIDECARS`' is not; any other is opened, and its first bytes decide. Hidden files and
    folders are passed over.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: see `FilesOfFolder`.
    """

    def __init__(self, path: str | os.PathLike[str]):
        super().__init__(path, "image", _why_no_image)

    def encoded(self, index: int) -> bytes:
        """The image's file; `BadImage` if it cannot be read."""
        return read_file(self._named(index))

    def image(self, index: int) -> Image.Image:
        """The image, upright and RGB; `BadImage` if it cannot be read."""
        return load_image(self._named(index))

    def _named(self, index: int) -> str:
        """The path of an image whose id can be written down."""
        path = self.path(index)
        if text_fault(self.image_id(index)):
            raise BadImage(f"{printable(path)}: its name is not UTF-8; rename it")
        return path


def files_below(
    root: str, kind: str, why_not: Callable[[os.DirEntry[str]], str], passed_over: PassedOver
) -> list[str]:
    """Paths of the files of a kind below `root`, sorted, as POSIX writes them; the log counts them.

    Args:
        kind: what messages call such a file, such as "image".
        why_not: why a file is none of them; "" if it is.
        passed_over: takes note of all others.

    Raises:
        FileNotFoundError: no such folder.
        NotADirectoryError: it is a file.
        ValueError: it holds no such file.
    """
    if not os.path.exists(root):
        raise FileNotFoundError(f"{root}: no such folder")
    if not os.path.isdir(root):
        raise NotADirectoryError(f"{root}: a file; give a folder of {kind}s")
    found = sorted(_walk(root, why_not, passed_over))
    if not found:
        told = f" ({passed_over})" if passed_over.total else ""
        raise ValueError(f"{root}: no {kind} in it or below{told}")
    kinds = Counter(ending(name) or "no ending" for name in found).most_common()
    listed = ", ".join(f"{count:,} {name}" for name, count in kinds[:LISTED])
    log.info("%s: %d %ss (%s)", root, len(found), kind, listed)
    if passed_over.total:
        log.info("%s: %s", root, passed_over)
    return found


def _walk(
    root: str, why_not: Callable[[os.DirEntry[str]], str], passed_over: PassedOver
) -> Iterator[str]:
    """Paths below `root` of the files that `why_not` has nothing against."""
    folders, links, seen = [""], [], set()
    while folders or links:
        # All that can be reached by its own path comes before what links lead to.
        below = folders.pop() if folders else links.pop(0)
        found = os.stat(os.path.join(root, below))
        if (place := (found.st_dev, found.st_ino)) in seen:
            passed_over.add("linked folder read before", below)
            continue
        seen.add(place)
        # What cannot be read is an error: an index without it would look complete.
        with os.scandir(os.path.join(root, below)) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            match _kind(entry) or why_not(entry):
                case "folder":
                    folders.append(path)
                case "linked folder":
                    links.append(path)
                case "":
                    yield path
                case reason:
                    passed_over.add(reason, path)


def _kind(entry: os.DirEntry[str]) -> str:
    """ "folder", "linked folder", why it is passed over whatever it holds, or ""."""
    if entry.name.startswith("."):
        return "hidden"
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    try:
        mode = entry.stat().st_mode if entry.is_symlink() else 0
    except OSError:
        return "broken link"
    if stat.S_ISDIR(mode):
        return "linked folder"
    if not entry.is_file():  # Opening a pipe or a device might never end
        return "no regular file"
    return ""


def _why_no_image(entry: os.DirEntry[str]) -> str:
    if _OF_AN_INDEX.fullmatch(entry.name):
        return "thumbnails of an index"
    if (kind := ending(entry.name)) in endings():
        return ""
    if kind in SIDECARS:
        return kind
    try:
        with open(entry.path, "rb") as file:
            return why_no_image(file)
    except OSError as error:
        return f"{error.strerror}"


def ending(path: str) -> str:
    """Ending of a file's name in lower case, such as ".jpg"."""
    return os.path.splitext(path)[1].lower()
