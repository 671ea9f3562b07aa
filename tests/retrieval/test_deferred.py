"""An index of a model with deferred layers keeps what those make of a picture's tokens."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from edje_jax import ImageIndex, Reranker
from edje_jax.cli import edje
from edje_jax.data.sources.shapes import Shapes
from edje_jax.models.token_formats import pack, unpack
from edje_jax.retrieval.build import build
from edje_jax.retrieval.search import search_images
from edje_jax.retrieval.store import BadStore

PICTURES = 12
TEXTS = ["a red circle", "a small striped green star left of a large dotted blue square", "ring"]


class Some(Shapes):
    """The first few scenes."""

    def __len__(self) -> int:
        return PICTURES


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


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_a_store_scores_as_one_pass_over_equally_rounded_states(reranker, dtype, tmp_path, capsys):
    source = Some("val")
    assert build(reranker, source, "shapes:val", tmp_path / "index", token_dtype=dtype)
    tokens = reranker.encode_images([source.image(i) for i in range(PICTURES)])
    rounded = np.asarray(unpack(pack(tokens, dtype)), np.float32)
    engine = reranker.engine
    text, picture = np.indices((len(TEXTS), PICTURES)).reshape(2, -1)
    # One pass, every caption padded to the full length, pair by pair.
    one_pass = jax.jit(lambda ids, tokens: engine.model.apply(
        {"params": engine.params}, ids, tokens, method="match"
    ))  # fmt: skip
    ids = engine.joint_tokenizer(TEXTS)
    expected = np.asarray(one_pass(ids[text], rounded[picture])).reshape(len(TEXTS), PICTURES)
    index = ImageIndex.open(tmp_path / "index")
    found, _ = search_images(engine, index, TEXTS, PICTURES)
    for row, one in zip(expected, found, strict=True):
        assert sorted(one.rows) == list(range(PICTURES))
        np.testing.assert_allclose(one.logits, row[one.rows], rtol=0, atol=1e-5)
    edje.main(["index", "info", str(tmp_path / "index")])
    assert "after 1 deferred layers" in " ".join(capsys.readouterr().out.split())


def test_the_same_weights_without_deferred_layers_are_another_model(reranker, trained, tmp_path):
    build(reranker, Some("val"), "shapes:val", tmp_path / "index")
    index = ImageIndex.open(tmp_path / "index")
    with pytest.raises(BadStore, match="another model"):
        Reranker.from_pretrained(trained).search(index, TEXTS)


@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
def test_states_take_as_many_bytes_as_tokens(reranker, trained, dtype, tmp_path):
    plain = Reranker.from_pretrained(trained)
    for name, one in (("states", reranker), ("tokens", plain)):
        build(one, Some("val"), "shapes:val", tmp_path / name, token_dtype=dtype)
    sizes = [
        {p.name: p.stat().st_size for p in (tmp_path / name).glob("*.npy")}
        for name in ("states", "tokens")
    ]
    assert sizes[0] == sizes[1] and "tokens-00000.npy" in sizes[0]
    pictures = [Shapes("val").image(i) for i in range(3)]
    states, tokens = reranker.encode_images(pictures), plain.encode_images(pictures)
    assert states.shape == tokens.shape and np.abs(states - tokens).max() > 1e-2
