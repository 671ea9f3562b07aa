"""Any number of rows through programs of a few shapes: the same numbers whatever the company.

Covers runtimes/round_robin.py and runtimes/scoring.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edje_jax.data.buckets import batches, lengths_up_to
from edje_jax.runtimes import encoding, scoring
from edje_jax.runtimes import jax as jax_runtime
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.runtimes.round_robin import sizes_within_share

WORDS = [
    "circle",
    "square",
    "star",
    "cross",
    "triangle",
    "red",
    "green",
    "blue",
    "small",
    "large",
    "left",
    "right",
    "above",
]


def captions(count: int, seed: int = 0) -> list[str]:
    """Captions of 1 to 40 words, for every length bucket."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 41))) for _ in range(count)]


@pytest.fixture(scope="module")
def tokens(runtime) -> np.ndarray:
    shape = (30, runtime.config.num_tokens, runtime.config.joint_encoder.hidden_size)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def ids(runtime) -> np.ndarray:
    return runtime.joint_tokenizer(captions(20))


@pytest.fixture(scope="module")
def reference(runtime, ids, tokens) -> np.ndarray:
    """[20, 30] by the model itself, all padded to the full length."""

    @jax.jit
    def match(text, image):
        out = runtime.model.apply({"params": runtime.params}, text, image, method="match")
        return out

    text, image = np.indices((20, 30)).reshape(2, -1)
    return np.asarray(match(ids[text], tokens[image])).reshape(20, 30)


def test_pairs_score_the_same_in_any_order_and_company(runtime, ids, tokens, reference):
    assert reference.std() > 1e-4
    rng = np.random.default_rng(2)
    for count in (1, 2, 9, 33, 170):
        text, image = rng.integers(0, 20, count), rng.integers(0, 30, count)
        scores = runtime.score_pairs(ids, tokens, text, image)
        assert scores.dtype == np.float32 and scores.shape == (count,)
        np.testing.assert_allclose(scores, reference[text, image], rtol=0, atol=1e-5)


def test_one_by_one_is_the_same(runtime, ids, tokens, reference):
    for text, image in ((0, 0), (7, 29), (19, 3)):
        (score,) = runtime.score_pairs(ids, tokens, np.array([text]), np.array([image]))
        np.testing.assert_allclose(score, reference[text, image], rtol=0, atol=1e-5)


def test_tokens_may_live_on_the_device_or_on_disk(runtime, ids, tokens, reference, tmp_path):
    text, image = np.arange(20), np.arange(20)[::-1] + 5
    np.save(tmp_path / "tokens.npy", tokens)
    for held in (jnp.asarray(tokens), np.load(tmp_path / "tokens.npy", mmap_mode="r")):
        scores = runtime.score_pairs(ids, held, text, image)
        np.testing.assert_allclose(scores, reference[text, image], rtol=0, atol=1e-5)


def test_no_pairs_no_scores(runtime, ids, tokens):
    nothing = np.array([], int)
    assert runtime.score_pairs(ids, tokens, nothing, nothing).shape == (0,)
    assert runtime.score_pairs(ids[:0], tokens[:0], nothing, nothing).shape == (0,)


def test_ragged_requests_compile_nothing_after_the_warm_up(runtime, tokens):
    """Whatever texts, images and pairs there are."""
    runtime.warm(tokens)
    programs = (scoring.score, scoring.encode_captions, scoring.gather_rows)
    warm = [program._cache_size() for program in programs]
    assert warm[0] >= len(lengths_up_to(runtime.config.max_text_length)) * len(
        scoring.pair_batches()
    )
    rng = np.random.default_rng(3)
    for request in range(50):
        texts = runtime.joint_tokenizer(captions(int(rng.integers(1, 40)), seed=request))
        held = tokens[: rng.integers(1, 31)]
        count = int(rng.integers(1, 300))
        runtime.score_pairs(
            texts, held, rng.integers(0, len(texts), count), rng.integers(0, len(held), count)
        )
    assert [program._cache_size() for program in programs] == warm


