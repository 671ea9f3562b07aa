"""Programs that `tpu_compile.py` compiles: the train step, the offline encoder, the online scorer.

All arrays are shapes with a place on a device that need not exist; no weight is in memory.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree
from recipe_cost import BACKBONES

from edje_jax.cli.named_configs import load_config
from edje_jax.config.model import AdapterConfig, BackboneConfig, EdjeConfig, ImageRecipe
from edje_jax.config.run import EdjeRun, MeshConfig
from edje_jax.models.edje import Edje
from edje_jax.models.int8 import quantise_layers
from edje_jax.runtimes.encoding import encode_batch
from edje_jax.runtimes.scoring import score
from edje_jax.training import flops
from edje_jax.training.edje_step import Frozen, StepSetup, fresh_state, jit_step
from edje_jax.training.losses.table import step_flops
from edje_jax.training.losses.term import Objective
from edje_jax.training.optim import optimiser, schedule
from edje_jax.training.sharding import Devices
from edje_jax.types import Batch
from edje_jax.weights.families.registry import make_backbone

MASK, SPECIAL = 103, (0, 100, 101, 102, 103)
"""BERT's ids of the mask and of the tokens that masked LM never hides."""
SIGLIP2_VOCABULARY = 256_000


@dataclass(frozen=True)
class Program:
    """A program and the chips that it is compiled for."""

    kind: str
    """"step", "encode" (images to compressed tokens) or "score" (pairs to match logits)."""
    backbone: str
    """Key of `BACKBONES`."""
    tokens: int
    """Compressed tokens of an image; 0 for the Local adapter."""
    topology: str
    rows: int
    """Images a chip, or pairs of the online scorer."""
    fsdp: int = 1
    precision: str = "bfloat16"
    """"int8" is of the scorer's layers, beside bfloat16."""
    scan: bool = False
    """Whether the layers of a step's towers and joint encoder are loops."""
    layers: int = 0
    """Layers that every tower and the joint encoder are cut to, for tests; 0 keeps all."""

    @property
    def name(self) -> str:
        """Words that tell the program apart from all others."""
        adapter = f"compressed-{self.tokens}" if self.tokens else "local"
        cut = f" {self.layers} layers" if self.layers else ""
        loops = " scanned" if self.scan else ""
        place = f"{self.topology} fsdp={self.fsdp}"
        shape = f"{self.backbone} {adapter}{cut}{loops} {self.precision} {self.rows} rows"
        return f"{self.kind} {shape} {place}"

    @property
    def dtype(self) -> jax.typing.DTypeLike:
        """Compute dtype of all that is not int8."""
        return jnp.dtype("bfloat16" if self.precision == "int8" else self.precision)

    @property
    def config(self) -> EdjeConfig:
        """Shapes of the model."""
        backbone = BACKBONES[self.backbone]
        text = dataclasses.replace(backbone.text, vocab_size=SIGLIP2_VOCABULARY)
        backbone = dataclasses.replace(backbone, text=text)
        adapter = AdapterConfig("compress", self.tokens) if self.tokens else AdapterConfig("local")
        config = EdjeConfig(backbone, adapter, image=ImageRecipe(backbone.vision.image_size))
        return _cut(config, self.layers) if self.layers else config

    @property
    def run(self) -> EdjeRun:
        """Recipe of the step: losses, dropout, optimiser."""
        return load_config("pretrain_compressed" if self.tokens else "pretrain_local")

    def devices(self) -> list[Any]:
        """Chips of the topology; one of them for a program that runs on each chip by itself."""
        found = topologies.get_topology_desc(platform="tpu", topology_name=self.topology).devices
        return list(found) if self.kind == "step" else list(found)[:1]

    def model_flops(self, chips: int) -> float:
        """FLOPs a chip by the count of `training.flops`."""
        if self.kind == "step":
            return step_flops(self.config, self.run.loss, self.rows * chips, None) / chips
        if self.kind == "score":
            return self.rows * flops.fused(self.config)
        without_text = dataclasses.replace(self.config.backbone.text, num_hidden_layers=0)
        backbone = dataclasses.replace(self.config.backbone, text=without_text)
        offline = dataclasses.replace(self.config, backbone=backbone)
        return self.rows * (flops.backbone(offline) + flops.stored(offline))


B, L, SO400M = "SigLIP2 B/16-384", "SigLIP2 L/16-384", "SigLIP2 So400m/14-384"
PROGRAMS = (
    Program("score", B, 64, "v5e:2x2", 1024),
    Program("score", B, 64, "v5e:2x2", 1024, precision="int8"),
    Program("score", B, 64, "v5e:2x2", 1024, precision="float32"),
    Program("encode", B, 64, "v5e:2x2", 32),
    Program("step", B, 64, "v5e:2x2", 16, fsdp=4),
    Program("step", B, 64, "v5e:16x16", 16),
    Program("step", L, 64, "v5e:2x2", 16),
    Program("step", SO400M, 64, "v5e:2x2", 16, fsdp=4),
    Program("step", B, 0, "v5e:2x2", 8),
    Program("step", B, 64, "v5e:2x2", 16),
    Program("step", B, 64, "v5e:2x2", 16, scan=True),
    Program("step", B, 64, "v5p:4x8x8", 64),
    Program("step", B, 64, "v6e:16x16", 32),
    Program("encode", L, 64, "v5e:2x2", 32),
    Program("encode", SO400M, 64, "v5e:2x2", 32),
    Program("step", L, 0, "v5p:2x2x1", 16),
    Program("step", L, 0, "v6e:2x2", 16),
)
"""The most telling ones first."""


