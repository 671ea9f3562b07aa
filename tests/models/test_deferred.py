"""Deferred fusion: what is computed in two parts is one pass under a block-diagonal mask."""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import BertConfig as HfBertConfig
from transformers import BertModel

from edje_jax.config.model import BertConfig, EdjeConfig
from edje_jax.data.buckets import lengths_up_to
from edje_jax.models.edje import Edje
from edje_jax.models.joint_encoder import TextSide
from edje_jax.weights import bert, edje
from edje_jax.weights.mapping import to_theirs
from tests.conftest import FUSION_EMITTERS
from tests.models.test_edje import BERT, CONFIG, M, text_ids, vision_tokens, weights

LAYERS = 4
LONGEST = 20
"""Tokens of the longest caption; vision rows have this position and the next ones."""


def config_of(deferred: int, online_vision="updated") -> EdjeConfig:
    joint = dataclasses.replace(
        BERT, num_hidden_layers=LAYERS, deferred_layers=deferred, online_vision=online_vision
    )
    return dataclasses.replace(CONFIG, joint_encoder=joint, max_text_length=LONGEST)


@functools.cache
def params():
    """Parameters for any number of deferred layers, as deferring changes none."""
    return weights(config_of(0))


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(config: EdjeConfig, method: str, params, *args):
    return Edje(config).apply({"params": params}, *args, method=method)


@functools.cache
def stored(config: EdjeConfig) -> np.ndarray:
    return np.asarray(run(config, "compress", params(), vision_tokens()))


@functools.cache
def language_model() -> BertModel:
    """transformers' BERT with the same weights."""
    config = config_of(0).joint_encoder
    raw = {k: v for k, v in bert.write_config(config).items() if k != "architectures"}
    model = BertModel(HfBertConfig(**raw, attn_implementation="eager"), add_pooling_layer=False)
    prefix = "language_model.bert."
    state = {
        name.removeprefix(prefix): torch.tensor(value)
        for name, value in to_theirs(edje.rules(config_of(0)), params()).items()
        if name.startswith(prefix)
    }
    model.load_state_dict(state, strict=True)
    return model.eval()


@torch.no_grad()
def one_pass(config: EdjeConfig, ids: np.ndarray) -> list[np.ndarray]:
    """Hidden states of whole sequences in the published order, [CLS] caption [SEP] padding v_1..v_m
    [SEP], from the embedded input on; layer by layer under a mask of all pairs of rows."""
    model, joint = language_model(), config.joint_encoder
    batch, length = ids.shape
    lengths = (ids != joint.pad_token_id).sum(axis=1)
    closing = ids[np.arange(batch), lengths - 1]
    tokens = torch.tensor(np.asarray(run(config_of(0), "compress", params(), vision_tokens())))
    words = model.embeddings.word_embeddings
    content = [
        words(torch.tensor(ids).long()),
        tokens,
        words(torch.tensor(closing).long())[:, None],
    ]
    positions = np.concatenate([np.arange(length), LONGEST + np.arange(M + 1)])
    segments = np.concatenate([np.zeros(length, int), np.ones(M + 1, int)])
    x = model.embeddings(
        inputs_embeds=torch.cat(content, dim=1),
        position_ids=torch.tensor(positions)[None],
        token_type_ids=torch.tensor(segments)[None].expand(batch, -1),
    )
    vision = (np.arange(length + M + 1) >= length) & (np.arange(length + M + 1) < length + M)
    there = np.concatenate([ids != joint.pad_token_id, np.ones((batch, M + 1), bool)], axis=1)
    states = [x.numpy()]
    for number, layer in enumerate(model.encoder.layer):
        allowed = np.broadcast_to(there[:, None, :], (batch, len(vision), len(vision)))
        if number < joint.deferred_layers:
            allowed = allowed & (vision[:, None] == vision[None, :])
        mask = torch.tensor(np.where(allowed, 0.0, -1e30), dtype=torch.float32)[:, None]
        out = layer(x, attention_mask=mask)
        out = out[0] if isinstance(out, tuple) else out
        if number >= joint.deferred_layers and joint.online_vision == "attended":
            out = torch.where(torch.tensor(vision)[None, :, None], x, out)
        x = out
        states.append(x.numpy())
    return states


def logits_of(cls: np.ndarray) -> np.ndarray:
    """The match head in NumPy."""
    head = params()["joint_encoder"]
    pooled = np.tanh(cls @ head["pooler"]["kernel"] + head["pooler"]["bias"])
    return (pooled @ head["classifier"]["kernel"] + head["classifier"]["bias"])[:, 0]


