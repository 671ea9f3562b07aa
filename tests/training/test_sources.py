"""Training on one data set is the same from every format: a run reads the same batches."""

import numpy as np
import tyro

from configs.debug import config as debug
from edje_jax.config.run import EdjeRun
from edje_jax.training.tasks.edje import EdjeTask
from edje_jax.types import Batch
from tests.real_sets import COUNT, write_every_format
from tests.small_runs import TINY

STEPS = 20


def test_every_format_trains_on_the_same_batches(tmp_path, monkeypatch):
    """Bit for bit, as are the vocabulary and the model; what follows is one program."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    specs = write_every_format(tmp_path / "sets")
    assert len(specs) == 6 and COUNT > 16
    read, made = {}, {}
    for kind, spec in specs.items():
        arguments = (
            "--data.train", spec, "--model.backbone", str(TINY / "siglip"), "--steps", str(STEPS),
            "--precision", "float32", "--mesh.data", "1",
        )  # fmt: skip
        task = EdjeTask(tyro.cli(EdjeRun, default=debug, args=[*arguments]), tmp_path / kind)
        read[kind] = [task.reader[step] for step in range(len(task.reader))]
        tokenizer = task.parts.tokenizer
        files = sorted(path for path in tokenizer.rglob("*") if path.is_file())
        texts = {path.relative_to(tokenizer): path.read_bytes() for path in files}
        assert texts
        made[kind] = (task.model_config, texts)
    expected = read.pop("blip")
    assert len(expected) == STEPS and all(batch.valid.all() for batch, _ in expected)
    assert len({batch.images.tobytes() for batch, _ in expected}) == STEPS
    for kind, batches in read.items():
        assert made[kind] == made["blip"], kind
        for (ours, bad), (theirs, _) in zip(batches, expected, strict=True):
            assert not bad, kind
            for name, one, other in zip(Batch._fields, ours, theirs, strict=True):
                # Ids differ from format to format; which rows share one does not.
                if name in ("image_ids", "caption_ids"):
                    one, other = (np.equal.outer(ids, ids) for ids in (one, other))
                np.testing.assert_array_equal(one, other, err_msg=f"{kind}: {name}")
