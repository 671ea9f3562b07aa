"""Images: equal to the `transformers` processors to the bit, and right on odd and bad files.

`python tests/data/test_images.py` writes the golden anew, from the installed transformers.
"""

import io
import pickle
import struct
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil
from transformers.image_utils import load_image as reference_load

from edje_jax.config.model import ImageRecipe
from edje_jax.data import images
from edje_jax.data.images import BadImage, load_image, normalise, random_crop, resize
from edje_jax.weights.preprocessor import recipe_to_preprocessor

GOLDEN = Path(__file__).parents[1] / "goldens" / "images.npz"
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Half gradient, half noise: uint8 [height, width, 3]."""
    rng = np.random.default_rng([seed, width, height])
    slope = np.linspace(0, 127, height * width * 3).reshape(height, width, 3)
    return (slope + rng.integers(0, 128, slope.shape)).astype(np.uint8)


def reference(image: np.ndarray, recipe: ImageRecipe, pixels_only: bool = True) -> np.ndarray:
    """Pixels that transformers makes of an image: uint8 [S, S, 3], or normalised float32."""
    kind = SiglipImageProcessorPil if recipe.resize == "warp" else CLIPImageProcessorPil
    settings = recipe_to_preprocessor(recipe)
    del settings["image_processor_type"]
    if pixels_only:
        settings |= {"do_rescale": False, "do_normalize": False}
    out = kind(**settings)(Image.fromarray(image), return_tensors="np")["pixel_values"]
    return np.moveaxis(out[0], 0, -1)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# --- parity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize("way", ["warp", "crop"])
def test_resize_equals_transformers_bit_for_bit(way, resample):
    shapes = [(1, 1), (3, 50), (50, 3), (64, 64), (65, 64), (64, 97), (333, 41), (41, 333), (7, 5)]
    for size in (16, 33, 64):
        recipe = ImageRecipe(size, way, resample)
        for width, height in shapes:
            image = noise(width, height)
            ours = resize(Image.fromarray(image), recipe)
            theirs = reference(image, recipe)
            assert ours.dtype == np.uint8 and ours.shape == (size, size, 3)
            assert theirs.dtype == np.uint8
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{width} x {height} -> {size}")


@pytest.mark.parametrize("way", ["warp", "crop"])
def test_a_long_image_at_model_size_equals_transformers(way):
    image, recipe = noise(20_000, 100), ImageRecipe(224, way, "bicubic")
    ours = resize(Image.fromarray(image), recipe)
    np.testing.assert_array_equal(ours, reference(image, recipe))


@pytest.mark.parametrize("mean, std", [((0.5,) * 3, (0.5,) * 3), (CLIP_MEAN, CLIP_STD)])
def test_normalise_equals_transformers(mean, std):
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    recipe = ImageRecipe(16, "warp", "bilinear", mean, std)
    theirs = reference(levels, recipe, pixels_only=False)
    ours = normalise(levels, recipe)
    assert isinstance(ours, np.ndarray) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    traced = jax.jit(lambda x: normalise(x, recipe))(levels)
    assert isinstance(traced, jax.Array) and traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, theirs, rtol=0, atol=1e-6)


def test_normalise_keeps_leading_axes_under_strict_promotion():
    batch = np.stack([noise(8, 8, seed) for seed in range(6)]).reshape(2, 3, 8, 8, 3)
    recipe = ImageRecipe(8, mean=CLIP_MEAN, std=CLIP_STD)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        traced = jax.jit(lambda x: normalise(x, recipe))(batch)
    assert traced.shape == batch.shape
    np.testing.assert_allclose(traced[1, 2], normalise(batch[1, 2], recipe), rtol=0, atol=1e-6)


def golden_recipes() -> list[tuple[str, ImageRecipe]]:
    return [
        (f"{way}-{resample}-{size}", ImageRecipe(size, way, resample))
        for way in ("warp", "crop")
        for resample, size in [*((name, 12) for name in FILTERS), ("bicubic", 29)]
    ]


def golden_images() -> dict[str, np.ndarray]:
    return {f"picture-{w}x{h}": noise(w, h) for w, h in ((40, 23), (17, 51))}


def write_golden() -> None:
    images = golden_images()
    outputs = {
        f"{name}-{image}": reference(pixels, recipe)
        for name, recipe in golden_recipes()
        for image, pixels in images.items()
    }
    np.savez_compressed(GOLDEN, **images, **outputs)


@pytest.mark.parametrize("who", ["edje_jax", "transformers"])
def test_nobody_drifted_from_the_golden(who):
    """The golden is of transformers 5.23 and Pillow 13: says which of the two sides has moved."""
    golden = np.load(GOLDEN, allow_pickle=False)
    images = [name for name in golden.files if name.startswith("picture-")]
    assert len(golden.files) == len(images) * (1 + len(golden_recipes())) == 30
    for name, recipe in golden_recipes():
        for image in images:
            pixels = golden[image]
            if who == "transformers":
                out = reference(pixels, recipe)
            else:
                out = resize(Image.fromarray(pixels), recipe)
            np.testing.assert_array_equal(out, golden[f"{name}-{image}"], err_msg=name)


# --- odd images ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(400, 30), (30, 400), (1, 90), (90, 1)])
@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "lanczos", "box", "hamming"])
def test_cropping_while_resizing_shows_the_same_region(monkeypatch, shape, resample):
    # Smooth, as images are: the two differ by rounding, not by region.
    x, y = np.mgrid[: shape[1], : shape[0]]
    pixels = np.stack([x * 255 / shape[1], y * 255 / shape[0], 128 + 100 * np.sin(y / 9)], -1)
    image, recipe = Image.fromarray(pixels.astype(np.uint8)), ImageRecipe(32, "crop", resample)
    whole = resize(image, recipe).astype(int)
    monkeypatch.setattr(images, "CROP_PIXELS", 0)
    assert np.abs(resize(image, recipe).astype(int) - whole).max() <= 1


@pytest.mark.parametrize("shape", [(20_000, 1), (1, 20_000)])
def test_a_thread_of_an_image_is_cropped_in_little_memory(shape):
    # The uncropped image would be 7,680,000 x 384: 12 GB.
    image = noise(*shape)
    out = resize(Image.fromarray(image), ImageRecipe(384, "crop", "bicubic"))
    assert out.shape == (384, 384, 3)
    # One source pixel, or the border of two, fills the whole square.
    centre = image.reshape(-1, 3)[9_998:10_002].astype(int)
    assert (out >= centre.min(0) - 40).all() and (out <= centre.max(0) + 40).all()
    assert np.ptp(out, axis=0 if shape[0] > 1 else 1).max() == 0


def test_resize_wants_rgb():
    with pytest.raises(ValueError, match="takes an RGB image, got L; load_image makes one"):
        resize(Image.new("L", (4, 4)), ImageRecipe())


def grey() -> Image.Image:
    return Image.fromarray(noise(11, 7)).convert("L")


ODD = {
    "grayscale": saved(grey(), "PNG"),
    "1-bit": saved(grey().convert("1"), "PNG"),
    "CMYK": saved(Image.fromarray(noise(11, 7)).convert("CMYK"), "JPEG"),
    "CMYK TIFF": saved(Image.fromarray(noise(11, 7)).convert("CMYK"), "TIFF"),
    "palette": saved(Image.fromarray(noise(11, 7)).quantize(16), "PNG"),
    "palette with transparency": saved(
        Image.fromarray(noise(11, 7)).quantize(16), "PNG", transparency=3
    ),
    "LA": saved(Image.merge("LA", (grey(), grey())), "PNG"),
    "RGBA": saved(Image.fromarray(np.dstack([noise(11, 7), noise(11, 7)[..., :1]])), "PNG"),
    "RGB with a transparent colour": saved(
        Image.fromarray(noise(11, 7)), "PNG", transparency=(0, 0, 0)
    ),
    "WebP": saved(Image.fromarray(noise(11, 7)), "WEBP"),
    "BMP": saved(Image.fromarray(noise(11, 7)), "BMP"),
    "JPEG 2000": saved(Image.fromarray(noise(11, 7)), "JPEG2000"),
    "1 x 1": saved(Image.new("RGB", (1, 1), (9, 99, 199)), "PNG"),
    "20000 wide": saved(Image.new("RGB", (20_000, 100), (9, 99, 199)), "PNG"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_images_equal_transformers(name, tmp_path):
    path = tmp_path / "odd.png"
    path.write_bytes(ODD[name])
    ours, theirs = load_image(path), reference_load(str(path))
    assert ours.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    for recipe in (ImageRecipe(8, "warp"), ImageRecipe(8, "crop")):
        np.testing.assert_array_equal(
            resize(ours, recipe), reference(np.asarray(theirs), recipe), err_msg=name
        )


def test_transparency_is_dropped_and_the_colours_beneath_show():
    image = np.full((4, 4, 4), (200, 100, 50, 0), np.uint8)
    out = np.asarray(load_image(saved(Image.fromarray(image), "PNG")))
    assert (out == (200, 100, 50)).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_give_their_first_frame(kind):
    frames = [Image.new("RGB", (9, 6), colour) for colour in ("red", "blue", "green")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert (np.asarray(load_image(data)) == (255, 0, 0)).all()


def test_16_bit_grayscale_is_scaled_not_clipped():
    deep = np.array([[0, 257, 1000, 32768], [40000, 65000, 65534, 65535]], np.uint16)
    expected = np.round(deep / 257).astype(np.uint8)
    for image in (
        load_image(saved(Image.fromarray(deep), "PNG")),
        load_image(saved(Image.fromarray(deep), "TIFF")),
        load_image(Image.fromarray(deep.astype(np.int32))),
    ):
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), np.dstack([expected] * 3))
    # A dark 16-bit image stays dark.
    assert np.asarray(load_image(saved(Image.fromarray(deep // 257), "PNG"))).max() == 1


@pytest.mark.parametrize(
    "values, expected",
    [
        ([[0.0, 0.5, 1.0]], [[0, 128, 255]]),
        ([[0.0, 100.0, 255.0]], [[0, 100, 255]]),
        ([[-10.0, 0.0, 10.0]], [[0, 128, 255]]),
        ([[0.0, float("nan"), 1.0]], [[0, 0, 255]]),
        ([[-3.0, -3.0]], [[0, 0]]),
    ],
)
def test_float_grayscale_fits_its_range(values, expected):
    image = Image.fromarray(np.array(values, np.float32))
    assert image.mode == "F"
    for read in (load_image(image), load_image(saved(image, "TIFF"))):
        np.testing.assert_array_equal(np.asarray(read)[..., 0], expected)


def test_8_bit_values_in_a_32_bit_image_stay():
    image = Image.fromarray(np.array([[0, 77, 255]], np.int32))
    assert image.mode == "I"
    np.testing.assert_array_equal(np.asarray(load_image(image))[0, :, 0], [0, 77, 255])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone_pixel_by_pixel(orientation):
    upright = noise(5, 3)
    # How a camera held that way stores the image, by the EXIF standard's table.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    for data in (saved(image, "PNG", exif=exif), saved(image, "TIFF", exif=exif)):
        np.testing.assert_array_equal(np.asarray(load_image(data)), upright)


def test_a_broken_exif_block_costs_nothing():
    pixels = noise(6, 4)
    data = saved(Image.fromarray(pixels), "PNG", exif=b"Exif\0\0" + b"\x07" * 40)
    with pytest.raises(SyntaxError):
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(np.asarray(load_image(data)), pixels)


def test_every_way_to_hand_over_an_image(tmp_path, monkeypatch):
    pixels = noise(9, 5)
    data = saved(Image.fromarray(pixels), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    monkeypatch.setenv("HOME", str(tmp_path))
    with open(tmp_path / "a.png", "rb") as file:
        ways = [str(tmp_path / "a.png"), tmp_path / "a.png", "~/a.png", data, bytearray(data)]
        ways += [io.BytesIO(data), file, Image.open(io.BytesIO(data)), pixels]
        for way in ways:
            np.testing.assert_array_equal(np.asarray(load_image(way)), pixels)
        assert not file.closed


def test_the_caller_s_image_is_left_alone():
    pixels = noise(9, 5)
    image = Image.fromarray(pixels)
    out = load_image(image)
    out.putpixel((0, 0), (1, 2, 3))
    assert out is not image and image.getpixel((0, 0)) == tuple(pixels[0, 0])
    kept = load_image(pixels)
    pixels[:] = 0
    assert np.asarray(kept).any()


# --- bad images ---------------------------------------------------------------------------------


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG with a true header and the pixels of another: what a decompression bomb looks like."""
    data = bytearray(saved(Image.new("RGB", (4, 4)), "PNG"))
    header = b"IHDR" + struct.pack(">II", width, height) + bytes(data[24:29])
    data[12:33] = header + struct.pack(">I", zlib.crc32(header))
    return bytes(data)


