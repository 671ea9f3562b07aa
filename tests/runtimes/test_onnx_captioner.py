"""Captioners by both runtimes: the scores of the model in JAX, and near to them in int8."""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from edje_jax.config.captioner import CaptionerConfig
from edje_jax.config.frames import FrameSampling, VideoConfig
from edje_jax.config.model import AdapterConfig, BertConfig, EdjeConfig
from edje_jax.models.captioner import Captioner
from edje_jax.runtimes.devices import Compute
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.runtimes.onnx import OnnxRuntime
from edje_jax.runtimes.onnx_export import Export
from edje_jax.weights import edje

PMI = EdjeConfig(
    adapter=AdapterConfig("compress", 8, 32),
    joint_encoder=BertConfig(40, 32, 64, 2, 4, max_position_embeddings=12),
    max_text_length=12,
    captioner=CaptionerConfig(),
)
QUICK = dataclasses.replace(PMI.joint_encoder, hidden_act="quick_gelu")
VARIANTS = {
    "pmi": PMI,
    "stored, mean": dataclasses.replace(
        PMI, captioner=CaptionerConfig("both", "mean", "stored"), joint_encoder=QUICK
    ),
    "backward, sum": dataclasses.replace(PMI, captioner=CaptionerConfig("backward", "sum")),
    "video": dataclasses.replace(
        PMI, adapter=AdapterConfig("compress", 2, 32), video=VideoConfig(FrameSampling(4))
    ),
}
RNG = np.random.default_rng(0)
TOKENS = RNG.normal(size=(5, 8, 32)).astype(np.float32)
SHORT = TOKENS * (np.arange(8)[:, None] < np.array([8, 2, 4, 8, 6])[:, None, None])
"""Tokens of videos of four frames and fewer, two tokens each."""
IDS = np.where(np.arange(12) < [[3], [9], [5], [12], [9], [2]], RNG.integers(1, 40, (6, 12)), 0)
IDS = IDS.astype(np.int32)
INT8 = Compute(jnp.float32, True)
TEXT, IMAGE = np.indices((6, 5)).reshape(2, -1)


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory):
    """An empty cache folder, where graphs of models without a folder are kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@cache
def params(config: EdjeConfig) -> dict:
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32),
        edje.expected_params(config),
    )


def of_jax(config: EdjeConfig, scoring: Compute = Compute()) -> JaxRuntime:
    """Runtime of a model of random weights, which can only score."""
    none = None
    return JaxRuntime(config, params(config), {}, none, none, scoring=scoring)  # type: ignore[arg-type]


def of_onnx(config: EdjeConfig, precision: str = "float32") -> OnnxRuntime:
    export = Export(config, params(config)["captioner"], precision, "made up")  # type: ignore[arg-type]
    return OnnxRuntime(of_jax(config), export)


def tokens_of(config: EdjeConfig) -> np.ndarray:
    return SHORT if config.video else TOKENS


@cache
def expected(config: EdjeConfig) -> np.ndarray:
    """Scores of all pairs by the model itself."""
    model = Captioner(config)
    match = jax.jit(partial(model.apply, method="match"))
    return np.asarray(
        match(
            {"params": params(config)},
            jnp.asarray(IDS[TEXT]),
            jnp.asarray(tokens_of(config)[IMAGE]),
        )
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("opened", [of_jax, of_onnx])
def test_scores_are_those_of_the_model(variant, opened):
    config = VARIANTS[variant]
    assert expected(config).std() > 0.1
    scores = opened(config).score_pairs(IDS, tokens_of(config), TEXT, IMAGE)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected(config), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "made", [partial(of_jax, scoring=INT8), partial(of_onnx, precision="int8")], ids=["jax", "onnx"]
)
def test_int8_orders_pairs_nearly_as_float32(made):
    runtime = made(PMI)
    scores, plain = runtime.score_pairs(IDS, TOKENS, TEXT, IMAGE), expected(PMI)
    assert 1e-4 < np.abs(scores - plain).max() < 0.2 * plain.std()
    correlation: Any = spearmanr(scores, plain)
    assert correlation.statistic > 0.98


def test_a_caption_is_read_once_and_a_pair_scores_the_same_in_any_company(monkeypatch):
    runtime, read = of_onnx(PMI, "int8"), []
    real = runtime._text

    class Noting:
        def run(self, names, inputs):
            read.append(tuple(inputs["ids"][0].tolist()))
            return real.run(names, inputs)

    monkeypatch.setitem(vars(runtime), "_text", Noting())
    scores = runtime.score_pairs(IDS, TOKENS, TEXT, IMAGE)
    assert sorted(read) == sorted(tuple(ids[ids > 0].tolist()) for ids in IDS)
    for pair in (0, 17, 29):
        (alone,) = runtime.score_pairs(IDS, TOKENS, TEXT[[pair]], IMAGE[[pair]])
        assert float(alone) == float(scores[pair])


def test_graphs_of_other_settings_have_other_names():
    names = {of_onnx(config).export.fingerprint for config in VARIANTS.values()}
    assert len(names) == len(VARIANTS)
