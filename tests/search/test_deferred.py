"""An index of a model with deferred layers keeps what those make of an image's tokens."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from edje_jax import ImageIndex, Reranker
from edje_jax.cli import edje
from edje_jax.config.model import EdjeConfig
from edje_jax.data.buckets import lengths_up_to
from edje_jax.index.build import BuildOptions, build
from edje_jax.index.store import BadStore
from edje_jax.models.edje import Edje
from edje_jax.models.token_formats import FORMATS, pack, unpack
from edje_jax.scenes.shapes import Shapes
from edje_jax.search.cascade import search_images
from edje_jax.weights.folder import load_model
from tests.models.test_edje import weights
from tests.small_runs import COMMAND, read_log

IMAGES = 12
TEXTS = ["a red circle", "a small striped green star left of a large dotted blue square", "ring"]


class Some(Shapes):
    """The first few scenes."""

    def __len__(self) -> int:
        return IMAGES


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory) -> Path:
    """The trained model as if its first layer were deferred."""
    folder = tmp_path_factory.mktemp("deferred") / "model"
    shutil.copytree(trained / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    config["joint_encoder"]["deferred_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def reranker(model) -> Reranker:
    return Reranker.from_pretrained(model)


def wide(folder: Path, deferred: int, online_vision: str) -> Reranker:
    """The trained model's backbone below four layers with large random weights."""
    model = load_model(str(folder))
    joint = dataclasses.replace(
        model.config.joint_encoder,
        num_hidden_layers=4, deferred_layers=deferred, online_vision=online_vision,
    )  # fmt: skip
    config = dataclasses.replace(model.config, joint_encoder=joint)
    return Reranker(dataclasses.replace(model, config=config, params=weights(config)), "float32")


@functools.partial(jax.jit, static_argnums=0)
def one_pass(config: EdjeConfig, params, ids, states) -> jax.Array:
    """Match logits by `Layer`s that see the rows of both sides at once, as a mask lets them; the
    image's rows are the stored ones after the deferred layers."""

    def whole(module: Edje) -> jax.Array:
        joint, bert, m = module.joint_encoder, config.joint_encoder, config.num_tokens
        text, there = joint._text(ids, m)
        vision = jnp.arange(m + there.shape[1]) < m
        there = jnp.concatenate([jnp.ones((len(ids), m), bool), there], axis=1)
        start = [jnp.zeros_like(states), joint.embeddings(*text, False)]
        x = jnp.concatenate(start, axis=1)
        for number, layer in enumerate(joint.layers):
            if number < bert.deferred_layers:
                x = layer(x, there & ~vision[None])
                x = x.at[:, :m].set(states)
            elif bert.online_vision == "attended":
                x = jnp.where(vision[None, :, None], x, layer(x, there))
            else:
                x = layer(x, there)
        return joint.classifier(jnp.tanh(joint.pooler(x[:, m + 1])))[:, 0]

    return Edje(config).apply({"params": params}, method=whole)


@pytest.mark.slow
@pytest.mark.parametrize("online_vision", ["updated", "attended"])
@pytest.mark.parametrize(
    "deferred",
    [pytest.param(1, marks=pytest.mark.extra), 2, pytest.param(3, marks=pytest.mark.extra)],
)
def test_a_store_scores_as_one_pass_over_equally_rounded_states(
    trained, deferred, online_vision, tmp_path
):
    """In every dtype, with captions of every length bucket, each with as many candidates as it
    likes."""
    reranker, source = wide(trained, deferred, online_vision), Some("val")
    runtime, longest = reranker.runtime, reranker.config.max_text_length
    states = reranker.encode_images([source.image(i) for i in range(IMAGES)])
    rng = np.random.default_rng(deferred)
    used = np.array([2, 9, *lengths_up_to(longest)])
    ids = rng.integers(1, reranker.config.joint_encoder.vocab_size, (len(used), longest))
    ids = np.where(np.arange(longest) < used[:, None], ids, 0).astype(np.int32)
    text = np.repeat(np.arange(len(used)), rng.permutation(IMAGES)[: len(used)])
    text = np.concatenate([text, rng.integers(0, len(used), 40)])
    image = rng.integers(0, IMAGES, len(text))
    for dtype in FORMATS:
        folder = tmp_path / dtype
        assert build(
            reranker.runtime,
            reranker.stamp,
            source,
            "shapes:val",
            folder,
            BuildOptions(token_dtype=dtype),
        )
        rounded = np.asarray(unpack(pack(states, dtype)), np.float32)
        expected = np.asarray(one_pass(reranker.config, runtime.params, ids[text], rounded[image]))
        assert expected.std() > 0.05
        tokens = ImageIndex.open(folder).tokens
        logits = runtime.score_pairs(ids, tokens, text, image)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5, err_msg=dtype)