PHOTO = saved(Image.fromarray(noise(200, 200)), "JPEG")
BAD = {
    "truncated.jpg": (PHOTO[: len(PHOTO) // 2], "broken or truncated"),
    "truncated.png": (saved(Image.fromarray(noise(99, 99)), "PNG")[:9000], "broken or truncated"),
    "truncated.webp": (saved(Image.fromarray(noise(99, 99)), "WEBP")[:500], "broken or truncated"),
    "stub.jpg": (PHOTO[:20], "not an image in a known format"),
    "text.png": (b"this is no image at all\n" * 9, "not an image in a known format"),
    "page.html": (b"<html><body>404 Not Found</body></html>", "not an image in a known format"),
    "drawing.eps": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "not an image in a known format; EPS is not opened: save it as PNG or JPEG",
    ),
    "empty.jpg": (b"", "the file is empty"),
    "bomb.png": (
        png_that_claims(60_000, 60_000),
        "60000 x 60000 pixels, more than 178,956,970; make it smaller",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_with_the_reason(name, tmp_path):
    content, reason = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadImage, match=rf"{name}: .*{reason}"):
        load_image(path)
    with pytest.raises(BadImage, match=f"image in memory: .*{reason}"):
        load_image(content)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(BadImage, match=r"nowhere\.png: no such file$"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(BadImage, match=f"{tmp_path}: a folder, not a file"):
        load_image(tmp_path)
    with pytest.raises(BadImage, match="no such file; a URL is not fetched"):
        load_image("https://example.com/a.jpg")
    with pytest.raises(BadImage, match=r"x: cannot be read \(File name too long\)"):
        load_image("x" * 5000)


def test_permission_denied(tmp_path, monkeypatch):
    (tmp_path / "locked.png").write_bytes(ODD["RGBA"])

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", path)

    # Changing the mode is not enough where tests run as root.
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(BadImage, match=r"locked\.png: permission denied"):
        load_image(tmp_path / "locked.png")


def test_bombs_are_refused_even_where_pillow_s_limit_is_off(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(BadImage, match="60000 x 60000 pixels, more than 178,956,970"):
        load_image(png_that_claims(60_000, 60_000))


def test_an_image_that_memory_cannot_hold_is_one_bad_image(monkeypatch):
    def refuse(*_):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(BadImage, match="needs more memory than there is; make it smaller"):
        load_image(ODD["CMYK"])


def test_bad_image_survives_the_way_back_from_a_worker():
    error = pickle.loads(pickle.dumps(BadImage("a.png: the file is empty")))
    assert isinstance(error, BadImage) and str(error) == "a.png: the file is empty"


@pytest.mark.parametrize(
    "array", [noise(4, 4).astype(np.float32), noise(4, 4)[..., 0], np.zeros((0, 4, 3), np.uint8)]
)
def test_arrays_that_are_no_images(array):
    with pytest.raises(BadImage, match=r"an array of .* give uint8 \[height, width, 3\]"):
        load_image(array)


def test_other_types_are_a_mistake_of_the_caller():
    with pytest.raises(TypeError, match="cannot read an image from int; give a path"):
        load_image(3)
    with pytest.raises(BadImage, match="0 x 5 pixels"):
        load_image(Image.new("RGB", (0, 5)))


if __name__ == "__main__":
    write_golden()


@pytest.mark.parametrize("size", [(200, 100), (33, 77), (1, 1), (2, 5000)])
def test_a_random_window_is_as_large_as_asked(size):
    image, area = Image.new("RGB", size), size[0] * size[1]
    shares = []
    for draw in range(200):
        window = random_crop(image, 0.6, np.random.default_rng(draw))
        shares.append(window.width * window.height / area)
        if min(size) > 30:
            stretch = (window.width / size[0]) / (window.height / size[1])
            assert 0.7 < stretch < 1.42
    assert max(shares) <= 1
    if min(size) > 30:
        assert 0.55 < min(shares) < 0.7 and max(shares) > 0.9
