"""Every form in which clients send an image, read right, and the rest told where and why."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from edje_jax.config.model import ImageRecipe
from edje_jax.data.images import load_image, resize
from edje_jax.serving.documents import BadDocuments, read_documents, read_form
from edje_jax.serving.limits import Limits

RECIPE = ImageRecipe(size=8)
IDS = {"00.png": 0, "391895": 1, "a b.png": 2}


def png() -> bytes:
    """Noise of 17 x 16 pixels, whose base64 holds every letter."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 17, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


RAW = png()
RAW += bytes((1 - len(RAW)) % 3)
B64 = base64.b64encode(RAW).decode()
URI = f"data:image/png;base64,{B64}"
PART = {"type": "image_url", "image_url": {"url": URI}}
WORDS = {"type": "text", "text": "a medal"}


def read(*documents, limits=Limits()):
    return read_documents(documents, "documents", IDS, RECIPE, limits)


@pytest.mark.parametrize(
    ("document", "name"),
    [
        ("00.png", "00.png"),
        (" 00.png\n", "00.png"),
        ("a b.png", "a b.png"),
        (391895, "391895"),
        ({"id": 391895}, "391895"),
        ({"id": "391895"}, "391895"),
        ({"id": "00.png", "text": "1st place medal"}, "00.png"),
        ({"id": "00.png", "image": float("nan")}, "00.png"),
        ({"text": "00.png"}, "00.png"),
        ({"content": "00.png"}, "00.png"),
        ({"content": [{"type": "text", "text": "00.png"}]}, "00.png"),
        ({"id": "00.png", "image": None, "content": None}, "00.png"),
        ("id: 00.png\n", "00.png"),
        ("id: '391895'\ntext: 1st place medal\n", "391895"),
    ],
)
def test_an_id_is_found_in_every_form(document, name):
    form = read_form(document, IDS)
    assert form.id == name
    assert read(document).images.rows == {0: IDS[name]}


@pytest.mark.parametrize(
    "document",
    [
        URI,
        f"image: {URI}\n",
        {"image": B64},
        {"image": URI},
        {"image": {"url": URI}},
        {"image_url": URI},
        {"image_url": {"url": URI}},
        {"text": URI},
        PART,
        {"content": [PART]},
        {"content": PART},
        {"content": [{"type": "image_url", "image_url": URI}]},
        {"content": [{"type": "input_image", "image_url": URI}]},
        {"content": [{"type": "image", "image": B64}]},
        {"content": [PART, WORDS]},
        {"content": ["a medal", PART]},
        {"image": B64, "text": "a medal"},
        {"image": B64, "id": "of-the-client"},
        {"image": B64, "id": None, "text": None, "content": None},
    ],
)
def test_an_image_is_read_in_every_form(document):
    read_ = read(document)
    np.testing.assert_array_equal(read_.images.pixels[0], resize(load_image(RAW), RECIPE))
    assert isinstance(read_.returned[0]["text"], str)


def test_what_is_left_aside_is_said_and_of_which_documents():
    documents = [
        {"id": "00.png", "text": "1st place medal"},
        {"content": [PART, WORDS]},
        "00.png",
        {"image": B64, "text": "a medal"},
        {"id": "else", "image": B64},
        {"id": "00.png", "text": "", "image": None},
        {"content": [PART, {"type": "text", "text": ""}]},
        "id: 00.png\n",
        "id: 00.png\ntext: 1st place\n",
    ]
    found = read(*documents)
    assert found.warnings == [
        "documents[0]: text left aside: the id counts",
        "documents[1], documents[3]: the text is left aside: the image counts",
        "documents[4]: no image with the id 'else' in this index; the image sent along counts",
        "documents[8]: all but its id left aside",
    ]
    assert [one["text"] for one in found.returned[:5]] == [
        "1st place medal", "a medal", "00.png", "a medal", ""
    ]  # fmt: skip
    assert found.returned[0]["id"] == "00.png" and found.returned[1]["content"] == [PART]


def test_every_bad_place_is_named_once_for_each_reason():
    documents = ["a caption", "00.png", {"text": "another"}, {"image": "!"}, {"id": 5}, None]
    documents.append({"content": [PART, WORDS]})
    with pytest.raises(BadDocuments) as told:
        read(*documents)
    message = str(told.value)
    assert message.startswith("documents[0], documents[2]: a text; this model ranks images")
    assert "; documents[3]: not base64" in message
    assert "; documents[4]: no image with the id 5 in this index" in message
    assert "; documents[5]: expected an id" in message and "documents[1]" not in message
    assert message.endswith("; documents[6]: the text is left aside: the image counts")


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"content": [PART, PART]}, "takes one part of type"),
        ({"content": []}, "takes one part of type"),
        ({"content": [{"type": "video_url", "video_url": {"url": URI}}]}, "expected"),
        ({"content": [WORDS, WORDS]}, "a text"),
        ({"image": {"url": 7}}, "base64"),
        ({"id": ["00.png"]}, "no image with the id list"),
        ({"id": True}, "no image with the id True"),
        ({"id": 10**400}, "no image with the id int"),
        ({"id": "x" * 5000}, "x{80}[.]{3}'"),
        ({"id": "\ud800"}, "ud800"),
        (True, "no image with the id True"),
        (1.5, "expected"),
        (["00.png"], "expected"),
        ({"image": base64.b64encode(RAW[:99]).decode()}, "broken or truncated|not an image"),
        ({"image": ""}, "empty"),
        ("https://example.org/a.png", "addresses are not fetched"),
        ({"text": " s3://bucket/a.png"}, "addresses are not fetched"),
        ("as in https://example.org", "a text"),
    ],
)
def test_what_is_no_image_is_told(document, told):
    with pytest.raises(BadDocuments, match=f"documents.0.: .*{told}") as error:
        read(document)
    assert len(str(error.value)) < 400


def test_only_so_many_images_of_so_many_pixels():
    sent = {"image": B64}
    assert len(read(sent, "00.png", sent, limits=Limits(images=2)).images.pixels) == 2
    with pytest.raises(
        BadDocuments, match=r"s\[2\], documents\[3\]: more than 1 images.*--max-images"
    ):
        read(sent, "00.png", sent, sent, limits=Limits(images=1))
    with pytest.raises(BadDocuments, match=r"17 x 16 are more than 271 pixels.*--max-pixels"):
        read(sent, limits=Limits(pixels=271))
