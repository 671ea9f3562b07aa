"""Weight maps as tables: one row per parameter, read in both directions.

A `Rule` pairs a path in our tree with a name in somebody's state dict and the layout between
them. Towers expand their rows over their layers; nothing else is special-cased.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple, cast

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

Layout = Literal["same", "transpose", "patch", "depthwise"]


class Rule(NamedTuple):
    """`ours` is a path with slashes, `theirs` a state-dict name."""

    ours: str
    theirs: str
    layout: Layout = "same"


class WeightMismatch(ValueError):
    """A checkpoint does not fit the model; the message lists what is missing, extra, misshapen."""


def linear(ours: str, theirs: str) -> list[Rule]:
    """A dense layer: torch keeps [out, in], we keep [in, out]."""
    return [
        Rule(f"{ours}/kernel", f"{theirs}.weight", "transpose"),
        Rule(f"{ours}/bias", f"{theirs}.bias"),
    ]


def norm(ours: str, theirs: str) -> list[Rule]:
    """A layer norm."""
    return [Rule(f"{ours}/scale", f"{theirs}.weight"), Rule(f"{ours}/bias", f"{theirs}.bias")]


def torch_attention(ours: str, theirs: str) -> list[Rule]:
    """torch's `MultiheadAttention`, with its fused input projection."""
    return [
        Rule(f"{ours}/in_proj_kernel", f"{theirs}.in_proj_weight", "transpose"),
        Rule(f"{ours}/in_proj_bias", f"{theirs}.in_proj_bias"),
        *linear(f"{ours}/out_proj", f"{theirs}.out_proj"),
    ]


def under(ours: str, theirs: str, rules: Iterable[Rule]) -> list[Rule]:
    """The rules moved below a path of ours and a prefix of theirs."""
    return [Rule(ours + rule.ours, theirs + rule.theirs, rule.layout) for rule in rules]


def to_ours(
    rules: Iterable[Rule],
    tensors: Mapping[str, np.ndarray],
    expected: PyTree[jax.ShapeDtypeStruct],
    source: str,
    extra: Iterable[str] = (),
) -> PyTree[np.ndarray]:
    """Read a state dict into our tree: views of `tensors` in their own precision, no copies.

    `to_device` makes them float32. Names in `tensors` that no rule mentions are the caller's
    business: those that should not be there come as `extra`. `source` names the file in messages.

    Raises:
        WeightMismatch: tree or shapes differ from `expected`; every difference is listed.
    """
    rules = list(rules)
    wanted = cast(dict[str, jax.ShapeDtypeStruct], flatten_dict(expected, sep="/"))
    flat: dict[str, np.ndarray] = {}
    problems = [f"  not in the model: {name}" for name in extra]
    for rule in rules:
        if rule.theirs not in tensors:
            problems.append(f"  missing: {rule.theirs} (for {rule.ours})")
            continue
        if rule.ours not in wanted:
            problems.append(f"  not in the model: {rule.theirs} (would be {rule.ours})")
            continue
        struct = wanted[rule.ours]
        value = np.asarray(tensors[rule.theirs])
        value = _FORWARD[rule.layout](value)
        if value.shape != struct.shape:
            problems.append(
                f"  shape: {rule.theirs} gives {value.shape}, {rule.ours} is {struct.shape}"
            )
            continue
        flat[rule.ours] = value
    unfed = sorted(set(wanted) - {rule.ours for rule in rules})
    problems += [f"  no source: {path}" for path in unfed]
    if problems:
        raise WeightMismatch(
            f"{source}: these weights do not fit the model:\n" + "\n".join(problems)
        )
    return unflatten_dict(flat, sep="/")


def to_device(params: PyTree[np.ndarray]) -> PyTree[jax.Array]:
    """Loaded parameters as float32 arrays on the device, with one copy of one leaf on the host."""
    return jax.tree.map(lambda leaf: jax.device_put(aligned_float32(leaf)), params)


def aligned_float32(value: np.ndarray) -> np.ndarray:
    """A float32 copy so aligned that a CPU device takes it over as it is."""
    room = np.empty(value.size * 4 + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    aligned = room[start : start + value.size * 4].view(np.float32).reshape(value.shape)
    if value.ndim == 2 and value.strides[0] < value.strides[1]:
        # A transposed view. In strips that fit the cache the copy is ten times faster.
        for start in range(0, value.shape[1], _STRIP):
            strip = np.s_[:, start : start + _STRIP]
            np.copyto(aligned[strip], value[strip], casting="same_kind")
    else:
        np.copyto(aligned, value, casting="same_kind")
    return aligned


_ALIGNMENT, _STRIP = 64, 64


def to_theirs(rules: Iterable[Rule], params: PyTree) -> dict[str, np.ndarray]:
    """Write our tree as a state dict in their names and layouts.

    Floats leave as float32.

    Raises:
        WeightMismatch: a parameter has no rule, or a rule no parameter.
    """
    rules, flat = list(rules), flatten_dict(params, sep="/")
    if strays := set(flat) ^ {rule.ours for rule in rules}:
        raise WeightMismatch(f"parameters and table differ in: {', '.join(sorted(strays))}")
    return {
        rule.theirs: np.asarray(
            _BACKWARD[rule.layout](np.asarray(flat[rule.ours])), np.float32, order="C"
        )
        for rule in rules
    }


def _patches_to_ours(weight: np.ndarray) -> np.ndarray:
    """Convolution [d, 3, p, p] -> matrix [p * p * 3, d] over (row, column, channel)."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def _patches_to_theirs(kernel: np.ndarray) -> np.ndarray:
    side = round((kernel.shape[0] / 3) ** 0.5)
    return kernel.reshape(side, side, 3, kernel.shape[1]).transpose(3, 2, 0, 1)


def _depthwise_to_ours(weight: np.ndarray) -> np.ndarray:
    """Convolution of each channel alone [w, 1, k, k] -> [k, k, 1, w]."""
    return weight.transpose(2, 3, 1, 0)


def _depthwise_to_theirs(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(3, 2, 0, 1)


_FORWARD: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda x: x,
    "transpose": lambda x: x.T,
    "patch": _patches_to_ours,
    "depthwise": _depthwise_to_ours,
}
_BACKWARD: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda x: x,
    "transpose": lambda x: x.T,
    "patch": _patches_to_theirs,
    "depthwise": _depthwise_to_theirs,
}
