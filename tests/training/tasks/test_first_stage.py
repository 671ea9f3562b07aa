"""Training the heads of the first stage: from a trained model to a model folder with heads.

Covers training/embedding_batches.py and training/teacher_scores.py.
"""

import json
import pickle
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import train
from edje_jax.config.first_stage_run import FirstStageLoss
from edje_jax.index.shard_files import BadStore
from edje_jax.index.store import Store
from edje_jax.scenes.shapes import Shapes
from edje_jax.search.reranker import Reranker
from edje_jax.training.embedding_batches import EmbeddingBatches, pooled_tokens
from edje_jax.training.loop import OtherRun
from edje_jax.training.teacher_scores import (
    ScoredCandidates,
    Teacher,
    TeacherScores,
    averaged,
    teacher_scores,
)
from edje_jax.weights.first_stage import WEIGHTS
from edje_jax.weights.folder import load_model
from tests.small_runs import read_log
from tests.small_runs import trained as trained  # a fixture
from tests.training.captioner_runs import captioner as captioner  # a fixture

COMMAND = (
    "first_stage", "--data.train", "shapes:train", "--data.limit", "48", "--data.batch-size", "16",
    "--loss.teacher-stride", "4",
    "--steps", "6", "--candidates", "4", "--heads.code-lengths", "8", "64", "--log-every", "1",
    "--precision", "float32", "--mesh.data", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def workdir(trained, tmp_path_factory) -> Path:
    """The workdir of a finished run, evaluated on a few scenes."""
    out = tmp_path_factory.mktemp("heads")
    val = out / "val.json"
    source, entries = Shapes("val"), []
    for number in range(12):
        source.image(number).save(out / f"{number}.png")
        entries.append({"image": f"{number}.png", "caption": source.captions(number)[0]})
    val.write_text(json.dumps(entries))
    args = [*COMMAND, "--init", str(trained), "--data.val", f"blip:{val}", "--workdir", str(out)]
    assert train.main(args) == 0
    return out


def test_the_export_is_the_model_with_heads(workdir, trained):
    own, before = (
        Reranker.from_pretrained(path, precision="float32") for path in (workdir, trained)
    )
    assert own.config.first_stage.code_lengths == (8, 64)
    tokens = (
        np.random.default_rng(0)
        .normal(size=(2, own.config.num_tokens, own.config.joint_encoder.hidden_size))
        .astype(np.float32)
    )
    texts = ["a red star", "a blue ring"]
    np.testing.assert_array_equal(own.score(texts, tokens), before.score(texts, tokens))
    moved, plain = own.embed_texts(texts), before.embed_texts(texts)
    assert np.abs(moved - plain).max() > 1e-4
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1, atol=1e-5)
    mean = own.runtime.heads["text"]["mean"]
    store = Store(workdir / "index")
    np.testing.assert_allclose(mean, np.asarray(store.caption_embeddings).mean(axis=0), atol=1e-6)


def test_the_log_has_every_loss_and_the_recalls_of_every_length(workdir):
    *_, last, figures = read_log(workdir)
    assert {f"loss/{name}" for name in FirstStageLoss.weights()} - set(last) == {
        "loss/order", "loss/code_distillation"
    }  # fmt: skip
    assert last["teacher_entropy"] > 0
    for name in ("", "base/", "codes-8/", "codes-64/"):
        assert 0 <= figures[f"val/t2i/{name}R@10"] <= 100
        assert figures[f"val/i2t/{name}R@50"] == 100  # of twelve


def test_a_stopped_run_goes_on_bit_for_bit(workdir, trained, tmp_path):
    index = ("--index", str(workdir / "index"))
    command = [*COMMAND, "--init", str(trained), *index, "--checkpoint-every", "3"]
    command += ["--workdir", str(tmp_path)]
    assert train.main(command) == 0
    heads = (tmp_path / "model" / WEIGHTS).read_bytes()
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    shutil.rmtree(tmp_path / "model")
    assert train.main(command) == 0
    assert (tmp_path / "model" / WEIGHTS).read_bytes() == heads
    steps = [line["step"] for line in read_log(tmp_path)]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_the_teacher_scores_are_those_of_the_model_and_are_kept(workdir, trained):
    reranker, store = (
        Reranker.from_pretrained(trained, precision="float32"),
        Store(workdir / "index"),
    )
    teacher = Teacher(reranker.runtime, store)
    kept = teacher_scores(workdir / "teacher", store, teacher, 4)
    query = 5
    image, text = store.captions[query]
    items = kept.t2i.candidates[query]
    assert image in items and len(set(items.tolist())) == 4
    tokens = np.asarray(store.tokens(items).columns["tokens"]).view("bfloat16")
    expected = reranker.score([text] * 4, tokens.astype(np.float32))
    np.testing.assert_allclose(kept.t2i.scores[query], expected, atol=1e-5)
    own = {number for number, (owner, _) in enumerate(store.captions) if owner == 7}
    assert own & set(kept.i2t.candidates[7].tolist())
    with pytest.raises(ValueError, match=f"{re.escape(str(workdir / 'teacher'))}.*candidates"):
        teacher_scores(workdir / "teacher", store, teacher, 3)


