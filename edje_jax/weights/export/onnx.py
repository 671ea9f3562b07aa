"""A model folder -> ONNX files: the offline part, the online part, in two precisions.

The graphs are traced from `modeling_edje.py`, so that PyTorch and ONNX cannot drift apart.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from edje_jax.weights.backbone import copy_tokenizer
from edje_jax.weights.export.modeling_edje import EdjeModel
from edje_jax.weights.folder import read_model_config

PRECISIONS = {"": torch.float32, "-fp16": torch.float16}
"""What a file's name ends in -> dtype of its weights, pixels and tokens; logits are float32."""


class Online(nn.Module):
    """Ids, mask and compressed tokens -> match logits."""

    def __init__(self, model: EdjeModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor) -> Tensor:
        return self.model.score(input_ids, attention_mask, tokens)


class Offline(nn.Module):
    """Normalised pixels -> compressed tokens."""

    def __init__(self, model: EdjeModel):
        super().__init__()
        self.model, self.backbone = model, model.backbone

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model.encode_image(pixel_values)


class Graph(NamedTuple):
    """What is exported: a module, an example of its input, and which axes may vary."""

    module: nn.Module
    inputs: dict[str, Tensor]
    output: str
    dynamic: dict[str, dict[int, str]]


def export_onnx(folder: Path, out: Path, note: Callable[[str], None] = lambda path: None) -> None:
    """Write `online.onnx`, `offline.onnx` and their `-fp16` twins, with what feeds them: the
    tokenizer and `preprocessor_config.json`. `note` is told of every file.

    Raises:
        FileNotFoundError, ValueError: not a model folder.
        ImportError: PyTorch's exporter is not installed.
    """
    read_model_config(folder)
    for ending, dtype in PRECISIONS.items():
        model = EdjeModel.from_folder(folder)
        nn.Module.to(model, dtype)
        for name, graph in (("online", _online(model)), ("offline", _offline(model))):
            path = out / f"{name}{ending}.onnx"
            _export(graph, path)
            note(str(path))
    copy_tokenizer(folder, out)
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / "backbone" / name).exists():
            shutil.copyfile(folder / "backbone" / name, out / name)


def _online(model: EdjeModel) -> Graph:
    ids = torch.ones(2, 7, dtype=torch.long)
    width = model.config.joint_encoder["hidden_size"]
    tokens = torch.zeros(2, num_tokens(model), width, dtype=model.dtype)
    rows = {0: "pairs"}
    text = {**rows, 1: "length"}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "tokens": tokens}
    dynamic = {"input_ids": text, "attention_mask": text, "tokens": rows}
    return Graph(Online(model), inputs, "logits", dynamic)


def _offline(model: EdjeModel) -> Graph:
    side = model.backbone.config.vision_config.image_size
    pixels = torch.zeros(2, 3, side, side, dtype=model.dtype)
    return Graph(
        Offline(model), {"pixel_values": pixels}, "tokens", {"pixel_values": {0: "pictures"}}
    )


def num_tokens(model: EdjeModel) -> int:
    """Compressed tokens per picture."""
    adapter = model.config.adapter
    if adapter["kind"] == "compress":
        return adapter["num_tokens"]
    vision = model.backbone.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    return patches + int(model.config.vision_tokens.get("class_token", False))


_LARGEST = 1_500_000_000
"""Bytes of weights that fit inside one file; protobuf's own limit is 2 GiB."""


@torch.no_grad()
def _export(graph: Graph, path: Path) -> None:
    size = sum(p.numel() * p.element_size() for p in graph.module.parameters())
    temporary = path.with_name(path.name + ".tmp") if size < _LARGEST else path
    torch.onnx.export(
        graph.module.eval(),
        kwargs=graph.inputs,
        f=temporary,
        input_names=list(graph.inputs),
        output_names=[graph.output],
        dynamic_shapes={
            name: {axis: torch.export.Dim(label) for axis, label in axes.items()}
            for name, axes in graph.dynamic.items()
        },
        dynamo=True,
        external_data=size >= _LARGEST,
        verbose=False,
    )
    temporary.replace(path)


def run(path: Path, **inputs: np.ndarray) -> np.ndarray:
    """One call of an exported graph, on CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])
