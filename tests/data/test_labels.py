"""Labels of a set's images, from COCO's instances and from labels files."""

import json
import re

import pytest

from edje_jax.data.labels import coco_number, read_labels

COCO = {
    "images": [
        {"id": 391895, "file_name": "COCO_val2014_000000391895.jpg"},
        {"id": 42, "file_name": "COCO_val2014_000000000042.jpg"},
        {"id": 73, "file_name": "COCO_val2014_000000000073.jpg"},
        {"id": 74, "file_name": "COCO_val2014_000000000074.jpg"},
    ],
    "annotations": [
        {"image_id": 391895, "category_id": 3, "iscrowd": 0},
        {"image_id": 391895, "category_id": 1, "iscrowd": 1},
        {"image_id": 391895, "category_id": 3, "iscrowd": 0},
        {"image_id": 42, "category_id": 1, "iscrowd": 0},
        {"image_id": 73, "category_id": 90, "iscrowd": 0},
    ],
    "categories": [
        {"id": 1, "name": "person"}, {"id": 3, "name": "car"}, {"id": 90, "name": "toothbrush"},
    ],
}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    def write(content, name="labels.json") -> str:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize(
    "ids",
    [
        ["391895", "42", "74"],
        [f"val2014/COCO_val2014_{number:012}.jpg" for number in (391895, 42, 74)],
        ["COCO_val2014_000000391895", "COCO_val2014_000000000042.png", "000000000074.jpg"],
        ["karpathy:coco.json/391895", "tfds:coco_captions/42", "74"],
    ],
)
def test_images_of_coco_by_number_and_by_name(file, ids):
    found = read_labels(file(COCO), ids)
    assert found.names == ["car", "person"]
    assert found.values.tolist() == [[True, True], [False, True], [False, False]]
    assert (found.missing, found.unlabelled, found.unknown) == (0, 1, 1)


def test_images_that_coco_does_not_have_are_counted(file):
    found = read_labels(file(COCO), ["73", "5", "pool/a dog.jpg"])
    assert found.values.tolist() == [[True], [False], [False]]
    assert (found.missing, found.unlabelled, found.unknown) == (2, 2, 3)


def test_numbers_of_another_set_in_cocos_format_are_no_names(file):
    images = [{"id": 1, "file_name": "a/7.jpg"}, {"id": 7, "file_name": "b/1.jpg"}]
    images += [{"id": 3, "file_name": "a/twice.jpg"}, {"id": 4, "file_name": "b/twice.jpg"}]
    content = {
        "images": images,
        "annotations": [{"image_id": n, "category_id": n} for n in (1, 7, 3, 4)],
        "categories": [{"id": n, "name": f"of {n}"} for n in (1, 7, 3, 4)],
    }
    found = read_labels(file(content), ["7", "b/1.png", "b/twice.jpg", "c/twice.jpg", "3"])
    given = [
        [name for name, has in zip(found.names, row, strict=True) if has] for row in found.values
    ]
    assert given == [["of 1"], ["of 7"], ["of 4"], [], []]
    assert found.missing == 2


LABELS = {"b/1.jpg": ["grass", "dog", "dog"], "2.jpg": [], "5": ["cat"], "other": ["x"]}


@pytest.mark.parametrize(
    "content",
    [
        LABELS,
        "\n".join(json.dumps({"id": name, "labels": LABELS[name]}) for name in LABELS),
        [
            {"id": int(name) if name == "5" else name, "labels": labels}
            for name, labels in LABELS.items()
        ],
    ],
)
def test_a_labels_file_of_any_set(file, content):
    found = read_labels(file(content), ["2.jpg", "5", "b/1.jpg", "c.jpg"])
    assert found.names == ["cat", "dog", "grass"]
    assert found.values.dtype == bool
    assert found.values.astype(int).tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert (found.missing, found.unlabelled, found.unknown) == (1, 2, 1)


def test_one_line_is_json_lines(file):
    found = read_labels(file('{"id": "a", "labels": ["x", "y"]}\n'), ["b", "a"])
    assert (found.names, found.values.tolist()) == (["x", "y"], [[False, False], [True, True]])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[1, ", "not valid JSON"),
        ("5", "holds a JSON number; expected"),
        ("[5]", 'entry 0 is 5; it needs "id" and "labels"'),
        ('[{"labels": []}]', 'it needs "id" and "labels"'),
        ('{"id": "a", "labels": []}\n{"id": "b", "la\n{"id": "c", "labels": []}', "entry 1: not"),
        ({"a": "dog"}, "the labels of 'a' are 'dog'; give a list of names"),
        ('[{"id": "a"}]', "the labels of 'a' are None; give a list of names"),
        ({"a": ["dog", 5]}, "the labels of 'a': one is a number (5), not a text"),
        ({"a": [" "]}, "the labels of 'a': one is empty"),
        ('[{"id": "a", "labels": []}, {"id": "a", "labels": []}]', 'id "a" stands twice'),
        ({"img/a.jpg": ["dog"]}, "none of its 1 images (such as 'img/a.jpg') is one of the 1 of"),
        ({}, "none of its 0 images (such as None)"),
        ({**COCO, "images": []}, "annotations[0] is of image 391895 and category 3"),
        ({**COCO, "categories": [{"id": 1, "name": "person"}]}, "image 391895 and category 3"),
        ({"images": [], "annotations": []}, 'annotations and no list "categories"; give COCO\'s'),
        ({**COCO, "images": [{"id": 1}]}, "images[0] is {'id': 1}; it needs \"id\" and \"file_na"),
        ({**COCO, "annotations": [[]]}, 'annotations[0] is []; it needs "image_id" and "category'),
        (COCO, "none of its 4 images (such as 391895) is one of the 1 of this set (such as 'a')"),
    ],
)  # fmt: skip
def test_errors_name_the_file_the_value_and_the_remedy(file, content, told):
    path = file(content)
    with pytest.raises(ValueError, match=re.escape(told)) as error:
        read_labels(path, ["a"])
    assert str(error.value).startswith(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"instances_x\.json: no such file; give COCO's"):
        read_labels(tmp_path / "instances_x.json", ["a"])


def test_numbers_at_the_end_of_names():
    names = ("COCO_val2014_000000391895.jpg", "val/12.png", "7", "a.jpg", "12a", f"{10**30}.jpg")
    assert [coco_number(name) for name in names] == [391895, 12, 7, None, None, None]
