"""Captioners and adapters that upsample, in folders: JAX, PyTorch and onnxruntime agree."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from PIL import Image
from sentence_transformers import CrossEncoder
from transformers import AutoModel

from edje_jax.cli.convert import convert
from edje_jax.config.captioner import CaptionerConfig
from edje_jax.config.model import AdapterConfig, EdjeConfig
from edje_jax.models.scorers import make_scorer
from edje_jax.search.reranker import Reranker
from edje_jax.training.losses.captioning import captioning_loss
from edje_jax.weights import edje, onnx
from edje_jax.weights.backbone import load_backbone
from edje_jax.weights.bert import load_language_model
from edje_jax.weights.captioner import from_language_model
from edje_jax.weights.card import model_card
from edje_jax.weights.folder import Model, load_model, save_model
from edje_jax.weights.mapping import to_theirs
from edje_jax.weights.published import save_published
from edje_jax.weights.tensors import Safetensors
from edje_jax.weights.torch import modeling_edje
from edje_jax.weights.torch.modeling_edje import CaptionerModel, EdjeModel

TINY = Path(__file__).parents[1] / "goldens" / "reference_tiny"
CAPTIONS = ["a dog", "two cats, on a mat", "x"]
VARIANTS = {
    "plain": (AdapterConfig("local", 0, 24), CaptionerConfig()),
    "stored": (AdapterConfig("compress", 5, 24, 2), CaptionerConfig("both", "mean", "stored")),
    "backward": (AdapterConfig("local", 0, 24, 4), CaptionerConfig("backward", "sum")),
    "joint encoder": (AdapterConfig("compress", 5, 24, 4), None),
}
"""Adapter and captioner, by name."""


@functools.cache
def made(variant: str) -> Model:
    """A model of random weights, far from zero."""
    adapter, captioner = VARIANTS[variant]
    backbone = load_backbone(str(TINY / "siglip"))
    earlier = backbone.config.layers_for(adapter.upsampling)
    backbone = backbone.with_vision_tokens(earlier_layers=earlier)
    joint = load_language_model(str(TINY / "bert")).config
    config = EdjeConfig(
        backbone.config, adapter, joint, backbone.image, max_text_length=24, captioner=captioner
    )
    rng = np.random.default_rng(0)

    def draw(path, struct):
        value = rng.normal(0.0, 0.2, struct.shape).astype(np.float32)
        return value + 1 if path[-1].key == "scale" else value

    params = jax.tree_util.tree_map_with_path(draw, edje.expected_params(config))
    return Model(config, params, backbone, TINY / "bert", "made")


@pytest.fixture(scope="module", params=VARIANTS)
def folder(request, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("models") / "model"
    out.mkdir()
    save_model(out, made(request.param), model_card(made(request.param)))
    return out


@pytest.fixture(scope="module")
def captioner(tmp_path_factory) -> Path:
    """The model folder of "plain"."""
    out = tmp_path_factory.mktemp("captioner") / "model"
    out.mkdir()
    save_model(out, made("plain"), model_card(made("plain")))
    return out


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    side = made("plain").config.image.size
    return np.random.default_rng(0).normal(size=(3, side, side, 3)).astype(np.float32)


def of_jax(folder: Path, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stored tokens, and scores of each image's own caption."""
    reranker = Reranker.from_pretrained(folder)
    tokens = reranker.encode_images(pixel_values=pixels)
    return tokens, reranker.score(CAPTIONS, tokens)


def test_a_folder_is_the_same_model_again(folder, tmp_path):
    again, config = load_model(str(folder)), json.loads((folder / "config.json").read_text())
    (model,) = (made(name) for name in VARIANTS if made(name).config == again.config)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    assert config["format"] == 7
    assert config.get("kind", "edje") == model.config.kind
    assert config["num_tokens"] == model.config.num_tokens
    (tmp_path / "copy").mkdir()
    save_model(tmp_path / "copy", again, model_card(model))
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()


@torch.no_grad()
def test_the_pytorch_module_gives_tokens_and_scores_of_jax(folder, pixels):
    tokens, scores = of_jax(folder, pixels)
    images = torch.from_numpy(np.moveaxis(pixels, -1, 1).copy())
    models: list[Any] = [
        EdjeModel.from_folder(folder),
        AutoModel.from_pretrained(folder, trust_remote_code=True).eval(),
    ]
    for model in models:
        theirs, text = model.encode_image(images), model.tokenize(CAPTIONS)
        assert theirs.shape[1] == model.num_tokens
        scale = np.abs(tokens).max()
        np.testing.assert_allclose(theirs / scale, tokens / scale, rtol=0, atol=1e-5)
        found = model.score(**text, tokens=theirs)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, scores, rtol=1e-5, atol=2e-5)
        read = model.read_text(**model.tokenize(CAPTIONS[1:2]))
        one = model.score_read(*read, theirs)
        np.testing.assert_allclose(one[1], scores[1], rtol=1e-5, atol=2e-5)
        assert torch.equal(model.probability(found), torch.sigmoid(found))


