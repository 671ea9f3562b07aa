"""`preprocessor_config.json`: there and back, through `transformers`, and what is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor

from edje_jax.config.model import ImageRecipe
from edje_jax.data.images import normalise, resize
from edje_jax.weights.preprocessor import (
    recipe_from_preprocessor,
    recipe_to_preprocessor,
    restate_reading,
)

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def write_settings(folder: Path, settings: object, name: str = "preprocessor_config.json") -> Path:
    (folder / name).write_text(json.dumps(settings), "utf-8")
    return folder


@pytest.mark.parametrize(
    "recipe",
    [
        ImageRecipe(),
        ImageRecipe(384, "warp", "bicubic"),
        ImageRecipe(224, "crop", "bicubic", CLIP_MEAN, CLIP_STD),
        ImageRecipe(24, icc_profile="applied"),
        ImageRecipe(24, "crop", transparency="white"),
        *(ImageRecipe(17, "crop", name, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)) for name in FILTERS),
    ],
)
def test_recipes_go_there_and_back_and_transformers_reads_them(recipe, tmp_path):
    folder = write_settings(tmp_path, recipe_to_preprocessor(recipe))
    assert recipe_from_preprocessor(folder) == recipe
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    image = np.random.default_rng(0).integers(0, 256, (45, 31, 3), np.uint8)
    theirs = processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    ours = normalise(resize(Image.fromarray(image), recipe), recipe)
    np.testing.assert_allclose(ours, np.moveaxis(theirs, 0, -1), rtol=0, atol=1e-6)
    # ... and what transformers writes, we read.
    (tmp_path / "again").mkdir()
    processor.save_pretrained(tmp_path / "again")
    assert recipe_from_preprocessor(str(tmp_path / "again")) == recipe


CLIP = ImageRecipe(224, "crop", "bicubic", CLIP_MEAN, CLIP_STD)
WARP = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}


@pytest.mark.parametrize(
    "settings, recipe",
    [
        ({"image_processor_type": "CLIPImageProcessor"}, CLIP),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224}, CLIP),
        ({"image_processor_type": "CLIPImageProcessorFast", "resample": None}, CLIP),
        (
            {"image_processor_type": "SiglipImageProcessorFast", "resample": 2},
            ImageRecipe(224, "warp", "bilinear"),
        ),
        (
            WARP | {"do_normalize": False},
            ImageRecipe(32, "warp", "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ),
        (
            WARP | {"image_mean": 0.25, "image_std": 0.5},
            ImageRecipe(32, "warp", "bicubic", (0.25,) * 3),
        ),
        (
            WARP | {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
            ImageRecipe(32, "warp", "bicubic"),
        ),
        (
            {"size": {"height": 8, "width": 8}, "resample": 0, "image_mean": [0, 0, 0],
             "image_std": [1, 1, 1]},
            ImageRecipe(8, "warp", "nearest", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ),
    ],
)  # fmt: skip
def test_older_and_shorter_files(settings, recipe, tmp_path):
    assert recipe_from_preprocessor(write_settings(tmp_path, settings)) == recipe


def test_the_section_of_processor_config_comes_first(tmp_path):
    write_settings(tmp_path, WARP)
    write_settings(tmp_path, {"processor_class": "SiglipProcessor"}, "processor_config.json")
    assert recipe_from_preprocessor(tmp_path).size == 32
    section = {"image_processor": WARP | {"size": {"height": 48, "width": 48}}}
    write_settings(tmp_path, section, "processor_config.json")
    assert recipe_from_preprocessor(tmp_path).size == 48


@pytest.mark.parametrize(
    "change, message",
    [
        ({"size": {"height": 32, "width": 48}}, r'"size" of .*48.* give a square'),
        ({"size": {"shortest_edge": 32}}, '"size" of .* without do_center_crop'),
        ({"size": 32}, '"size" of 32 .* without do_center_crop'),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, '"size" .* give a square'),
        ({"size": "32"}, "\"size\" of '32' .* give a square"),
        ({"size": {"height": 0, "width": 0}}, "a size is at least 1"),
        ({"do_center_crop": True, "crop_size": 24}, '"crop_size" of 24 .* must be equal'),
        ({"do_center_crop": True}, '"crop_size" of None .* give a square'),
        ({"resample": 9}, r'"resample" of 9 .* 2 \(bilinear\)'),
        ({"resample": [2]}, '"resample" of'),
        ({"image_mean": [0.5, 0.5]}, '"image_mean" .* three numbers'),
        ({"image_mean": [0.5, 0.5, "x"]}, '"image_mean" .* three finite numbers'),
        ({"image_std": [0.5, 0.5, 0]}, '"image_std" .* cannot be 0'),
        ({"rescale_factor": 1 / 127.5}, '"rescale_factor" .* 1/255'),
        ({"do_rescale": False}, '"do_rescale" of False'),
        ({"do_resize": False}, '"do_resize" of False'),
        ({"do_pad": True}, '"do_pad" of True'),
        ({"transparency": "black"}, '"transparency" of .black. .* use dropped or white'),
        ({"icc_profile": True}, '"icc_profile" of True .* use ignored or applied'),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "Siglip2ImageProcessor' is not supp"),
        ({"image_processor_type": "ViTImageProcessor"}, "use a model with a SiglipImageProcessor"),
        ({"image_processor_type": None}, 'no "resample", and no "image_processor_type"'),
    ],
)
def test_settings_that_a_recipe_cannot_say(change, message, tmp_path):
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json: .*{message}"):
        recipe_from_preprocessor(write_settings(tmp_path, WARP | change))


def test_the_default_adds_no_key():
    assert not {"icc_profile", "transparency"} & recipe_to_preprocessor(ImageRecipe()).keys()


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_what_a_file_says_of_reading_is_changed_and_nothing_else(name, tmp_path):
    settings = WARP | {"resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "mine": 1}
    nested = name == "processor_config.json"
    write_settings(tmp_path, {"image_processor": settings} if nested else settings, name)
    before = (tmp_path / name).read_bytes()
    recipe = recipe_from_preprocessor(tmp_path)
    restate_reading(tmp_path, recipe)
    assert (tmp_path / name).read_bytes() == before
    white = dataclasses.replace(recipe, transparency="white", icc_profile="applied")
    for wanted, added in (
        (white, {"transparency": "white", "icc_profile": "applied"}),
        (recipe, {}),
    ):
        restate_reading(tmp_path, wanted)
        assert recipe_from_preprocessor(tmp_path) == wanted
        written = json.loads((tmp_path / name).read_text())
        assert (written["image_processor"] if nested else written) == settings | added


def test_folders_without_a_readable_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no preprocessor_config\.json.*copy it from"):
        recipe_from_preprocessor(tmp_path)
    with pytest.raises(ValueError, match="expected an object of settings, got 3"):
        recipe_from_preprocessor(write_settings(tmp_path, 3))
    (tmp_path / "preprocessor_config.json").write_text('{"size": ', "utf-8")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: not valid JSON"):
        recipe_from_preprocessor(tmp_path)
