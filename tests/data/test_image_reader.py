"""The reader of images in order: whole, in order, a bounded number ahead, bad ones named."""

import json
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edje_jax.config.model import ImageRecipe
from edje_jax.data.bad_records import BadRecords, TooManyBadRecords
from edje_jax.data.image_reader import (
    cut_into,
    in_order,
    or_bad,
    read_batches,
    read_gallery,
    read_images,
    stack_images,
)
from edje_jax.data.images import BadImage, record_pixels
from edje_jax.data.sources.blip_json import BlipJson

RECIPE = ImageRecipe(size=4)


@pytest.fixture
def half_bad(tmp_path: Path) -> BlipJson:
    """Ten images of one colour each, of which 2, 5, 6 and 7 are missing; 1 lost a caption."""
    entries = []
    for i in range(10):
        if i not in (2, 5, 6, 7):
            Image.new("RGB", (6, 5), (i, 2 * i, 9)).save(tmp_path / f"{i}.png")
        entries.append({"image": f"{i}.png", "caption": ["a", 5] if i == 1 else ["a"]})
    (tmp_path / "set.json").write_text(json.dumps(entries))
    return BlipJson(tmp_path / "set.json")


def test_results_come_in_order_however_long_each_takes():
    def slow(key: int) -> int:
        time.sleep(0.002 * (key % 3))
        return key * key

    assert list(in_order(slow, range(40))) == [key * key for key in range(40)]
    assert list(in_order(slow, ())) == []


def test_no_more_are_read_than_wait_to_be_taken():
    asked, read = [], []
    keys = (asked.append(key) or key for key in range(100))
    results = in_order(lambda key: read.append(key) or key, keys, ahead=7)
    assert asked == []
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(asked) <= 3 + 7 and len(read) <= 3 + 7
    results.close()
    assert len(asked) <= 3 + 7 and threading.active_count() < 50


def test_what_a_read_raises_is_raised_in_its_place():
    def read(key: int) -> int:
        if key == 3:
            raise BadImage("number 3")
        return key

    results = in_order(read, range(9))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(BadImage, match="number 3"):
        next(results)
    found = list(in_order(partial(or_bad, read), range(5)))
    assert found[:3] == [0, 1, 2] and str(found[3]) == "number 3" and found[4] == 4


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_hold_what_could_be_read_and_name_the_rest(half_bad, workers):
    batches = [range(0, 3), np.array([9, 4]), range(5, 8), range(0)]
    found = list(read_images(half_bad, RECIPE, batches, workers))
    assert [batch.records for batch in found] == [[0, 1], [9, 4], [], []]
    assert [list(batch.bad) for batch in found] == [[2], [], [5, 6, 7], []]
    assert found[2].bad[6].endswith("6.png: no such file")
    for batch in found:
        assert batch.images.shape == (len(batch.records), 4, 4, 3)
        assert batch.images.dtype == np.uint8
        for record, image in zip(batch.records, batch.images, strict=True):
            np.testing.assert_array_equal(image, record_pixels(half_bad, record, RECIPE))
            assert image[0, 0].tolist() == [record, 2 * record, 9]


def test_a_reader_starts_at_any_batch(half_bad):
    batches = cut_into(range(len(half_bad)), 3)
    assert batches == [range(0, 3), range(3, 6), range(6, 9), range(9, 10)]
    whole, rest = (list(read_batches(half_bad.image_id, cut)) for cut in (batches, batches[2:]))
    assert whole[2:] == rest
    assert rest[0].values == ["6.png", "7.png", "8.png"]


def test_a_reader_that_is_closed_reads_no_further():
    read = []
    batches = read_batches(lambda record: read.append(record) or record, cut_into(range(2000), 5))
    assert next(batches).values == [0, 1, 2, 3, 4]
    batches.close()
    count = len(read)
    time.sleep(0.02)
    assert len(read) == count < 400


def test_a_gallery_counts_bad_images_and_captions_and_has_no_empty_batch(half_bad):
    bad = BadRecords(10, 0.5)
    found = list(read_gallery(half_bad, RECIPE, bad, range(0, 8)))
    assert [batch.records for batch in found] == [[0, 1, 3, 4]]
    assert list(bad.reasons) == ["1.png", "2.png", "5.png", "6.png", "7.png"]
    assert "caption 1 is a number" in bad.reasons["1.png"]
    assert list(read_gallery(half_bad, RECIPE, BadRecords(10, 0.5), range(5, 8))) == []
    with pytest.raises(TooManyBadRecords, match="5 of 10"):
        list(read_gallery(half_bad, RECIPE, BadRecords(10, 0.4)))


def test_no_images_are_an_array_of_none():
    assert stack_images([], RECIPE).shape == (0, 4, 4, 3)
