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

from edje_jax.data.tokenizer import copy_tokenizer
from edje_jax.system.files import move
from edje_jax.weights.calibration import NAME as CALIBRATION
from edje_jax.weights.folder import read_model_config
from edje_jax.weights.torch.modeling_edje import CaptionerModel, EdjeModel

PRECISIONS = {"": torch.float32, "-fp16": torch.float16}
"""Suffix of a file's name -> dtype of its weights, pixels and tokens; logits are float32."""


class Online(nn.Module):
    """Ids, mask and compressed tokens -> match logits; with a similarity prior of cosines too."""

    def __init__(self, model: EdjeModel):
        super().__init__()
        self.model, self.prior = model, _prior(model)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        tokens: Tensor,
        similarity: Tensor | None = None,
    ) -> Tensor:
        return self.model.score(input_ids, attention_mask, tokens, similarity)


def _prior(model: EdjeModel) -> nn.Module | None:
    return model.prior if model.config.similarity_prior else None


class Text(nn.Module):
    """Ids and mask -> what captions are after the deferred layers."""

    def __init__(self, model: EdjeModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.read_text(input_ids, attention_mask)


class WithoutImage(nn.Module):
    """Ids and mask -> log-probabilities of captions without an image."""

    def __init__(self, model: CaptionerModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.read_text(input_ids, attention_mask)[2]


class OnlineRead(nn.Module):
    """Captions after the deferred layers, each pair's caption by number, and what is stored of
    its image -> match logits."""

    def __init__(self, model: EdjeModel):
        super().__init__()
        self.model, self.prior = model, _prior(model)

    def forward(
        self,
        text: Tensor,
        text_mask: Tensor,
        caption: Tensor,
        tokens: Tensor,
        similarity: Tensor | None = None,
    ) -> Tensor:
        return self.model.score_read(text[caption], text_mask[caption], tokens, similarity)


class OnlinePmi(nn.Module):
    """Captions with their log-probabilities without an image, each pair's caption by number, and
    what is stored of its image -> scores."""

    def __init__(self, model: CaptionerModel):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        without_image: Tensor,
        caption: Tensor,
        tokens: Tensor,
    ) -> Tensor:
        ids, mask, alone = (x[caption] for x in (input_ids, attention_mask, without_image))
        return self.model.score_read(ids, mask, alone, tokens)


class Offline(nn.Module):
    """Normalised pixels, of videos with which of the frames are there -> compressed tokens."""

    def __init__(self, model: EdjeModel):
        super().__init__()
        self.model, self.backbone = model, model.backbone

    def forward(self, pixel_values: Tensor, present: Tensor | None = None) -> Tensor:
        return self.model.encode_image(pixel_values, present)


class Graph(NamedTuple):
    """Graph to export: a module, an example of its input, and which axes may vary."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, str]]


def export_onnx(folder: Path, out: Path, note: Callable[[str], None] = lambda path: None) -> None:
    """Write `online.onnx`, `offline.onnx` and their `-fp16` twins, with what feeds them: the
    tokenizer and `preprocessor_config.json`. `note` is called with every file.

    Of a model of videos `offline.onnx` takes pixels of all frames that the model reads,
    [n, f, 3, s, s], and `present` [n, f], which of them a video has; the other graphs leave tokens
    of those that it does not have aside, which are zeros.

    Where layers are deferred there is a `text.onnx` too, run once per caption. `online.onnx` then
    takes its two outputs in the place of ids and mask, and each pair's row in them. Of a model with
    a similarity prior it also takes `similarity`, each pair's cosine. A captioner that scores by
    "pmi" has a `text.onnx` too, which gives `without_image`; its `online.onnx` takes that beside
    ids and mask, and each pair's row in all three. `calibration.json` is copied: the score is
    sigmoid((logit + similarity_weight * cosine) / temperature + bias). The first stage is not
    exported: cosines are of what `Reranker` or `modeling_edje.py` embeds, by the heads of the first
    stage where the model has some.

    Raises:
        FileNotFoundError, ValueError: not a model folder.
        ImportError: PyTorch's exporter is not installed.
    """
    read_model_config(folder)
    for ending, dtype in PRECISIONS.items():
        model = EdjeModel.from_folder(folder)
        nn.Module.to(model, dtype)
        for name, graph in _graphs(model).items():
            path = out / f"{name}{ending}.onnx"
            _export(graph, path)
            note(str(path))
    copy_tokenizer(folder, out)
    if (folder / CALIBRATION).exists():
        shutil.copyfile(folder / CALIBRATION, out / CALIBRATION)
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / "backbone" / name).exists():
            shutil.copyfile(folder / "backbone" / name, out / name)


def _graphs(model: EdjeModel) -> dict[str, Graph]:
    """File name -> graph."""
    if isinstance(model, CaptionerModel) and model.scored_by == "pmi":
        text, online = _without_image(model), _online_pmi(model)
        return {"text": text, "online": online, "offline": _offline(model)}
    if not model.deferred:
        return {"online": _online(model), "offline": _offline(model)}
    return {"text": _text(model), "online": _online_read(model), "offline": _offline(model)}


_ROWS = {0: "pairs"}
_TEXT = {**_ROWS, 1: "length"}
_CAPTIONS = {0: "captions", 1: "length"}


def _ids(rows: int = 2) -> dict[str, Tensor]:
    ids = torch.ones(rows, 7, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _tokens(model: EdjeModel) -> Tensor:
    return torch.zeros(
        2, model.num_tokens, model.config.joint_encoder["hidden_size"], dtype=model.dtype
    )


def _similarity(model: EdjeModel) -> dict[str, Tensor]:
    """Example of the cosines that a similarity prior takes, if there is one."""
    return {"similarity": torch.zeros(2)} if model.config.similarity_prior else {}


def _online(model: EdjeModel) -> Graph:
    inputs = {**_ids(), "tokens": _tokens(model), **_similarity(model)}
    dynamic = {"input_ids": _TEXT, "attention_mask": _TEXT, "tokens": _ROWS}
    dynamic |= {name: _ROWS for name in _similarity(model)}
    return Graph(Online(model), inputs, ("logits",), dynamic)


def _text(model: EdjeModel) -> Graph:
    dynamic = {"input_ids": _CAPTIONS, "attention_mask": _CAPTIONS}
    return Graph(Text(model), _ids(), ("text", "text_mask"), dynamic)


def _online_read(model: EdjeModel) -> Graph:
    tokens = _tokens(model)
    text = torch.zeros(3, 8, tokens.shape[-1], dtype=model.dtype)
    inputs = {
        "text": text,
        "text_mask": torch.ones(3, 8, dtype=torch.bool),
        "caption": torch.zeros(2, dtype=torch.long),
        "tokens": tokens,
        **_similarity(model),
    }
    dynamic = {"text": _CAPTIONS, "text_mask": _CAPTIONS, "caption": _ROWS, "tokens": _ROWS}
    dynamic |= {name: _ROWS for name in _similarity(model)}
    return Graph(OnlineRead(model), inputs, ("logits",), dynamic)


def _without_image(model: CaptionerModel) -> Graph:
    dynamic = {"input_ids": _CAPTIONS, "attention_mask": _CAPTIONS}
    return Graph(WithoutImage(model), _ids(), ("without_image",), dynamic)


def _online_pmi(model: CaptionerModel) -> Graph:
    inputs = {
        **_ids(rows=3),
        "without_image": torch.zeros(3),
        "caption": torch.zeros(2, dtype=torch.long),
        "tokens": _tokens(model),
    }
    dynamic = {"input_ids": _CAPTIONS, "attention_mask": _CAPTIONS}
    dynamic |= {"without_image": {0: "captions"}, "caption": _ROWS, "tokens": _ROWS}
    return Graph(OnlinePmi(model), inputs, ("logits",), dynamic)


def _offline(model: EdjeModel) -> Graph:
    side = model.backbone.config.vision_config.image_size
    frames = (model.config.video["sampling"]["frames"],) if model.config.video else ()
    inputs = {"pixel_values": torch.zeros(2, *frames, 3, side, side, dtype=model.dtype)}
    if frames:
        inputs["present"] = torch.ones(2, *frames, dtype=torch.bool)
    return Graph(Offline(model), inputs, ("tokens",), {name: {0: "pictures"} for name in inputs})


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
        output_names=list(graph.outputs),
        dynamic_shapes={
            name: {axis: torch.export.Dim(label) for axis, label in axes.items()}
            for name, axes in graph.dynamic.items()
        },
        dynamo=True,
        external_data=size >= _LARGEST,
        verbose=False,
    )
    if temporary != path:
        move(temporary, path)


def run(path: Path, **inputs: np.ndarray) -> list[np.ndarray]:
    """Run an exported graph once on CPU, and return its outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, inputs)]