def test_an_epoch_visits_every_image_once(workdir):
    store = Store(workdir / "index")
    reader = EmbeddingBatches(Shapes("train"), store, 12, 3, 100, pooled_tokens(store))
    per_epoch = len(store) // 12
    seen = np.concatenate([reader[number][0].pairs.image_ids for number in range(per_epoch)])
    assert len(set(seen.tolist())) == len(seen) == 12 * per_epoch
    batch = reader[0][0].pairs
    for ours, sent in zip(batch, pickle.loads(pickle.dumps(reader))[0][0].pairs, strict=True):
        np.testing.assert_array_equal(sent, ours)  # As in a worker process
    assert batch.pooled.shape == (12, store.manifest.width)


def test_processes_share_what_the_teacher_scored(workdir, trained):
    store = Store(workdir / "index")
    runtime = Reranker.from_pretrained(trained, precision="float32").runtime
    scores = teacher_scores(workdir / "teacher", store, Teacher(runtime, store), 4)
    whole, *halves = (
        EmbeddingBatches(Shapes("train"), store, 16, 3, 9, None, scores, 2, process)[2][0]
        for process in ((0, 1), (0, 2), (1, 2))
    )
    assert whole.taught.images.scores.shape == (8, 4)
    for ours, first, second in zip(*map(jax.tree.leaves, (whole, *halves)), strict=True):
        both = first if len(first) == len(ours) else np.concatenate([first, second])
        np.testing.assert_array_equal(both, ours)


def test_scores_of_captions_that_changed_are_not_taken(workdir, trained, monkeypatch):
    runtime = Reranker.from_pretrained(trained, precision="float32").runtime
    store = Store(workdir / "index")
    row, first = Store.row, store.row(0)
    changed = first._replace(captions=[f"{text} changed" for text in first.captions])
    monkeypatch.setattr(Store, "row", lambda store, image: row(store, image) if image else changed)
    with pytest.raises(ValueError, match=r"keeps scores of another kind \(set differ\)"):
        teacher_scores(workdir / "teacher", store, Teacher(runtime, store), 4)


def test_another_run_leaves_a_workdir_and_an_index_alone(workdir, trained):
    before = (workdir / "index" / "manifest.json").read_bytes()
    args = [*COMMAND, "--init", str(trained), "--workdir", str(workdir), "--data.limit", "24"]
    with pytest.raises(OtherRun, match=r"data\.limit"):
        train.main(args)
    elsewhere = [*COMMAND, "--init", str(trained), "--data.limit", "24"]
    with pytest.raises(BadStore, match="24 images that the training set lacks"):
        train.main(
            [*elsewhere, "--index", str(workdir / "index"), "--workdir", str(workdir / "other")]
        )
    assert (workdir / "index" / "manifest.json").read_bytes() == before


def test_a_run_without_a_model_or_captions_says_so(trained, tmp_path):
    with pytest.raises(ValueError, match="--init MODEL"):
        train.main([*COMMAND, "--workdir", str(tmp_path / "a")])
    Shapes("val").image(0).save(tmp_path / "0.png")
    spec = f"folder:{tmp_path}"
    args = [*COMMAND, "--init", str(trained), "--data.train", spec]
    with pytest.raises(ValueError, match="no captions"):
        train.main([*args, "--data.limit", "1", "--workdir", str(tmp_path / "b")])


# --- several teachers -----------------------------------------------------------------------------


