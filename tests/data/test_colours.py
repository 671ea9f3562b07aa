"""Colour profiles and transparency: as the Hugging Face processors by default, or as asked."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms
from transformers.image_utils import load_image as reference_load

from edje_jax.config.model import ImageRecipe
from edje_jax.data.images import decode_record, load_image
from edje_jax.data.sources.folder import Folder
from edje_jax.data.sources.pooled import Pooled

APPLIED = ImageRecipe(icc_profile="applied")
WHITE = ImageRecipe(transparency="white")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped() -> bytes:
    """sRGB with the primaries of red and blue exchanged: (r, g, b) shows as (b, g, r)."""
    names = SRGB.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ")
    return names.replace(b"?XYZ", b"bXYZ")


def linear_grey() -> bytes:
    """A profile of grey whose values are proportional to light."""
    grey = bytearray(SRGB.replace(b"RGB XYZ ", b"GRAYXYZ ").replace(b"rTRC", b"kTRC"))
    curve = grey.index(b"para") + 8
    grey[curve : curve + 8] = struct.pack(">HHi", 0, 0, 1 << 16)  # A power, of 1
    return bytes(grey)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def shown(data: bytes, recipe: ImageRecipe | None = None) -> tuple[int, ...]:
    """The colour of the middle."""
    image = load_image(data, recipe)
    assert image.mode == "RGB"
    pixel = image.getpixel((image.width // 2, image.height // 2))
    assert isinstance(pixel, tuple)
    return pixel


def off_by(got: tuple[int, ...], wanted: tuple[int, ...]) -> int:
    return max(abs(a - b) for a, b in zip(got, wanted, strict=True))


# --- profiles -------------------------------------------------------------------------------------

COLOUR = (230, 60, 40)


@pytest.mark.parametrize("kind, options", [
    ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 98}),
])  # fmt: skip
def test_a_profile_is_disregarded_or_applied(kind, options):
    data = saved(Image.new("RGB", (8, 8), COLOUR), kind, icc_profile=swapped(), **options)
    near = 3 if kind == "JPEG" else 0
    assert off_by(shown(data), COLOUR) <= near
    assert off_by(shown(data, APPLIED), COLOUR[::-1]) <= near + 1


def test_a_wide_gamut_is_brought_into_srgb():
    # Display P3's primaries on D50 (SMPTE EG 432-1, ICC's chad), and a power of 2.2.
    p3 = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])
    to_srgb = np.array(  # From XYZ on D50: Bradford and the inverse of sRGB's matrix
        [[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]]
    )
    light = np.clip(to_srgb @ p3 @ (np.array([100, 150, 120]) / 255) ** 2.2, 0, 1)
    wanted = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    profile = bytearray(SRGB)
    for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), p3.T, strict=True):
        (start,) = struct.unpack_from(">I", SRGB, SRGB.index(name) + 4)
        profile[start + 8 : start + 20] = struct.pack(">3i", *(round(v * 65536) for v in column))
    curve = profile.index(b"para") + 8
    profile[curve : curve + 8] = struct.pack(">HHi", 0, 0, round(2.2 * 65536))
    data = saved(Image.new("RGB", (4, 4), (100, 150, 120)), icc_profile=bytes(profile))
    assert off_by(shown(data, APPLIED), tuple(wanted)) <= 1.5
    assert off_by(shown(data), tuple(wanted)) > 10


@pytest.mark.parametrize("mode", ["P", "RGBA", "RGBX"])
def test_a_profile_is_applied_whatever_the_mode(mode):
    image = Image.new("RGB", (8, 8), COLOUR).convert(mode, palette=Image.Palette.ADAPTIVE)
    image.info["icc_profile"] = swapped()
    assert load_image(image).getpixel((4, 4)) == COLOUR
    found = load_image(image, APPLIED).getpixel((4, 4))
    assert isinstance(found, tuple) and off_by(found, COLOUR[::-1]) <= 1


@pytest.mark.parametrize("mode, value", [("L", 128), ("LA", (128, 255)), ("I;16", 128 * 257)])
def test_a_profile_of_grey(mode, value):
    data = saved(Image.new(mode, (8, 8), value), icc_profile=linear_grey())
    assert shown(data) == (128,) * 3
    # 1.055 * (128 / 255) ** (1 / 2.4) - 0.055 is 188 / 255.
    assert off_by(shown(data, APPLIED), (188,) * 3) <= 1


def test_a_useless_profile_leaves_colours_as_they_are():
    cmyk = Image.new("CMYK", (16, 16), (0, 200, 200, 0))
    data = saved(cmyk, "JPEG", quality=98, icc_profile=swapped())
    assert shown(data, APPLIED) == shown(data) and off_by(shown(data), (255, 55, 55)) <= 2
    for profile in (b"no profile", SRGB[:200], linear_grey()):
        data = saved(Image.new("RGB", (8, 8), COLOUR), icc_profile=profile)
        assert shown(data, APPLIED) == COLOUR
    assert shown(saved(Image.new("RGB", (8, 8), COLOUR)), APPLIED) == COLOUR


# --- transparency ---------------------------------------------------------------------------------


def ramp() -> np.ndarray:
    """Opacity from 0 to 255, uint8 [16, 16]."""
    return np.arange(256, dtype=np.uint8).reshape(16, 16)


def on_white(colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    share = opacity[..., None] / 255
    return colours * share + 255 * (1 - share)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_partly_transparent_colours_are_mixed_with_white(kind):
    colours = np.full((16, 16, 3), COLOUR, np.uint8)
    image = Image.fromarray(np.dstack([colours, ramp()]))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = saved(image, kind, **options)
    np.testing.assert_array_equal(np.asarray(load_image(data)), colours)
    mixed = np.asarray(load_image(data, WHITE), float)
    np.testing.assert_allclose(mixed, on_white(colours, ramp()), atol=1)


def test_partly_transparent_grey_is_mixed_with_white():
    grey = np.full((16, 16), 90, np.uint8)
    image = Image.merge("LA", (Image.fromarray(grey), Image.fromarray(ramp())))
    mixed = np.asarray(load_image(saved(image), WHITE), float)
    np.testing.assert_allclose(mixed, on_white(np.dstack([grey] * 3), ramp()), atol=1)


PALETTE = Image.new("P", (3, 1))
PALETTE.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 255])
PALETTE.putdata([0, 1, 2])
GREYS = Image.fromarray(np.array([[10, 200, 255]], np.uint8))
DEEP = Image.fromarray(np.array([[10, 200, 255]], np.uint16) * 257)
COLOURS = PALETTE.convert("RGB")
GONE = {
    "a palette, one colour of which is gone": (saved(PALETTE, transparency=0), COLOURS),
    "a palette, each colour with its opacity": (
        saved(PALETTE, transparency=bytes([0, 255, 255])),
        COLOURS,
    ),
    "a GIF": (saved(PALETTE, "GIF", transparency=0), COLOURS),
    "grey": (saved(GREYS, transparency=10), GREYS),
    "16-bit grey": (saved(DEEP, transparency=2570), GREYS),
    "colours": (saved(COLOURS, transparency=(10, 20, 30)), COLOURS),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", GONE)
def test_what_is_marked_as_transparent_turns_white(name):
    data, beneath = GONE[name]
    pixels = np.array(beneath.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(load_image(data)), pixels)
    pixels[0, 0] = 255
    np.testing.assert_array_equal(np.asarray(load_image(data, WHITE)), pixels)


def test_both_at_once_and_upright():
    stored = np.full((2, 3, 4), (*COLOUR, 255), np.uint8)
    stored[0, 0, 3] = 0
    exif = Image.Exif()
    exif[0x0112] = 3  # Upside down
    data = saved(Image.fromarray(stored), exif=exif, icc_profile=swapped())
    recipe = ImageRecipe(icc_profile="applied", transparency="white")
    pixels = np.asarray(load_image(data, recipe), int)
    assert tuple(pixels[1, 2]) == (255, 255, 255)
    assert np.abs(pixels[0] - COLOUR[::-1]).max() <= 1


def test_the_caller_s_image_keeps_its_transparency():
    image = Image.open(io.BytesIO(GONE["a GIF"][0]))
    for recipe in (None, WHITE, APPLIED):
        load_image(image, recipe)
        assert image.info["transparency"] == 0


# --- the default, and the way through sources -----------------------------------------------------


@pytest.mark.parametrize("name", [*(name for name in GONE if "16-bit" not in name), "a profile"])
def test_the_default_is_the_processors_to_the_bit(name, tmp_path):
    data = saved(Image.new("RGBA", (4, 4), (*COLOUR, 9)), icc_profile=swapped())
    (tmp_path / "a.png").write_bytes(GONE[name][0] if name in GONE else data)
    theirs = np.asarray(reference_load(str(tmp_path / "a.png")))
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png")), theirs)


def test_a_recipe_reaches_what_sources_keep(tmp_path):
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.png").write_bytes(GONE["colours"][0])
    a, b = Folder(tmp_path / "a"), Folder(tmp_path / "b")
    for source in (a, Pooled(a, b)):
        last = len(source) - 1
        assert decode_record(source, last, ImageRecipe()).getpixel((0, 0)) == (10, 20, 30)
        assert decode_record(source, last, WHITE).getpixel((0, 0)) == (255, 255, 255)


def test_a_recipe_that_is_none():
    with pytest.raises(ValueError, match='transparency "black": dropped or white'):
        ImageRecipe(transparency="black")  # type: ignore[arg-type]