def test_what_fills_a_batch_up_is_not_computed(runtime, ids, tokens, reference):
    rows = np.resize(np.arange(20), 128)
    texts = ids[rows]
    if runtime.config.joint_encoder.deferred_layers:
        texts = scoring.encode_captions(runtime.model, runtime.params, 100, texts)
        assert np.abs(texts.rows[:104]).max(axis=(1, 2)).min() > 0
        assert not np.any(texts.rows[104:])
    logits = np.asarray(scoring.score(runtime.model, runtime.params, 100, texts, tokens[rows]))
    np.testing.assert_allclose(logits[:100], reference[rows, rows][:100], rtol=0, atol=1e-5)
    assert logits[:104].all() and not logits[104:].any()


def test_a_caption_is_read_once(runtime, ids, tokens, monkeypatch):
    """However many batches its pairs fill, and in whatever order they come; not at all where no
    layers are deferred."""
    read: list[tuple[int, int]] = []

    def spied(model, params, real, ids):
        read.append((real, len(ids)))
        return scoring.encode_captions(model, params, real, ids)

    monkeypatch.setattr(jax_runtime, "encode_captions", spied)
    deferred = runtime.config.joint_encoder.deferred_layers > 0
    rng, short = np.random.default_rng(7), np.resize(ids[:, :16], (150, 16))
    for text, expected in (
        (np.zeros(300, int), [(1, 1)]),
        (rng.permutation(np.repeat([3, 5, 120], 64)), [(3, 8)]),
        (rng.permutation(np.repeat(np.arange(150), 2)), [(128, 128), (22, 128)]),
    ):
        image = np.arange(len(text)) % 30
        scores = runtime.score_pairs(short, tokens, text, image)
        assert read == (expected if deferred else [])
        read.clear()
        alone = [runtime.score_pairs(short, tokens, text[[i]], image[[i]]) for i in (0, -1)]
        np.testing.assert_allclose(scores[[0, -1]], np.concatenate(alone), rtol=0, atol=1e-5)
        read.clear()


def noise_images(count: int) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (count, 32, 32, 3), np.uint8)


def test_images_encode_the_same_in_any_batch(runtime):
    images = noise_images(41)
    whole = runtime.encode_images(images)
    width = runtime.config.joint_encoder.hidden_size
    assert whole.tokens.shape == (41, runtime.config.num_tokens, width)
    assert whole.tokens.dtype == whole.embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(whole.embeddings, axis=1), 1, atol=1e-5)
    assert np.abs(whole.tokens[0] - whole.tokens[1]).max() > 1e-3
    for rows in (slice(0, 1), slice(3, 12), slice(40, 41), slice(0, 0)):
        part = runtime.encode_images(images[rows])
        np.testing.assert_allclose(part.tokens, whole.tokens[rows], rtol=0, atol=1e-5)
        np.testing.assert_allclose(part.embeddings, whole.embeddings[rows], rtol=0, atol=1e-5)


def test_normalised_pixels_are_the_same_images(runtime):
    images = noise_images(3)
    pixels = (images.astype(np.float32) / 255 - 0.5) / 0.5
    a, b = runtime.encode_images(images), runtime.encode_pixels(pixels)
    np.testing.assert_allclose(a.tokens, b.tokens, rtol=0, atol=1e-5)
    np.testing.assert_allclose(a.embeddings, b.embeddings, rtol=0, atol=1e-5)


def test_texts_embed_the_same_in_any_batch(runtime):
    texts = captions(20)
    whole = runtime.embed_texts(texts)
    assert whole.shape == (20, runtime.config.backbone.text.projection_size)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    for rows in (slice(0, 1), slice(2, 9), slice(0, 0)):
        np.testing.assert_allclose(runtime.embed_texts(texts[rows]), whole[rows], rtol=0, atol=1e-5)


def test_runtimes_of_one_shape_share_their_programs(runtime, ids, tokens):
    """Runtimes are made anew at every evaluation of a run."""
    again = JaxRuntime(**{f.name: getattr(runtime, f.name) for f in dataclasses.fields(runtime)})
    text = np.arange(8)
    first = runtime.score_pairs(ids, tokens, text, text)
    before = scoring.score._cache_size()
    np.testing.assert_array_equal(again.score_pairs(ids, tokens, text, text), first)
    assert scoring.score._cache_size() == before