@torch.no_grad()
def test_every_token_s_log_probability_is_that_of_jax(captioner):
    model, ours = EdjeModel.from_folder(captioner), made("plain")
    assert isinstance(model, CaptionerModel)
    text = model.tokenize(CAPTIONS)
    tokens = np.random.default_rng(1).normal(size=(3, 4, 32)).astype(np.float32)
    theirs = model.log_probabilities(*text.values(), tokens=torch.from_numpy(tokens))
    ids = jnp.asarray(text["input_ids"].numpy(), jnp.int32)
    scorer = make_scorer(ours.config).bind({"params": ours.params})
    expected = jax.jit(lambda *given: scorer.log_probabilities(*given))(ids, jnp.asarray(tokens))
    np.testing.assert_array_equal(expected.present, text["attention_mask"][:, 1:].bool())
    np.testing.assert_allclose(theirs, expected.values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", ["plain", "backward", "stored"])
def test_gradients_of_the_captioning_loss_are_those_of_pytorch(variant):
    """Every parameter takes part, from the backbone's tokens on: the loss is that beside images and
    that without."""
    model = made(variant)
    config = model.config
    rng = np.random.default_rng(4)
    shape = (3, config.backbone.num_vision_tokens, config.backbone.token_width)
    vision = rng.normal(size=shape).astype(np.float32)
    ids = np.where(np.arange(9) < [[4], [9], [6]], rng.integers(1, 40, (3, 9)), 0)
    ids[:, 0] = 2

    @jax.jit
    def loss(params):
        scorer, text = make_scorer(config).bind({"params": params}), jnp.asarray(ids, jnp.int32)
        tokens, valid = scorer.compress(jnp.asarray(vision)), jnp.ones(3, bool)
        return captioning_loss(scorer.log_probabilities(text, tokens), valid) + captioning_loss(
            scorer.log_probabilities(text, None), valid
        )

    value, gradient = jax.value_and_grad(loss)(jax.tree.map(jnp.asarray, model.params))
    ours = to_theirs(edje.rules(config), gradient)

    theirs = torch_model(model)
    text = torch.from_numpy(ids).long()
    mask = (text != 0).long()
    tokens = theirs.vision_projection(torch.from_numpy(vision))
    count = mask[:, 1:].sum()
    without = theirs.log_probabilities(text, mask, theirs.no_image.expand(3, -1, -1))
    total = -(theirs.log_probabilities(text, mask, tokens).sum() + without.sum()) / count
    total.backward()
    assert float(value) == pytest.approx(total.item(), rel=1e-6)
    gradients: dict[str, Any] = {name: p.grad for name, p in theirs.named_parameters()}
    assert gradients.keys() == ours.keys()
    largest = max(np.abs(one).max() for one in ours.values())
    for name, one in gradients.items():
        scale = max(one.abs().max().item(), 1e-3 * largest)
        np.testing.assert_allclose(ours[name], one, rtol=0, atol=1e-4 * scale, err_msg=name)


def torch_model(model: Model) -> CaptionerModel:
    """The PyTorch module of a model, without a folder."""
    config, captioner = model.config, model.config.captioner
    assert captioner is not None
    made = CaptionerModel(
        modeling_edje.EdjeConfig(
            adapter=dataclasses.asdict(config.adapter),
            joint_encoder=dataclasses.asdict(config.joint_encoder),
            vision_width=config.backbone.vision.hidden_size,
            vision_heads=config.backbone.vision.num_attention_heads,
            captioner=dataclasses.asdict(captioner),
        )
    )
    tensors = to_theirs(edje.rules(config), model.params)
    made.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    return made


def test_it_ranks_as_a_cross_encoder(captioner, tmp_path):
    rng = np.random.default_rng(1)
    for i in range(3):
        noise = rng.integers(0, 256, (20 + i, 30, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    images = [str(tmp_path / f"{i}.png") for i in range(3)]
    reranker = Reranker.from_pretrained(captioner)
    expected = reranker.score(["a dog"] * 3, reranker.encode_images(images))
    encoder = CrossEncoder(str(captioner), trust_remote_code=True, device="cpu")
    pairs = [("a dog", path) for path in images]
    raw = encoder.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    np.testing.assert_allclose(raw, expected, atol=1e-3)
    ranked = encoder.rank("a dog", images)
    assert [hit["corpus_id"] for hit in ranked] == np.argsort(-expected).tolist()


def test_transformers_saves_a_folder_that_jax_reads(captioner, tmp_path):
    AutoModel.from_pretrained(captioner, trust_remote_code=True).save_pretrained(tmp_path / "a")
    again = load_model(str(tmp_path / "a"))
    assert again.config == made("plain").config
    jax.tree.map(np.testing.assert_array_equal, again.params, made("plain").params)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"score": "best"}, r'config\.json: captioner: score "best": sum, mean, pmi; export'),
        ({"layers": 3}, r"config\.json: .*Captioner.* 'layers'.*; export the model again"),
    ],
)
def test_what_is_unknown_of_a_captioner_is_told(captioner, tmp_path, entry, message):
    broken = shutil.copytree(captioner, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    config["captioner"] |= entry
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as told:
        load_model(str(broken))
    assert "\n" not in str(told.value)
    if "score" in entry:
        with pytest.raises(ValueError, match=r'captioner: score "best": sum, mean, pmi'):
            EdjeModel.from_folder(broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "poet"}, r"config\.json: kind 'poet': edje or captioner; export"),
        ({"captioner": None}, r'config\.json: kind "captioner", and no entry of that name; export'),
    ],
)
def test_a_folder_of_an_unknown_kind_is_refused(captioner, tmp_path, change, message):
    broken = shutil.copytree(captioner, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text()) | change
    config = {name: value for name, value in config.items() if value is not None}
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_model(str(broken))


