"""`calibration.json` of a model folder, which `edje tune --save` writes."""

import dataclasses
from pathlib import Path

from edje_jax.config.calibration import UNTUNED, Calibration
from edje_jax.system.files import read_json, write_json

NAME = "calibration.json"
NUMBERS = ("similarity_weight", "temperature", "bias")


def read_calibration(folder: Path) -> Calibration:
    """Calibration of a model folder; that of a model never tuned if there is no file.

    Raises:
        ValueError: the file is damaged; the message says how to make it anew.
    """
    path = folder / NAME
    if not path.exists():
        return UNTUNED
    raw = read_json(path)
    try:
        numbers = {name: float(raw[name]) for name in NUMBERS}
        return Calibration(**numbers, fitted=dict(raw["fitted"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not what edje tune --save writes ({error!r}); run it again, or delete the"
            " file to use the model without calibration"
        ) from error


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Write `calibration.json`, whole or not at all."""
    write_json(folder / NAME, dataclasses.asdict(calibration))
