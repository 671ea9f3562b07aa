"""Captioners against a plain, slow reader of one token at a time, and what holds for any weights.

Covers models/decoder.py, models/pair_scorer.py and models/scorers.py.
"""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Float, Int
from scipy.special import erf, log_softmax, softmax

from edje_jax.config.captioner import CaptionerConfig, CaptionScore
from edje_jax.config.model import (
    AdapterConfig,
    BackboneConfig,
    BertConfig,
    EdjeConfig,
    TextConfig,
    VisionConfig,
)
from edje_jax.models.captioner import Captioner, LogProbabilities, word_log_probabilities
from edje_jax.models.edje import Edje
from edje_jax.models.scorers import make_scorer
from edje_jax.weights import edje
from edje_jax.weights.mapping import to_theirs

BERT = BertConfig(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=3,
    max_position_embeddings=40,
)
SUM = EdjeConfig(
    BackboneConfig("siglip", VisionConfig(20, 40, 3, 2), TextConfig(projection_size=28)),
    AdapterConfig("compress", 5, 32),
    BERT,
    captioner=CaptionerConfig(score="sum"),
)
STORED = replace(SUM, captioner=CaptionerConfig("both", "sum", "stored"))
LENGTHS = (7, 3, 12, 9)


@functools.cache
def weights(config: EdjeConfig = SUM) -> dict:
    """Large random weights, biases and layer norms included."""
    rng = np.random.default_rng(0)

    def draw(path, struct):
        value = rng.normal(0.0, 0.25, struct.shape).astype(np.float32)
        return value + 1 if path[-1].key == "scale" else value

    return jax.tree_util.tree_map_with_path(draw, edje.expected_params(config))


@functools.cache
def text_ids(length: int = 16) -> np.ndarray:
    """Captions of different lengths, padded with 0."""
    ids = np.random.default_rng(1).integers(1, BERT.vocab_size, (4, 16))
    out = np.zeros((4, length), np.int32)
    out[:, :16] = np.where(np.arange(16) < np.array(LENGTHS)[:, None], ids, 0)
    return out


@functools.cache
def stored_tokens() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(4, 5, 24)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(model: Captioner, method: str, params, *args) -> Any:
    return model.apply({"params": params}, *args, method=method)


@functools.cache
def found(config: EdjeConfig = SUM) -> LogProbabilities:
    """Log-probabilities of the captions beside their images."""
    return run(Captioner(config), "log_probabilities", weights(config), text_ids(), stored_tokens())


