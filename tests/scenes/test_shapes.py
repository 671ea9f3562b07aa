"""The `shapes:` source, its scenes and their drawing: what groups, captions and labels promise.

Covers scenes/drawing.py and scenes/scene.py.
"""

import hashlib
import pickle
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edje_jax.scenes.scene import ATTRIBUTES, COLOURS, SHAPES, SIZES, TEXTURES, Scene, Thing
from edje_jax.scenes.shapes import LABEL_SIZES, TRAIN_GROUP, Shapes

# A checker of its own: it reads captions by their words and positions by their numbers, and shares
# nothing with the code that wrote them.
NOUN = re.compile(
    r"\b(a|the) ((?:small |large )?)((?:(?:red|green|blue|yellow|purple|black|striped|dotted) )*)"
    r"(circle|square|triangle|star|cross)\b"
)
OPPOSITE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "inside": "around",
    "around": "inside",
}
RELATION = re.compile(r"\b(left of|right of|above|below|inside|around|overlapping)\b")


def parse(caption: str) -> tuple[dict[str, Thing], list[tuple[str, str, str]]]:
    """({shape: what is said of it}, [(shape, relation, shape)])."""
    things: dict[str, Thing] = {}
    facts = []
    for clause in re.split(r",? and |, while | while ", caption):
        names = []
        for article, size, words, shape in NOUN.findall(clause):
            if article == "a":
                assert shape not in things, f"{caption!r} introduces the {shape} twice"
                colour = next(w for w in words.split() if w in COLOURS)
                texture = next((w for w in words.split() if w in TEXTURES), "plain")
                things[shape] = Thing(shape, colour, size.strip(), texture)
            assert shape in things, f"{caption!r} speaks of the {shape} before it is introduced"
            names.append(shape)
        (relation,) = RELATION.findall(clause)
        first, second = names
        facts.append((first, relation, second))
    return things, facts


def holds(first: int, relation: str, second: int, scene: Scene) -> bool:
    """Whether a relation is true of two slots, judged by where they stand."""
    (x1, y1, r1), (x2, y2, r2) = scene.layout.slots[first], scene.layout.slots[second]
    same_row, same_column = abs(y1 - y2) < 0.2, abs(x1 - x2) < 0.2
    near = np.hypot(x1 - x2, y1 - y2)
    match relation:
        case "left of":
            return same_row and x2 - x1 > 0.2
        case "right of":
            return same_row and x1 - x2 > 0.2
        case "above":
            return same_column and y2 - y1 > 0.2
        case "below":
            return same_column and y1 - y2 > 0.2
        case "inside":
            return bool(near < 0.01 and r1 < r2)
        case "around":
            return bool(near < 0.01 and r1 > r2)
        case _:
            return bool(0.1 < near < r1 + r2)


def is_true(caption: str, scene: Scene) -> bool:
    """Whether every word of a caption fits the scene, and no object goes unmentioned."""
    things, facts = parse(caption)
    where = {thing.shape: i for i, thing in enumerate(scene.things)}
    if set(where) != set(things):
        return False
    for name, said in things.items():
        seen = scene.things[where[name]]
        spoken_size = "" if seen.size == "medium" else seen.size
        if (seen.colour, spoken_size, seen.texture) != (said.colour, said.size, said.texture):
            return False
    return all(holds(where[a], relation, where[b], scene) for a, relation, b in facts)


def words_of(scene: Scene) -> tuple[Counter[str], ...]:
    return tuple(Counter(getattr(thing, name) for thing in scene.things) for name in ATTRIBUTES)


def digest(source: Shapes, indices: list[int]) -> str:
    sha = hashlib.sha256()
    for i in indices:
        sha.update(np.asarray(source.image(i)).tobytes())
        sha.update(repr((source.image_id(i), source.captions(i))).encode())
        sha.update(source.patch_labels(i, 8).tobytes())
    return sha.hexdigest()


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_same_images_in_every_process(split):
    indices = [0, 1, 517, 999]
    here = digest(Shapes(split), indices)
    assert digest(Shapes(split), indices[::-1]) != here, "the digest must tell orders apart"
    assert digest(Shapes(split), indices) == here
    code = (
        "import sys; sys.path[:0] = ['tests/scenes', '.']; import test_shapes as t; "
        f"print(t.digest(t.Shapes({split!r}), {indices}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={"PYTHONHASHSEED": "12345"},
    )
    assert done.stdout.strip() == here


