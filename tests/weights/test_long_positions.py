"""Local checkpoints of full length: 64 + 576 positions, which the published code gives rows of
their own.

The goldens in `goldens/reference_long/` are the trained part of such a checkpoint, tiny in width,
with the vision tokens of an image and the match logits of eight captions with it as the published
PyTorch code made them. Tokenizers, captions and the language model's config are those of
`goldens/reference_tiny/`; the frozen towers are left out of the file and made here.
"""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from configs.debug import config as debug
from edje_jax.cli.convert import convert
from edje_jax.config.model import BackboneConfig, EdjeConfig, ImageRecipe
from edje_jax.config.parts import AdapterSpec
from edje_jax.data.text import JointTokenizer
from edje_jax.models.edje import Edje
from edje_jax.training.assemble import assemble
from edje_jax.weights import onnx
from edje_jax.weights.backbone import expected_params, read_backbone_config, save_backbone
from edje_jax.weights.bert import POSITIONS, lengthened
from edje_jax.weights.folder import Model, load_model, save_model
from edje_jax.weights.published import save_published
from edje_jax.weights.torch.modeling_edje import EdjeModel

GOLDENS = Path(__file__).parents[1] / "goldens"
LONG, TINY = GOLDENS / "reference_long", GOLDENS / "reference_tiny"
TABLE = "language_model." + POSITIONS
TOLERANCE = 2e-4
"""On logits of deviation 1."""


def draw(shape: jax.ShapeDtypeStruct, generator: np.random.Generator) -> np.ndarray:
    return generator.normal(0.0, 0.05, shape.shape).astype(np.float32)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    """A SigLIP of 24 x 24 patches, whose weights are random."""
    folder = tmp_path_factory.mktemp("backbones") / "siglip"
    folder.mkdir()
    config, _ = read_backbone_config(TINY / "siglip")
    vision = dataclasses.replace(config.vision, image_size=192, patch_size=8)
    config = BackboneConfig("siglip", vision, config.text)
    generator = np.random.default_rng(0)
    params = jax.tree.map(lambda shape: draw(shape, generator), expected_params(config))
    save_backbone(folder, config, ImageRecipe(192), params, TINY / "siglip")
    return folder


@pytest.fixture(scope="module")
def folder(backbone, tmp_path_factory) -> Path:
    """The checkpoint as a model folder."""
    out = tmp_path_factory.mktemp("models") / "long"
    convert(str(LONG / "local.pth"), str(out), "edje", str(backbone), str(TINY / "bert"))
    return out


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(LONG / "expected_local.npz") as file:
        return dict(file)


def captions() -> list[str]:
    return json.loads((TINY / "captions.json").read_text())


@functools.partial(jax.jit, static_argnums=0)
def score(config: EdjeConfig, params, ids: jax.Array, vision_tokens: jax.Array) -> jax.Array:
    apply = functools.partial(Edje(config).apply, {"params": params})
    tokens = apply(vision_tokens, method="compress").repeat(len(ids), axis=0)
    return apply(ids, tokens, method="match")


def logits(model: Model, vision_tokens: np.ndarray) -> np.ndarray:
    """Match logits of the captions with one image, [captions]."""
    ids = JointTokenizer(model.tokenizer, model.config.max_text_length)(captions(), 24)
    return np.asarray(score(model.config, model.params, ids, vision_tokens))


def test_logits_are_the_published_code_s(folder, expected):
    model = load_model(str(folder))
    assert model.config.joint_encoder.max_position_embeddings == 640 == model.config.num_positions
    ours = logits(model, expected["vision_tokens"])
    np.testing.assert_allclose(ours, expected["pair_logits"][:, 0], atol=TOLERANCE)


def test_every_stored_row_counts(folder, expected):
    """Rows past 511 of the golden's table repeat its first rows; those of a trained one differ."""
    model = load_model(str(folder))
    rows = np.array(model.params["joint_encoder"]["embeddings"]["position"]["embedding"])
    rows[512:] += np.random.default_rng(0).normal(size=rows[512:].shape).astype(np.float32)
    model.params["joint_encoder"]["embeddings"]["position"]["embedding"] = rows
    moved = logits(model, expected["vision_tokens"])
    assert np.abs(moved - expected["pair_logits"][:, 0]).min() > 0.01


