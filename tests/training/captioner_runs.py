"""Tiny runs of captioners, and one of them for all tests of training that need a trained one."""

import json
from pathlib import Path

import pytest

import train
from edje_jax.scenes.shapes import Shapes
from tests.small_runs import TINY

STEPS = 6
COMMAND = (
    "captioner", "--steps", str(STEPS), "--data.train", "shapes:train", "--data.batch-size", "16",
    "--data.limit", "48", "--model.backbone", str(TINY / "siglip"),
    "--model.adapter.intermediate-size", "64", "--model.adapter.upsampling", "2",
    "--model.fresh.vocab-size", "200", "--model.fresh.hidden-size", "32",
    "--model.fresh.intermediate-size", "64", "--model.fresh.num-hidden-layers", "1",
    "--precision", "float32", "--mesh.data", "1", "--log-every", "1",
)  # fmt: skip


def captions_of(folder: Path, count: int = 12) -> str:
    """SPEC of some scenes that no run trains on."""
    source, entries = Shapes("val"), []
    for number in range(count):
        source.image(number).save(folder / f"{number}.png")
        entries.append({"image": f"{number}.png", "caption": source.captions(number)[0]})
    (folder / "val.json").write_text(json.dumps(entries))
    return f"blip:{folder / 'val.json'}"


@pytest.fixture(scope="session")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a finished run, evaluated on the way; to be read only."""
    workdir = tmp_path_factory.getbasetemp() / "captioner"
    if not workdir.exists():
        val = captions_of(tmp_path_factory.mktemp("val"))
        more = ("--data.val", val, "--eval-every", "3", "--checkpoint-every", "3", "--k", "4")
        assert train.main([*COMMAND, *more, "--workdir", str(workdir)]) == 0
    return workdir
