"""An index in parts and a model without JAX, for tests of whatever asks the parts."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edje_jax.config.calibration import UNTUNED, Calibration
from edje_jax.config.model import EdjeConfig
from edje_jax.index import build as building
from edje_jax.index.build import BuildOptions, build
from edje_jax.index.maintain import remove
from tests.colour_runtime import CODED, CODED_STAMP, ColourRuntime, Colours

IMAGES, SHARD = 40, 8


@dataclass(frozen=True)
class ColourModel:
    """Model as `Service` takes it."""

    runtime: ColourRuntime = CODED
    stamp: dict[str, Any] = field(default_factory=lambda: CODED_STAMP)
    source: str = "colours"
    calibration: Calibration = UNTUNED

    @property
    def config(self) -> EdjeConfig:
        return self.runtime.config


class NotingRuntime(ColourRuntime):
    """Notes the process that scores, and takes its time."""

    def score_pairs(self, *arguments: Any, **options: Any) -> np.ndarray:
        with open(os.environ["NOTES"], "a") as notes:
            notes.write(f"{os.getpid()}\n")
        time.sleep(float(os.environ["PAUSE"]))
        return super().score_pairs(*arguments, **options)


def open_noting(notes: Path, pause: float) -> ColourModel:
    """Model of which every scoring is noted."""
    os.environ |= {"NOTES": str(notes), "PAUSE": str(pause)}
    return ColourModel(NotingRuntime(CODED.config))


class Dated(Colours):
    """Images of a year."""

    def metadata(self, index: int) -> dict[str, int]:
        return {"year": 2000 + index}


def build_in_shards(out: Path, metadata: tuple[str, ...] = ()) -> Path:
    """Index of five shards, without some of its images."""
    before, building.SHARD_ROWS = building.SHARD_ROWS, SHARD
    try:
        options = BuildOptions(metadata=metadata)
        assert build(CODED, CODED_STAMP, Dated(IMAGES), "colours", out, options)
    finally:
        building.SHARD_ROWS = before
    remove(out, ["03", "09", "10"])
    return out
