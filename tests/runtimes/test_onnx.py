"""Pairs by ONNX Runtime: the logits of JAX, in float32 and nearly in int8.

Covers runtimes/onnx_graph.py and runtimes/registry.py.
"""

import dataclasses
import json
import sys
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fastapi.testclient import TestClient
from scipy.stats import spearmanr

from edje_jax import ImageIndex, Reranker
from edje_jax.cli.edje import main
from edje_jax.cli.program import UsageError
from edje_jax.config.frames import FrameSampling, VideoConfig
from edje_jax.config.model import (
    AdapterConfig,
    BertConfig,
    EdjeConfig,
    RuntimeName,
    SimilarityPrior,
)
from edje_jax.models.edje import Edje
from edje_jax.models.token_formats import FORMATS, pack, unpack
from edje_jax.runtimes import onnx
from edje_jax.runtimes.base import Runtime
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.runtimes.onnx import OnnxRuntime
from edje_jax.runtimes.onnx_export import Export
from edje_jax.runtimes.registry import RUNTIMES, open_runtime
from edje_jax.scenes.shapes import Shapes
from edje_jax.serving.app import make_app
from edje_jax.serving.service import Service
from edje_jax.weights.folder import load_model

# The longest pairs have more positions than the table.
JOINT = BertConfig(40, 32, 64, 3, 4, max_position_embeddings=18)
PLAIN = EdjeConfig(
    adapter=AdapterConfig("compress", 8, 32), joint_encoder=JOINT, max_text_length=12
)
VIDEO = dataclasses.replace(
    PLAIN, adapter=AdapterConfig("compress", 2, 32), video=VideoConfig(FrameSampling(4))
)
VARIANTS = {
    "published": PLAIN,
    "deferred": dataclasses.replace(
        PLAIN, joint_encoder=dataclasses.replace(JOINT, deferred_layers=1, hidden_act="quick_gelu")
    ),
    "attended": dataclasses.replace(
        PLAIN,
        joint_encoder=dataclasses.replace(
            JOINT, deferred_layers=1, online_vision="attended", hidden_act="gelu_pytorch_tanh"
        ),
    ),
    "prior": dataclasses.replace(PLAIN, similarity_prior=SimilarityPrior(0.2, 0.5)),
    "video": VIDEO,
    "attended video": dataclasses.replace(
        VIDEO,
        joint_encoder=dataclasses.replace(JOINT, deferred_layers=1, online_vision="attended"),
    ),
}
RNG = np.random.default_rng(0)
TOKENS = RNG.normal(size=(5, 8, 32)).astype(np.float32)
SHORT = TOKENS * (np.arange(8)[:, None] < np.array([8, 2, 4, 8, 6])[:, None, None])
"""Tokens of videos of four frames and fewer, two tokens each."""
IDS = np.where(np.arange(12) < [[3], [9], [5], [12], [9], [5]], RNG.integers(1, 40, (6, 12)), 0)
TEXT, IMAGE = np.indices((6, 5)).reshape(2, -1)
COSINES = RNG.normal(size=30)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """An empty cache folder, where graphs of models without a folder are kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def made(config: EdjeConfig, precision: str = "float32") -> OnnxRuntime:
    """Runtime of a model of random weights, which can only score."""
    frames = (config.frames,) if config.video else ()
    vision = jnp.zeros((1, *frames, 4, config.backbone.vision.hidden_size))
    shapes = vision, jnp.ones((1, 3), jnp.int32)
    params = jax.eval_shape(Edje(config).init, jax.random.key(0), *shapes)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: rng.normal(scale=0.5, size=leaf.shape).astype(np.float32), params
    )
    none = None
    offline = JaxRuntime(config, params, {}, none, none)  # type: ignore[arg-type]
    return OnnxRuntime(offline, Export(config, params["joint_encoder"], precision, "made up"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_model_in_jax(variant):
    runtime = made(VARIANTS[variant])
    edje, params = Edje(runtime.config), {"params": runtime.offline.params}
    tokens = SHORT if runtime.config.video else TOKENS
    expected = jax.jit(
        lambda ids, tokens, cosines: edje.apply(
            params, ids, tokens, similarity=cosines, method="match"
        )
    )(IDS[TEXT], tokens[IMAGE], COSINES.astype(np.float32))
    expected = np.asarray(expected)
    assert expected.std() > 0.01
    logits = runtime.score_pairs(IDS, tokens, TEXT, IMAGE, COSINES)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    one = runtime.score_pairs(IDS, tokens, TEXT[[17]], IMAGE[[17]], COSINES[[17]])
    np.testing.assert_allclose(one, expected[[17]], rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_frames_that_are_not_there_change_nothing(precision):
    """A video of one frame scores as an image, also where rows of a call share a scale."""
    image = dataclasses.replace(VIDEO, video=None)
    first = np.array([0, 3, 5]), np.ones(3, int)
    found = made(VIDEO, precision).score_pairs(IDS, SHORT, *first)
    expected = made(image, precision).score_pairs(IDS, SHORT[:, :2], *first)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def plain() -> OnnxRuntime:
    return made(PLAIN)


def test_a_caption_is_read_once_and_a_pair_scores_the_same_in_any_company(monkeypatch):
    runtime, read = made(PLAIN, "int8"), []
    real = runtime._text

    class Noting:
        def run(self, names, inputs):
            read.append(tuple(inputs["ids"][0].tolist()))
            return real.run(names, inputs)

    monkeypatch.setitem(vars(runtime), "_text", Noting())
    monkeypatch.setattr(onnx, "GATHERED", 7)
    order = np.random.default_rng(3).permutation(np.tile(np.arange(30), 3))
    scores = runtime.score_pairs(IDS, TOKENS, TEXT[order], IMAGE[order])
    assert sorted(read) == sorted(tuple(ids[ids > 0].tolist()) for ids in IDS)
    for pair in (0, 17, 29):
        (alone,) = runtime.score_pairs(IDS, TOKENS, TEXT[[pair]], IMAGE[[pair]])
        assert set(scores[order == pair].tolist()) == {float(alone)}


@pytest.mark.parametrize("dtype", FORMATS)
def test_tokens_may_be_packed_or_of_jax(plain, dtype):
    packed = pack(TOKENS, dtype)
    whole = np.asarray(unpack(packed), np.float32)
    expected = plain.score_pairs(IDS, whole, TEXT, IMAGE)
    for tokens in (packed, jax.device_put(packed), jnp.asarray(whole)):
        scores = plain.score_pairs(IDS, tokens, TEXT, IMAGE)
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


def test_no_pairs_no_scores(plain):
    nothing = np.array([], int)
    assert plain.score_pairs(IDS, TOKENS, nothing, nothing).shape == (0,)


def test_a_prior_needs_cosines():
    with pytest.raises(ValueError, match=r"similarity prior: .* give similarities"):
        made(VARIANTS["prior"]).score_pairs(IDS, TOKENS, TEXT, IMAGE)


# --- a trained model ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rerankers() -> dict[str, Reranker]:
    """The shipped model by ONNX Runtime, by precision."""
    return {
        precision: Reranker.from_pretrained("shapes-demo", precision=precision, runtime="onnx")
        for precision in ("float32", "int8")
    }


@pytest.fixture(scope="module")
def indexed(tmp_path_factory) -> str:
    """Index of 24 scenes with two captions each."""
    folder = tmp_path_factory.mktemp("scenes")
    source, records = Shapes("test"), []
    for i in range(24):
        source.image(i).save(folder / f"{i}.png")
        records.append({"image": f"{i}.png", "caption": list(source.captions(i))[:2]})
    (folder / "set.json").write_text(json.dumps(records))
    out = str(folder / "index")
    spec = f"blip:{folder / 'set.json'}"
    main(["index", "build", "shapes-demo", spec, "--out", out, "--encoder-precision", "float32"])
    return out


def test_int8_orders_pairs_nearly_as_float32(rerankers, indexed):
    index = ImageIndex.open(indexed)
    captions = [caption for _, caption in index.store.captions]
    text, image = np.indices((len(captions), len(index))).reshape(2, -1)
    ids = rerankers["int8"].runtime.joint_tokenizer(captions)
    logits = {
        name: one.runtime.score_pairs(ids, index.tokens, text, image)
        for name, one in rerankers.items()
    }
    assert np.abs(logits["int8"] - logits["float32"]).max() > 1e-3
    assert spearmanr(logits["int8"], logits["float32"]).statistic >= 0.98


def test_a_search_finds_what_jax_finds(rerankers, indexed, capsys):
    index = ImageIndex.open(indexed)
    query = index.store.captions[7][1]
    (expected,) = Reranker.from_pretrained("shapes-demo").search(index, [query], k=8, top_k=8)
    (found,) = rerankers["float32"].search(index, [query], k=8, top_k=8)
    assert [one["id"] for one in found] == [one["id"] for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
    main(["search", indexed, query, "--k", "8", "--top", "8", "--json", "--runtime", "onnx"])
    assert json.loads(capsys.readouterr().out) == found


def test_a_server_answers_by_it(rerankers, indexed):
    service = Service(rerankers["int8"], ImageIndex.open(indexed))
    query = service.index.store.captions[7][1]
    (expected,) = rerankers["int8"].search(service.index, [query], k=5, top_k=5)
    with TestClient(make_app(service, warm=False)) as client:
        found = client.post("/search", json={"query": query, "k": 5, "top_k": 5}).json()["results"]
    assert [one["id"] for one in found] == [one["id"] for one in expected]
    assert found[0]["score"] == pytest.approx(expected[0]["score"], abs=1e-5)


def test_a_warm_up_compiles_nothing_of_jax_for_pairs(rerankers, indexed, monkeypatch):
    monkeypatch.setattr("edje_jax.runtimes.jax.score", None)
    rerankers["float32"].runtime.warm(ImageIndex.open(indexed).tokens)


def test_it_is_a_runtime_that_names_the_same_model(rerankers):
    runtime, jaxs = rerankers["int8"].runtime, open_runtime(load_model("shapes-demo"))
    assert isinstance(runtime, Runtime) and isinstance(jaxs, JaxRuntime)
    assert runtime.fingerprint() == jaxs.fingerprint()
    assert runtime.count_parameters() == jaxs.count_parameters()


def test_the_command_line_takes_every_runtime():
    assert list(RUNTIMES) == list(get_args(RuntimeName))


# --- misuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bfloat16"}, "'bfloat16': the runtime onnx has auto, float32, int8"),
        ({"precision": "int4"}, "precision 'int4': give one of auto, float32, bfloat16, int8"),
        ({"runtime": "tensorrt"}, "runtime 'tensorrt': give one of jax, onnx"),
    ],
)
def test_a_runtime_or_precision_that_there_is_not(options, message):
    with pytest.raises(ValueError, match=message):
        Reranker.from_pretrained("shapes-demo", **{"runtime": "onnx", **options})


def test_a_precision_that_onnx_has_not_is_told_before_the_model_is_loaded(indexed):
    command = ["search", indexed, "red", "--runtime", "onnx", "--precision", "bfloat16"]
    with pytest.raises(UsageError, match="--runtime onnx --precision bfloat16: give auto, float32"):
        main(command)


def test_without_the_extra_its_name_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match=r"onnxruntime.*pip install 'edje-jax\[onnx\]'"):
        Reranker.from_pretrained("shapes-demo", runtime="onnx")
