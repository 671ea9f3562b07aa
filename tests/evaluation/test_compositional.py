"""SugarCrepe's, ARO's and Winoground's forms: reading, what counts as right, and real scores.

Covers data/compositional.py, evaluate/compositional.py and reports/compositional.py.
"""

import csv
import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console

from edje_jax.data.compositional import read_items
from edje_jax.data.images import resize
from edje_jax.data.text import JointTokenizer
from edje_jax.evaluate import compositional
from edje_jax.evaluate.compositional import score_items
from edje_jax.evaluation.compositional import Item, Region, Scored, is_right, summarise
from edje_jax.reports.compositional import compositional_table, write_compositional
from edje_jax.scenes.shapes import Shapes
from edje_jax.search.reranker import Reranker


@pytest.mark.parametrize(
    ("scores", "text", "image"),
    [
        ([[2, 1], [1, 2]], True, True),
        ([[2, 3], [1, 4]], True, False),
        ([[2, 1], [3, 4]], False, True),
        ([[1, 2], [2, 1]], False, False),
        ([[1, 1], [1, 1]], False, False),
        # One tie of four is enough: between captions, then between images.
        ([[2, 1], [2, 3]], False, True),
        ([[2, 2], [1, 3]], True, False),
    ],
)
def test_two_images_by_hand(scores, text, image):
    found = is_right(np.array(scores, np.float32))
    assert found == {"text": text, "image": image, "group": text and image}


def test_one_image_by_hand():
    assert is_right(np.array([[1.0], [0.0]])) == {"text": True}
    assert is_right(np.array([[1.0], [1.0]])) == {"text": False}
    assert is_right(np.array([[2.0], [1.0], [3.0]])) == {"text": False}
    with pytest.raises(ValueError, match="NaN"):
        is_right(np.array([[1.0], [np.nan]]))


def item(name: str, category: str, images: int) -> Item:
    return Item(name, category, tuple(Region(f"{i}") for i in range(images)), ("a", "b"))


def test_percentages_by_category():
    good, bad = np.array([[1.0], [0.0]]), np.array([[0.0], [0.0]])
    items = [item(str(i), category, 1) for i, category in enumerate("xxxy")]
    scored = [Scored(bad, good), Scored(bad, good), Scored(bad, bad), Scored(good, bad)]
    result = summarise(items, scored)
    assert result["items"] == 4 and "image" not in result
    assert result["text"] == {"base": 25.0, "reranked": 50.0}
    assert result["categories"]["x"]["text"] == {"base": 0.0, "reranked": pytest.approx(200 / 3)}
    assert result["categories"]["y"] == {"items": 1, "text": {"base": 100.0, "reranked": 0.0}}
    assert result["macro"] == {"text": {"base": 50.0, "reranked": pytest.approx(100 / 3)}}
    assert compositional_table(result).row_count == 4


@pytest.fixture
def images(tmp_path):
    scenes = Shapes("val", image_size=48)
    for i in range(6):
        scenes.image(i).save(tmp_path / f"{i}.png")
    return tmp_path


def captions(i: int) -> str:
    return Shapes("val").captions(i)[0]


def write(path, content) -> None:
    path.write_text(json.dumps(content))


def test_the_three_forms(images):
    crepe = {"7": {"filename": "0.png", "caption": "a", "negative_caption": "b"}}
    aro = {
        "image_path": "1.png", "true_caption": "c", "false_caption": "d", "relation_name": "on",
        "bbox_x": 4, "bbox_y": 8, "bbox_w": 20, "bbox_h": 30,
    }  # fmt: skip
    wino = {
        "image_0": "2", "image_1": "3.png", "caption_0": "e", "caption_1": "f", "tag": "fine",
        "collapsed_tag": "Object",
    }  # fmt: skip
    write(images / "swap.json", crepe)
    write(images / "aro.json", [aro])
    (images / "wino.jsonl").write_text(json.dumps(wino) + "\n" + json.dumps(wino) + "\n")
    items = read_items([images / name for name in ("swap.json", "aro.json", "wino.jsonl")])
    at = [str(images / f"{i}.png") for i in range(4)]
    assert items == [
        Item("swap.json:7", "swap", (Region(at[0]),), ("a", "b")),
        Item("aro.json:0", "on", (Region(at[1], (4, 8, 24, 38)),), ("c", "d")),
        Item("wino.jsonl:0", "Object", (Region(at[2]), Region(at[3])), ("e", "f")),
        Item("wino.jsonl:1", "Object", (Region(at[2]), Region(at[3])), ("e", "f")),
    ]
    assert read_items([images / "swap.json"], str(images))[0].category == ""


def test_attributes_sort_and_lines_end_at_line_feeds_alone(images):
    entry = {
        "image_path": "1.png", "true_caption": "a white\u2028dog", "false_caption": "d",
        "attributes": ["white", "black"],
    }  # fmt: skip
    line = json.dumps(entry, ensure_ascii=False)
    (images / "aro.jsonl").write_text(f"{line}\r\n\n{line}\n", "utf-8")
    first, second = read_items([images / "aro.jsonl"])
    (images / "one.jsonl").write_text(line, "utf-16")
    assert read_items([images / "one.jsonl"])[0].captions == first.captions
    assert first.captions == second.captions == ("a white\u2028dog", "d")
    assert first.category == second.category == "white_black"


def test_a_category_in_brackets_is_told():
    scores = np.array([[1.0], [0.0]])
    items = [item("0", "[red]", 1), item("1", "[/]", 1)]
    console = Console(record=True, width=120)
    console.print(compositional_table(summarise(items, [Scored(scores, scores)] * 2)))
    text = console.export_text()
    assert "[red]" in text and "[/]" in text


