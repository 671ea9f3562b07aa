"""Real sizes, without a real weight: what the configs of the paper's models add up to.

Covers config/model.py.
"""

import jax
import jax.numpy as jnp
import pytest

from edje_jax.config.model import (
    AdapterConfig,
    BackboneConfig,
    BertConfig,
    EdjeConfig,
    TextConfig,
    VisionConfig,
)
from edje_jax.models.edje import Edje
from edje_jax.models.siglip import Siglip

B16 = VisionConfig(768, 3072, 12, 12, image_size=384, patch_size=16)
L16 = VisionConfig(1024, 4096, 24, 16, image_size=384, patch_size=16)


def edje_config(vision: VisionConfig, adapter: AdapterConfig) -> EdjeConfig:
    text = TextConfig(vocab_size=256_000, projection_size=vision.hidden_size)
    return EdjeConfig(BackboneConfig("siglip", vision, text), adapter)


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def edje_shapes(config: EdjeConfig) -> dict:
    vision = config.backbone.vision
    tokens = jax.ShapeDtypeStruct((1, vision.num_patches, vision.hidden_size), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    return jax.eval_shape(Edje(config).init, jax.random.key(0), tokens, ids)["params"]


def vision_formula(c: VisionConfig) -> int:
    """Parameters of a SigLIP vision tower, from its description."""
    d, inner = c.hidden_size, c.intermediate_size
    norm, mlp, attention = 2 * d, 2 * d * inner + inner + d, 4 * (d * d + d)
    embeddings = 3 * c.patch_size**2 * d + d + c.num_patches * d
    head = d + attention + norm + mlp  # the probe, then one block over it
    return embeddings + c.num_hidden_layers * (attention + mlp + 2 * norm) + norm + head


def bert_formula(c: BertConfig) -> int:
    """Parameters of a BERT without a pooler, from its description."""
    d, inner = c.hidden_size, c.intermediate_size
    norm, mlp, attention = 2 * d, 2 * d * inner + inner + d, 4 * (d * d + d)
    rows = c.vocab_size + c.max_position_embeddings + c.type_vocab_size
    return rows * d + norm + c.num_hidden_layers * (attention + mlp + 2 * norm)


def test_the_joint_encoder_has_33_million_parameters():
    """MiniLM-L12-H384 is `BertConfig`'s default, here with the image placeholder's row."""
    config = edje_config(L16, AdapterConfig("compress", 64))
    parts = edje_shapes(config)["joint_encoder"]
    match_head = {name: parts.pop(name) for name in ("pooler", "classifier")}
    training_heads = {name: parts.pop(name) for name in ("masked_lm_head", "text_recovery")}
    trunk = count(parts)
    assert trunk == bert_formula(config.joint_encoder) == 33_212_544
    assert count(match_head) == 384 * 384 + 384 + 384 + 1
    # What scoring a pair takes: the paper's 33M.
    assert trunk + count(match_head) == 33_360_769
    assert count(training_heads) == (384 * 384 + 384) + 2 * 384 + 30_523 + (384 * 1024 + 1024)


@pytest.mark.parametrize(
    "vision, total", [(B16, 93_176_064), (L16, 316_283_904)], ids=["B/16-384", "L/16-384"]
)
def test_siglip_vision_towers(vision, total):
    config = BackboneConfig("siglip", vision, TextConfig(projection_size=vision.hidden_size))
    pixels = jax.ShapeDtypeStruct((1, 384, 384, 3), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 64), jnp.int32)
    params = jax.eval_shape(Siglip(config).init, jax.random.key(0), pixels, ids)["params"]
    assert count(params["vision"]) == vision_formula(vision) == total
    out = jax.eval_shape(
        lambda p, x: Siglip(config).apply({"params": p}, x, method="encode_image"), params, pixels
    )
    assert out.tokens.shape == (1, 576, vision.hidden_size)
    assert out.embedding.shape == (1, vision.hidden_size)
    assert len(out.hidden_states) == vision.num_hidden_layers + 1


@pytest.mark.parametrize(
    "kind, num_tokens, size", [("compress", 64, 49_152), ("compress", 128, 98_304),
                               ("local", 0, 442_368)],
)  # fmt: skip
def test_what_an_image_takes_on_disk(kind, num_tokens, size):
    """The paper's 49 kB, 98 kB and 442 kB."""
    config = edje_config(L16, AdapterConfig(kind, num_tokens))
    model = Edje(config, jnp.bfloat16)
    params = {"params": edje_shapes(config)}
    vision_tokens = jax.ShapeDtypeStruct((1, 576, 1024), jnp.float32)
    tokens = jax.eval_shape(
        lambda p, x: model.apply(p, x, method="compress"), params, vision_tokens
    )
    assert tokens.shape == (1, config.num_tokens, 384)
    assert tokens.size * tokens.dtype.itemsize == size


@pytest.mark.parametrize(
    "vision, adapter, expected",
    [
        (L16, AdapterConfig("compress", 64), 64),
        (L16, AdapterConfig("compress", 128), 128),
        (L16, AdapterConfig("local", 0), 576),
        (VisionConfig(image_size=224, patch_size=16), AdapterConfig("local"), 196),
        (VisionConfig(image_size=64, patch_size=8), AdapterConfig("local", 5), 64),
    ],
)
def test_num_tokens(vision, adapter, expected):
    assert edje_config(vision, adapter).num_tokens == expected