def test_the_order_of_reading_changes_nothing():
    forward, backward = Shapes("test"), Shapes("test")
    a = [np.asarray(forward.image(i)) for i in range(12)]
    b = [np.asarray(backward.image(i)) for i in reversed(range(12))][::-1]
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_pickling_keeps_the_images():
    source = Shapes("val", image_size=32, seed=3)
    source.image(5)
    copy = pickle.loads(pickle.dumps(source))
    assert digest(copy, [0, 5, 998]) == digest(source, [0, 5, 998])


def test_splits_and_seeds_differ():
    digests = {
        digest(Shapes(split, seed=seed), [0, 1, 2, 3])
        for split in ("train", "val", "test")
        for seed in (0, 1)
    }
    assert len(digests) == 6


def test_lengths_and_images():
    assert [len(Shapes(s)) for s in ("train", "val", "test")] == [100_000, 1_000, 1_000]
    for size in (32, 64, 96):
        image = Shapes("val", image_size=size).image(7)
        assert (image.mode, image.size) == ("RGB", (size, size))
    ids = [Shapes("val").image_id(i) for i in range(1000)]
    assert len(set(ids)) == 1000 and ids[7] == "shapes-val-000007"


@pytest.mark.parametrize("split", ["val", "test"])
def test_galleries_are_groups_of_four_to_eight_made_of_the_same_words(split):
    source = Shapes(split)
    sizes, index = [], 0
    while index < len(source):
        start, member, size = source._group(index)
        assert (start, member) == (index, 0)
        scenes = [source.scene(i) for i in range(index, index + size)]
        assert len({scene.layout for scene in scenes}) == 1
        assert all(words_of(scene) == words_of(scenes[0]) for scene in scenes)
        assert len(set(scenes)) == size
        sizes.append(size)
        index += size
    assert index == len(source)
    assert set(sizes) == {4, 5, 6, 7, 8}


def test_training_blocks_are_mostly_distractors():
    source = Shapes("train")
    same = 0
    for block in range(400):
        scenes = [source.scene(block * TRAIN_GROUP + i) for i in range(TRAIN_GROUP)]
        alike = all(words_of(scene) == words_of(scenes[0]) for scene in scenes)
        assert not alike or len(set(scenes)) == TRAIN_GROUP
        same += alike
    # Three of four in expectation; five standard deviations of 400 draws are 43.
    assert 300 - 43 < same < 300 + 43


def test_objects_of_a_scene_differ_in_shape_and_colour():
    source = Shapes("test")
    for i in range(len(source)):
        things = source.scene(i).things
        assert 2 <= len(things) <= 4
        assert len({t.shape for t in things}) == len({t.colour for t in things}) == len(things)


@pytest.mark.parametrize("split", ["val", "train"])
def test_a_caption_is_true_of_its_scene_and_of_no_other_in_the_group(split):
    source = Shapes(split)
    relations = set()
    for start in range(1000):
        first, member, size = source._group(start)
        if member:
            continue
        scenes = [source.scene(i) for i in range(first, first + size)]
        for i in range(size):
            for caption in source.captions(first + i):
                fits = [is_true(caption, scene) for scene in scenes]
                assert fits == [k == i for k in range(size)], caption
                relations |= set(RELATION.findall(caption))
    assert relations >= {"left of", "right of", "above", "below", "inside", "around"}
    # Two overlapping objects make four scenes at most, too few for most groups of a gallery.
    assert split == "val" or "overlapping" in relations


