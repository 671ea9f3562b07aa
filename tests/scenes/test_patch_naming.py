"""Patch naming: labels of the built-in scenes, and of no other source."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edje_jax.config.model import VisionConfig
from edje_jax.config.run import BackboneRun, DataConfig
from edje_jax.data.sources.mixture import Mixture
from edje_jax.data.sources.subset import Subset
from edje_jax.scenes.patch_naming import patch_naming, with_places
from edje_jax.scenes.shapes import Shapes

RUN = BackboneRun(
    data=DataConfig(train="shapes:val"),
    vision=VisionConfig(image_size=64, patch_size=16),
    patch_naming=6.0,
    patch_sharpness=(5.0, 20.0),
)


def test_labels_are_those_of_the_scene():
    scenes = Shapes("val")
    naming = patch_naming(scenes, RUN)
    assert naming.weight == 6.0
    for record in (0, 7):
        np.testing.assert_array_equal(naming.labels(record), scenes.patch_labels(record, 4))


def test_labels_of_a_part_of_a_part_are_those_of_the_whole():
    scenes = Shapes("val")
    odd = Subset(scenes, np.arange(1000) % 2 == 1)
    late = Subset(odd, np.arange(500) >= 100)
    labels = pickle.loads(pickle.dumps(patch_naming(late, RUN).labels))
    np.testing.assert_array_equal(labels(3), scenes.patch_labels(207, 4))
    assert labels(3).any()


def test_another_source_has_no_patches_to_name(caplog):
    caplog.set_level("INFO")
    assert patch_naming(Mixture([Shapes("val"), Shapes("test")], ["a", "b"]), RUN) is None
    assert "shapes:val cannot say what patches hold: no patch naming" in caplog.text
    assert patch_naming(Shapes("val"), dataclasses.replace(RUN, patch_naming=0.0)) is None


def test_a_crop_is_refused():
    cropped = dataclasses.replace(RUN, data=DataConfig(crop=0.5))
    with pytest.raises(ValueError, match=r"--data.crop 0.5: .*set it to 1, or --patch-naming to 0"):
        patch_naming(Shapes("val"), cropped)


def test_the_loss_falls_to_nothing_for_tokens_that_are_the_names():
    """A token that points at its own name alone is named without a doubt."""
    scenes = Shapes("val")
    naming = patch_naming(scenes, dataclasses.replace(RUN, patch_sharpness=(200.0,)))
    labels = with_places(jnp.asarray(naming.labels(0)[None]))
    sizes = [6, 7, 4, 4, 4, 4]
    params = naming.init(jax.random.key(0), sum(sizes))
    assert {name: x.shape for name, x in params.items()} == {
        f"attribute_{i}": (size, sum(sizes)) for i, size in enumerate(sizes)
    }
    parts = jnp.split(jnp.eye(sum(sizes)), np.cumsum(sizes)[:-1])
    params = {f"attribute_{i}": names for i, names in enumerate(parts)}
    tokens = sum(names[labels[..., i]] for i, names in enumerate(parts))
    valid = jnp.ones(1, bool)
    assert float(naming.loss(params, tokens, labels[..., :4], valid)) < 1e-6
    assert float(naming.loss(params, jnp.roll(tokens, 1, 1), labels[..., :4], valid)) > 1


def test_places_are_rows_and_columns():
    places = np.asarray(with_places(jnp.zeros((2, 6 * 6, 4), jnp.int32)))
    assert places.shape == (2, 36, 6)
    assert places[1, 13, 4:].tolist() == [2, 1] and not places[..., :4].any()
