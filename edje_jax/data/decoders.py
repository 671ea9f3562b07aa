"""Which files are images: those that the installed decoders (Pillow and its plug-ins) recognise."""

import importlib
import struct
from collections.abc import Callable
from functools import cache
from typing import Any, BinaryIO, cast

from PIL import Image, ImageFile, UnidentifiedImageError

REFUSED = ("EPS", "WMF", "FITS", "MPEG", "BUFR", "GRIB", "HDF5")
"""Formats that are never opened: EPS runs Ghostscript, WMF draws by Windows, FITS unpacks without a
limit, and of the others Pillow knows the first bytes alone."""
PLUG_INS = ("pillow_heif.HeifImagePlugin", "pillow_jxl")
"""Modules that add a format to Pillow when they are imported; used if they are installed."""
PREFIX = 16
"""Bytes from which decoders tell whether a file may be theirs."""

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are opened; those without first bytes of their own last,
    as nearly anything may be taken for one of them."""
    Image.init()
    for module in PLUG_INS:
        try:
            importlib.import_module(module)
        except ImportError:
            continue
    taken = [name for name in Image.ID if name not in REFUSED]
    return tuple(sorted(taken, key=lambda name: Image.OPEN[name][1] is None))


@cache
def endings() -> frozenset[str]:
    """File name endings of these formats in lower case, such as ".jpg"."""
    taken = formats()
    return frozenset(e for e, name in Image.registered_extensions().items() if name in taken)


def open_image(stream: BinaryIO, by_first_bytes: bool = False) -> ImageFile.ImageFile:
    """Recognise an image by its content; nothing is decoded yet.

    `Image.open`, which also warns of large images: here the caller decides how large is too large.

    Args:
        by_first_bytes: leave out formats that have none of their own (TGA, PCD, ...).

    Raises:
        UnidentifiedImageError: no decoder recognises it.
        Exception: nearly any other, of a decoder that recognises it and finds it damaged.
    """
    stream.seek(0)
    prefix = stream.read(PREFIX)
    for name in formats():
        factory, accept = Image.OPEN[name]
        if by_first_bytes if accept is None else not _accepts(accept, prefix):
            continue
        stream.seek(0)
        try:
            return cast(ImageFile.ImageFile, factory(stream, ""))
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # Pillow takes these for another format
    raise UnidentifiedImageError(f"not an image in a known format{_hint(prefix)}")


def may_be_image(prefix: bytes) -> bool:
    """Whether the first `PREFIX` bytes of a file are those of a format, or of HEIC's, whose decoder
    may not be installed."""
    return _is_heif(prefix) or any(_accepts(Image.OPEN[name][1], prefix) for name in formats())


def why_no_image(stream: BinaryIO) -> str:
    """Why first bytes and header are no image's; "" if they are, though it may be damaged."""
    try:
        open_image(stream, by_first_bytes=True)
    except UnidentifiedImageError as error:
        return str(error)
    except Exception:  # Raised by a decoder that has recognised the file
        return ""
    return ""


def _accepts(accept: Callable[[bytes], Any] | None, prefix: bytes) -> bool:
    try:
        # The decoder returns a text if it knows the format but cannot read it.
        found = accept(prefix) if accept else False
        return bool(found) and not isinstance(found, str)
    except (IndexError, TypeError, struct.error):
        return False


def _is_heif(prefix: bytes) -> bool:
    return prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIF_BRANDS


def _hint(prefix: bytes) -> str:
    if _is_heif(prefix) and "HEIF" not in formats():
        return "; HEIC needs pip install 'edje-jax[heif]'"
    for name in REFUSED:
        if name in Image.OPEN and _accepts(Image.OPEN[name][1], prefix):
            return f"; {name} is not opened: save it as PNG or JPEG"
    return ""
