"""The `moving-shapes:` source: what groups, captions and frames promise."""

import hashlib
import pickle
import re
import time
from collections import Counter

import numpy as np
import pytest

from edje_jax.config.frames import FrameSampling
from edje_jax.scenes.moving import KINDS, MovingShapes
from edje_jax.scenes.scene import COLOURS, SHAPES
from edje_jax.scenes.shapes import TRAIN_GROUP

EIGHT = FrameSampling(8)

# A checker of its own: it reads captions by their words and clips by their pixels.
CLAUSE = re.compile(
    r"a (?:(?P<colour>\w+) )?(?P<shape>circle|square|triangle|star|cross) "
    r"(?:(?P<moves>moves) (?P<way>left|right|up|down)"
    r"|passes to the (?P<side>left|right) behind a (?P<cover>\w+) (?P<cover_shape>\w+)"
    r"|(?P<presence>appears|disappears)|turns from (?P<old>\w+) to (?P<new>\w+))"
)


def events(caption: str) -> list[dict[str, str]]:
    """The two clauses of a caption in the order in which they happen."""
    found = [
        {name: value for name, value in match.groupdict().items() if value}
        for match in CLAUSE.finditer(caption)
    ]
    assert len(found) == 2, caption
    rest = re.sub(r"[, ]+", " ", CLAUSE.sub("X", caption)).strip()
    assert rest in ("X then X", "first X and then X", "X before X", "X after X", "after X X"), rest
    return found[::-1] if rest == "X after X" else found


def clip(source: MovingShapes, index: int, sampling: FrameSampling = EIGHT) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in source.frames(index, sampling)])


def where(frame: np.ndarray, colour: str) -> np.ndarray | None:
    """Middle (x, y) of the pixels of a colour; None if there are hardly any."""
    near = np.abs(frame.astype(int) - COLOURS[colour]).max(-1) < 40
    return np.argwhere(near).mean(0)[::-1] if near.sum() > 6 else None


def is_true(event: dict[str, str], shot: np.ndarray) -> bool:
    """Whether a clause fits four frames, judged by the colours in them."""
    if "old" in event:
        seen = [[where(f, event[name]) is not None for f in shot] for name in ("old", "new")]
        return seen == [[True, True, False, False], [False, False, True, True]]
    places = [where(frame, event["colour"]) for frame in shot]
    if "presence" in event:
        there = [place is not None for place in places]
        return there == ([False, False, True, True] if event["presence"] == "appears"
                         else [True, True, False, False])  # fmt: skip
    if places[0] is None or places[3] is None:
        return False
    (dx, dy), way = places[3] - places[0], event.get("way") or event["side"]
    moved = {"left": -dx, "right": dx, "up": -dy, "down": dy}[way]
    if "side" in event:
        covers = [where(frame, event["cover"]) for frame in shot]
        if any(cover is None for cover in covers) or not hides(shot, event["colour"]):
            return False
    elif "moves" in event and hides(shot, event["colour"]):
        return False
    return bool(moved > 20)


def hides(shot: np.ndarray, colour: str) -> bool:
    """Whether less of a colour is seen in the middle of a shot than at its ends."""
    seen = [(np.abs(f.astype(int) - COLOURS[colour]).max(-1) < 40).sum() for f in shot]
    return max(seen[1:3]) < 0.8 * min(seen[0], seen[3])


def groups(source: MovingShapes, records: int) -> list[range]:
    found, index = [], 0
    while index < records:
        found.append(source.group(index))
        assert {source.group(i) for i in found[-1]} == {found[-1]} and found[-1].start == index
        index = found[-1].stop
    return found


@pytest.mark.parametrize("split", ["val", "test"])
def test_galleries_are_groups_of_four_to_eight_with_no_caption_twice(split):
    source = MovingShapes(split)
    found = groups(source, len(source))
    assert {len(group) for group in found} == {4, 5, 6, 7, 8}
    captions = Counter(caption for i in range(len(source)) for caption in source.captions(i))
    assert len(captions) == 5 * len(source) == 5000