class Split(NamedTuple):
    """Stored tokens, the text side that is computed once per caption, and their logits."""

    tokens: jax.Array
    text: TextSide
    logits: jax.Array


@functools.partial(jax.jit, static_argnums=0)
def split(config: EdjeConfig, params, ids) -> Split:
    apply = functools.partial(Edje(config).apply, {"params": params})
    tokens = apply(jnp.asarray(vision_tokens()), method="compress")
    text = apply(ids, method="encode_text")
    return Split(tokens, text, apply(text, tokens, method="match_encoded"))


CHOICES = [
    (deferred, vision) for deferred in range(1, LAYERS) for vision in ("updated", "attended")
]


@pytest.mark.slow
@pytest.mark.parametrize("length", lengths_up_to(63))
def test_split_is_one_pass_at_every_length(length):
    """Captions of all lengths up to the bucket's own; against the same layers over whole sequences,
    each pair of rows masked or not. Each length has two choices of s and of the way with vision
    rows, and each choice has a length or two."""
    rng = np.random.default_rng(length)
    ids = np.zeros((4, length), np.int32)
    for row, used in zip(ids, (2, length // 2, length - 1, length), strict=True):
        row[:used] = rng.integers(1, BERT.vocab_size, used)
    for deferred, vision in CHOICES[lengths_up_to(63).index(length) % 3 :: 3]:
        config = dataclasses.replace(config_of(deferred, vision), max_text_length=63)
        expected = masked_pass(config, params(), ids)
        logits = split(config, params(), ids).logits
        assert np.std(expected) > 0.01
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5, err_msg=str(config))


@functools.partial(jax.jit, static_argnums=0)
def masked_pass(config: EdjeConfig, params, ids) -> jax.Array:
    """Match logits by `Layer`s that see all rows [v_1..v_m [SEP] [CLS] caption] at once."""

    def whole(module: Edje) -> jax.Array:
        joint, bert = module.joint_encoder, config.joint_encoder
        plain = Edje(dataclasses.replace(config, joint_encoder=config_of(0).joint_encoder))
        tokens = plain.apply({"params": params}, jnp.asarray(vision_tokens()), method="compress")
        start = jnp.full((len(ids), 1), config.max_text_length)
        text, there = joint._text(ids, M)
        parts = zip(joint._vision(tokens, start), text, strict=True)
        x = joint.embeddings(*(jnp.concatenate(part, axis=1) for part in parts), False)
        vision = jnp.arange(x.shape[1]) < M
        there = jnp.concatenate([jnp.ones((len(ids), M), bool), there], axis=1)
        for number, layer in enumerate(joint.layers):
            if number < bert.deferred_layers:
                # A layer masks keys for all queries alike, so each side asks on its own.
                seen = [layer(x, there & side[None]) for side in (vision, ~vision)]
                x = jnp.where(vision[None, :, None], *seen)
            elif bert.online_vision == "attended":
                x = jnp.where(vision[None, :, None], x, layer(x, there))
            else:
                x = layer(x, there)
        pooled = jnp.tanh(joint.pooler(x[:, M + 1]))
        return joint.classifier(pooled)[:, 0]

    return Edje(config).apply({"params": params}, method=whole)


@pytest.mark.parametrize(
    ("deferred", "online_vision", "length"), [(1, "updated", 16), (2, "attended", LONGEST)]
)
def test_split_is_one_pass(deferred, online_vision, length):
    config, ids = config_of(deferred, online_vision), text_ids(length)
    states = one_pass(config, ids)
    vision, text = slice(length, length + M), slice(0, length)

    tokens, read, logits = split(config, params(), ids)
    np.testing.assert_allclose(tokens, states[deferred][:, vision], rtol=0, atol=2e-5)
    there = ids != BERT.pad_token_id
    rows = np.asarray(read.rows)
    np.testing.assert_allclose(rows[:, 1:][there], states[deferred][:, text][there], atol=2e-5)
    np.testing.assert_allclose(rows[:, 0], states[deferred][:, -1], rtol=0, atol=2e-5)

    expected = logits_of(states[-1][:, 0])
    assert expected.std() > 0.03
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5)


