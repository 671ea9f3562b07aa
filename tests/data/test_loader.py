"""Batches: a function of (source, config, seed, step), whoever prepares them.

Covers data/bad_records.py, data/prefetch.py and types.py.
"""

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edje_jax.config.model import ImageRecipe
from edje_jax.config.run import DataConfig
from edje_jax.data.bad_records import BadRecords, TooManyBadRecords, left_out
from edje_jax.data.images import resize
from edje_jax.data.loader import RowRecipe, TrainingBatches, iterate
from edje_jax.data.sources.blip_json import BlipJson
from edje_jax.data.text import BackboneTokenizer, JointTokenizer
from edje_jax.scenes.shapes import Shapes
from edje_jax.types import BadRecord, Batch, Source

TINY = Path(__file__).parents[1] / "goldens" / "reference_tiny"
RECIPE = ImageRecipe(size=8)
ROWS = RowRecipe(RECIPE, BackboneTokenizer(TINY / "siglip", 16), JointTokenizer(TINY / "bert", 24))
WORDS = ["cat", "dog", "bike", "man", "red", "blue"]


class Numbered:
    """Image i is one colour and has captions of one, two and three times the same word."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def image_id(self, index: int) -> str:
        return f"image-{index}"

    def captions(self, index: int) -> tuple[str, ...]:
        assert 0 <= index < self.count
        return tuple(" ".join([WORDS[index % 6]] * n) for n in (1, 2, 3))

    def image(self, index: int) -> Image.Image:
        assert 0 <= index < self.count
        return Image.new("RGB", (10, 6), (index, 2 * index, 7))


def reader(
    source: Source, batch_size: int = 4, seed: int = 0, steps: int = 10, **data
) -> TrainingBatches:
    return TrainingBatches(source, ROWS, DataConfig(batch_size=batch_size, **data), seed, steps)


def shown(batch: Batch) -> list[int]:
    """Which image of `Numbered` each row shows."""
    return batch.images[:, 0, 0, 0].tolist()


def order(batches: TrainingBatches, steps: int) -> list[int]:
    return [index for step in range(steps) for index in shown(batches[step][0])]


def assert_same(a: Batch, b: Batch) -> None:
    for name, left, right in zip(Batch._fields, a, b, strict=True):
        assert (left is None) == (right is None), name
        if left is not None:
            assert left.dtype == right.dtype, name
            np.testing.assert_array_equal(left, right, err_msg=name)


# --- order ----------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_and_step():
    a, b = reader(Numbered(30)), reader(Numbered(30))
    for step in (7, 0, 7):
        assert_same(a[step][0], b[step][0])
    assert order(a, 7) != order(reader(Numbered(30), seed=1), 7)
    assert order(a, 7) != list(range(28))


@pytest.mark.parametrize("count", [12, 30])
def test_an_epoch_shows_every_image_once(count):
    seen = order(reader(Numbered(count), batch_size=6), 3 * count // 6)
    epochs = [seen[i : i + count] for i in range(0, 3 * count, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_epochs_follow_on_within_a_batch():
    seen = order(reader(Numbered(10), batch_size=4), 5)
    assert Counter(seen[:10]) == Counter(seen[10:]) == Counter(range(10))


def test_blocks_keep_neighbours_together():
    seen = order(reader(Numbered(40), batch_size=8, block_size=4), 5)
    blocks = [seen[i : i + 4] for i in range(0, 40, 4)]
    assert all(block == list(range(block[0], block[0] + 4)) for block in blocks)
    assert all(block[0] % 4 == 0 for block in blocks)
    assert sorted(seen) == list(range(40))
    assert seen != list(range(40))


@pytest.mark.parametrize(("count", "block"), [(10, 4), (3, 4), (7, 1), (11, 5), (8, 4)])
def test_an_epoch_shows_every_record_once_whatever_the_block(count, block):
    seen = order(reader(Numbered(count), batch_size=1, block_size=block), 3 * count)
    epochs = [seen[i : i + count] for i in range(0, 3 * count, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    rest = count % min(block, count)
    assert all(epoch[count - rest :] == list(range(count - rest, count)) for epoch in epochs)


def test_the_order_of_a_set_that_blocks_divide_stays_what_it_was():
    """Runs of earlier versions go on with it."""
    seen = order(reader(Numbered(12), batch_size=1, block_size=4), 24)
    assert seen == [4 * block + i for block in (1, 2, 0, 0, 2, 1) for i in range(4)]


def test_iterate_starts_anywhere():
    batches = reader(Numbered(30), steps=9)
    bad = BadRecords(30, 0.0)
    everything = list(iterate(batches, 0, bad))
    assert len(everything) == 9
    for start in (4, 8):
        rest = list(iterate(batches, start, bad))
        assert len(rest) == 9 - start
        for a, b in zip(rest, everything[start:], strict=True):
            assert_same(a, b)
    assert list(iterate(batches, 9, bad)) == []


# --- rows -----------------------------------------------------------------------------------------


def test_rows_hold_image_and_caption_of_one_record():
    source = Numbered(30)
    batch, bad = reader(source, batch_size=15)[0]
    assert not bad and batch.valid.all() and batch.valid.dtype == bool
    assert batch.images.shape == (15, 8, 8, 3) and batch.images.dtype == np.uint8
    for row, index in enumerate(shown(batch)):
        np.testing.assert_array_equal(batch.images[row], resize(source.image(index), RECIPE))
        texts = source.captions(index)
        joint = ROWS.joint_tokenizer(texts)[:, : batch.joint_ids.shape[1]]
        (which,) = np.flatnonzero((batch.joint_ids[row] == joint).all(axis=1))
        backbone = ROWS.backbone_tokenizer(texts)
        np.testing.assert_array_equal(batch.backbone_ids[row], backbone[which])


def test_the_joint_ids_are_as_wide_as_their_longest_caption_needs():
    class Wordy(Numbered):
        def captions(self, index):
            return ("cat " * (18 if index == 0 else 3),)

    widths = {}
    for step, batch in enumerate(reader(Wordy(8), batch_size=4)[s][0] for s in range(2)):
        widths[0 in shown(batch)] = batch.joint_ids.shape[1]
        lengths = (batch.joint_ids != ROWS.joint_tokenizer.pad_id).sum(axis=1)
        assert lengths.max() == (20 if 0 in shown(batch) else 5), step
    assert widths == {True: 24, False: 16}


def test_joint_ids_may_all_have_the_full_length():
    pad, width = ROWS.joint_tokenizer.pad_id, ROWS.joint_tokenizer.max_length
    for t in range(3):
        plain, full = (
            reader(Numbered(40), full_length=full)[t][0].joint_ids for full in (False, True)
        )
        short = plain.shape[1]
        assert short < full.shape[1] == width
        np.testing.assert_array_equal(full[:, :short], plain)
        assert (full[:, short:] == pad).all()


def test_captions_change_from_epoch_to_epoch():
    batches = reader(Numbered(6), batch_size=6)
    by_image: dict[int, set[bytes]] = {}
    for step in range(10):
        batch, _ = batches[step]
        for row, index in enumerate(shown(batch)):
            by_image.setdefault(index, set()).add(batch.joint_ids[row, :8].tobytes())
    drawn = [len(captions) for captions in by_image.values()]
    assert max(drawn) == 3 and min(drawn) >= 2


def test_ids_are_equal_for_the_same_image_and_the_same_caption(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    entries = [
        {"image": "a.png", "image_id": "1", "caption": "Two dogs!"},
        {"image": "b/../a.png", "image_id": "2", "caption": "two  dogs"},
        {"image": "./a.png", "image_id": "3", "caption": "two cats"},
    ]
    (tmp_path / "b").mkdir()
    (tmp_path / "set.json").write_text(json.dumps(entries))
    batch, bad = reader(BlipJson(tmp_path / "set.json"), batch_size=6)[0]
    assert not bad
    assert len(set(batch.image_ids.tolist())) == 3  # Two epochs of three images
    assert Counter(Counter(batch.image_ids.tolist()).values()) == {2: 3}
    dogs, cats = sorted(Counter(batch.caption_ids.tolist()).values(), reverse=True)
    assert (dogs, cats) == (4, 2)  # The same caption but for what canonicalising takes away
    assert batch.image_ids.dtype == batch.caption_ids.dtype == np.int32


def test_a_batch_carries_the_labels_that_a_task_asks_for():
    def digits(record: int) -> np.ndarray:
        return np.array([record // 10, record % 10], np.int32)

    rows = RowRecipe(RECIPE, ROWS.backbone_tokenizer, extra_labels=digits)
    batch, _ = TrainingBatches(Numbered(30), rows, DataConfig(batch_size=5), 0, 1)[0]
    assert batch.extra_labels.tolist() == [[i // 10, i % 10] for i in shown(batch)]
    assert batch.joint_ids.shape == (5, 0)  # No joint tokenizer, no ids
    assert reader(Numbered(30))[0][0].extra_labels is None


# --- processes ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_worker_processes_give_the_same_batches_as_threads():
    source = Shapes("train", image_size=16)
    alone = reader(source, batch_size=4, block_size=4, steps=7)
    helped = reader(source, batch_size=4, block_size=4, steps=7, workers=2)
    expected = list(iterate(alone, 1, BadRecords(len(source), 0.0)))
    got = list(iterate(helped, 1, BadRecords(len(source), 0.0)))
    assert len(got) == len(expected) == 6
    for a, b in zip(got, expected, strict=True):
        assert_same(a, b)


# --- images that cannot be read -----------------------------------------------------------------


@pytest.fixture
def half_bad(tmp_path) -> BlipJson:
    """Six images: the last three are missing, cut short, and no image at all."""
    names = ["0.jpg", "1.png", "2.jpg", "missing.jpg", "cut.jpg", "text.png"]
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    for name in ("0.jpg", "1.png", "2.jpg", "cut.jpg"):
        Image.fromarray(noise).save(tmp_path / name)
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("<html>not found</html>")
    entries = [{"image": name, "caption": f"{name} again"} for name in names]
    (tmp_path / "set.json").write_text(json.dumps(entries))
    return BlipJson(tmp_path / "set.json")


def test_bad_images_are_named_once_and_their_rows_invalid(half_bad, caplog):
    caplog.set_level(logging.WARNING)
    batches = reader(half_bad, batch_size=6, steps=3)
    bad = BadRecords(6, 0.5)
    for batch in iterate(batches, 0, bad):
        assert batch.valid.sum() == 3
        assert not batch.images[~batch.valid].any() and batch.images[batch.valid].any()
        assert len(set(batch.image_ids.tolist())) == 6
    assert list(bad.reasons) and set(bad.reasons) == {"missing.jpg", "cut.jpg", "text.png"}
    assert len(caplog.messages) == 3
    told = "\n".join(caplog.messages)
    assert "skipped missing.jpg" in told and "no such file" in told
    assert "skipped cut.jpg" in told and "truncated" in told
    assert "skipped text.png" in told and "not an image" in told


def test_too_many_bad_images_stop_the_run_with_their_list(half_bad):
    with pytest.raises(TooManyBadRecords) as caught:
        list(iterate(reader(half_bad, batch_size=6), 0, BadRecords(6, 0.4)))
    message = str(caught.value)
    assert message.startswith("3 of 6 records are bad")
    assert "--data.max-bad 0.4" in message and "--data.image-root" in message
    for name in ("missing.jpg", "cut.jpg", "text.png"):
        assert f"\n  {name}: " in message


def test_a_bad_image_moves_no_other(half_bad, tmp_path):
    """The rows beside it, and every later batch, are those of the mended set."""
    before = [reader(half_bad, batch_size=4)[step][0] for step in range(4)]
    for name in ("missing.jpg", "cut.jpg", "text.png"):
        Image.new("RGB", (5, 5), (9, 9, 9)).save(tmp_path / name)
    after = [reader(half_bad, batch_size=4)[step][0] for step in range(4)]
    for a, b in zip(before, after, strict=True):
        assert b.valid.all()
        np.testing.assert_array_equal(a.images[a.valid], b.images[a.valid])
        assert_same(a._replace(images=b.images, valid=b.valid), b)


def test_an_image_without_a_caption_counts_as_bad(tmp_path):
    class Silent(Numbered):
        def captions(self, index: int) -> tuple[str, ...]:
            return super().captions(index) if index % 3 else ()

    batch, bad = reader(Silent(6), batch_size=6)[0]
    assert bad == {"image-0": "has no caption", "image-3": "has no caption"}
    assert batch.valid.tolist() == [index % 3 > 0 for index in order(reader(Numbered(6), 6), 1)]


class Ramp(Numbered):
    """Images of which every pixel has a colour of its own."""

    def image(self, index: int) -> Image.Image:
        rows, columns = np.mgrid[:48, :64].astype(np.uint8) * 4
        return Image.fromarray(np.stack([rows, columns, rows], axis=2))


def test_windows_are_drawn_anew_every_epoch_and_the_same_every_time():
    cropped, whole = reader(Ramp(4), crop=0.5), reader(Ramp(4))
    first, again, later = cropped[0][0].images, cropped[0][0].images, cropped[1][0].images
    np.testing.assert_array_equal(first, again)
    views = [image.tobytes() for image in (*first, *later, whole[0][0].images[0])]
    assert len(set(views)) == 9
    assert len({image.tobytes() for image in whole[0][0].images}) == 1


def test_processes_draw_the_windows_of_one():
    alone = reader(Ramp(4), crop=0.5)[3][0].images
    recipe, data = ROWS, DataConfig(batch_size=4, crop=0.5)
    parts = [TrainingBatches(Ramp(4), recipe, data, 0, 10, (i, 2))[3][0].images for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), alone)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop": 0.0}, r"--data.crop 0.0: a share of the image's area, above 0 up to 1"),
        ({"crop": 1.5}, r"--data.crop 1.5"),
        (
            {"crop": 0.5, "cache_features": "kept"},
            "--data.cache-features kept keeps whole images",
        ),
    ],
)
def test_a_window_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**values)


# --- bad records ----------------------------------------------------------------------------------


def test_a_bad_caption_is_one_bad_record_and_its_image_trains_with_the_others(tmp_path, caplog):
    entries = []
    for number, captions in enumerate((["fine"], ["fine", "\ud83d", None], [5])):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
        entries.append({"image": f"{number}.png", "caption": captions})
    (tmp_path / "set.json").write_text(json.dumps([*entries, "odd", {"caption": "x"}]))
    source = BlipJson(tmp_path / "set.json")
    bad = BadRecords.after(left_out(source), len(source), 0.8)
    assert bad.total == 5 and len(bad.reasons) == 2
    (batch,) = iterate(reader(source, batch_size=3, steps=1), 0, bad)
    assert batch.valid.sum() == 2 and batch.images is not None
    assert set(bad.reasons) == {
        f"{tmp_path}/set.json: entry 3", f"{tmp_path}/set.json: entry 4", "1.png", "2.png",
    }  # fmt: skip
    assert (
        "entry 1: caption 1 holds" in bad.reasons["1.png"] and "2 is a null" in bad.reasons["1.png"]
    )
    assert "entry 2: caption 0 is a number" in bad.reasons["2.png"]
    assert len(caplog.messages) == 4
    strict = BadRecords.after(left_out(source), len(source), 0.6)
    with pytest.raises(TooManyBadRecords, match=r"4 of 5 records .*--max-bad outside training"):
        list(iterate(reader(source, batch_size=3, steps=1), 0, strict))
    with pytest.raises(TooManyBadRecords, match="2 of 5 records"):
        BadRecords.after(left_out(source), len(source), 0.3)


def test_one_bad_record_of_a_hundred_is_within_a_share_of_a_hundredth():
    bad = BadRecords.after([BadRecord("a.json: entry 3", "no object")], 99, 0.01)
    assert (bad.total, len(bad.reasons)) == (100, 1)
    with pytest.raises(TooManyBadRecords, match="2 of 100 records"):
        bad.add({"7": "has no caption"})


def test_a_share_is_meant_as_it_is_written():
    bad = BadRecords(100, 0.29)
    bad.add({str(number): "bad" for number in range(29)})
    with pytest.raises(TooManyBadRecords, match="30 of 100"):
        bad.add({"29": "bad"})


def test_a_long_list_of_bad_records_is_cut():
    with pytest.raises(TooManyBadRecords) as caught:
        BadRecords(100, 0.1).add({str(number): "bad" for number in range(60)})
    lines = str(caught.value).splitlines()
    assert len(lines) == 52 and lines[-1] == "  and 10 more"
