"""Metadata of images that sources tell, and of those that tell none."""

from edje_jax.data.metadata import metadata_of, scalars
from edje_jax.scenes.shapes import Shapes


def test_texts_numbers_and_truth_values_are_metadata():
    fields = {
        "a": "", "b": 0, "c": -0.5, "d": False, "e": None, "f": [1], "g": {"a": 1}, "h": b"x",
        "i": float("nan"), "j": float("inf"), "caption": "two dogs",
    }  # fmt: skip
    found = scalars(fields, ["caption"])
    assert found == {"a": "", "b": 0, "c": -0.5, "d": False, "j": float("inf")}
    assert scalars({"caption": "two dogs"}) == {"caption": "two dogs"}


def test_a_source_without_metadata_has_none_for_any_image():
    assert metadata_of(Shapes("val"), 0) == {}


def test_a_source_of_ones_own_tells_metadata():
    class Dated(Shapes):
        def metadata(self, index: int) -> dict[str, int]:
            return {"year": 2000 + index}

    assert metadata_of(Dated("val"), 7) == {"year": 2007}
