"""The table of a captioner's decoders, and their start from a language model.

No captioner of this kind was published. Names are those of transformers' BERT: a decoder's layers
are called as `BertLayer`s with `add_cross_attention`, after the decoder.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from edje_jax.config.captioner import CaptionerConfig
from edje_jax.config.model import BertConfig
from edje_jax.weights import bert
from edje_jax.weights.mapping import Rule, linear, norm, under


def layer_rules(captioner: CaptionerConfig) -> list[Rule]:
    """A layer of a decoder."""
    projected = [
        *linear("cross_key", "crossattention.self.key"),
        *linear("cross_value", "crossattention.self.value"),
    ]
    return [
        *bert.LAYER,
        *linear("cross_query", "crossattention.self.query"),
        *(projected if captioner.cross_attention == "projected" else ()),
        *linear("cross_output", "crossattention.output.dense"),
        *norm("cross_norm", "crossattention.output.LayerNorm"),
    ]


def rules(joint: BertConfig, captioner: CaptionerConfig) -> list[Rule]:
    """Every parameter of `captioner`."""
    shared = [*bert.embedding_rules(), *bert.head_rules("word_head")]
    layer = layer_rules(captioner)
    return [
        *under("captioner/", "language_model.", shared),
        *(
            rule
            for name in captioner.reads
            for rule in bert.layers_rules(joint, f"captioner/{name}/", f"{name}_decoder.", layer)
        ),
        Rule("captioner/no_image", "no_image"),
    ]


def from_language_model(
    params: Mapping[str, Any], captioner: CaptionerConfig
) -> PyTree[np.ndarray]:
    """Parameters of decoders that begin as an encoder: both directions as copies of its layers.

    Args:
        params: `embeddings`, `layers_i` and, if it has one, `masked_lm_head` of a joint encoder;
            further heads are left behind. Cross-attention is not among the result.
    """
    flat: dict[str, Any] = {}
    for path, leaf in flatten_dict(dict(params), sep="/").items():
        part, _, rest = str(path).partition("/")
        if part == "embeddings":
            flat[str(path)] = leaf
        elif part == "masked_lm_head":
            flat[f"word_head/{rest}"] = leaf
        elif part.startswith("layers_"):
            flat |= {f"{name}/{path}": leaf for name in captioner.reads}
    return {"captioner": unflatten_dict(flat, sep="/")}
