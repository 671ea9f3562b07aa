"""A source -> gallery, tokens and embeddings, without the images that cannot be read."""

import json
import logging
import re

import numpy as np
import pytest

from edje_jax.data.bad_records import TooManyBadRecords
from edje_jax.data.images import resize
from edje_jax.data.sources.blip_json import BlipJson
from edje_jax.data.sources.pooled import Pooled
from edje_jax.evaluate import gallery
from edje_jax.evaluate.gallery import encode_gallery, evaluate
from edje_jax.scenes.shapes import SPLITS, Shapes


@pytest.fixture
def source(tmp_path) -> BlipJson:
    """Ten scenes; numbers 3 and 7 cannot be read."""
    scenes, entries = Shapes("val", image_size=32), []
    for i in range(10):
        scenes.image(i).save(tmp_path / f"{i}.png")
        entries.append({"image": f"{i}.png", "caption": list(scenes.captions(i)[: 1 + i % 3])})
    (tmp_path / "3.png").unlink()
    (tmp_path / "7.png").write_bytes((tmp_path / "7.png").read_bytes()[:200])
    (tmp_path / "set.json").write_text(json.dumps(entries))
    return BlipJson(tmp_path / "set.json")


GOOD = [0, 1, 2, 4, 5, 6, 8, 9]


def test_bad_images_are_named_and_left_out(runtime, source, caplog):
    caplog.set_level(logging.WARNING)
    encoded = encode_gallery(runtime, source, max_bad=0.2)
    assert encoded.record == GOOD
    assert encoded.gallery.image_ids == [f"{i}.png" for i in GOOD]
    expected = [text for i in GOOD for text in source.captions(i)]
    assert encoded.gallery.captions == expected
    images = np.stack([resize(source.image(i), runtime.config.image) for i in GOOD])
    direct = runtime.encode_images(images)
    np.testing.assert_allclose(encoded.tokens, direct.tokens, rtol=0, atol=1e-5)
    np.testing.assert_allclose(encoded.embeddings, direct.embeddings, rtol=0, atol=1e-5)
    assert "skipped 3.png: " in caplog.text and "skipped 7.png: " in caplog.text
    assert len(caplog.messages) == 2


def test_too_many_bad_images_stop_it(runtime, source):
    with pytest.raises(TooManyBadRecords, match="2 of 10 records"):
        encode_gallery(runtime, source, max_bad=0.1)


def test_a_pool_hides_no_damage_to_the_set(runtime, source, monkeypatch):
    monkeypatch.setitem(SPLITS, "test", 30)
    pooled = Pooled(source, Shapes("test", image_size=32))
    with pytest.raises(TooManyBadRecords, match="2 of 10 records"):
        encode_gallery(runtime, pooled, max_bad=0.1)
    damaged = Pooled(Shapes("test", image_size=32), source)
    with pytest.raises(TooManyBadRecords, match="2 of 10 records"):
        encode_gallery(runtime, damaged, max_bad=0.1)
    encoded = encode_gallery(runtime, damaged, max_bad=0.2)
    assert encoded.record == [*range(30), *(30 + i for i in GOOD)]


def test_bad_records_count_beside_bad_images(runtime, source, tmp_path, caplog):
    entries = json.loads((tmp_path / "set.json").read_text())
    entries[0]["caption"] = ["\ud83d"]
    entries[2]["caption"].append(None)
    (tmp_path / "set.json").write_text(
        json.dumps([*entries, {"image": "10.png\0", "caption": "x"}])
    )
    source = BlipJson(tmp_path / "set.json")
    with pytest.raises(TooManyBadRecords, match="5 of 11 records"):
        encode_gallery(runtime, source, max_bad=0.4)
    encoded = encode_gallery(runtime, source, max_bad=0.5)
    # An image that lost its only caption is a distractor.
    assert encoded.record == GOOD and 0 not in encoded.gallery.caption_image
    for message in (
        "0.png: .*entry 0: caption 0",
        "2.png: .*caption 3 is a null",
        "entry 10: .*NUL",
    ):
        assert re.search(f"skipped .*{message}", caplog.text)


def test_no_room_for_the_tokens_is_told(runtime, source, monkeypatch, small_disk):
    disk = small_disk(4)
    monkeypatch.setattr(gallery, "IN_MEMORY", 1000)
    monkeypatch.setattr(gallery.tempfile, "tempdir", str(disk))
    with pytest.raises(OSError, match=r"No space left on device .*TMPDIR") as stop:
        encode_gallery(runtime, source, max_bad=0.5)
    assert stop.value.filename == str(disk)


def test_progress_is_told(runtime, source):
    told = []
    encoded = encode_gallery(runtime, source, 0.5, lambda *step: told.append(step))
    evaluate(runtime, encoded, 3, progress=lambda *step: told.append(step))
    assert told[0] == ("images", 8, 10)
    what, done, total = told[-1]
    assert what == "pairs" and done == total > 8


def test_evaluation_reranks_by_the_match_logit(runtime, source):
    """Every logit and every order, worked out again pair by pair."""
    encoded = encode_gallery(runtime, source, max_bad=0.5)
    captions = encoded.gallery.captions
    found = evaluate(runtime, encoded, k=4, similarity_weight=0.5)
    similarity = runtime.embed_texts(captions) @ encoded.embeddings.T
    ids = runtime.joint_tokenizer(captions)
    for q in (0, 5, len(captions) - 1):
        base = np.argsort(-similarity[q], kind="stable")[:4]
        np.testing.assert_array_equal(found.t2i.candidates[q], base)
        logits = runtime.score_pairs(ids, encoded.tokens, np.full(4, q), base)
        np.testing.assert_allclose(found.t2i.scores[q], logits, rtol=0, atol=1e-5)
        combined = logits + 0.5 * similarity[q][base]
        np.testing.assert_allclose(found.t2i.combined[q], combined, rtol=0, atol=1e-5)
    assert found.i2t.candidates.shape == (8, 4)
    assert set(found.metrics()) == {"k", "t2i", "i2t"}


def test_more_candidates_than_there_are_is_all_of_them(runtime, source):
    encoded = encode_gallery(runtime, source, max_bad=0.5)
    found = evaluate(runtime, encoded, k=1000)
    assert found.t2i.candidates.shape == (len(encoded.gallery.captions), 8)
    assert found.metrics()["t2i"]["ceiling"] == 100.0


def test_tokens_past_a_size_lie_on_disk(runtime, source, monkeypatch):
    held = encode_gallery(runtime, source, max_bad=0.5)
    monkeypatch.setattr(gallery, "IN_MEMORY", 1000)
    mapped = encode_gallery(runtime, source, max_bad=0.5)
    assert isinstance(mapped.tokens, np.memmap) and not isinstance(held.tokens, np.memmap)
    np.testing.assert_array_equal(mapped.tokens, held.tokens)
    found, expected = (evaluate(runtime, one, k=4) for one in (mapped, held))
    np.testing.assert_array_equal(found.t2i.scores, expected.t2i.scores)
    assert found.metrics() == expected.metrics()
