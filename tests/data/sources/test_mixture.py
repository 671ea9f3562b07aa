"""Sets joined and mixed, and images left out of one.

Covers data/exclusion.py, data/sources/pooled.py and data/sources/subset.py.
"""

import json
import logging
import pickle
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from edje_jax.config.run import DataConfig
from edje_jax.data.bad_records import TooManyBadRecords, left_out
from edje_jax.data.exclusion import _hash, pixel_hashes, without
from edje_jax.data.images import BadImage, file_bytes
from edje_jax.data.sources.mixture import Mixture
from edje_jax.data.sources.pooled import Pooled
from edje_jax.data.sources.registry import open_source
from edje_jax.data.sources.subset import Subset, merge_by_id
from edje_jax.data.statistics import statistics
from edje_jax.scenes.shapes import Shapes
from edje_jax.training.assemble import open_sets
from edje_jax.types import Described
from tests.real_sets import scenes, write_blip, write_webdataset


def blip(folder: Path, names: str, captions: int = 1) -> str:
    """A SPEC of images that are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    told = [{"image": f"{x}.jpg", "caption": [f"{x}{n}" for n in range(captions)]} for x in names]
    (folder / "a.json").write_text(json.dumps(told))
    return f"blip:{folder}/a.json"


def images(spec: str) -> list[str]:
    """The first caption of every place."""
    source = open_source(spec)
    return [source.captions(i)[0][0] for i in range(len(source))]


# --- mixtures -------------------------------------------------------------------------------------


def test_without_weights_every_image_comes_once(tmp_path):
    a, b = blip(tmp_path / "a", "abc"), blip(tmp_path / "b", "x")
    assert images(f"{a}+{b}") == [*"abcx"]
    assert images(f"{a}+{b}+{a}") == [*"abcxabc"]


@pytest.mark.parametrize(
    "weights, expected",
    [
        ((0.5, 0.5), "abcdabcd" + "stuvwxyz"),
        ((1, 3), "abcd" + "stuvwxyzstuv"),
        ((3, 1), "abcd" * 6 + "stuvwxyz"),
        ((1, 2), "abcd" + "stuvwxyz"),
        ((0.7, 0.3), "abcd" * 4 + "abc" + "stuvwxyz"),
    ],
)
def test_weights_are_shares_of_an_epoch_in_which_every_image_comes(weights, expected, tmp_path):
    a, b = blip(tmp_path / "a", "abcd"), blip(tmp_path / "b", "stuvwxyz")
    places = images(f"{a}@{weights[0]}+{b}@{weights[1]}")
    assert "".join(places) == expected
    from_a = sum(name in "abcd" for name in places)
    assert abs(from_a / len(places) - weights[0] / sum(weights)) <= 1 / len(places)
    assert set(places) == set("abcdstuvwxyz")
    counts = Counter(places)
    assert 1 in counts.values()
    for own in ("abcd", "stuvwxyz"):
        assert max(counts[x] for x in own) - min(counts[x] for x in own) <= 1


def test_an_image_keeps_its_set_and_its_captions(tmp_path):
    a, b = blip(tmp_path / "a", "ab", captions=2), blip(tmp_path / "b", "a")
    source = pickle.loads(pickle.dumps(open_source(f"{a}@1+{b}@3")))
    ids = [source.image_id(i) for i in range(len(source))]
    # The same name in two sets is two images; a repeated one is one.
    assert ids == [f"{a}/a.jpg", f"{a}/b.jpg", *[f"{b}/a.jpg"] * 6]
    assert source.captions(1) == ("b0", "b1")
    with pytest.raises(BadImage, match=r"b/a\.jpg"):
        source.image(7)
    for index in (-1, 8):
        with pytest.raises(IndexError, match=f"has 8 images, asked for {index}"):
            source.captions(index)


def test_splits_of_one_set_share_their_images(tmp_path):
    from tests.real_sets import write_karpathy

    whole = write_karpathy(tmp_path / "set", scenes(4)).removesuffix("#train")
    source = open_source(f"{whole}#train@0.5+{whole}#restval@0.5")
    ids = [source.image_id(i) for i in range(len(source))]
    assert Counter(ids) == Counter({f"{whole}/{n}": 3 if n in (0, 3) else 1 for n in range(4)})
    assert file_bytes(source, ids.index(f"{whole}/2")) == scenes(4)[2].png


def test_paths_may_hold_the_signs_of_a_mixture(tmp_path):
    odd = blip(tmp_path / "c++ @0.5 a+b:c", "a")
    assert images(odd) == ["a"]
    file = Path(odd.removeprefix("blip:"))
    at_two = file.with_name("b.json@2")
    at_two.write_bytes(file.read_bytes())
    assert images(f"blip:{at_two}") == ["a"]
    assert images(f"blip:{at_two}@1+{odd}@2") == ["a"] * 3
    plain = blip(tmp_path / "plain", "x")
    with pytest.raises(ValueError, match=r"give every part a weight above 0.*as in blip:a@2@1"):
        open_source(f"blip:{at_two}+{plain}")
    for wrong in (f"{plain}@0.5+{odd}", f"{plain}@0+{odd}@1"):
        with pytest.raises(ValueError, match="give every part a weight above 0, or none"):
            open_source(wrong)


def test_the_shares_are_exact_for_any_sizes():
    class Sized(Shapes):
        def __init__(self, count: int):
            super().__init__("val")
            self.count = count

        def __len__(self) -> int:
            return self.count

    for sizes, weights in (((3, 1000, 17), (0.1, 0.6, 0.3)), ((14_000_000, 113_000), (0.95, 0.05))):
        exact = [Fraction(str(weight)) for weight in weights]
        mixed = Mixture([Sized(n) for n in sizes], ["a", "b", "c"][: len(sizes)], exact)
        starts = mixed._starts
        places = np.diff(starts)
        assert (places >= sizes).all()
        assert np.abs(places - len(mixed) * np.array(weights)).max() <= len(sizes)
        for number, start in enumerate(starts[:-1].tolist()):
            assert mixed.at(start) == (number, 0)
            assert mixed.at(start + sizes[number] - 1) == (number, sizes[number] - 1)


# --- leaving images out -------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edje_jax" / "pixels"


def test_images_are_left_out_by_their_pixels(tmp_path, cache, caplog):
    caplog.set_level(logging.INFO)
    made = scenes(8)
    train = write_blip(tmp_path / "train", made)
    test = write_webdataset(
        tmp_path / "test", [s._replace(number=s.number + 50) for s in made[2:5]]
    )
    # The same pixels in another format, under another name.
    whole = tmp_path / "train" / made[3].file
    open_source(train).image(3).save(whole.with_suffix(".bmp"))
    whole.with_suffix(".bmp").rename(whole)
    data = DataConfig(train=train, exclude=test)
    left = without(open_source(train), open_source(test), data, 64)
    assert [left.image_id(i) for i in range(len(left))] == ["0", "1", "5", "6", "7"]
    assert f"3 of 8 images of {train} left out: they are in {test}" in caplog.text
    copy = pickle.loads(pickle.dumps(left))
    assert file_bytes(copy, 2) == made[5].png and copy.captions(2) == made[5].captions
    with pytest.raises(IndexError):
        left.image(5)
    assert len(list(cache.iterdir())) == 2


def test_a_limit_takes_the_first_images():
    whole = Shapes("train")
    few, _ = open_sets(DataConfig(train="shapes:train", limit=5))
    assert [few.image_id(i) for i in range(len(few))] == [whole.image_id(i) for i in range(5)]
    assert few.captions(4) == whole.captions(4)
    with pytest.raises(IndexError, match="there are 5 images, asked for 5"):
        few.captions(5)


def test_a_limit_past_the_end_takes_all(tmp_path):
    spec = write_blip(tmp_path / "set", scenes(4))
    assert len(open_sets(DataConfig(train=spec, limit=9))[0]) == 4
    with pytest.raises(ValueError, match=r"--data\.limit"):
        DataConfig(limit=-1)


def test_an_images_first_captions_alone_can_be_trained_on(tmp_path):
    spec = blip(tmp_path / "set", "abcd", captions=3)
    everything, _ = open_sets(DataConfig(train=spec))
    first, _ = open_sets(DataConfig(train=spec, captions=2))
    assert len(first) == 4
    for index in range(4):
        texts = list(everything.captions(index))
        assert len(texts) == 3 and list(first.captions(index)) == texts[:2]
    many, _ = open_sets(DataConfig(train=spec, captions=99))
    assert list(many.captions(0)) == list(everything.captions(0))
    with pytest.raises(ValueError, match=r"--data\.captions 0: the least is 1"):
        DataConfig(captions=0)


def test_hashes_are_kept_and_a_damaged_file_is_made_anew(tmp_path, cache, monkeypatch, caplog):
    train = write_blip(tmp_path / "train", scenes(4))
    data = DataConfig(train=train, exclude="shapes:val")
    small = Subset(Shapes("val"), np.arange(1000) < 2)
    assert len(without(open_source(train), small, data, 64)) == 4
    kept = {path: path.read_bytes() for path in cache.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("edje_jax.data.exclusion._hash", None)
        assert len(without(open_source(train), small, data, 64)) == 4
    for path in kept:
        path.write_bytes(b"\x93NUMPY")
    assert len(without(open_source(train), small, data, 64)) == 4
    assert "damaged" in caplog.text
    assert {path: path.read_bytes() for path in cache.iterdir()} == kept


def test_nothing_left_is_an_error(tmp_path, cache):
    train = write_blip(tmp_path / "train", scenes(4))
    data = DataConfig(train=train, exclude=train)
    with pytest.raises(ValueError, match=r"--data\.exclude .*: it has every image of blip:"):
        without(open_source(train), open_source(train), data, 64)


def test_bad_entries_of_an_excluded_set_are_excluded_images_that_cannot_be_read(tmp_path, cache):
    made = scenes(4)
    train, test = write_blip(tmp_path / "train", made), write_blip(tmp_path / "test", made[:2])
    path = tmp_path / "test" / "all.json"
    path.write_text(json.dumps([*json.loads(path.read_text()), "odd"]))
    data = DataConfig(train=train, exclude=test, max_bad=0.3)
    with pytest.raises(ValueError, match=r"1 of 3 images cannot be read"):
        without(open_source(train), open_source(test), data, 64)
    assert len(without(open_source(train), open_source(test), replace(data, max_bad=0.4), 64)) == 2


def test_a_set_of_which_a_part_is_taken_is_counted_whole(tmp_path):
    spec = write_blip(tmp_path / "a", scenes(4))
    path = tmp_path / "a" / "all.json"
    path.write_text(json.dumps([*json.loads(path.read_text()), "odd"]))
    data = DataConfig(train=spec, limit=2, max_bad=0.2)
    part, _ = open_sets(data)
    assert len(part) == 2 and not left_out(part)
    with pytest.raises(TooManyBadRecords, match="1 of 5 records"):
        open_sets(replace(data, max_bad=0.1))


def test_parts_of_a_set_say_what_is_wrong_with_their_captions(tmp_path):
    spec = write_blip(tmp_path / "a", scenes(3))
    told = json.loads((tmp_path / "a" / "all.json").read_text())
    told[1]["caption"].append(5)
    (tmp_path / "a" / "all.json").write_text(json.dumps([*told, "odd"]))
    both = open_source(f"{spec}+shapes:val")
    assert len(both.bad) == 1 and "entry 1: caption 2" in both.caption_faults(1)
    assert not both.caption_faults(0) and not both.caption_faults(3)
    part = Subset(both, np.arange(len(both)) == 1)
    assert "entry 1: caption 2" in part.caption_faults(0) and not part.bad
    pooled = Pooled(Shapes("val"), open_source(spec))
    assert len(pooled.bad) == 1 and not pooled.caption_faults(len(pooled) - 2)


def test_parts_and_sums_of_sets_pass_metadata_on(tmp_path):
    entries = [
        {"image": f"{name}.jpg", "caption": "x", "image_id": name, "year": year}
        for name, year in [("a", 2010), ("b", 2011), ("c", 2012)]
    ]
    (tmp_path / "all.json").write_text(json.dumps(entries))
    spec = f"blip:{tmp_path / 'all.json'}"
    source = open_source(spec)
    without = Shapes("val")

    def years(described: Described) -> list[int | None]:
        return [described.metadata(i).get("year") for i in range(len(described))]

    part = Subset(source, np.array([True, False, True]))
    assert years(part) == [2010, 2012]
    assert years(Pooled(part, source)) == [2010, 2012, 2011]
    assert years(Mixture([source, part], ["a", "b"], [Fraction(1), Fraction(1)])) == [
        2010, 2011, 2012, 2010, 2012, 2010,
    ]  # fmt: skip
    assert years(merge_by_id(Mixture([source, part], ["", ""]))) == [2010, 2011, 2012]
    # Beside a set that has metadata, one may have none.
    both = Mixture([without, source], ["a", "b"])
    assert [both.metadata(i) for i in (0, len(without) + 1)] == [{}, {"year": 2011}]
    assert (
        not isinstance(without, Described) and Subset(without, np.ones(5, bool)).metadata(0) == {}
    )


def test_records_of_one_id_are_one_image_where_it_matters(tmp_path):
    spec = write_blip(tmp_path / "a", scenes(3))
    told = json.loads((tmp_path / "a" / "all.json").read_text())
    told[1]["caption"] = ["another", 5]
    source = open_source(spec)
    assert merge_by_id(source) is source
    (tmp_path / "a" / "all.json").write_text(json.dumps(told))
    one = merge_by_id(Mixture([source, open_source(spec)], ["", ""]))
    assert len(one) == 3 and one.image_id(2) == "/2"
    assert one.captions(0) == source.captions(0)
    assert one.captions(1) == (*source.captions(1), "another")
    assert "entry 1: caption 1 is a number" in one.caption_faults(1)


def test_excluded_images_that_were_absent_are_looked_for_again(tmp_path, cache, caplog):
    made = scenes(4)
    train, test = write_blip(tmp_path / "train", made), write_blip(tmp_path / "test", made[:2])
    files = [tmp_path / "test" / scene.file for scene in made[:2]]
    data = DataConfig(train=train, exclude=test, max_bad=0.5)

    def left(data: DataConfig) -> int:
        return len(without(open_source(train), open_source(test), data, 64))

    for file in files:
        file.unlink()
    with pytest.raises(ValueError, match=r"2 of 2 images cannot be read.*--data\.image-root"):
        left(data)
    files[0].write_bytes(made[0].png)
    assert left(data) == 3
    assert "1 of 2 images cannot be read; they are not left out" in caplog.text
    with pytest.raises(ValueError, match=r"1 of 2 images cannot be read"):
        left(replace(data, max_bad=0.1))
    files[1].write_bytes(made[1].png)
    assert left(data) == 2


def test_hashes_of_another_decoder_are_others(tmp_path, cache, monkeypatch):
    two = Subset(Shapes("val"), np.arange(1000) < 2)
    pixel_hashes(two, ["two"])
    monkeypatch.setattr("PIL.__version__", "0")
    pixel_hashes(two, ["two"])
    assert len(list(cache.iterdir())) == 2


def test_images_are_left_out_of_each_part_before_mixing(tmp_path, cache, monkeypatch):
    made = scenes(12)
    a, b = write_blip(tmp_path / "a", made[:4]), write_blip(tmp_path / "b", made[4:])
    test = write_blip(tmp_path / "test", [made[0], made[4], made[5]])
    spec = f"{a}@0.75+{b}@0.25"
    hashed = []

    def counted(source, index):
        hashed.append(source.image_id(index))
        return _hash(source, index)

    monkeypatch.setattr("edje_jax.data.exclusion._hash", counted)
    data = DataConfig(train=spec, exclude=f"{test}@0.5+{test}@0.5")
    left = without(open_source(spec), open_source(data.exclude), data, 64)
    # Three of a fill three places for each of the six of b.
    ids = [left.image_id(i) for i in range(len(left))]
    assert Counter(ids) == Counter(
        {f"{a}/{n}": 6 for n in (1, 2, 3)} | {f"{b}/{n}": 1 for n in range(6, 12)}
    )
    assert len(hashed) == 12 + 3
    found = statistics(left, look_at=1)
    assert (found.images, found.places) == (9, 24)