@pytest.mark.parametrize(
    ("variant", "what"),
    [("plain", "a captioner's decoders"), ("joint encoder", "an adapter that upsamples")],
)
def test_the_published_layout_has_neither(variant, what, tmp_path):
    with pytest.raises(ValueError, match=f"has {what}, of which the published code knows nothing"):
        save_published(tmp_path / "model.pth", made(variant))
    assert not list(tmp_path.iterdir())


def test_names_are_those_of_transformers(captioner):
    names = set(Safetensors([captioner / "model.safetensors"]))
    assert "forward_decoder.layer.0.crossattention.self.key.weight" in names
    assert "language_model.cls.predictions.transform.dense.weight" in names
    assert not [name for name in names if "classification_head" in name or ".encoder." in name]


def test_decoders_begin_as_an_encoder():
    trunk = {
        "embeddings": {"word": {"embedding": np.ones(3)}},
        "layers_0": {"query": {"kernel": np.full(2, 2.0)}},
        "masked_lm_head": {"bias": np.full(4, 3.0)},
        "pooler": {"kernel": np.zeros(1)},
    }
    found = from_language_model(trunk, CaptionerConfig())
    flat: dict[str, Any] = dict(flatten_dict(found, sep="/"))
    assert set(flat) == {
        "captioner/embeddings/word/embedding",
        "captioner/forward/layers_0/query/kernel",
        "captioner/backward/layers_0/query/kernel",
        "captioner/word_head/bias",
    }
    assert flat["captioner/backward/layers_0/query/kernel"][0] == 2.0
    assert set(from_language_model(trunk, CaptionerConfig("forward"))["captioner"]) == {
        "embeddings", "forward", "word_head",
    }  # fmt: skip


# --- ONNX -----------------------------------------------------------------------------------------


def exported(folder: Path, out: Path, monkeypatch, *endings: str) -> Path:
    """ONNX files of some precisions, as each takes seconds to be traced."""
    kept = {ending: onnx.PRECISIONS[ending] for ending in endings}
    monkeypatch.setattr(onnx, "PRECISIONS", kept)
    convert(str(folder), str(out), "onnx")
    return out


@pytest.mark.extra
def test_onnxruntime_reads_a_caption_once_for_all_its_candidates(captioner, tmp_path, monkeypatch):
    files = exported(captioner, tmp_path / "onnx", monkeypatch, "", "-fp16")
    model, caption = EdjeModel.from_folder(captioner), np.array([1, 0, 1, 1, 0])
    two = model.tokenize(CAPTIONS[:2])
    text = {name: value.numpy() for name, value in two.items()}
    tokens = np.random.default_rng(2).normal(size=(5, model.num_tokens, 32)).astype(np.float32)
    pairs = {name: value[caption] for name, value in two.items()}
    whole = model.score(**pairs, tokens=torch.from_numpy(tokens)).detach().numpy()
    for ending, dtype, tolerance in (("", np.float32, 2e-4), ("-fp16", np.float16, 0.1)):
        (alone,) = onnx.run(files / f"text{ending}.onnx", **text)
        (found,) = onnx.run(
            files / f"online{ending}.onnx",
            **text,
            without_image=alone,
            caption=caption,
            tokens=tokens.astype(dtype),
        )
        assert found.dtype == alone.dtype == np.float32
        np.testing.assert_allclose(found, whole, rtol=0, atol=tolerance)


@pytest.mark.extra
def test_onnxruntime_makes_the_tokens_of_a_finer_grid(pixels, tmp_path, monkeypatch):
    """And scores them by one direction, of which there is nothing to compute before."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(folder, made("backward"), "A card.\n")
    files = exported(folder, tmp_path / "onnx", monkeypatch, "")
    expected, scores = of_jax(folder, pixels)
    (tokens,) = onnx.run(files / "offline.onnx", pixel_values=np.moveaxis(pixels, -1, 1))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(tokens / scale, expected / scale, rtol=0, atol=2e-5)
    text = EdjeModel.from_folder(folder).tokenize(CAPTIONS)
    (found,) = onnx.run(
        files / "online.onnx", **{name: ids.numpy() for name, ids in text.items()}, tokens=tokens
    )
    np.testing.assert_allclose(found, scores, rtol=1e-5, atol=2e-4)
    assert not (files / "text.onnx").exists()
