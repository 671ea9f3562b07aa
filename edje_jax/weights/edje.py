"""The table of EDJE: the published code's state dict <-> `edje_jax.models.edje`."""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from edje_jax.config.model import AdapterConfig, EdjeConfig
from edje_jax.models.scorers import make_scorer
from edje_jax.models.upsampling import STEPS
from edje_jax.weights import bert, captioner
from edje_jax.weights.mapping import Layout, Rule, linear, norm, to_ours, torch_attention, under

# Present in published checkpoints besides the trained parts: the frozen towers, and tensors that
# repeat another (text_embeddings and the decoder are the word table and the LM bias).
_FROZEN = re.compile(r"^(vision_encoder|clip)\.")
REPEATED = {
    "text_embeddings.weight": "language_model.bert.embeddings.word_embeddings.weight",
    "language_model.cls.predictions.decoder.weight": (
        "language_model.bert.embeddings.word_embeddings.weight"
    ),
    "language_model.cls.predictions.decoder.bias": "language_model.cls.predictions.bias",
}


def rules(config: EdjeConfig) -> list[Rule]:
    """Every trained parameter, without the frozen towers."""
    vision = under("adapter/", "vision_projection.", adapter_rules(config.adapter))
    if config.captioner:
        return [*vision, *captioner.rules(config.joint_encoder, config.captioner)]
    trunk = [*bert.trunk_rules(config.joint_encoder), *bert.head_rules()]
    return [
        *vision,
        *under("joint_encoder/", "language_model.", trunk),
        *linear("joint_encoder/pooler", "classification_head.0.dense"),
        *linear("joint_encoder/classifier", "classification_head.1"),
        *linear("joint_encoder/text_recovery", "text_projection"),
        *(rule for name in config.joint_heads for rule in head_rules(config, name)),
    ]


def head_rules(config: EdjeConfig, head: str) -> list[Rule]:
    """A head that no published checkpoint has: its tensors are called as in PyTorch, after the
    head."""
    table = []
    for path in flatten_dict(expected_params(config)["joint_encoder"][head], sep="/"):
        *layers, leaf = f"{head}/{path}".split("/")
        name, layout = _TORCH.get(leaf, (leaf, "same"))
        table.append(Rule(f"joint_encoder/{head}/{path}", ".".join((*layers, name)), layout))
    return table


_TORCH: dict[str, tuple[str, Layout]] = {
    "kernel": ("weight", "transpose"),
    "scale": ("weight", "same"),
}
"""Names of PyTorch for leaves of ours, and their layouts there."""


def adapter_rules(config: AdapterConfig) -> list[Rule]:
    """Either adapter's parameters."""
    finer = upsampling_rules(STEPS[config.upsampling])
    if config.kind == "local":
        return [*finer, *linear("fc1", "0"), *linear("fc2", "2")]
    return [
        *finer,
        Rule("query", "query"),
        *linear("key", "key"),
        *linear("value", "value"),
        *torch_attention("attention", "attention"),
        *norm("layernorm", "layernorm"),
        *linear("mlp/fc1", "mlp.fc1"),
        *linear("mlp/fc2", "mlp.fc2"),
        *linear("projection", "projection"),
    ]


def upsampling_rules(steps: int) -> list[Rule]:
    """The steps of a `GridUpsampler`."""
    return [
        rule
        for step in range(1, steps + 1)
        for rule in (
            *linear(f"upsampling/lateral_{step}", f"upsampling.lateral_{step}"),
            Rule(f"upsampling/shares_{step}", f"upsampling.shares_{step}"),
            Rule(
                f"upsampling/depthwise_{step}/kernel",
                f"upsampling.depthwise_{step}.weight",
                "depthwise",
            ),
            Rule(f"upsampling/depthwise_{step}/bias", f"upsampling.depthwise_{step}.bias"),
            *norm(f"upsampling/norm_{step}", f"upsampling.norm_{step}"),
        )
    ]


def read_params(
    tensors: Mapping[str, np.ndarray], config: EdjeConfig, source: str
) -> PyTree[np.ndarray]:
    """The trained parts of a state dict under the published names.

    Raises:
        WeightMismatch: tree or shapes differ; every difference is listed.
    """
    table = rules(config)
    known = {rule.theirs for rule in table} | set(REPEATED)
    extra = [name for name in tensors if name not in known and not _FROZEN.match(name)]
    return to_ours(table, tensors, expected_params(config), source, extra)


def adapter_config(tensors: Mapping[str, np.ndarray], source: str) -> AdapterConfig:
    """Which adapter a published state dict carries, from its names and shapes.

    Raises:
        ValueError: neither of the two.
    """
    query, mlp, local = (
        np.shape(tensors.get(f"vision_projection.{name}", 0))
        for name in ("query", "mlp.fc1.weight", "0.weight")
    )
    if len(query) == 3 and len(mlp) == 2:
        return AdapterConfig("compress", query[1], mlp[0])
    if len(local) == 2:
        return AdapterConfig("local", 0, local[0])
    raise ValueError(f"{source}: holds no vision_projection; is this an EDJE checkpoint?")


def expected_params(config: EdjeConfig) -> PyTree[jax.ShapeDtypeStruct]:
    """Tree, shapes and dtypes of the trained parameters; nothing is allocated."""
    tokens = jnp.zeros((1, *config.vision_shape))
    ids = jnp.ones((1, 3), jnp.int32)
    return jax.eval_shape(make_scorer(config).init, jax.random.key(0), tokens, ids)["params"]