def test_the_other_passes_read_the_same_rows():
    config, ids = config_of(2), text_ids()
    states = one_pass(config, ids)
    hidden = run(config, "hidden_states", params(), ids, stored(config))
    assert len(hidden) == LAYERS + 1 - 2
    np.testing.assert_allclose(hidden[-1][:, M + 1], states[-1][:, 0], rtol=0, atol=2e-5)
    logits = run(config, "match", params(), ids, stored(config))
    np.testing.assert_allclose(logits, logits_of(states[-1][:, 0]), rtol=0, atol=2e-5)

    positions = jnp.arange(ids.size)[None]
    logits = run(config, "masked_lm", params(), ids, stored(config), positions)[0]
    text = jnp.asarray(states[-1][:, : ids.shape[1]].reshape(ids.size, -1))

    def head(module: Edje, hidden):
        joint = module.joint_encoder
        return (
            joint.embeddings.decode(joint.masked_lm_head(hidden)) + joint.masked_lm_head.bias[None]
        )

    expected = Edje(config).apply({"params": params()}, text, method=head)
    there = (ids != BERT.pad_token_id).reshape(-1)
    np.testing.assert_allclose(logits[there], np.asarray(expected)[there], rtol=0, atol=5e-5)


def test_stored_rows_are_as_many_as_without():
    assert stored(config_of(2)).shape == stored(config_of(0)).shape == (4, M, BERT.hidden_size)


def test_each_choice_changes_the_scores():
    """Else the tests above would hold of a switch that does nothing."""
    ids = text_ids()
    configs = [config_of(0)] + [
        config_of(s, vision) for s in range(1, LAYERS) for vision in ("updated", "attended")
    ]
    logits = [np.asarray(run(c, "match", params(), ids, stored(c))) for c in configs]
    # With all but the last layer deferred, none comes that could update vision rows for another.
    *different, last, same = logits
    np.testing.assert_array_equal(last, same)
    for one, other in itertools.combinations([*different, last], 2):
        assert np.abs(one - other).max() > 1e-3


def test_padding_changes_no_row_of_a_text():
    config = config_of(2)
    read = split(config, params(), text_ids()).text
    padded = split(config, params(), text_ids(LONGEST)).text
    there = np.asarray(read.mask)
    longer = np.asarray(padded.rows)[:, : there.shape[1]]
    np.testing.assert_allclose(np.asarray(read.rows)[there], longer[there], rtol=0, atol=1e-5)


@pytest.mark.parametrize("deferred", [-1, 4, 9])
def test_the_last_layer_must_see_both(deferred):
    with pytest.raises(ValueError, match=rf"deferred_layers {deferred}: of 4 layers 0 to 3 can be"):
        BertConfig(num_hidden_layers=4, deferred_layers=deferred)


def test_captions_cannot_be_read_before_where_no_layer_is_deferred():
    read = run(config_of(1), "encode_text", params(), text_ids())
    with pytest.raises(ValueError, match="by deferred layers alone"):
        run(config_of(0), "match_encoded", params(), read, stored(config_of(0)))


def test_vision_is_updated_or_attended_to():
    with pytest.raises(ValueError, match='online_vision "atended": updated or attended'):
        config_of(1, "atended")


def test_deferring_none_is_the_published_model_to_the_bit():
    """Written down once more as it was before layers could be deferred, and both compiled as they
    are outside the tests: here, the two would differ in what is fused."""
    options: dict[str, Any] = {"xla_backend_optimization_level": 3}
    if FUSION_EMITTERS:
        options["xla_cpu_use_fusion_emitters"] = True
    as_outside = functools.partial(jax.jit, compiler_options=options)

    @as_outside
    def published(params, ids, tokens):
        def whole(module: Edje) -> jax.Array:
            joint = module.joint_encoder
            present = ids != BERT.pad_token_id
            lengths = jnp.sum(present.astype(jnp.int32), axis=1, keepdims=True)
            closing = jnp.take_along_axis(ids, lengths - 1, axis=1)
            words = joint.embeddings.words(jnp.concatenate([closing, ids], axis=1))
            text_positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
            segments = [jnp.ones((len(ids), M + 1), ids.dtype), jnp.zeros_like(ids)]
            x = joint.embeddings(
                jnp.concatenate([tokens, words], axis=1),
                jnp.concatenate([lengths + jnp.arange(M + 1)[None], text_positions], axis=1),
                jnp.concatenate(segments, axis=1),
                False,
            )
            mask = jnp.concatenate([jnp.ones((len(ids), M + 1), bool), present], axis=1)
            for layer in joint.layers[:-1]:
                x = layer(x, mask, False, (0, None))
            cls = joint.layers[-1](x, mask, False, (M + 1, M + 2))[:, 0]
            return joint.classifier(jnp.tanh(joint.pooler(cls)))[:, 0].astype(jnp.float32)

        return Edje(config_of(0)).apply({"params": params}, method=whole)

    tokens = stored(config_of(0))
    expected = published(params(), jnp.asarray(text_ids()), jnp.asarray(tokens))
    match = as_outside(functools.partial(run, config_of(0), "match"))
    np.testing.assert_array_equal(match(params(), text_ids(), tokens), expected)
