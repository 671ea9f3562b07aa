"""Queries of several parts: what they hold, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from edje_jax import ImageIndex, Query
from edje_jax.index.build import build
from edje_jax.search.query import as_query, read_query, stored_images
from tests.colour_runtime import CODED, CODED_STAMP, RUNTIME, Colours


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colours")
    assert build(CODED, CODED_STAMP, Colours(12), "colours", folder)
    return folder


def test_negatives_may_be_one_text_or_several():
    assert Query("dog", "on a beach").negatives == ("on a beach",)
    assert Query("dog", ["on a beach", "cat"]).negatives == ("on a beach", "cat")


def test_empty_negatives_are_passed_over():
    assert as_query(Query("dog", ""), "text") == "dog"
    assert Query("dog", ["cat", " ", ""]).negatives == ("cat",)


def test_a_query_of_a_text_alone_is_that_text():
    assert as_query(Query("dog"), "text") == "dog" == as_query("dog", "text")
    several = Query("dog", ["cat"])
    assert as_query(several, "text") is several
    with pytest.raises(ValueError, match="text is of type int"):
        as_query(7, "text")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "needs a text or an image"),
        ({"negatives": ["cat"]}, "negatives alone find nothing"),
        ({"text": 7}, "text is of type int"),
        ({"text": "dog", "negatives": ["cat", None]}, r"negatives\[1\] is of type NoneType"),
        ({"image": "dog.jpg", "like": "00"}, "give one"),
        ({"image": "dog.jpg", "image_weight": 1.5}, "image_weight 1.5: it lies from 0 to 1"),
    ],
)
def test_what_is_no_query_is_told(parts, message):
    with pytest.raises(ValueError, match=message):
        Query(**parts)


def test_an_image_is_encoded_and_one_of_the_index_is_looked_up(folder):
    index = ImageIndex.open(folder, first_stage="codes", bits=16)
    image = Colours(12).image(5)
    sent = read_query(Query(image=image), CODED, index)
    named = read_query(Query("red", ["blue"], like="05"), CODED, index)
    np.testing.assert_allclose(named.image.embeddings, sent.image.embeddings, atol=1e-6)
    signs = sent.image.projections[:, :16] > 0
    np.testing.assert_array_equal(named.image.projections > 0, signs)
    assert (sent.number, named.number) == (None, 5)
    assert named.captions == tuple(Colours(12).captions(5)) and sent.captions == ()
    assert named.texts == ["red", "blue", *named.captions]
    exact = ImageIndex.open(folder)
    assert stored_images(exact, np.array([5])).projections.shape == (1, 0)


def test_an_image_that_is_not_there_is_named(folder):
    with pytest.raises(ValueError, match="like '99': no image of the index has this id"):
        read_query(Query(like="99"), CODED, ImageIndex.open(folder))
    with pytest.raises(ValueError, match="like '05': there is no index here"):
        read_query(Query(like="05"), RUNTIME)
    with pytest.raises(ValueError, match=r"the image of the query: .*nowhere.png"):
        read_query(Query(image="nowhere.png"), RUNTIME)


def test_pixels_of_the_models_size_are_taken_as_they_are():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    plain = read_query(Query(image=Image.fromarray(pixels)), RUNTIME).image
    np.testing.assert_array_equal(
        read_query(Query(image=pixels), RUNTIME).image.embeddings, plain.embeddings
    )
