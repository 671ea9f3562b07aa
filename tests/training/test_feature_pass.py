"""Features kept on disk: the same run without images, and never those of something else.

Covers data/feature_cache.py.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

import train
from configs.debug import config as debug
from edje_jax.config.run import EdjeRun
from edje_jax.data.bad_records import BadRecords, TooManyBadRecords
from edje_jax.data.feature_cache import Caption, FeatureCache, OtherFeatures
from edje_jax.data.loader import iterate
from edje_jax.training import feature_pass
from edje_jax.training.tasks.edje import EdjeTask
from tests.small_runs import TINY, read_log

STEPS = 6
IMAGES = 21
CAPTIONS = ("a red square", "one square, red", "square")


def write_set(folder: Path, bad: Sequence[int] = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng, records = np.random.default_rng(0), []
    for i in range(IMAGES):
        pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        if i in bad:
            (folder / f"{i}.png").write_bytes(b"no image")
        captions = [f"{caption} number {i}" for caption in CAPTIONS[: 1 + i % 3]]
        records.append({"image": f"{i}.png", "caption": captions})
    (folder / "set.json").write_text(json.dumps(records))
    return folder / "set.json"


def command(data: Path, *more: str) -> list[str]:
    return [
        "debug", "--steps", str(STEPS), "--data.train", f"blip:{data}", "--data.batch-size", "8",
        "--model.backbone", str(TINY / "siglip"), "--precision", "float32", "--mesh.data", "1",
        "--data.block-size", "1", "--data.max-bad", "0.2", *more,
    ]  # fmt: skip


def losses(workdir: Path) -> list[tuple[float, float]]:
    return [(line["loss"], line["grad_norm"]) for line in read_log(workdir)]


@pytest.mark.slow
def test_a_run_on_kept_features_is_the_run_on_images(tmp_path, caplog):
    data = write_set(tmp_path / "set", bad=[4])
    cache = ("--data.cache-features", str(tmp_path / "features"))
    assert train.main(command(data, "--workdir", str(tmp_path / "plain"))) == 0
    assert train.main(command(data, *cache, "--workdir", str(tmp_path / "kept"))) == 0
    expected = losses(tmp_path / "plain")
    assert len(expected) == STEPS
    np.testing.assert_allclose(losses(tmp_path / "kept"), expected, rtol=2e-5)
    assert (tmp_path / "features" / "manifest.json").exists()
    assert not (tmp_path / "features" / "making.json").exists()

    # The images are not asked for again.
    for image in (tmp_path / "set").glob("*.png"):
        image.unlink()
    assert train.main(command(data, *cache, "--workdir", str(tmp_path / "again"))) == 0
    assert losses(tmp_path / "again") == losses(tmp_path / "kept")
    assert "4.png: unreadable when its features were made" in caplog.text


def cached_task(data: Path, folder: Path, *more: str) -> EdjeTask:
    arguments = command(data, "--data.cache-features", str(folder), *more)
    return EdjeTask(tyro.cli(EdjeRun, default=debug, args=arguments[1:]), folder.parent / "work")


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.npy")}


def test_rows_are_those_of_the_captions_asked_for(tmp_path):
    data = write_set(tmp_path / "set", bad=[4])
    task = cached_task(data, tmp_path / "features")
    cache = FeatureCache(tmp_path / "features")
    stamp = json.loads((tmp_path / "features" / "manifest.json").read_text())["stamp"]
    assert "earlier_layers" not in stamp["vision_tokens"], "caches made before would be refused"
    features, valid = cache.rows([Caption(2, 0), Caption(2, 2), Caption(4, 1), Caption(20, 0)])
    assert valid.tolist() == [True, True, False, True]
    assert not features.vision_tokens[2].any() and not features.image_embeddings[2].any()
    np.testing.assert_array_equal(features.vision_tokens[0], features.vision_tokens[1])
    np.testing.assert_array_equal(features.image_embeddings[0], features.image_embeddings[1])
    assert not np.array_equal(features.text_embeddings[0], features.text_embeddings[1])
    # What is given is a copy that may be changed.
    features.vision_tokens[:] = 0
    assert cache.rows([Caption(2, 0)])[0].vision_tokens.any()
    # In worker processes too.
    here = list(iterate(task.reader, 0, BadRecords(IMAGES, 1.0)))
    there = list(iterate(task.reader, 0, BadRecords(IMAGES, 1.0), workers=1))
    for one, other in zip(here, there, strict=True):
        assert one.images is None and one.features is not None and other.features is not None
        assert one.backbone_ids.shape == (8, 0), "captions need no tokens of the backbone"
        np.testing.assert_array_equal(one.features.vision_tokens, other.features.vision_tokens)


def test_the_last_image_may_have_no_caption(tmp_path):
    data = write_set(tmp_path / "set")
    cached_task(data, tmp_path / "features")
    first = np.load(tmp_path / "features" / "first_caption.npy")
    first[-2] = first[-1]
    np.save(tmp_path / "features" / "first_caption.npy", first)
    features, _ = FeatureCache(tmp_path / "features").rows([Caption(IMAGES - 1, 0)])
    assert features.text_embeddings.shape[0] == 1


def test_one_that_was_killed_goes_on_where_it_was(tmp_path, monkeypatch):
    data = write_set(tmp_path / "set")
    cached_task(data, tmp_path / "straight")
    monkeypatch.setattr(feature_pass, "NOTE_EVERY", 1)

    class Killed(BaseException):
        pass

    write, count = feature_pass.FeatureCacheWriter.write, 0

    def dying(self, name: str, start: int, rows: np.ndarray) -> None:
        nonlocal count
        count += 1
        if count in (4, 9):
            raise Killed
        write(self, name, start, rows)

    monkeypatch.setattr(feature_pass.FeatureCacheWriter, "write", dying)
    for _ in range(2):
        with pytest.raises(Killed):
            cached_task(data, tmp_path / "features")
        assert not (tmp_path / "features" / "manifest.json").exists()
    # Another batch size takes it up as well.
    cached_task(data, tmp_path / "features", "--data.batch-size", "16")
    made, straight = tables(tmp_path / "features"), tables(tmp_path / "straight")
    assert made.keys() == straight.keys()
    for name in made:
        a, b = (np.load(tmp_path / folder / name) for folder in ("features", "straight"))
        if a.dtype.kind == "V":
            a, b = a.view(np.float32), b.view(np.float32)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


def test_features_of_something_else_are_refused(tmp_path):
    data = write_set(tmp_path / "set")
    cached_task(data, tmp_path / "features")
    before = tables(tmp_path / "features")

    records = json.loads(data.read_text())
    records[3]["caption"] = ["another caption"]
    data.write_text(json.dumps(records))
    with pytest.raises(OtherFeatures, match=r"features: features of another[\s\S]*\n  set: "):
        cached_task(data, tmp_path / "features")

    data = write_set(tmp_path / "set")
    with pytest.raises(OtherFeatures, match="dtype: 'float32' there, 'bfloat16' now"):
        cached_task(data, tmp_path / "features", "--precision", "bfloat16")

    shutil.copytree(TINY / "siglip", tmp_path / "siglip")
    preprocessor = tmp_path / "siglip" / "preprocessor_config.json"
    recipe = json.loads(preprocessor.read_text())
    preprocessor.write_text(json.dumps(recipe | {"image_mean": [0.1, 0.2, 0.3]}))
    with pytest.raises(OtherFeatures, match="preprocessing"):
        cached_task(data, tmp_path / "features", "--model.backbone", str(tmp_path / "siglip"))
    with pytest.raises(OtherFeatures, match="preprocessing"):
        cached_task(data, tmp_path / "features", "--model.transparency", "white")
    assert tables(tmp_path / "features") == before

    # Nor is an unfinished one taken up for something else.
    manifest = json.loads((tmp_path / "features" / "manifest.json").read_text())
    manifest["stamp"]["backbone"] = "0" * 32
    making = {"stamp": manifest["stamp"], "done": {"pictures": 0, "captions": 0}}
    (tmp_path / "features" / "making.json").write_text(json.dumps(making))
    (tmp_path / "features" / "manifest.json").unlink()
    with pytest.raises(OtherFeatures, match="backbone: '0000"):
        cached_task(data, tmp_path / "features")


def test_what_cannot_be_made_says_so(tmp_path, monkeypatch):
    data = write_set(tmp_path / "set", bad=range(8))
    with pytest.raises(TooManyBadRecords, match="records are bad"):
        cached_task(data, tmp_path / "bad")
    assert not (tmp_path / "bad" / "manifest.json").exists()

    data = write_set(tmp_path / "set")
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(OSError, match="GB are free; choose another"):
        cached_task(data, tmp_path / "full")

    with pytest.raises(ValueError, match="this run changes the backbone"):
        train.main(["tiny_backbone", "--data.cache-features", str(tmp_path / "no")])
