"""The `folder:` source: every picture below a folder, without captions."""

import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from edje_jax.data.images import load_image, read_file
from edje_jax.data.sources.packed import PackedStrings

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""What counts as a picture, in either case."""


class Folder:
    """Pictures by extension, recursively, sorted by path; hidden files and folders are skipped.

    A picture's id is its path below the folder, with "/" on every system. Links to files are
    followed, links to folders are not (they may lead round in a circle).

    Raises:
        FileNotFoundError: no such folder.
        NotADirectoryError: it is a file.
        ValueError: it holds no picture.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.folder = os.path.expanduser(path)
        if not os.path.exists(self.folder):
            raise FileNotFoundError(f"{self.folder}: no such folder")
        if not os.path.isdir(self.folder):
            raise NotADirectoryError(f"{self.folder}: a file; folder: takes a folder of pictures")
        self._paths = PackedStrings(sorted(_pictures(self.folder)))
        if not len(self):
            raise ValueError(
                f"{self.folder}: no picture in it or below; looked for {', '.join(EXTENSIONS)}"
            )

    def __len__(self) -> int:
        return len(self._paths)

    def image_id(self, index: int) -> str:
        """The picture's path below the folder."""
        return self._paths[self._checked(index)]

    def captions(self, index: int) -> tuple[str, ...]:
        """None: an empty tuple."""
        self._checked(index)
        return ()

    def path(self, index: int) -> str:
        """Where the picture lies."""
        return os.path.join(self.folder, self._paths[self._checked(index)])

    def encoded(self, index: int) -> bytes:
        """The picture's file; `BadImage` if it cannot be read."""
        return read_file(self.path(index))

    def image(self, index: int) -> Image.Image:
        """The picture, upright and RGB; `BadImage` if it cannot be read."""
        return load_image(self.path(index))

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder} has {len(self)} pictures, asked for {index}")
        return index


def _pictures(root: str) -> Iterator[str]:
    """Paths below `root`, as POSIX writes them."""
    for folder, subfolders, files in os.walk(root, onerror=_unreadable):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        below = Path(folder).relative_to(root)
        for name in files:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield (below / name).as_posix()


def _unreadable(error: OSError) -> None:
    # os.walk would leave the folder out in silence, and an index without it looks complete.
    raise error