def test_a_search_shows_the_scores_of_the_stored_states(reranker, tmp_path, capsys):
    source = Some("val")
    assert build(
        reranker.runtime,
        reranker.stamp,
        source,
        "shapes:val",
        tmp_path / "index",
        BuildOptions(token_dtype="int8"),
    )
    tokens = reranker.encode_images([source.image(i) for i in range(IMAGES)])
    expected = reranker.score_matrix(TEXTS, np.asarray(unpack(pack(tokens, "int8")), np.float32))
    index = ImageIndex.open(tmp_path / "index")
    found, _ = search_images(reranker.runtime, index, TEXTS, IMAGES)
    for row, one in zip(expected, found, strict=True):
        assert sorted(one.rows) == list(range(IMAGES))
        np.testing.assert_allclose(one.logits, row[one.rows], rtol=0, atol=1e-5)
    edje.main(["index", "info", str(tmp_path / "index")])
    assert "after 1 deferred layers" in " ".join(capsys.readouterr().out.split())


def test_the_same_weights_without_deferred_layers_are_another_model(reranker, trained, tmp_path):
    build(reranker.runtime, reranker.stamp, Some("val"), "shapes:val", tmp_path / "index")
    index = ImageIndex.open(tmp_path / "index")
    with pytest.raises(BadStore, match="another model"):
        Reranker.from_pretrained(trained).search(index, TEXTS)


@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
def test_states_take_as_many_bytes_as_tokens(reranker, trained, dtype, tmp_path):
    plain = Reranker.from_pretrained(trained)
    for name, one in (("states", reranker), ("tokens", plain)):
        build(
            one.runtime,
            one.stamp,
            Some("val"),
            "shapes:val",
            tmp_path / name,
            BuildOptions(token_dtype=dtype),
        )
    sizes = [
        {p.name: p.stat().st_size for p in (tmp_path / name).glob("*.npy")}
        for name in ("states", "tokens")
    ]
    assert sizes[0] == sizes[1] and "tokens-00000.npy" in sizes[0]
    images = [Shapes("val").image(i) for i in range(3)]
    states, tokens = reranker.encode_images(images), plain.encode_images(images)
    assert states.shape == tokens.shape and np.abs(states - tokens).max() > 1e-2


@pytest.mark.extra
def test_layers_of_a_trained_model_are_deferred_by_distillation_and_searched(trained, tmp_path):
    """As users do it: `train.py`, an index, a query."""
    run = tmp_path / "run"
    given = ["--init", trained, "--teacher", trained, "--model.deferred-layers", 1,
             "--loss.hidden-states", 1, "--steps", 5, "--workdir", run]  # fmt: skip
    assert train.main([*COMMAND, *map(str, given)]) == 0
    told = [line for line in read_log(run) if "loss/match" in line][-1]
    for name in ("loss/hidden_states", "loss/distillation"):
        assert 0 < told[name] < 10, name
    model = load_model(str(run))
    assert model.config.joint_encoder.deferred_layers == 1
    assert model.config.adapter == load_model(str(trained)).config.adapter
    reranker, source = Reranker.from_pretrained(run), Some("val")
    assert build(
        reranker.runtime,
        reranker.stamp,
        source,
        "shapes:val",
        tmp_path / "index",
        BuildOptions(token_dtype="bfloat16"),
    )
    (found,) = reranker.search(ImageIndex.open(tmp_path / "index"), TEXTS[:1], k=IMAGES)
    states = reranker.encode_images([source.image(i) for i in range(IMAGES)])
    expected = reranker.score_matrix(TEXTS[:1], states)[0]
    assert [hit["id"] for hit in found[:1]] == [source.image_id(int(np.argmax(expected)))]
    with pytest.raises(BadStore, match=r"1 deferred layers.*than this one .*, 0 deferred layers"):
        Reranker.from_pretrained(trained).search(ImageIndex.open(tmp_path / "index"), TEXTS)