@pytest.mark.parametrize("split", ["train", "test"])
def test_clips_of_a_group_have_the_same_frames_in_another_order(split):
    source = MovingShapes(split)
    same = 0
    for group in groups(source, 120):
        clips = [clip(source, i) for i in group]
        assert len({each.tobytes() for each in clips}) == len(clips)
        frames = [sorted(frame.tobytes() for frame in each) for each in clips]
        if all(each == frames[0] for each in frames):
            same += len(group)
            means = {each.astype(np.int64).sum(0).tobytes() for each in clips}
            assert len(means) == 1
        else:  # Unrelated clips
            assert split == "train" and len({tuple(each) for each in frames}) == TRAIN_GROUP
    assert same >= 120 if split == "test" else 60 <= same < 120


def test_as_many_frames_as_are_wanted_are_drawn():
    source = MovingShapes("val")
    first, second = (clip(source, i, FrameSampling(4)) for i in range(2))
    assert first.shape == (4, 64, 64, 3)
    assert sorted(f.tobytes() for f in first) == sorted(f.tobytes() for f in second)
    assert clip(source, 0, FrameSampling(5)).shape[0] == 5
    assert clip(source, 0, FrameSampling(16, "rate", 1.0)).shape[0] == 4
    np.testing.assert_array_equal(clip(source, 0, FrameSampling(1))[0], source.image(0))


@pytest.mark.parametrize("split", ["val", "train"])
def test_a_caption_is_true_of_its_clip_and_of_no_other_in_the_group(split):
    source = MovingShapes(split)
    for group in groups(source, 60):
        clips = [clip(source, i) for i in group]
        for i in group:
            caption, *others = source.captions(i)
            first, second = events(caption)
            assert all(events(other) == [first, second] for other in others)
            fits = [is_true(first, one[:4]) and is_true(second, one[4:]) for one in clips]
            assert fits == [k == i for k in group], caption


def test_every_kind_of_event_shape_and_colour_comes():
    source = MovingShapes("train")
    found = [event for i in range(400) for event in source.clip(i)[0].events]
    assert {event.kind for event in found} == set(KINDS)
    assert {event.shape for event in found} == set(SHAPES)
    assert {event.colour for event in found} == set(COLOURS)
    words = Counter(word for i in range(400) for word in source.captions(i)[0].split())
    assert {"left", "right", "up", "down", "appears", "disappears", "behind", "turns"} <= set(words)


def digest(source: MovingShapes, indices: list[int]) -> str:
    sha = hashlib.sha256()
    for i in indices:
        sha.update(
            clip(source, i).tobytes() + repr((source.image_id(i), source.captions(i))).encode()
        )
    return sha.hexdigest()


def test_clips_depend_on_seed_split_and_index_alone():
    here = digest(MovingShapes("val"), [0, 5, 999])
    assert digest(pickle.loads(pickle.dumps(MovingShapes("val"))), [0, 5, 999]) == here
    backwards = MovingShapes("val")
    assert [digest(backwards, [i]) for i in (999, 5, 0)][::-1] == [
        digest(MovingShapes("val"), [i]) for i in (0, 5, 999)
    ]
    others = [MovingShapes("val", seed=1), MovingShapes("test"), MovingShapes("val", 32)]
    assert here not in {digest(other, [0, 5, 999]) for other in others}


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="moving-shapes:tset: no such split; there are train, val"):
        MovingShapes("tset")
    with pytest.raises(IndexError, match="moving-shapes:val has 1000 images, asked for 1000"):
        MovingShapes("val").image(1000)


def test_a_clip_is_drawn_in_milliseconds():
    source = MovingShapes("train", seed=7)
    began = time.process_time()
    for i in range(80):
        assert len(list(source.frames(i, EIGHT))) == 8
    assert (time.process_time() - began) / 80 < 0.02