def boxed(sides: str) -> str:
    """A file of one entry with these sides of a box."""
    box = dict(zip(("bbox_x", "bbox_y", "bbox_w", "bbox_h"), json.loads(sides), strict=True))
    entry = {"image_path": "0.png", "true_caption": "a", "false_caption": "b"}
    return json.dumps([{**entry, **box}])


@pytest.mark.parametrize(
    ("content", "error", "told"),
    [
        ("{", ValueError, "set.json: line 1, column 2: not valid JSON"),
        ("[]", ValueError, "set.json: no items"),
        ("7", ValueError, "set.json: holds one int, no list or dict"),
        ("null", ValueError, "set.json: holds one NoneType"),
        (boxed("[null, 0, 4, 4]"), ValueError, r"set.json: entry set.json:0 has bbox_x, .*None"),
        (boxed('["a", 0, 4, 4]'), ValueError, r"set.json: entry set.json:0 has bbox_x, .*'a'"),
        (boxed("[0, 0, 0, 4]"), ValueError, "set.json:0 has an empty box of 0 x 4 pixels"),
        ('[{"image": "0.png"}]', ValueError, "entry set.json:0 has none of these"),
        ('[{"filename": "0.png", "caption": "a", "negative_caption": null}]', ValueError, "none"),
        (
            r'[{"filename": "0.png", "caption": "a", "negative_caption": "\ud83d"}]',
            ValueError,
            r'entry set.json:0: "negative_caption" holds .*half of a surrogate pair.*; correct it',
        ),
        (
            '[{"filename": "no.png", "caption": "a", "negative_caption": "b"}]',
            FileNotFoundError,
            "no.png is not there; name the folder of images with --image-root",
        ),
    ],
)
def test_a_bad_file_is_named(images, content, error, told):
    (images / "set.json").write_text(content)
    with pytest.raises(error, match=told):
        read_items([images / "set.json"])


@pytest.fixture(scope="module")
def runtime(trained):
    return Reranker.from_pretrained(trained, precision="float32").runtime


def scenes(images) -> list[Item]:
    """Winoground's and SugarCrepe's kinds, a crop, a tie, and an image that stands in several."""
    at = [Region(str(images / f"{i}.png")) for i in range(6)]
    pair = Item("pair", "two", (at[0], at[1]), (captions(0), captions(1)))
    single = Item("single", "one", (at[1],), (captions(1), captions(0)))
    crop = Item("crop", "one", (Region(at[2].path, (0, 0, 24, 30)),), (captions(2), captions(3)))
    tie = Item("tie", "one", (at[5],), ("A red_square.", "a red square"))
    return [pair, tie, single, crop]


@pytest.mark.parametrize("chunk", [1, 256])
def test_scores_are_those_of_the_model_pair_by_pair(runtime, images, monkeypatch, chunk):
    monkeypatch.setattr(compositional, "CHUNK", chunk)
    items = scenes(images)
    found = score_items(runtime, items, similarity_weight=0.5)
    for one, scored in zip(items, found, strict=True):
        regions = [compositional.load_image(p.path) for p in one.regions]
        regions = [x.crop(p.box) if p.box else x for x, p in zip(regions, one.regions, strict=True)]
        encoded = runtime.encode_images(
            np.stack([resize(x, runtime.config.image) for x in regions])
        )
        cosines = runtime.embed_texts(list(one.captions)) @ encoded.embeddings.T
        np.testing.assert_allclose(scored.base, cosines, rtol=0, atol=1e-5)
        ids = runtime.joint_tokenizer(list(one.captions))
        text, image = (x.ravel() for x in np.indices(cosines.shape))
        logits = runtime.score_pairs(ids, encoded.tokens, text, image).reshape(cosines.shape)
        np.testing.assert_allclose(scored.reranked, logits + 0.5 * cosines, rtol=0, atol=1e-5)
    # The same caption to the model: a tie, to the bit.
    assert is_right(found[1].base) == is_right(found[1].reranked) == {"text": False}


def test_captions_as_written_are_told_apart(runtime, images):
    """By the joint encoder: the first stage reads published captions whatever the recipe."""
    config = dataclasses.replace(runtime.config, text_recipe="as_written")
    tokenizer = JointTokenizer(runtime.joint_tokenizer.folder, 48, "as_written")
    other = dataclasses.replace(runtime, config=config, joint_tokenizer=tokenizer)
    _, tie, *_ = scenes(images)
    (scored,) = score_items(other, [tie])
    assert scored.reranked[0] != scored.reranked[1]
    np.testing.assert_allclose(scored.base[0], scored.base[1], rtol=0, atol=1e-6)


def test_files(runtime, images, tmp_path):
    items = scenes(images)
    scored = score_items(runtime, items)
    metrics = write_compositional(tmp_path / "out", items, scored, {"model": "m"})
    assert json.loads((tmp_path / "out" / "compositional.json").read_text()) == metrics
    # An evaluation that lies in the same folder keeps its own.
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert metrics["model"] == "m" and set(metrics["categories"]) == {"one", "two"}
    assert "group" in metrics["categories"]["two"] and "group" not in metrics
    with (tmp_path / "out" / "per_item.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["item"] for row in rows] == ["pair", "tie", "single", "crop"]
    assert rows[1]["reranked_text"] == "0" and rows[1]["reranked_image"] == ""
    assert rows[0]["base_group"] in ("0", "1")
    assert json.loads(rows[0]["base_scores"]) == scored[0].base.tolist()
