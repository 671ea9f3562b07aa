"""PNG files whose texts or ICC profile are larger than Pillow reads (1 MiB each, 64 MiB in all)."""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PROFILE_BYTES = 64 << 20
"""The largest ICC profile that is unpacked; an image with a larger one is read without it."""
TEXT_BYTES = 1 << 20

_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_XMP, _EXIF = b"XML:com.adobe.xmp", b"Raw profile type exif"


def without_texts(file: bytes) -> tuple[bytes, bytes | None]:
    """(the file without its texts and its ICC profile, that profile or None).

    Texts that may tell the orientation stay, unless they are over 1 MiB.
    """
    kept, profile, at = [SIGNATURE], None, len(SIGNATURE)
    while at + 12 <= len(file):
        length, kind = struct.unpack_from(">I4s", file, at)
        body, end = file[at + 8 : at + 8 + length], at + 12 + length
        if kind == b"iCCP":
            profile = _inflated(body[body.find(b"\0") + 2 :], PROFILE_BYTES)
        elif kind not in _TEXTS or _tells_orientation(kind, body):
            kept.append(file[at:end])
        at = end
    return b"".join(kept), profile


def _tells_orientation(kind: bytes, body: bytes) -> bool:
    name, _, rest = body.partition(b"\0")
    if kind == b"zTXt":
        return name == _EXIF and _inflated(rest[1:], TEXT_BYTES) is not None
    # By its specification, XMP is not compressed.
    plain = (kind == b"tEXt" and name == _EXIF) or (name == _XMP and rest[:1] == b"\0")
    return plain and len(body) <= TEXT_BYTES


def _inflated(data: bytes, limit: int) -> bytes | None:
    """Decompress zlib data; None if it is damaged or longer than `limit` bytes."""
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(data, limit)
    except zlib.error:
        return None
    return unpacked if unpacker.eof else None