def test_scores_of_several_teachers_are_averaged_on_one_scale():
    """Lists have mean 0 and variance 1 by each teacher; what is not there counts for nothing."""
    candidates = np.array([[3, 1, 0, 2], [5, 4, 2, -1], [6, 7, 8, 9]], np.int32)
    logits = np.array([[4.0, 2.0, 0.0, -6.0], [1.0, 2.0, 3.0, 99.0], [2.0] * 4], np.float32)
    nats = np.array([[-80.0, -20, -40, -60], [-9, -12, -30, 7], [1, 2, 3, 4]], np.float32)
    one, other = (ScoredCandidates(candidates, scores) for scores in (logits, nats))
    found = averaged([TeacherScores(one, other), TeacherScores(other, other)])
    np.testing.assert_array_equal(found.t2i.candidates, candidates)

    def z(values: np.ndarray) -> np.ndarray:
        return (values - values.mean()) / values.std()

    expected = (z(logits[0]) + z(nats[0])) / 2
    np.testing.assert_allclose(found.t2i.scores[0], expected, rtol=1e-5)
    three = (z(logits[1, :3]) + z(nats[1, :3])) / 2
    np.testing.assert_allclose(found.t2i.scores[1], [*three, 0.0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.t2i.scores[2], z(nats[2]) / 2, rtol=1e-5)
    np.testing.assert_allclose(found.i2t.scores[0], z(nats[0]), rtol=1e-5)
    assert found.t2i.scores.dtype == np.float32


@pytest.mark.extra
def test_heads_learn_from_an_edje_and_a_captioner(workdir, trained, captioner, tmp_path, caplog):
    """Each one's scores are kept for themselves, and never taken for another's."""
    caplog.set_level("INFO")
    command = [*COMMAND, "--init", str(trained), "--index", str(workdir / "index"), "--steps", "2"]
    both = ["--teacher", str(trained), str(captioner), "--workdir", str(tmp_path)]
    assert train.main([*command, *both]) == 0
    assert f"distilling from {trained}, {captioner} at temperature 0.5" in caplog.text
    told = read_log(tmp_path)
    assert 0 < told[-1]["teacher_entropy"] < np.log(4)
    _resumes_beside_a_file_with_two_temperatures([*command, *both], tmp_path, caplog)
    stamps = [
        json.loads((tmp_path / name / "stamp.json").read_text())
        for name in ("teacher", "teacher-2")
    ]
    assert stamps[0]["teacher"] != stamps[1]["teacher"]
    # The model itself is a teacher without another index.
    assert not (tmp_path / "teacher-index").exists() and (tmp_path / "teacher-index-2").exists()
    store = Store(workdir / "index")
    runtime = Reranker.from_pretrained(captioner, precision="float32").runtime
    teacher = Teacher(runtime, Store(tmp_path / "teacher-index-2"))
    kept = teacher_scores(tmp_path / "teacher-2", store, teacher, 4)
    assert np.isfinite(kept.t2i.scores).all() and kept.t2i.scores.std() > 0
    with pytest.raises(ValueError, match=r"keeps scores of another kind \(teacher differ"):
        teacher_scores(tmp_path / "teacher", store, teacher, 4)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["teacher"] == [str(trained), str(captioner)]


def _resumes_beside_a_file_with_two_temperatures(command, workdir, caplog) -> None:
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    config["loss"] |= {"temperature": 4.0, "temperature_of_several": 0.5}
    path.write_text(json.dumps(config))
    assert train.main(command) == 0 and "resumed from" in caplog.text
    with pytest.raises(OtherRun, match=r"loss\.temperature: None there, 4\.0 now"):
        train.main([*command, "--loss.temperature", "4"])


def test_a_temperature_goes_for_several_teachers_too(workdir, trained, tmp_path, caplog):
    """Twice the same one, whose lists stand at variance 1."""
    caplog.set_level("INFO")
    told = []
    for temperature in ("0.25", "100"):
        out = tmp_path / temperature
        more = ("--teacher", str(trained), str(trained), "--loss.temperature", temperature)
        command = [*COMMAND, "--init", str(trained), "--index", str(workdir / "index"), *more]
        assert train.main([*command, "--steps", "1", "--workdir", str(out)]) == 0
        assert f"{trained}, {trained} at temperature {temperature};" in caplog.text
        told.append(read_log(out)[-1]["teacher_entropy"])
    assert told[0] < 0.5 * np.log(4) and told[1] == pytest.approx(np.log(4), rel=1e-3)


def test_heads_without_codes_are_trained_and_saved(workdir, trained, tmp_path):
    """With the weights of the losses of codes as they are; also where no teacher is asked."""
    at = [*COMMAND, "--init", str(trained), "--index", str(workdir / "index"), "--steps", "1"]
    for name, more in (("taught", ()), ("untaught", ("--loss.distillation", "0"))):
        command = [*at, "--heads.code-lengths", *more, "--workdir", str(tmp_path / name)]
        assert train.main(command) == 0
        model = load_model(str(tmp_path / name))
        assert model.config.first_stage is not None and model.config.first_stage.code_lengths == ()
        log = read_log(tmp_path / name)[-1]
        assert np.isfinite(log["loss"]) and not [key for key in log if "code" in key]
        assert ("loss/distillation" in log) == (name == "taught")


def test_a_captioner_gets_heads_from_its_own_scores(captioner, tmp_path):
    command = [*COMMAND, "--init", str(captioner), "--steps", "1", "--workdir", str(tmp_path)]
    assert train.main(command) == 0
    model = load_model(str(tmp_path))
    assert model.config.kind == "captioner" and model.config.first_stage.code_lengths == (8, 64)
