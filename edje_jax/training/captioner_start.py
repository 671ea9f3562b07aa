"""Settings and parameters that a run of a captioner takes from --init."""

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from edje_jax.config.captioner import CaptionerConfig
from edje_jax.config.model import EdjeConfig
from edje_jax.config.parts import CaptionerSpec, ModelSpec
from edje_jax.config.run import EdjeRun
from edje_jax.weights import edje
from edje_jax.weights.folder import Model

log = logging.getLogger(__name__)


def captioner_config(spec: ModelSpec, init: Model | None) -> CaptionerConfig | None:
    """Settings of the captioner that a run trains; None for a joint encoder.

    Raises:
        ValueError: a run of a joint encoder has settings of a captioner.
    """
    kind = spec.kind or (init.config.kind if init else "edje")
    if kind == "captioner":
        return spec.captioner.resolve(init.config.captioner if init else None)
    if spec.captioner != CaptionerSpec():
        raise ValueError(
            f'--model.captioner: this run trains a model of the kind "{kind}"; add --model.kind'
            " captioner, or leave its settings out"
        )
    return None


def shared_decoders(
    config: EdjeRun, init: Model, whole: EdjeConfig, params: PyTree[np.ndarray]
) -> PyTree[np.ndarray]:
    """Parameters of a captioner of --init that this run has too; a line of the log names what stays
    behind and what starts fresh."""
    there, here = init.config.captioner, whole.captioner
    if config.model.joint_encoder or not (there and here):
        return params
    loaded: dict[str, Any] = dict(flatten_dict(params["captioner"], sep="/"))
    ours = edje.expected_params(whole)["captioner"]
    expected: dict[str, Any] = dict(flatten_dict(ours, sep="/"))
    shared = {*there.reads} & {*here.reads}

    def names(paths: Iterable[str]) -> str:
        """Decoders, or parts of the layers of those that both have."""
        parts = (path.split("/") for path in paths)
        return ", ".join(sorted({x[2] if x[0] in shared else x[0] for x in parts})) or "none"

    behind, fresh = loaded.keys() - expected.keys(), expected.keys() - loaded.keys()
    if behind or fresh:
        log.warning(
            "the captioner of --init %s is another; stay behind: %s; start fresh: %s",
            config.init, names(behind), names(fresh),
        )  # fmt: skip
    kept = {path: leaf for path, leaf in loaded.items() if path in expected}
    return {**params, "captioner": unflatten_dict(kept, sep="/")}
