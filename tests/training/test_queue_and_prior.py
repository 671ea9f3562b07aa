"""A run with a queue, random negatives and a similarity prior: stopped, resumed, exported.

Covers training/queue.py and training/similarity_prior.py.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from edje_jax.cli.named_configs import load_config
from edje_jax.config.run import EdjeRun, LossConfig
from edje_jax.search.reranker import Reranker
from edje_jax.training.checkpoint import Checkpoints
from edje_jax.training.load_checkpoint import load_checkpoint
from edje_jax.training.loop import run
from edje_jax.training.tasks.edje import EdjeTask
from edje_jax.weights.folder import load_model
from tests.small_runs import TINY


@pytest.fixture(scope="module")
def config() -> EdjeRun:
    debug = load_config("debug")
    assert isinstance(debug, EdjeRun)
    model = dataclasses.replace(
        debug.model, backbone=str(TINY / "siglip"), similarity_prior=True, deferred_layers=1
    )
    loss = LossConfig(
        negatives=1, hardest_of=3, random_negatives=2, queue=12, binary_match=0.5, text_recovery=0.0
    )
    mesh = dataclasses.replace(debug.mesh, data=1)
    return dataclasses.replace(
        debug, model=model, loss=loss, mesh=mesh, steps=4, precision="float32"
    )


@pytest.mark.extra
def test_two_steps_and_two_more_are_four(config, tmp_path):
    task = EdjeTask(config, tmp_path / "run")
    batches = [task.reader[t][0] for t in range(4)]
    straight = task.init()
    for number, batch in enumerate(batches):
        straight, _ = task.step(straight, batch, number)
    state = task.init()
    for number in (0, 1):
        state, _ = task.step(state, batches[number], number)
    with Checkpoints(tmp_path / "checkpoints", 1) as checkpoints:
        checkpoints.save(state)
        checkpoints.wait()
        again = EdjeTask(config, tmp_path / "run")
        assert again.model_config == task.model_config
        resumed = checkpoints.restore(again.init())
    assert resumed.queue is not None and np.asarray(resumed.queue.valid).all()
    for number in (2, 3):
        resumed, _ = again.step(resumed, batches[number], number)
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)


@pytest.mark.slow
def test_the_prior_s_constants_go_with_the_run(config, tmp_path):
    """They are measured once, kept in the workdir, and stand in what is exported."""
    workdir = tmp_path / "run"
    assert run(EdjeTask(config, workdir), workdir)
    kept = json.loads((workdir / "similarity_prior.json").read_text())
    exported = load_model(str(workdir))
    assert exported.config.similarity_prior is not None
    assert dataclasses.asdict(exported.config.similarity_prior) == kept
    # The first batch's cosines, over all pairs.
    reader = EdjeTask(config, workdir).reader
    batch = reader[0][0]
    runtime = Reranker.from_pretrained(workdir).runtime
    captions = [reader.source.captions(i)[0] for i in range(3)]
    assert np.isfinite(runtime.embed_texts(captions)).all()
    images = runtime.encode_images(np.asarray(batch.images)).embeddings
    texts = np.asarray(
        runtime.backbone.bind({"params": runtime.backbone_params}).encode_text(
            jax.numpy.asarray(batch.backbone_ids)
        )
    )
    cosines = texts @ images.T
    assert kept["mean"] == pytest.approx(cosines.mean(), abs=1e-4)
    assert kept["deviation"] == pytest.approx(cosines.std(), abs=1e-4)
    # A checkpoint is that model without the training set.
    loaded, _ = load_checkpoint(workdir)
    assert loaded.config == exported.config
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)),
        loaded.params, exported.params,
    )  # fmt: skip


def test_a_queue_and_a_teacher_do_not_go_together(config, tmp_path, trained):
    taught = dataclasses.replace(config, teacher=str(trained))
    with pytest.raises(ValueError, match=r"--loss.queue 12 with --teacher .*trained"):
        EdjeTask(taught, tmp_path)
