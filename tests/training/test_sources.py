"""Training on one data set is the same from every format."""

import pytest

import train
from tests.real_sets import COUNT, write_every_format
from tests.small_runs import TINY, read_log

STEPS = 20


@pytest.mark.slow
def test_every_format_trains_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    specs = write_every_format(tmp_path / "sets")
    assert len(specs) == 6 and COUNT > 16
    losses = {}
    for kind, spec in specs.items():
        workdir = tmp_path / kind
        command = (
            "debug", "--data.train", spec, "--workdir", str(workdir), "--precision", "float32",
            "--model.backbone", str(TINY / "siglip"), "--mesh.data", "1", "--steps", str(STEPS),
            "--checkpoint-every", str(STEPS),
        )  # fmt: skip
        assert train.main([*command]) == 0
        losses[kind] = [(line["loss"], line["grad_norm"]) for line in read_log(workdir)]
    expected = losses.pop("blip")
    assert len(expected) == STEPS and len(set(expected)) == STEPS
    # Bit for bit: one program, the same bytes in.
    assert losses == dict.fromkeys(losses, expected)
