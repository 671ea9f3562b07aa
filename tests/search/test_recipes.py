"""An index holds what the model's recipe makes of images, and refuses another recipe."""

import base64
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edje_jax import ImageIndex, Reranker
from edje_jax.data.sources.folder import Folder
from edje_jax.index.build import BuildOptions, build
from edje_jax.index.store import BadStore, Store
from edje_jax.serving.documents import read_documents
from edje_jax.serving.limits import Limits
from edje_jax.weights.folder import load_model
from tests.data.test_colours import swapped


@pytest.fixture(scope="module")
def plain(trained) -> Reranker:
    return Reranker.from_pretrained(trained)


@pytest.fixture(scope="module")
def careful(trained) -> Reranker:
    """Reranker of the trained model with both options."""
    model = load_model(str(trained))
    recipe = dataclasses.replace(model.config.image, icc_profile="applied", transparency="white")
    return Reranker(
        dataclasses.replace(model, config=dataclasses.replace(model.config, image=recipe))
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Image.Image]:
    """A half transparent image with a profile, and what it looks like: (folder, image)."""
    folder = tmp_path_factory.mktemp("logos")
    pixels = np.zeros((80, 80, 4), np.uint8)
    pixels[:, :, :3], pixels[20:60, 20:60, 3] = (255, 0, 0), 255
    Image.fromarray(pixels).save(folder / "logo.png", icc_profile=swapped())
    seen = np.full((80, 80, 3), 255, np.uint8)
    seen[20:60, 20:60] = (0, 0, 255)
    return folder, Image.fromarray(seen)


def test_every_way_in_reads_as_the_recipe_says(careful, plain, pair, tmp_path):
    folder, seen = pair
    expected = plain.encode_images([seen])
    np.testing.assert_allclose(careful.encode_images([folder / "logo.png"]), expected, atol=1e-5)
    assert np.abs(plain.encode_images([folder / "logo.png"]) - expected).max() > 0.01
    assert build(
        careful.runtime,
        careful.stamp,
        Folder(folder),
        "folder:logos",
        tmp_path / "index",
        BuildOptions(token_dtype="float16"),
    )
    index = ImageIndex.open(tmp_path / "index")
    (found,) = careful.search(index, ["red"])
    assert found[0]["score"] == pytest.approx(plain.predict([("red", seen)])[0], abs=1e-3)
    similarity = plain.embed_texts(["red"])[0] @ plain.embed_images([seen])[0]
    assert found[0]["similarity"] == pytest.approx(similarity, abs=1e-3)
    with Image.open(io.BytesIO(index.store.thumbnail(0))) as small:
        assert min(small.getpixel((2, 2))) > 250
    data = base64.b64encode((folder / "logo.png").read_bytes()).decode()
    sent = read_documents([{"image": data}], "documents", {}, careful.config.image, Limits())
    np.testing.assert_array_equal(sent.images.pixels[0][0, 0], (255, 255, 255))


def test_an_index_of_another_recipe_is_refused(careful, plain, pair, tmp_path):
    source, out = Folder(pair[0]), tmp_path / "index"
    assert build(careful.runtime, careful.stamp, source, "folder:logos", out)
    assert Store(out).manifest.model["image"] == careful.config.image.reading
    told = (
        r"0 deferred layers, icc_profile applied, transparency white\) than .* 0 deferred layers\)"
    )
    with pytest.raises(BadStore, match=told):
        plain.search(ImageIndex.open(out), ["red"])
    with pytest.raises(BadStore, match="built with another model"):
        build(plain.runtime, plain.stamp, source, "folder:logos", out)
    assert careful.search(ImageIndex.open(out), ["red"])[0][0]["id"] == "logo.png"
    assert "image" not in plain.stamp