class SlowReader:
    """A decoder in NumPy and float64 that is fed one token at a time: it keeps the keys and values
    of the tokens read so far, and knows of no others."""

    def __init__(self, config: EdjeConfig, direction: str, image: Float[np.ndarray, "m d"]):
        tensors = to_theirs(edje.rules(config), weights(config))
        self.tensors = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
        self.image = np.asarray(image, np.float64)
        self.config, self.place = config.joint_encoder, 0
        self.prefix = f"{direction}_decoder.layer."
        self.kept = [([], []) for _ in range(self.config.num_hidden_layers)]

    def read(self, token: int) -> Float[np.ndarray, " v"]:
        """Log-probabilities of the next token."""
        embeddings = "language_model.bert.embeddings."
        words = self.tensors[embeddings + "word_embeddings.weight"]
        positions = self.tensors[embeddings + "position_embeddings.weight"]
        segments = self.tensors[embeddings + "token_type_embeddings.weight"]
        x = words[token] + positions[self.place] + segments[0]
        x = self.normalised(x, embeddings + "LayerNorm")
        self.place += 1
        for number in range(self.config.num_hidden_layers):
            x = self.layer(number, x)
        head = "language_model.cls.predictions."
        x = self.gelu(self.linear(x, head + "transform.dense"))
        x = self.normalised(x, head + "transform.LayerNorm")
        return log_softmax(words @ x + self.tensors[head + "bias"])

    def layer(self, number: int, x: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
        layer = f"{self.prefix}{number}."
        keys, values = self.kept[number]
        keys.append(self.linear(x, layer + "attention.self.key"))
        values.append(self.linear(x, layer + "attention.self.value"))
        query = self.linear(x, layer + "attention.self.query")
        seen = self.linear(self.attended(query, keys, values), layer + "attention.output.dense")
        x = self.normalised(x + seen, layer + "attention.output.LayerNorm")
        cross = layer + "crossattention."
        if cross + "self.key.weight" in self.tensors:
            keys = [self.linear(row, cross + "self.key") for row in self.image]
            values = [self.linear(row, cross + "self.value") for row in self.image]
        else:
            keys = values = list(self.image)
        seen = self.attended(self.linear(x, cross + "self.query"), keys, values)
        x = self.normalised(
            x + self.linear(seen, cross + "output.dense"), cross + "output.LayerNorm"
        )
        inner = self.gelu(self.linear(x, layer + "intermediate.dense"))
        inner = self.linear(inner, layer + "output.dense")
        return self.normalised(x + inner, layer + "output.LayerNorm")

    def attended(self, query, keys, values) -> Float[np.ndarray, " d"]:
        """Softmax over the keys, head by head."""
        heads = self.config.num_attention_heads
        query, keys, values = (
            np.reshape(x, (-1, heads, self.config.hidden_size // heads))
            for x in (query, keys, values)
        )
        out = []
        for head in range(heads):
            logits = keys[:, head] @ query[0, head] / np.sqrt(query.shape[-1])
            out.append(softmax(logits) @ values[:, head])
        return np.concatenate(out)

    def linear(self, x, name: str):
        return self.tensors[name + ".weight"] @ x + self.tensors[name + ".bias"]

    def normalised(self, x, name: str):
        x = (x - x.mean()) / np.sqrt(x.var() + self.config.layer_norm_eps)
        return x * self.tensors[name + ".weight"] + self.tensors[name + ".bias"]

    @staticmethod
    def gelu(x):
        return x * (1 + erf(x / np.sqrt(2))) / 2


def slowly(config: EdjeConfig, ids: Int[np.ndarray, "b t"], images) -> np.ndarray:
    """Log-probabilities as a captioner gives them, from one call for each token."""
    out = np.zeros((2, len(ids), ids.shape[1] - 1))
    for row, (padded, image) in enumerate(zip(ids, images, strict=True)):
        caption = padded[padded != config.joint_encoder.pad_token_id].tolist()
        for number, direction in enumerate(("forward", "backward")):
            order = caption if direction == "forward" else caption[::-1]
            reader = SlowReader(config, direction, image)
            for place, token in enumerate(order[:-1]):
                out[number, row, place] = reader.read(token)[order[place + 1]]
    return out


@pytest.mark.parametrize("config", [SUM, STORED], ids=["projected", "stored"])
def test_one_pass_gives_what_reading_one_token_at_a_time_gives(config):
    ours = found(config)
    expected = slowly(config, text_ids(), stored_tokens())
    assert expected[:, 2, :8].std() > 0.5 and ours.values.dtype == jnp.float32
    np.testing.assert_allclose(ours.values, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(ours.present, text_ids()[:, 1:] != 0)
    # Mean over a caption's tokens, to the same tolerance.
    count = np.array(LENGTHS) - 1
    means = np.asarray(ours.sum) / count
    np.testing.assert_allclose(means, expected.sum(axis=(0, 2)) / count, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [SUM, STORED], ids=["projected", "stored"])
def test_without_an_image_a_learned_vector_is_seen(config):
    model, params = Captioner(config), weights(config)
    ours = run(model, "log_probabilities", params, text_ids(), None)
    nothing = np.broadcast_to(params["captioner"]["no_image"], (4, 1, 24))
    expected = slowly(config, text_ids(), nothing)
    np.testing.assert_allclose(ours.values, expected, rtol=0, atol=1e-5)
    assert np.abs(ours.values - found(config).values).max() > 0.1


def test_each_direction_sees_what_it_has_read_and_nothing_else():
    """Change one token of a caption of twelve: what was predicted before it stays bit for bit."""
    changed, place = text_ids().copy(), 5
    changed[2, place] = changed[2, place] % 49 + 1
    after = run(Captioner(SUM), "log_probabilities", weights(), changed, stored_tokens())
    moved = np.asarray(found().values != after.values)
    others = np.delete(moved, 2, axis=1)
    assert not others.any()
    # Forward, value i is that of token i + 1; backward, of token n - 2 - i.
    assert not moved[0, 2, : place - 1].any() and moved[0, 2, place - 1 : 11].all()
    mirrored = 11 - place
    assert not moved[1, 2, : mirrored - 1].any() and moved[1, 2, mirrored - 1 : 11].all()


def test_the_image_is_seen_by_every_token():
    other = run(
        Captioner(SUM), "log_probabilities", weights(), text_ids(), stored_tokens()[::-1].copy()
    )
    moved = np.abs(other.values - found().values) > 1e-4
    np.testing.assert_array_equal(moved, np.broadcast_to(found().present, moved.shape))


def test_padding_and_neighbours_never_change_a_score():
    model, params = Captioner(SUM), weights()
    padded = run(model, "match", params, text_ids(24), stored_tokens())
    plain = np.asarray(run(model, "match", params, text_ids(), stored_tokens()))
    np.testing.assert_allclose(padded, plain, rtol=1e-6)
    for row in (1, 2):
        alone = run(
            model, "match", params, text_ids()[[row], : LENGTHS[row]], stored_tokens()[[row]]
        )
        np.testing.assert_allclose(alone, plain[[row]], rtol=1e-6)
    order = np.array([2, 0, 3, 1])
    moved = run(model, "match", params, text_ids()[order], stored_tokens()[order])
    np.testing.assert_array_equal(moved, plain[order])


def test_the_scores_are_what_the_settings_say():
    values = np.asarray(found().values)
    without = np.asarray(
        run(Captioner(SUM), "log_probabilities", weights(), text_ids(), None).values
    )
    total, alone = values.sum(axis=(0, 2)), without.sum(axis=(0, 2))
    expected: dict[CaptionScore, np.ndarray] = {
        "sum": total,
        "mean": total / (np.array(LENGTHS) - 1),
        "pmi": total - alone,
    }
    for score, wanted in expected.items():
        config = replace(SUM, captioner=CaptionerConfig(score=score))
        ours = run(Captioner(config), "match", weights(), text_ids(), stored_tokens())
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5, err_msg=score)
        assert config.encodes_captions == (score == "pmi")


def test_captions_read_before_meet_any_image():
    """As the runtimes score: what a caption says alone is computed once for all its pairs."""
    config = replace(SUM, captioner=CaptionerConfig(score="pmi"))
    model, order = Captioner(config), np.array([2, 2, 0, 1, 2])
    read = run(model, "encode_text", weights(), text_ids())
    read = jax.tree.map(lambda leaf: leaf[order], read)
    tokens = stored_tokens()[[0, 1, 2, 3, 2]]
    ours = run(model, "match_encoded", weights(), read, tokens)
    whole = run(model, "match", weights(), text_ids()[order], tokens)
    np.testing.assert_allclose(ours, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_one_direction_is_a_part_of_both(direction):
    config = replace(SUM, captioner=CaptionerConfig(direction, "sum"))
    shapes = edje.expected_params(config)["captioner"]
    params = {"captioner": {name: weights()["captioner"][name] for name in shapes}}
    ours = run(Captioner(config), "log_probabilities", params, text_ids(), stored_tokens())
    number = ("forward", "backward").index(direction)
    np.testing.assert_allclose(ours.values[0], found().values[number], rtol=1e-6, atol=1e-6)


@functools.cache
def with_gradient(remat: bool = False, scan: bool = False) -> Any:
    """(sum of the scores, its gradient)."""
    ids, tokens = jnp.asarray(text_ids()), jnp.asarray(stored_tokens())
    model = Captioner(SUM, remat=remat, scan=scan)

    @jax.jit
    @jax.value_and_grad
    def step(params):
        return jnp.sum(model.bind({"params": params}).match(ids, tokens))

    return step(weights())


@pytest.mark.parametrize("remat, scan", [(True, False), (False, True), (True, True)])
def test_remat_and_loops_change_neither_scores_nor_gradients(remat, scan):
    expected, gradient = with_gradient()
    ours, other = with_gradient(remat, scan)
    assert float(ours) == pytest.approx(float(expected), rel=1e-6)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, rtol=0, atol=1e-6 * largest),
        other,
        gradient,
    )


def test_dropout_is_drawn_anew_in_training_and_never_elsewhere():
    model = Captioner(SUM, dropout=0.5)
    ids, tokens = jnp.asarray(text_ids()), jnp.asarray(stored_tokens())

    @functools.partial(jax.jit, static_argnums=1)
    def match(seed: int, train: bool) -> Any:
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply({"params": weights()}, ids, tokens, train, method="match", rngs=rngs)

    one, again, other = match(0, True), match(0, True), match(1, True)
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(match(0, False), match(1, False))


def test_every_parameter_is_made_by_one_call_and_the_kind_decides():
    model = make_scorer(SUM)
    assert type(model) is Captioner
    assert type(make_scorer(replace(SUM, captioner=None))) is Edje
    shapes = edje.expected_params(SUM)
    assert set(shapes) == {"adapter", "captioner"}
    parts = {"embeddings", "word_head", "forward", "backward", "no_image"}
    assert set(shapes["captioner"]) == parts
    layer = edje.expected_params(STORED)["captioner"]["forward"]["layers_0"]
    assert "cross_query" in layer and "cross_key" not in layer and "cross_value" not in layer


def test_one_dtype_goes_through_all_layers():
    model = Captioner(SUM, jnp.bfloat16)
    ours = run(model, "match", weights(), text_ids(), stored_tokens())
    plain = run(Captioner(SUM), "match", weights(), text_ids(), stored_tokens())
    assert ours.dtype == jnp.float32
    assert 0 < np.abs(ours - plain).max() < 0.05 * np.abs(plain).max()


def test_words_of_a_large_vocabulary_are_scored_some_places_at_a_time():
    """Values and gradients are those of all places at once."""
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, table, bias = map(jax.random.normal, keys[:3], ((2, 7, 5), (11, 5), (11,)))
    words = jax.random.randint(keys[3], (2, 7), 0, 11)

    def mean(hidden, table, at_once):
        return word_log_probabilities(hidden, table, bias, words, at_once).mean()

    def whole(hidden, table):
        found = jax.nn.log_softmax(hidden @ table.T + bias[None, None])
        return jnp.take_along_axis(found, words[..., None], axis=-1).mean()

    expected, gradients = jax.value_and_grad(whole, (0, 1))(hidden, table)
    for at_once in (1, 50, 10_000):  # One place, two places, all
        found, own = jax.value_and_grad(mean, (0, 1))(hidden, table, at_once)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), own, gradients)