def test_the_checker_can_tell_a_wrong_caption():
    source = Shapes("val")
    for i in range(50):
        scene, caption = source.scene(i), source.captions(i)[0]
        assert is_true(caption, scene)
        assert not is_true(RELATION.sub(lambda m: OPPOSITE.get(m[0], m[0]), caption), scene)
        used = {thing.colour for thing in scene.things}
        spare = next(c for c in COLOURS if c not in used)
        assert not is_true(caption.replace(scene.things[0].colour, spare), scene)
        resized = re.sub(
            r"\ba (?!image)(small |large )?",
            lambda m: "a large " if m[1] == "small " else "a small ",
            caption,
            count=1,
        )
        assert not is_true(resized, scene)


def test_five_captions_in_several_wordings():
    source = Shapes("val")
    captions = [source.captions(i) for i in range(100)]
    assert all(len(five) == 5 for five in captions)
    # Wordings are drawn at random and may repeat, though not as a rule.
    assert np.mean([len(set(five)) for five in captions]) > 4


@pytest.mark.parametrize("index", [-1, 1000, 10**9])
def test_an_index_outside_is_refused(index):
    source = Shapes("val")
    for read in (source.scene, source.image, source.captions, lambda i: source.patch_labels(i, 8)):
        with pytest.raises(IndexError, match=f"shapes:val has 1000 images, asked for {index}"):
            read(index)


@pytest.mark.parametrize("split", ["", "valid", "TRAIN", "train#x"])
def test_an_unknown_split_is_refused(split):
    with pytest.raises(ValueError, match=f"shapes:{split}: no such split.*train, val, test"):
        Shapes(split)


def palette() -> tuple[np.ndarray, np.ndarray]:
    """Every ink, plain and lightened by its texture: float [12, 3], and its 1-based colour."""
    inks = np.array(list(COLOURS.values()), float)
    return np.concatenate([inks, inks + (255 - inks) * 2 / 3]), np.tile(np.arange(1, 7), 2)


def colours_of(image: np.ndarray) -> np.ndarray:
    """The colour code of each pixel, 0 for the background: the nearest of palette and greys."""
    inks, codes = palette()
    greys = np.repeat(np.arange(205, 250)[:, None], 3, axis=1)
    targets = np.concatenate([inks, greys])
    codes = np.concatenate([codes, np.zeros(len(greys), int)])
    distance = ((image[..., None, :].astype(float) - targets) ** 2).sum(-1)
    return codes[distance.argmin(-1)]


@pytest.mark.parametrize("grid", [8, 4])
def test_patch_labels_agree_with_the_drawn_colour(grid):
    source = Shapes("val")
    seen, agree, covered = set(), 0, 0
    for index in range(60):
        drawn = colours_of(np.asarray(source.image(index)))
        labels = source.patch_labels(index, grid)
        assert labels.shape == (grid * grid, 4) and labels.dtype == np.int32
        side = 64 // grid
        patches = drawn.reshape(grid, side, grid, side).swapaxes(1, 2).reshape(grid * grid, -1)
        for patch, (shape, colour, size, texture) in zip(patches, labels, strict=True):
            counts = np.bincount(patch, minlength=7)
            if colour == 0:
                assert (shape, size, texture) == (0, 0, 0)
                # No single object covers a fifth; antialiased edges blur a pixel or two.
                assert counts[1:].max() < 0.4 * side * side
                continue
            covered += 1
            agree += counts[1:].argmax() + 1 == colour
            seen.add((int(shape), int(colour), int(size), int(texture)))
            thing = next(t for t in source.scene(index).things
                         if COLOURS[t.colour] == list(COLOURS.values())[colour - 1])  # fmt: skip
            assert SHAPES[shape - 1] == thing.shape and TEXTURES[texture - 1] == thing.texture
            assert (list(SIZES)[size - 1] if size else "") == thing.size
    assert agree > 0.99 * covered > 0
    values = [len({s[k] for s in seen}) for k in range(4)]
    assert values == [5, 6, 4, 3]
    assert LABEL_SIZES == (6, 7, 4, 4)