def test_there_and_back_every_tensor_is_bit_identical(folder, tmp_path):
    convert(str(folder), str(tmp_path / "back.pth"), "published")
    before = torch.load(LONG / "local.pth", weights_only=True)["model"]
    after = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    towers = {name for name in after if name.startswith(("clip.", "vision_encoder."))}
    assert before.keys() == after.keys() - towers
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_pytorch_module_scores_the_same(folder, expected):
    model = EdjeModel.from_folder(folder)
    with torch.no_grad():
        tokens = model.vision_projection(torch.from_numpy(expected["vision_tokens"]))
        theirs = model.score(**model.tokenize(captions()), tokens=tokens.expand(8, -1, -1))
    np.testing.assert_allclose(theirs.numpy(), expected["pair_logits"][:, 0], atol=TOLERANCE)


@pytest.mark.slow
def test_the_onnx_graph_scores_the_same(folder, expected, tmp_path):
    model = EdjeModel.from_folder(folder)
    onnx._export(onnx._graphs(model)["online"], tmp_path / "online.onnx")
    with torch.no_grad():
        tokens = model.vision_projection(torch.from_numpy(expected["vision_tokens"]))
    text = {name: ids.numpy() for name, ids in model.tokenize(captions()).items()}
    repeated = tokens.expand(8, -1, -1).numpy()
    (theirs,) = onnx.run(tmp_path / "online.onnx", **text, tokens=repeated)
    np.testing.assert_allclose(theirs, expected["pair_logits"][:, 0], atol=TOLERANCE)


# --- where rows are missing -----------------------------------------------------------------------


def shortened(model: Model) -> Model:
    """The model with the 512 rows that a run of an earlier version has."""
    embeddings = model.params["joint_encoder"]["embeddings"]
    embeddings["position"]["embedding"] = embeddings["position"]["embedding"][:512]
    joint = dataclasses.replace(model.config.joint_encoder, max_position_embeddings=512)
    return dataclasses.replace(model, config=dataclasses.replace(model.config, joint_encoder=joint))


def test_the_last_row_stands_for_those_that_are_missing(folder, expected, tmp_path):
    model = shortened(load_model(str(folder)))
    ours = logits(model, expected["vision_tokens"])
    np.testing.assert_allclose(ours, expected["pair_logits"][:, 0], atol=TOLERANCE)
    save_model(tmp_path, model, "")
    assert load_model(str(tmp_path)).config == model.config
    # The published code has a row for each, and would not load fewer.
    save_published(tmp_path / "long.pth", model)
    table = torch.load(tmp_path / "long.pth", weights_only=True)["model"][TABLE].numpy()
    np.testing.assert_array_equal(table, torch.load(LONG / "local.pth")["model"][TABLE])


@pytest.mark.parametrize("named", [True, False], ids=["a language model's", "a fresh one's"])
def test_a_new_run_has_a_row_for_every_position(named, backbone, tmp_path):
    spec = dataclasses.replace(
        debug.model,
        backbone=str(backbone),
        joint_encoder=str(TINY / "bert") if named else "",
        adapter=AdapterSpec("local", intermediate_size=32),
        max_text_length=63,
    )
    tokenizer = tmp_path / "tokenizer"
    if not named:
        tokenizer.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tokenizer / name).write_bytes((TINY / "bert" / name).read_bytes())
    parts = assemble(dataclasses.replace(debug, model=spec), None, tmp_path)
    assert parts.config.joint_encoder.max_position_embeddings == 640
    if named:
        table = parts.params["joint_encoder"]["embeddings"]["position"]["embedding"]
        assert table.shape == (640, 32)
        np.testing.assert_array_equal(table[511:], np.repeat(table[511:512], 129, axis=0))
        assert (table[510] != table[511]).any()


def test_a_table_that_is_long_enough_stays_as_it_is():
    table = np.arange(12.0).reshape(4, 3)
    assert lengthened(table, 4) is table and lengthened(table, 2) is table
    np.testing.assert_array_equal(lengthened(table, 6)[3:], [table[3]] * 3)
