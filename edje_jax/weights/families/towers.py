"""Parts that the weight tables of all dual encoders share."""

from typing import Any, TypeVar

from edje_jax.config.model import TextConfig, VisionConfig
from edje_jax.weights.mapping import Rule, linear, norm, under

Tower = TypeVar("Tower", VisionConfig, TextConfig)

ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "quick_gelu")


def layer_rules(layers: int) -> list[Rule]:
    """The layers of a tower."""
    one = [
        *norm("layer_norm1", "layer_norm1"),
        *(
            rule
            for name in ("q_proj", "k_proj", "v_proj", "out_proj")
            for rule in linear(f"self_attn/{name}", f"self_attn.{name}")
        ),
        *norm("layer_norm2", "layer_norm2"),
        *linear("mlp/fc1", "mlp.fc1"),
        *linear("mlp/fc2", "mlp.fc2"),
    ]
    return [
        rule for i in range(layers) for rule in under(f"layers_{i}/", f"encoder.layers.{i}.", one)
    ]


def pick(kind: type[Tower], raw: dict[str, Any], source: str) -> Tower:
    """The fields of a tower's config from Hugging Face's.

    Raises:
        ValueError: an activation that the towers do not have.
    """
    check_activation(raw, source)
    return kind(**{name: raw[name] for name in kind.__dataclass_fields__ if name in raw})


def check_activation(raw: dict[str, Any], source: str) -> None:
    """
    Raises:
        ValueError: an activation that the towers do not have.
    """
    if raw["hidden_act"] not in ACTIVATIONS:
        raise ValueError(
            f"{source}: hidden_act {raw['hidden_act']!r} is not supported; supported are"
            f" {', '.join(ACTIVATIONS)}"
        )
