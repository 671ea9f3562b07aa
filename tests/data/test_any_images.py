"""Images are told by their content: whatever the decoders read is taken, the rest is named.

Covers data/decoders.py, data/png.py and data/sources/passed_over.py.
"""

import io
import logging
import os
import re
import struct
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from edje_jax.config.model import ImageRecipe
from edje_jax.data import decoders, png
from edje_jax.data.images import BadImage, load_image
from edje_jax.data.sources import folder as folder_source
from edje_jax.data.sources import tar_index
from edje_jax.data.sources.folder import Folder
from edje_jax.data.sources.registry import open_source
from edje_jax.data.sources.webdataset import WebDataset
from tests.data.test_colours import COLOUR, swapped
from tests.real_sets import write_tar

RED = (200, 30, 30)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
UNKNOWN = "not an image in a known format"
HEIC = b"\0\0\0\x1cftypheic" + bytes(100)


def saved(kind: str, colour: tuple[int, int, int] = RED, **options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(file, kind, **options)
    return file.getvalue()


def is_red(image: Image.Image) -> bool:
    return bool(np.abs(np.asarray(image, int) - RED).max() <= 12)


FILES = {
    "a.jpg": "JPEG", "b.JPEG": "JPEG", "c.jfif": "JPEG", "d.jpe": "JPEG", "e.PNG": "PNG",
    "f.avif": "AVIF", "g.jp2": "JPEG2000", "h.j2k": "JPEG2000", "i.ppm": "PPM", "j.pnm": "PPM",
    "k.bmp": "BMP", "l.dib": "DIB", "m.tif": "TIFF", "n.TIFF": "TIFF", "o.webp": "WEBP",
    "p.tga": "TGA", "q.pcx": "PCX", "r.sgi": "SGI", "s.ico": "ICO",
}  # fmt: skip
"""Names with an ending that tells the format."""
ODD = {
    "t": "JPEG", "u.": "PNG", "v.jpg": "AVIF", "w.png": "JPEG", "x.data": "WEBP",
    "y.jpg_large": "GIF",
}  # fmt: skip
"""Names that tell none, or another."""


def content(name: str) -> bytes:
    return saved(FILES.get(name) or ODD[name])


# --- decoders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FILES, *ODD])
def test_a_format_is_told_by_the_content(name, tmp_path):
    (tmp_path / name).write_bytes(content(name))
    assert is_red(load_image(tmp_path / name)) and is_red(load_image(content(name)))


def test_formats_that_run_programs_are_not_opened():
    assert not {"EPS", "WMF", "FITS"} & set(decoders.formats())
    assert not {".eps", ".ps", ".wmf", ".pdf"} & decoders.endings()
    with pytest.raises(BadImage, match="EPS is not opened: save it as PNG or JPEG"):
        load_image(EPS)


def test_heic_is_read_with_its_plug_in(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    assert ".heic" in decoders.endings()
    pixels = Image.new("RGB", (64, 48), COLOUR)
    pixels.paste(RED, (32, 0, 64, 48))
    exif = Image.Exif()
    exif[0x0112] = 6
    heif.from_pillow(pixels).save(tmp_path / "a.heic", quality=95, exif=exif.tobytes())
    found = load_image(tmp_path / "a.heic")
    assert found.size == (48, 64)  # A quarter turn, as the EXIF says
    assert np.abs(np.asarray(found, int)[60] - RED).max() <= 12
    (tmp_path / "b").write_bytes((tmp_path / "a.heic").read_bytes())
    assert len(Folder(tmp_path)) == 2
    (tmp_path / "cut.heic").write_bytes((tmp_path / "a.heic").read_bytes()[:-200])
    with pytest.raises(BadImage, match=r"cut\.heic: "):
        load_image(tmp_path / "cut.heic")


def test_heic_without_its_plug_in_names_it(monkeypatch, tmp_path):
    monkeypatch.setattr(decoders, "formats", lambda: ("JPEG", "PNG", "AVIF"))
    remedy = "HEIC needs pip install 'edje-jax[heif]'"
    with pytest.raises(BadImage, match=re.escape(f"{UNKNOWN}; {remedy}")):
        load_image(HEIC)
    monkeypatch.setattr(folder_source, "endings", lambda: {".jpg"})
    for name, data in {"a.jpg": content("a.jpg"), "b.heic": HEIC, "c": HEIC}.items():
        (tmp_path / name).write_bytes(data)
    passed_over = Folder(tmp_path).passed_over
    assert str(passed_over) == f"2 passed over: 2 {UNKNOWN}; {remedy} (b.heic, c)"


def test_any_plug_in_of_pillow_counts(monkeypatch, tmp_path):
    class Toy(ImageFile.ImageFile):
        format = "TOY"

        def _open(self):
            assert self.fp
            if self.fp.read(4) != b"TOY!":
                raise SyntaxError("no toy")
            self._mode, self._size = "RGB", (1, 1)
            self.tile = [ImageFile._Tile("raw", (0, 0, 1, 1), 4, ("RGB", 0, 1))]

    module = types.ModuleType("toy_images")
    for name in ("OPEN", "EXTENSION"):
        monkeypatch.setattr(Image, name, dict(getattr(Image, name)))
    monkeypatch.setattr(Image, "ID", [*Image.ID])
    Image.register_open("TOY", Toy, lambda prefix: prefix.startswith(b"TOY!"))
    Image.register_extension("TOY", ".toy")
    monkeypatch.setitem(sys.modules, "toy_images", module)
    monkeypatch.setattr(decoders, "PLUG_INS", ("not_installed", "toy_images"))
    (tmp_path / "a.toy").write_bytes(b"TOY!" + bytes(RED))
    (tmp_path / "b").write_bytes(b"TOY!" + bytes(RED))
    for cached in (decoders.formats, decoders.endings):
        cached.cache_clear()
    try:
        source = Folder(tmp_path)
        assert len(source) == 2 and source.image(1).getpixel((0, 0)) == RED
    finally:
        monkeypatch.undo()
        for cached in (decoders.formats, decoders.endings):
            cached.cache_clear()


def test_the_limit_of_pixels_is_the_caller_s():
    assert load_image(saved("PNG"), max_pixels=1024).size == (32, 32)
    with pytest.raises(BadImage, match="32 x 32 pixels, more than 1,023; make it smaller"):
        load_image(saved("PNG"), max_pixels=1023)


@pytest.mark.filterwarnings("error")
def test_a_large_image_is_no_reason_to_warn():
    file = io.BytesIO()
    Image.new("1", (10_000, 9_000)).save(file, "PNG")  # Pillow warns of more than 89,478,485 pixels
    assert decoders.open_image(file).size == (10_000, 9_000)


# --- PNG ------------------------------------------------------------------------------------------


def with_text(way: str, size: int) -> bytes:
    info = PngImagePlugin.PngInfo()
    text = "x" * size
    match way:
        case "zTXt":
            info.add_text("workflow", text, zip=True)
        case "iTXt":
            info.add_itxt("workflow", text, zip=True)
        case "tEXt":
            info.add_text("workflow", text)
        case "many":
            for i in range(70):
                info.add_text(f"k{i}", "x" * 1_000_000, zip=True)
        case "after the pixels":
            info.add_text("workflow", text, zip=True)
            whole = saved("PNG", pnginfo=info)
            start = whole.index(b"zTXt") - 4
            (length,) = struct.unpack_from(">I", whole, start)
            chunk = whole[start : start + 12 + length]
            return whole.replace(chunk, b"").replace(b"\0\0\0\0IEND", chunk + b"\0\0\0\0IEND")
    return saved("PNG", pnginfo=info)


@pytest.mark.parametrize("way", ["zTXt", "iTXt", "tEXt", "many", "after the pixels"])
def test_texts_of_any_size_do_no_harm(way):
    assert is_red(load_image(with_text(way, 20_000_000)))


@pytest.mark.parametrize("fill", [os.urandom, bytes])
def test_a_large_profile_does_no_harm(fill):
    data = saved("PNG", icc_profile=fill(1_500_000))
    assert is_red(load_image(data)) and is_red(load_image(data, ImageRecipe(icc_profile="applied")))


def test_a_large_profile_is_still_applied():
    # Bytes that no tag of the profile refers to.
    profile = bytearray(swapped() + os.urandom(2_000_000))
    profile[:4] = struct.pack(">I", len(profile))
    data = saved("PNG", COLOUR, icc_profile=bytes(profile))
    found = load_image(data, ImageRecipe(icc_profile="applied")).getpixel((9, 9))
    assert isinstance(found, tuple)
    assert max(abs(a - b) for a, b in zip(found, COLOUR[::-1], strict=True)) <= 1
    assert load_image(data).getpixel((9, 9)) == COLOUR


@pytest.mark.parametrize("where", ["XMP", "EXIF", "raw EXIF"])
def test_the_orientation_stays_beside_a_large_text(where):
    stored = Image.new("RGB", (3, 2))
    stored.putpixel((0, 0), RED)
    info, exif = PngImagePlugin.PngInfo(), Image.Exif()
    exif[0x0112] = 3
    options = {"exif": exif} if where == "EXIF" else {}
    if where == "XMP":
        xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="3"/></x:xmpmeta>'
        info.add_itxt("XML:com.adobe.xmp", xmp)
    if where == "raw EXIF":
        packed = exif.tobytes()
        hexed = f"\nexif\n{len(packed):8d}\n{packed.hex()}\n"
        info.add_text("Raw profile type exif", hexed, zip=True)
    info.add_text("workflow", "x" * 2_000_000, zip=True)
    file = io.BytesIO()
    stored.save(file, "PNG", pnginfo=info, **options)
    assert load_image(file.getvalue()).getpixel((2, 1)) == RED


def test_a_damaged_png_with_a_large_text_is_still_damaged():
    whole = with_text("zTXt", 2_000_000)
    with pytest.raises(BadImage, match="broken or truncated"):
        load_image(whole[: whole.index(b"IDAT") + 20])
    flipped = whole.replace(b"IHDR", b"IHDX", 1)
    with pytest.raises(BadImage):
        load_image(flipped)


def test_a_bomb_in_a_profile_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(png, "PROFILE_BYTES", 2 << 20)
    bomb = b"p\0\0" + zlib.compress(bytes(3 << 20), 9)
    chunk = struct.pack(">I", len(bomb)) + b"iCCP" + bomb
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    data = saved("PNG")
    data = data[:33] + chunk + data[33:]
    assert png.without_texts(data) == (saved("PNG"), None)
    assert is_red(load_image(data, ImageRecipe(icc_profile="applied")))


# --- folders --------------------------------------------------------------------------------------


def ids(source) -> list[str]:
    return [source.image_id(i) for i in range(len(source))]


def test_a_folder_holds_whatever_is_an_image(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    others = {
        "notes.txt": b"x", "a.json": b"{}", "b.json": b"{}", "movie": b"no image", "a.pdf": EPS,
        ".DS_Store": b"x", "._a.jpg": b"x", "empty": b"",
    }  # fmt: skip
    for name in (*FILES, *ODD):
        (tmp_path / name).write_bytes(content(name))
    for name, data in others.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "z.jpg").write_bytes(content("a.jpg"))
    os.symlink(tmp_path / "nowhere", tmp_path / "gone.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    source = Folder(tmp_path)
    assert ids(source) == sorted((*FILES, *ODD))
    assert all(is_red(source.image(i)) for i in range(len(source)))
    passed = source.passed_over
    assert passed.counts == {
        "hidden": 3, UNKNOWN: 2, f"{UNKNOWN}; EPS is not opened: save it as PNG or JPEG": 1,
        ".json": 2, ".txt": 1, "broken link": 1, "no regular file": 1,
    }  # fmt: skip
    assert len(source) + passed.total == len(list(tmp_path.iterdir()))
    assert passed.names[UNKNOWN] == ["empty", "movie"]
    assert "11 passed over: 3 hidden (.DS_Store, ._a.jpg, .cache)" in caplog.text
    assert "1 broken link (gone.jpg)" in caplog.text
    assert "25 images (" in caplog.text and "1 .avif" in caplog.text


def test_known_endings_are_taken_without_opening(tmp_path, monkeypatch):
    for name in ("a.jpg", "b.txt", "c.avif"):
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("opened"))
    assert ids(Folder(tmp_path)) == ["a.jpg", "c.avif"]


def test_linked_folders_are_followed_once(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "b", outside / "deep"):
        folder.mkdir(parents=True)
    for path in (root / "b" / "x.jpg", outside / "y.jpg", outside / "deep" / "z.jpg"):
        path.write_bytes(content("a.jpg"))
    os.symlink(outside, root / "more")
    os.symlink(outside / "deep", root / "a")  # The first link to it in order
    os.symlink(root / "b", root / "a-link-to-b")
    os.symlink(root, root / "b" / "loop")
    os.symlink("self", root / "self")
    os.symlink(outside / "y.jpg", root / "file.jpg")
    source = Folder(root)
    assert ids(source) == ["a/z.jpg", "b/x.jpg", "file.jpg", "more/y.jpg"]
    assert source.passed_over.counts == {"linked folder read before": 3, "broken link": 1}
    os.symlink(root, tmp_path / "entrance")
    assert ids(Folder(tmp_path / "entrance")) == ids(source)


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(content("a.jpg"))

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        Folder(tmp_path)


# --- tars -----------------------------------------------------------------------------------------


def open_tar(folder: Path, members: dict[str, bytes]) -> WebDataset:
    write_tar(folder / "a.tar", list(members.items()))
    source = open_source(f"webdataset:{folder}/a.tar")
    assert isinstance(source, WebDataset)
    return source


@pytest.mark.parametrize("name", [*FILES, *ODD, "z.image.jpg"])
def test_a_sample_of_a_tar_has_any_image(name, tmp_path):
    data = content(name) if name in {*FILES, *ODD} else content("a.jpg")
    key = name.partition(".")[0]
    source = open_tar(tmp_path, {name: data, f"{key}.txt": b"red"})
    assert len(source) == 1 and source.captions(0) == ("red",)
    assert source.encoded(0) == data and is_red(source.image(0))


def test_the_image_of_a_sample_is_the_one_that_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    jpg, mask = content("a.jpg"), saved("PNG", (255, 255, 255))
    members = {
        "._1.jpg": b"x", "1.mask.png": mask, "1.cls": b"5", "1.jpg": jpg, "1.txt": b"red",
        "2.npy": b"x", "2.cls": b"5", "2.bin": jpg, "2.json": b"{}",
        "README": b"read me", "3.heic": HEIC, "3.txt": b"x", "4.txt": b"x", "4.mp3": b"x", "5": jpg,
    }  # fmt: skip
    for _ in range(2):  # The second time from the index that was kept
        source = open_tar(tmp_path, members)
        assert ids(source) == [f"a/{key}" for key in "12345"]
        assert [source.encoded(i) for i in (0, 1, 4)] == [jpg] * 3
        assert source.passed_over.counts == {
            ".cls": 2, ".mask.png": 1, ".npy": 1, ".mp3": 1, "hidden": 1, "no image": 1,
        }  # fmt: skip
        assert "7 passed over: 2 .cls (1.cls, 2.cls), 1 hidden (._1.jpg)" in caplog.text
        caplog.clear()
        with pytest.raises(BadImage, match=r"a\.tar: 3: "):
            source.image(2)
        with pytest.raises(BadImage, match=r"a\.tar: 4: the sample has no image"):
            source.image(3)


def test_samples_with_a_known_ending_are_indexed_without_reading_images(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_index, "may_be_image", lambda _: pytest.fail("read"))
    assert len(open_tar(tmp_path, {"1.jpg": b"x", "1.mask": b"x", "2.avif": b"x"})) == 2
