"""A decoded image of any mode -> 8-bit RGB, as a recipe treats its profile and transparency."""

import io
import logging

import numpy as np
from PIL import Image, ImageCms

from edje_jax.config.model import ImageRecipe

log = logging.getLogger(__name__)

_SPACES = {
    b"RGB ": ("RGB", ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr", "HSV")),
    b"GRAY": ("L", ("1", "L", "LA")),
    b"CMYK": ("CMYK", ("CMYK",)),
    b"Lab ": ("LAB", ("LAB",)),
}
"""Colour space that an ICC profile states (bytes 16 to 20) -> (mode that it describes, modes that
are brought into it)."""
_WHITE = 255


def to_rgb(image: Image.Image, recipe: ImageRecipe) -> Image.Image:
    """8-bit RGB of an image, which may be changed or returned itself.

    16-bit, 32-bit and float grayscale is scaled to 8 bits where `convert` would clip it.
    """
    profile = image.info.get("icc_profile") if recipe.icc_profile == "applied" else None
    alpha = _alpha(image) if recipe.transparency == "white" else None
    # No longer needed, and Pillow warns of a palette's.
    image.info.pop("transparency", None)
    if image.mode.startswith("I"):  # also "I;16" and its byte orders
        ceilings = (65535,) if ";16" in image.mode else (255, 65535)
        image = Image.fromarray(_to_8_bits(np.asarray(image), ceilings))
    elif image.mode == "F":
        image = Image.fromarray(_to_8_bits(np.asarray(image), (1, 255, 65535)))
    rgb = (_by_profile(image, profile) if profile else None) or _converted(image)
    if alpha is not None:
        # `rgb` may share its pixels with the caller, so paste into a new image.
        white = Image.new("RGB", rgb.size, (_WHITE,) * 3)
        white.paste(rgb, mask=alpha)
        return white
    return rgb


def _converted(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def _alpha(image: Image.Image) -> Image.Image | None:
    """Opacity as mode L; None of an image that has none."""
    if not image.has_transparency_data:
        return None
    if image.mode.startswith("I"):  # A PNG's transparent 16-bit value
        opaque = np.asarray(image) != image.info["transparency"]
        return Image.fromarray(np.where(opaque, _WHITE, 0).astype(np.uint8))
    return image.convert("RGBA").getchannel("A")


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """sRGB of an image by its embedded ICC profile; None where that is damaged or another mode's,
    which image viewers disregard as well."""
    try:
        mode, brought = _SPACES[profile[16:20]]
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode not in brought:
            return None
        image = image.convert(mode) if image.mode != mode else image
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (OSError, KeyError, ImageCms.PyCMSError) as error:
        log.debug("unusable ICC profile left aside (%s)", error)
        return None


def _to_8_bits(values: np.ndarray, ceilings: tuple[int, ...]) -> np.ndarray:
    """Scale deep grayscale to uint8 of the same shape.

    The range is 0 to the first of `ceilings` that holds every value; where none does, the
    image's own darkest to brightest value.
    """
    values = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    for ceiling in ceilings:
        if low >= 0 and high <= ceiling:
            return np.rint(values * (255 / ceiling)).astype(np.uint8)
    return np.rint((values - low) * (255 / max(high - low, 1e-30))).astype(np.uint8)
