"""Any image -> upright RGB -> uint8 [S, S, 3] -> normalised float32, by one pinned recipe.

The recipe is the backbone's own `preprocessor_config.json`; its pixels equal those of the
`transformers` image processors (Pillow backend) bit for bit, which tests/data/test_images.py pins.
"""

import io
import logging
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from edje_jax.config.frames import FrameSampling
from edje_jax.config.model import ImageRecipe
from edje_jax.data import png
from edje_jax.data.colours import to_rgb
from edje_jax.data.decoders import open_image
from edje_jax.types import ArrayT, Frames, HasFiles, HasVideos, Source

MAX_PIXELS = 178_956_970
"""Images of more are refused as decompression bombs: Pillow's own limit, but not switched off
with it."""
CROP_PIXELS = 2**26
"""The largest image (256 MiB) that `resize` makes on the way to a centre crop."""

ImageLike = str | os.PathLike[str] | bytes | bytearray | BinaryIO | Image.Image | np.ndarray
_READABLE = (str, os.PathLike, bytes, bytearray, Image.Image)

logger = logging.getLogger(__name__)


class BadImage(ValueError):
    """An image that cannot be used; the message names the file and the reason."""


# --- reading --------------------------------------------------------------------------------------


def load_image(
    source: ImageLike, recipe: ImageRecipe | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Read an image, upright and RGB: the first frame, turned as its EXIF says.

    `source` is a path, the bytes of a file, an open binary file (read from where it stands), a PIL
    image or uint8 [H, W, 3]. The format is told by the content; a name's ending counts for nothing.

    Equal to `transformers.image_utils.load_image` but for 16-bit, 32-bit and float grayscale, which
    are scaled to 8 bits where `convert` would clip them. As there, transparency is dropped, the
    colours beneath it show, and ICC profiles are disregarded, unless `recipe` says otherwise.
    (Newer processors put an RGBA image on white, but only one that is handed over as such; what
    `load_image` has read never is.)

    Raises:
        BadImage: missing, not an image, truncated, empty, or more than `max_pixels` pixels.
        TypeError: `source` is none of the above.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if not isinstance(source, _READABLE) and not hasattr(source, "read"):
        raise TypeError(
            f"cannot read an image from {type(source).__name__}; give a path, bytes, an open "
            "binary file, a PIL image or uint8 [height, width, 3]"
        )
    name, recipe = _name(source), recipe or ImageRecipe()
    try:
        if isinstance(source, Image.Image):
            return _decode(source, recipe, max_pixels)
        with _stream(source) as stream:
            return _decode_stream(stream, recipe, max_pixels)
    # Decoders of broken files raise nearly anything: struct.error, SyntaxError, EOFError, KeyError.
    except Exception as error:
        raise BadImage(f"{name}: {reason_of(error, name)}") from error


def read_file(path: str) -> bytes:
    """An image's file as it is.

    Raises:
        BadImage: it is missing or cannot be read.
    """
    try:
        with _stream(path) as stream:
            return stream.read()
    except OSError as error:
        raise BadImage(f"{path}: {reason_of(error, path)}") from error


def decode(data: bytes, name: str, recipe: ImageRecipe | None = None) -> Image.Image:
    """`load_image` of the bytes of a file that messages call `name`.

    Raises:
        BadImage: see `load_image`.
    """
    stream = _Named(data)
    stream.name = name
    return load_image(stream, recipe)


class _Named(io.BytesIO):
    name: str


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.shape[2:] != (3,) or not pixels.size:
        raise BadImage(
            f"an array of {pixels.dtype} {list(pixels.shape)} is not an image; "
            "give uint8 [height, width, 3]"
        )
    return Image.fromarray(pixels).copy()  # fromarray shares the caller's memory


def _name(source: object) -> str:
    """Name of an image in messages."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "filename", "") or getattr(source, "name", "")
    return name if isinstance(name, str) and name else "image in memory"


def _stream(source: str | os.PathLike[str] | bytes | bytearray | BinaryIO) -> BinaryIO:
    if isinstance(source, str | os.PathLike):
        return open(os.path.expanduser(source), "rb")
    # Of an open file a copy: the caller's stays open, and need not be able to seek.
    return io.BytesIO(source if isinstance(source, bytes | bytearray) else source.read())


def _decode_stream(stream: BinaryIO, recipe: ImageRecipe, max_pixels: int) -> Image.Image:
    if not stream.read(1):
        raise BadImage("the file is empty")
    try:
        with open_image(stream) as image:
            return _decode(image, recipe, max_pixels)
    except BadImage:
        raise
    except ValueError:  # What Pillow raises of a PNG's texts and profile that are over its limits
        stream.seek(0)
        file = stream.read()
        if not file.startswith(png.SIGNATURE):
            raise
    file, profile = png.without_texts(file)
    with open_image(io.BytesIO(file)) as image:
        if profile:
            image.info["icc_profile"] = profile
        return _decode(image, recipe, max_pixels)


def _decode(image: Image.Image, recipe: ImageRecipe, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage(f"{width} x {height} pixels, more than {max_pixels:,}; make it smaller")
    if not width * height:
        raise BadImage(f"{width} x {height} pixels: it has none")
    image.load()
    return to_rgb(_upright(image), recipe)


def _upright(image: Image.Image) -> Image.Image:
    """A copy, turned and mirrored as the EXIF orientation says."""
    try:
        return ImageOps.exif_transpose(image)
    # The pixels are decoded by now: only the EXIF block can be broken, which is no loss.
    except Exception as error:
        logger.debug("%s: unreadable EXIF left aside (%s)", _name(image), error)
        return image.copy()


def reason_of(error: Exception, name: str) -> str:
    """Reason why a file called `name` cannot be read, for a message."""
    match error:
        case BadImage():
            return str(error)
        case FileNotFoundError():
            hint = "; a URL is not fetched: download it first" if "://" in name else ""
            return f"no such file{hint}"
        case IsADirectoryError():
            return "a folder, not a file"
        case PermissionError():
            return "permission denied"
        case UnidentifiedImageError():
            return str(error)
        case Image.DecompressionBombError():
            return f"more than {MAX_PIXELS:,} pixels; make it smaller"
        case MemoryError():
            return "needs more memory than there is; make it smaller"
        case OSError(errno=int()):
            return f"cannot be read ({error.strerror})"
        case _:
            return f"broken or truncated ({error})"


# --- pixels ---------------------------------------------------------------------------------------


def resize(image: Image.Image, recipe: ImageRecipe) -> UInt8[np.ndarray, "s s 3"]:
    """Warp to a square, or bring the short side to `recipe.size` and crop the centre.

    Images so long that the uncropped one would pass `CROP_PIXELS` are cropped while resizing:
    the same region, whose pixels may be off by rounding.

    Raises:
        ValueError: `image` is not RGB.
    """
    if image.mode != "RGB":
        raise ValueError(f"resize takes an RGB image, got {image.mode}; load_image makes one")
    side, resample = recipe.size, Image.Resampling[recipe.resample.upper()]
    if recipe.resize == "warp":
        return np.array(image.resize((side, side), resample))
    # The reference rounds both the long side and the offsets down.
    width, height = (int(side * length / min(image.size)) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    window = (left, top, left + side, top + side)
    if width * height <= CROP_PIXELS:
        return np.array(image.resize((width, height), resample).crop(window))
    scale_x, scale_y = image.width / width, image.height / height
    box = (window[0] * scale_x, window[1] * scale_y, window[2] * scale_x, window[3] * scale_y)
    return np.array(image.resize((side, side), resample, box=box))


def random_crop(image: Image.Image, smallest: float, rng: np.random.Generator) -> Image.Image:
    """A window of an image, its share of the area drawn evenly from `smallest` to 1.

    It is up to 4/3 wider or higher than the image's own proportions (arXiv 1409.4842, section 6).
    One that would reach past the image is cut to it, and may then be a little below `smallest`.
    """
    area, stretch = rng.uniform(smallest, 1.0), np.exp(rng.uniform(-1, 1) * np.log(4 / 3))
    box = []
    for length, share in zip(image.size, np.sqrt((area * stretch, area / stretch)), strict=True):
        size = min(max(round(length * share), 1), length)
        start = int(rng.integers(length - size + 1))
        box.append((start, start + size))
    (left, right), (top, bottom) = box
    return image.crop((left, top, right, bottom))


def normalise(
    images: UInt8[ArrayT, "*b s s 3"], recipe: ImageRecipe
) -> Float32[ArrayT, "*b s s 3"]:
    """(x / 255 - mean) / std in float32, for NumPy and JAX arrays alike; works under jit."""
    # As many axes as the images: JAX may be told to raise on rank promotion.
    shape = (1,) * (images.ndim - 1) + (3,)
    mean = np.array(recipe.mean, np.float32).reshape(shape)
    std = np.array(recipe.std, np.float32).reshape(shape)
    return (images.astype(np.float32) / 255 - mean) / std


def normalise_all(images: Any, recipe: ImageRecipe) -> Any:
    """`normalise` of images [b, s, s, 3], or of `Frames`."""
    if isinstance(images, Frames):
        return images._replace(pixels=normalise(images.pixels, recipe))
    return normalise(images, recipe)


def is_video(source: Source, index: int) -> bool:
    """Whether an item of a source is a video; its image is then the frame in the middle."""
    return isinstance(source, HasVideos) and source.is_video(index)


def has_videos(source: Source) -> bool:
    """Whether some item of a source is a video, of a thousand that are spread over it."""
    if not isinstance(source, HasVideos):
        return False
    step = max(len(source) // 1000, 1)
    return any(source.is_video(index) for index in range(0, len(source), step))


def frames_of(
    source: Source, index: int, sampling: FrameSampling, recipe: ImageRecipe | None = None
) -> Iterator[Image.Image]:
    """Frames of an item, upright and RGB, in the order in which they are shown; an image is one.

    Args:
        recipe: how an image's profile and transparency are treated; None for the default.

    Raises:
        BadImage: it cannot be read.
    """
    if isinstance(source, HasVideos) and source.is_video(index):
        yield from source.frames(index, sampling)
    else:
        yield decode_record(source, index, recipe or ImageRecipe())


def file_bytes(source: Source, index: int) -> bytes:
    """The file that a source keeps of an image, else a PNG of the image; also of a video's.

    Raises:
        BadImage: it cannot be read.
    """
    if isinstance(source, HasFiles) and not is_video(source, index):
        return source.encoded(index)
    stream = io.BytesIO()
    source.image(index).save(stream, "PNG")
    return stream.getvalue()


def decode_record(source: Source, index: int, recipe: ImageRecipe) -> Image.Image:
    """Image of a source, upright and RGB, its profile and transparency treated as a recipe says.

    Raises:
        BadImage: it cannot be read.
    """
    if recipe.reading and isinstance(source, HasFiles) and not is_video(source, index):
        return decode(source.encoded(index), source.image_id(index), recipe)
    return source.image(index)


def record_pixels(source: Source, index: int, recipe: ImageRecipe) -> UInt8[np.ndarray, "s s 3"]:
    """Image of a source as the backbone takes it, but for `normalise`.

    Raises:
        BadImage: it cannot be read.
    """
    return resize(decode_record(source, index, recipe), recipe)


def image_pixels(
    image: ImageLike, recipe: ImageRecipe, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "s s 3"]:
    """Image from anywhere else as the backbone takes it, but for `normalise`.

    Raises:
        BadImage, TypeError: see `load_image`.
    """
    return resize(load_image(image, recipe, max_pixels), recipe)
