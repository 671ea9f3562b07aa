"""Parts that the families' files share: layers of a tower, and checked fields of a config.json."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from edje_jax.config.model import TextConfig, VisionConfig
from edje_jax.weights.mapping import Rule, linear, norm, under

VISION_FIELDS = get_type_hints(VisionConfig)
TEXT_FIELDS = get_type_hints(TextConfig)


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


def stated_fields(
    types: Mapping[str, Any], raw: Mapping[str, Any], source: str, section: str = ""
) -> dict[str, Any]:
    """Entries of a config.json, or of a section of it, for the fields that `types` names.

    A null counts as left out, but for the id of a token. `source` names the file in messages.

    Raises:
        ValueError: the section is no object, or a value is not of its field's type.
    """
    entries = raw.get(section) if section else raw
    if entries is None:
        return {}
    if not isinstance(entries, Mapping):
        raise _wrong(source, section, entries, "an object")
    found = {}
    for name, kind in types.items():
        value = entries.get(name)
        if name not in entries or (value is None and not name.endswith(_ID)):
            continue
        if expected := _expected(name, kind, value):
            raise _wrong(source, f"{section}.{name}".lstrip("."), value, expected)
        found[name] = value
    return found


def _expected(name: str, kind: Any, value: Any) -> str:
    """Description of the values that a field takes; "" if `value` is one of them."""
    if get_origin(kind) is Literal:
        return "" if value in get_args(kind) else f"one of {', '.join(get_args(kind))}"
    if name.endswith(_ID):
        fits, expected = value is None or type(value) is int, "a whole number"
    elif kind is int:
        fits, expected = type(value) is int and value > 0, "a whole number above 0"
    elif kind is float:
        fits, expected = type(value) in (int, float) and math.isfinite(value), "a number"
    else:
        fits, expected = type(value) is kind, "true or false"
    return "" if fits else expected


_ID = "_token_id"


def _wrong(source: str, key: str, value: object, expected: str) -> ValueError:
    return ValueError(
        f'{source}: "{key}" is {value!r}, not {expected}; correct it, or fetch the model again'
    )