def product_flops(jaxpr: Any) -> float:
    """FLOPs of the products of a traced program on all its devices, its loops counted in full."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, params, times = equation.primitive.name, equation.params, 1
        if name == "dot_general":
            left = equation.invars[0].aval.shape
            contracted = math.prod(left[axis] for axis in params["dimension_numbers"][0][0])
            total += 2.0 * contracted * equation.outvars[0].aval.size
        elif name == "pallas_call":
            total += params["cost_estimate"].flops
        else:
            times = {
                "scan": params.get("length"),
                "shard_map": getattr(params.get("mesh"), "size", 1),
            }.get(name, 1)
            total += times * sum(map(product_flops, _inner(params)))
    return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """Programs that an operation calls."""
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            program = getattr(each, "jaxpr", each)
            if hasattr(program, "eqns"):
                yield program


def _cut(config: EdjeConfig, layers: int) -> EdjeConfig:
    backbone, few = config.backbone, {"num_hidden_layers": layers}
    towers = {
        name: dataclasses.replace(getattr(backbone, name), **few) for name in ("vision", "text")
    }
    return dataclasses.replace(
        config,
        backbone=dataclasses.replace(backbone, **towers),
        joint_encoder=dataclasses.replace(config.joint_encoder, **few),
    )


def held(backbone: str) -> dict[str, float]:
    """Bytes that a step of 32 images holds on one chip before activations, and its FLOPs."""
    program = Program("step", backbone, 64, "", 32)
    config, run = program.config, program.run
    params = _model_params(config)
    moments = jax.eval_shape(optimiser(run.optim, 1000, 100).init, params)
    local = dataclasses.replace(config, adapter=AdapterConfig("local"))
    tokens = config.backbone.num_vision_tokens * config.backbone.vision.hidden_size
    return {
        "frozen_bytes": _bytes(_backbone_params(config.backbone)),
        "trained_bytes": _bytes((params, moments)),
        "vision_tokens_bytes": 2 * tokens,
        "compressed_flops": step_flops(config, run.loss, program.rows, None),
        "local_flops": step_flops(local, run.loss, program.rows, None),
    }


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def trace(program: Program, devices: list[Any]) -> Any:
    """The traced program, to be lowered and compiled; call it inside `programs_for("tpu")`."""
    return TRACES[program.kind](program, devices)


def _trace_step(program: Program, among: list[Any]) -> Any:
    rows, run, config = program.rows * len(among), program.run, program.config
    devices = Devices.of(MeshConfig(fsdp=program.fsdp), rows, among=among)
    dtype, scan = program.dtype, program.scan
    backbone = make_backbone(config.backbone, dtype, scan=scan)
    setup = StepSetup(
        Objective(
            Edje(config, dtype, run.model.dropout, scan=scan), run.loss, "all", MASK, devices
        ),
        backbone,
        config.image,
        SPECIAL,
        run.seed,
        optimiser(run.optim, 1000, 100),
        schedule(run.optim, 1000, 100),
    )
    state = jax.eval_shape(partial(fresh_state, setup))
    frozen = Frozen(_backbone_params(config.backbone), None)
    side, text = config.image.size, config.backbone.text.max_position_embeddings
    batch = Batch(
        images=_array((rows, side, side, 3), jnp.uint8),
        backbone_ids=_array((rows, text), jnp.int32),
        joint_ids=_array((rows, config.max_text_length), jnp.int32),
        image_ids=_array((rows,), jnp.int32),
        caption_ids=_array((rows,), jnp.int32),
        valid=_array((rows,), jnp.bool_),
    )
    places = devices.shardings(state), devices.shardings(frozen), devices.rows
    return jit_step(setup).trace(*map(_placed, (state, frozen, batch), places))


def _trace_encode(program: Program, among: list[Any]) -> Any:
    config, dtype = program.config, program.dtype
    side, one = config.image.size, SingleDeviceSharding(among[0])
    params = _backbone_params(config.backbone), _model_params(config)
    images = _array((program.rows, side, side, 3), jnp.uint8)
    backbone, model = make_backbone(config.backbone, dtype), Edje(config, dtype)
    return encode_batch.trace(backbone, model, config.image, *_placed((*params, images), one))


def _trace_score(program: Program, among: list[Any]) -> Any:
    config, one = program.config, SingleDeviceSharding(among[0])
    width = config.joint_encoder.hidden_size
    ids = _array((program.rows, config.max_text_length), jnp.int32)
    tokens = _array((program.rows, config.num_tokens, width), jnp.bfloat16)
    params = _model_params(config)
    if program.precision == "int8":
        params = jax.eval_shape(quantise_layers, params)
    inputs = params, _array((), jnp.int32), ids, tokens
    return score.trace(Edje(config, program.dtype), *_placed(inputs, one))


TRACES = {"step": _trace_step, "encode": _trace_encode, "score": _trace_score}


def _array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _placed(tree: PyTree, places: PyTree) -> PyTree:
    """Shapes with their places; a single place is that of all."""
    if isinstance(places, jax.sharding.Sharding):
        places = jax.tree.map(lambda _: places, tree)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        tree,
        places,
    )


def _backbone_params(config: BackboneConfig) -> PyTree:
    side, length = config.vision.image_size, config.text.max_position_embeddings
    inputs = _array((1, side, side, 3), jnp.float32), _array((1, length), jnp.int32)
    init = make_backbone(config, jnp.float32).init
    return jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), *inputs)["params"]


def _model_params(config: EdjeConfig) -> PyTree:
    backbone = config.backbone
    vision = _array((1, backbone.num_vision_tokens, backbone.vision.hidden_size), jnp.float32)
    inputs = jax.eval_shape(lambda: jax.random.key(0)), vision, _array((1, 3), jnp.int32)
    return jax.eval_shape(Edje(config).init, *inputs)["params"]
