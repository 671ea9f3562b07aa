"""Base of sources whose items are video files, and the `video:` source, a folder of them."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator

from PIL import Image

from edje_jax.config.frames import FrameSampling
from edje_jax.data.frames import ENDINGS, middle_frame, read_frames, require_av
from edje_jax.data.images import BadImage, read_file
from edje_jax.data.sources.folder import FilesOfFolder, ending
from edje_jax.data.sources.texts import printable, text_fault
from edje_jax.data.stamps import file_stamp


class VideoFiles(ABC):
    """Videos that are files of their own; a subclass has `path`."""

    @abstractmethod
    def path(self, index: int) -> str:
        """Path of a video's file."""

    def is_video(self, index: int) -> bool:
        """True."""
        return True

    def stamp(self, index: int) -> str:
        """The file's size and modification time."""
        return file_stamp(self.path(index))

    def encoded(self, index: int) -> bytes:
        """The video's file; `BadImage` if it cannot be read."""
        return read_file(self.path(index))

    def frames(self, index: int, sampling: FrameSampling) -> Iterator[Image.Image]:
        """Frames of a video; `BadImage` if it cannot be read."""
        return read_frames(self._named(index), sampling)

    def image(self, index: int) -> Image.Image:
        """Frame in the middle of a video; `BadImage` if it cannot be read."""
        return middle_frame(self._named(index))

    def _named(self, index: int) -> str:
        """The path of a video, if its name can be written down."""
        path = self.path(index)
        if text_fault(path):
            raise BadImage(f"{printable(path)}: its name is not UTF-8; rename it")
        return path


class VideoFolder(FilesOfFolder, VideoFiles):
    """Videos below a folder.

    A file with an ending of `data.frames.ENDINGS`, in either case, is taken for a video; whether it
    is one shows when it is read.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: see `FilesOfFolder`.
        ImportError: PyAV is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]):
        require_av()
        super().__init__(path, "video", why_no_video)


def why_no_video(entry: os.DirEntry[str]) -> str:
    """Why a file is not taken for a video, its ending; "" if it is."""
    kind = ending(entry.name)
    return "" if kind in ENDINGS else kind or "no ending"
