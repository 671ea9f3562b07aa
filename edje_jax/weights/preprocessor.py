"""`preprocessor_config.json` <-> `ImageRecipe`."""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from PIL import Image

from edje_jax.config.model import READING, ImageRecipe
from edje_jax.system.files import write_json
from edje_jax.weights.families.registry import FAMILIES

RESAMPLE: dict[int, Any] = {
    Image.Resampling[name.upper()].value: name
    for name in ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
}
"""Number in `preprocessor_config.json` -> name in a recipe."""

_ALWAYS = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}


def recipe_from_preprocessor(folder: str | os.PathLike[str]) -> ImageRecipe:
    """Read a Hugging Face folder's recipe.

    From `processor_config.json` (its "image_processor", as newer transformers write it) or else
    `preprocessor_config.json`. What the file leaves out has its class's default, if it names one.

    Raises:
        FileNotFoundError: the folder has neither.
        ValueError: the file asks for something that `ImageRecipe` cannot say.
    """
    path, stated = _read_preprocessor(Path(folder).expanduser())
    settings = _ALWAYS | _class_defaults(path, stated)
    settings |= {key: value for key, value in stated.items() if value is not None}
    for key in ("size", "resample", "image_mean", "image_std"):
        if key not in settings:
            raise ValueError(
                f'{path}: no "{key}", and no "image_processor_type" that would imply it; add it'
            )
    _check_steps(path, settings)
    size, way = _size(path, settings)
    resample = settings["resample"]
    if not isinstance(resample, int) or resample not in RESAMPLE:
        choices = ", ".join(f"{number} ({name})" for number, name in RESAMPLE.items())
        raise _unsupported(path, settings, "resample", f"use one of {choices}")
    mean, std = _channels(path, settings, "image_mean"), _channels(path, settings, "image_std")
    if 0 in std:
        raise _unsupported(path, settings, "image_std", "a deviation cannot be 0")
    if not settings["do_normalize"]:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    reading = {key: _choice(path, settings, key) for key in READING if key in settings}
    return ImageRecipe(size, way, RESAMPLE[resample], mean, std, **reading)


def restate_reading(folder: Path, recipe: ImageRecipe) -> None:
    """Make a folder's file say what a recipe does with profiles and transparency, if it does not.

    The rest of it stays as it is.
    """
    if recipe_from_preprocessor(folder).reading == recipe.reading:
        return
    path, _ = _read_preprocessor(folder)
    whole = json.loads(path.read_text("utf-8-sig"))
    stated = whole["image_processor"] if path.name == "processor_config.json" else whole
    for key in READING:
        stated.pop(key, None)
    stated |= recipe.reading
    write_json(path, whole)


def recipe_to_preprocessor(recipe: ImageRecipe) -> dict[str, Any]:
    """Content of a `preprocessor_config.json`, for `AutoImageProcessor` to read."""
    square = {"height": recipe.size, "width": recipe.size}
    if recipe.resize == "warp":
        kind = {"image_processor_type": "SiglipImageProcessor", "size": square}
    else:
        kind = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": recipe.size},
            "do_center_crop": True,
            "crop_size": square,
        }
    return {
        **kind,
        **_ALWAYS,
        "do_convert_rgb": True,
        "resample": Image.Resampling[recipe.resample.upper()].value,
        "image_mean": list(recipe.mean),
        "image_std": list(recipe.std),
        **recipe.reading,
    }


def _read_preprocessor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file and its settings."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            stated = json.loads(path.read_text("utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{path}: not valid JSON ({error}); write it anew") from error
        if name == "processor_config.json" and isinstance(stated, dict):
            stated = stated.get("image_processor")
            if stated is None:  # the older form: the images' settings are in the other file
                continue
        if not isinstance(stated, dict):
            raise ValueError(f"{path}: expected an object of settings, got {stated!r}")
        return path, stated
    raise FileNotFoundError(
        f"{folder}: no preprocessor_config.json, which says how images are resized and "
        "normalised; copy it from where the model came from"
    )


def _class_defaults(path: Path, stated: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of the class that the file names; none if it names no class."""
    key = next((k for k in ("image_processor_type", "feature_extractor_type") if stated.get(k)), "")
    if not key:
        return {}
    name = re.fullmatch(r"(\w+?)(ImageProcessor|FeatureExtractor)(Fast|Pil)?", str(stated[key]))
    known = {k: v for family in FAMILIES.values() for k, v in family.image_processors.items()}
    if not name or name[1] not in known:
        classes = " or ".join(f"a {kind}ImageProcessor" for kind in known)
        raise _unsupported(path, stated, key, f"use a model with {classes}")
    return known[name[1]]


def _check_steps(path: Path, settings: Mapping[str, Any]) -> None:
    if not settings["do_resize"]:
        raise _unsupported(path, settings, "do_resize", "images are resized: set it to true")
    if not settings["do_rescale"]:
        raise _unsupported(path, settings, "do_rescale", "pixels are divided by 255: set it true")
    factor = settings["rescale_factor"]
    if not isinstance(factor, int | float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise _unsupported(
            path, settings, "rescale_factor", "set it to 1/255 and put the rest in mean and std"
        )
    if settings.get("do_pad"):
        raise _unsupported(path, settings, "do_pad", "images are not padded: set it to false")


def _size(path: Path, settings: Mapping[str, Any]) -> tuple[int, Literal["warp", "crop"]]:
    """The side, and how images become square."""
    size = settings["size"]
    cropped = bool(settings.get("do_center_crop"))
    # A plain number is the short side, to both classes.
    short = size if isinstance(size, int) else _only(size, "shortest_edge")
    if short is None:
        side, way = _square(path, settings, "size"), "warp"
    elif cropped:
        side, way = short, "crop"
    else:
        raise _unsupported(
            path, settings, "size", "without do_center_crop images would not be square"
        )
    if cropped and (crop := _square(path, settings, "crop_size")) != side:
        raise _unsupported(path, settings, "crop_size", f"{crop} and the size {side} must be equal")
    if side < 1:
        raise _unsupported(path, settings, "size", "a size is at least 1")
    return side, way


def _square(path: Path, settings: Mapping[str, Any], key: str) -> int:
    size = settings.get(key)
    if isinstance(size, int) and key == "crop_size":
        return size
    if isinstance(size, Mapping) and set(size) == {"height", "width"}:
        height, width = size["height"], size["width"]
        if isinstance(height, int) and height == width:
            return height
    raise _unsupported(path, settings, key, 'give a square {"height": S, "width": S}')


def _only(size: object, key: str) -> int | None:
    if isinstance(size, Mapping) and set(size) == {key} and isinstance(size[key], int):
        return size[key]
    return None


def _channels(path: Path, settings: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    value = settings[key]
    values = [value] * 3 if isinstance(value, int | float) else value
    if not isinstance(values, list) or len(values) != 3:
        raise _unsupported(path, settings, key, "give three numbers, for red, green and blue")
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        raise _unsupported(path, settings, key, "give three finite numbers")
    return cast(tuple[float, float, float], tuple(float(v) for v in values))


def _choice(path: Path, settings: Mapping[str, Any], key: str) -> Any:
    if settings[key] not in READING[key]:
        raise _unsupported(path, settings, key, f"use {' or '.join(READING[key])}")
    return settings[key]


def _unsupported(path: Path, settings: Mapping[str, Any], key: str, remedy: str) -> ValueError:
    return ValueError(f'{path}: "{key}" of {settings.get(key)!r} is not supported; {remedy}')