@pytest.fixture(scope="module")
def four(runtime) -> JaxRuntime:
    """JaxRuntime of the same model on four devices."""
    assert len(jax.devices()) == 8
    return dataclasses.replace(runtime, devices=tuple(jax.devices()[2:6]))


def test_several_devices_take_batches_in_turn(four, ids, tokens, reference, monkeypatch):
    """Every device computes, nearly equal shares, and the scores are those of one."""
    used: list[int] = []

    def spied(model, params, real, text, rows, similarity):
        (device,) = jax.tree.leaves(rows)[0].devices()
        assert all(leaf.devices() == {device} for leaf in jax.tree.leaves(params))
        used.append(device.id)
        return scoring.score(model, params, real, text, rows, similarity)

    monkeypatch.setattr(jax_runtime, "score", spied)
    text, image = np.indices((20, 30)).reshape(2, -1)
    for held in (tokens, jnp.asarray(tokens)):
        used.clear()
        scores = four.score_pairs(ids, held, text, image)
        np.testing.assert_allclose(scores.reshape(20, 30), reference, rtol=0, atol=1e-5)
        assert {used.count(device) for device in range(2, 6)} <= {
            len(used) // 4,
            len(used) // 4 + 1,
        }
    used.clear()
    four.score_pairs(ids[:1], tokens, np.zeros(30, int), np.arange(30))
    assert used == [2, 3, 4, 5]  # One batch of a single device's would have done


@pytest.mark.parametrize("sizes", [(1, 8, 32), (16, 128, 1024)])
def test_no_device_gets_more_than_a_batch_above_its_share(sizes):
    for devices in (2, 3, 8):
        for count in (1, 11, 30, 100, 1024, 1032, 1100, 6400):
            given = [0] * devices
            cut = batches(np.arange(count), sizes_within_share(sizes, count, devices))
            for number, (rows, _) in enumerate(cut):
                given[number % devices] += len(rows)
            share = max(count / devices, min(sizes))
            assert max(given) <= 2 * share
    assert sizes_within_share(sizes, 33, 1) == sizes


def test_a_warm_up_reaches_every_device(four, ids, tokens):
    programs = [scoring.score, encoding.encode_batch, scoring.encode_captions]
    four.warm(tokens)
    four.warm_images()
    warm = [program._cache_size() for program in programs]
    rng = np.random.default_rng(5)
    for count in (1, 9, 33, 300):
        four.score_pairs(ids, tokens, rng.integers(0, 20, count), rng.integers(0, 30, count))
        four.encode_images(noise_images(min(count, 40)))
    assert [program._cache_size() for program in programs] == warm


def test_several_devices_encode_images(runtime, four):
    side = runtime.config.image.size
    images = np.random.default_rng(3).integers(0, 256, (11, side, side, 3), dtype=np.uint8)
    one, many = runtime.encode_images(images), four.encode_images(images)
    np.testing.assert_allclose(many.tokens, one.tokens, rtol=0, atol=1e-5)
    np.testing.assert_allclose(many.embeddings, one.embeddings, rtol=0, atol=1e-6)


def test_batches_are_encoded_one_by_one_in_order(runtime, four):
    """Each beside what it came with, the next ones asked for before the first one's results, and
    an empty one too."""
    whole, taken = noise_images(57), []
    cuts = [slice(0, 32), slice(32, 32), slice(32, 40), slice(40, 57)]
    expected = runtime.encode_images(whole)

    def batches():
        for cut in cuts:
            taken.append(cut)
            yield cut

    for one in (runtime, four):
        taken.clear()
        for cut, encoded in one.encode_each(batches(), lambda cut: whole[cut]):
            if cut is cuts[0]:
                assert len(taken) > 1
            np.testing.assert_allclose(encoded.tokens, expected.tokens[cut], rtol=0, atol=1e-5)
            np.testing.assert_allclose(
                encoded.embeddings, expected.embeddings[cut], rtol=0, atol=1e-5
            )
        assert taken == cuts
