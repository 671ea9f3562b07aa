"""Pairs scored per second, beside PyTorch on the same weights, pairs and machine.

    python benchmarks/rerank.py [--queries 4] [--k 100] [--rounds 3] [--out rerank.json]
                                [--deferred-layers 6 9] [--attended] [--no-published] [--onnx]

Ours: `JaxRuntime.score_pairs` on tokens in memory, on a GPU in that of the GPU. The peers:
  (a) `modeling_edje.py` of a model folder: last layer for [CLS] alone, SDPA, a query's candidates
      as one batch; float32 and bfloat16 (on a GPU also compiled);
  (b) the published way: BERT with its masked-LM vocabulary head on every position, padded to the
      longest caption of all queries, one query at a time; with the compressed tokens given, and as
      the published evaluation has it, with the adapter run on every candidate's patch tokens.
With --deferred-layers, ours and (a) with so many layers deferred as well, in float32 on a CPU and
bfloat16 on a GPU; --attended adds those whose online layers only attend to vision rows, --int8 ours
in int8. With --onnx, ONNX Runtime on the CPU as well (`OnnxRuntime.score_pairs`), in float32 and
int8.
Every side takes its turn in each round; figures are medians. Weights are random: MiniLM-L12,
64 tokens of SigLIP2-L/16-384's 576 patches, captions of 8 to 20 words.
"""

import argparse
import copy
import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from pairs import CONFIG, PAD, SEP, Pairs, runtime_of
from rich.console import Console
from rich.table import Table
from side_by_side import machine, ratios, timed
from transformers import BertConfig as HfBertConfig
from transformers import BertForMaskedLM

from edje_jax.config.model import InferencePrecision, OnlineVision
from edje_jax.runtimes.base import Runtime
from edje_jax.runtimes.onnx import OnnxRuntime
from edje_jax.runtimes.onnx_export import Export
from edje_jax.system.allocator import keep_freed_memory
from edje_jax.weights import bert, edje
from edje_jax.weights.mapping import to_theirs
from edje_jax.weights.torch import modeling_edje


def main() -> None:
    """Time all, print a table, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--queries", type=int, default=4)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-adapter", action="store_true", help="leave out the slowest peer")
    parser.add_argument("--no-published", action="store_true", help="leave out both of (b)")
    parser.add_argument("--deferred-layers", type=int, nargs="*", default=[], metavar="S")
    parser.add_argument("--attended", action="store_true")
    parser.add_argument("--int8", action="store_true", help="add ours with products in int8")
    parser.add_argument("--onnx", action="store_true", help="add the runtime of ONNX Runtime")
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    keep_freed_memory()  # As the programs do
    task = Pairs(options.queries, options.k)
    sides = {"ours": Side(ours(task), "ours")}
    if options.int8:
        sides["ours, int8"] = Side(ours(task, "int8"), "ours")
    module = torch_module(task)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peers = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    for name, dtype in peers.items():
        sides[f"torch {name}"] = Side(good(task, module, dtype, device), "ours")
    if device == "cuda":
        compiled = good(task, module, torch.bfloat16, device, True)
        sides["torch bfloat16 compiled"] = Side(compiled, "ours")
    if options.onnx:
        sides |= {
            f"ours, ONNX {precision}": Side(by_onnx(task, precision), "ours")
            for precision in ("float32", "int8")
        }
    for layers in options.deferred_layers:
        for vision in ("updated", "attended") if options.attended else ("updated",):
            sides |= deferred(task, layers, vision, device, options.int8)
    if not options.no_published:
        given = published(task, module, device, adapter=False)
        sides["published, tokens given"] = Side(given, "ours")
    if not (options.no_published or options.no_adapter):
        whole = published(task, module, device, adapter=True)
        sides["published, as it evaluates"] = Side(whole, "ours")
    result = compare(sides, options.rounds, task)
    show(result)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


class Side(NamedTuple):
    """Way to do the work."""

    run: Callable[[], np.ndarray]
    """Every pair's logit."""
    same_as: str
    """The side of ours that computes the same function."""


def deferred(
    task: Pairs, layers: int, vision: OnlineVision, device: str, int8: bool
) -> dict[str, Side]:
    """Ours and PyTorch's with the first layers offline; the stored tokens are taken as given."""
    joint = dataclasses.replace(CONFIG.joint_encoder, deferred_layers=layers, online_vision=vision)
    task = copy.copy(task)
    task.config = dataclasses.replace(CONFIG, joint_encoder=joint)
    name = f"s = {layers}" + (", attended" if vision == "attended" else "")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    peer = f"torch {dtype}, {name}".replace("torch.", "")
    sides = {
        f"ours, {name}": ours(task),
        peer: good(task, torch_module(task), dtype, device),
    }
    if int8:
        sides[f"ours, {name}, int8"] = ours(task, "int8")
    return {side: Side(run, f"ours, {name}") for side, run in sides.items()}


def ours(task: Pairs, precision: InferencePrecision = "auto") -> Callable[[], np.ndarray]:
    """The runtime that `Reranker` and the server use."""
    on_device = jax.default_backend() != "cpu"
    tokens: Any = jnp.asarray(task.tokens, jnp.bfloat16) if on_device else task.tokens
    return scorer(task, runtime_of(task, precision=precision), tokens)


def by_onnx(task: Pairs, precision: Literal["float32", "int8"]) -> Callable[[], np.ndarray]:
    """ONNX Runtime with the same weights; its graphs are left in the cache folder."""
    params = jax.device_get(task.params)["joint_encoder"]
    export = Export(task.config, params, precision, "benchmarks/rerank.py")
    return scorer(task, OnnxRuntime(runtime_of(task), export), task.tokens)


def scorer(task: Pairs, runtime: Runtime, tokens: Any) -> Callable[[], np.ndarray]:
    """Every pair's logit by a runtime."""
    rows = np.arange(len(tokens))
    return lambda: runtime.score_pairs(task.ids, tokens, task.owner, rows)


def torch_module(task: Pairs) -> modeling_edje.EdjeModel:
    """Module of a model folder with the same weights."""
    config = modeling_edje.EdjeConfig(
        adapter=vars(task.config.adapter),
        joint_encoder=bert.write_config(task.config.joint_encoder),
        vision_width=task.config.backbone.vision.hidden_size,
        vision_heads=task.config.backbone.vision.num_attention_heads,
        embedding_size=task.config.backbone.text.projection_size,
        max_text_length=task.config.max_text_length,
    )
    model = modeling_edje.EdjeModel(config)
    tensors = to_theirs(edje.rules(task.config), jax.device_get(task.params))
    model.load_state_dict({name: torch.tensor(x) for name, x in tensors.items()})
    return model.eval()


@torch.inference_mode()
def good(
    task: Pairs,
    module: modeling_edje.EdjeModel,
    dtype: torch.dtype,
    device: str,
    compiled: bool = False,
) -> Callable[[], np.ndarray]:
    """A query's candidates as one batch, its caption not padded at all."""
    model = copy.deepcopy(module).to(device, dtype)
    score = torch.compile(model.score_read, dynamic=False) if compiled else model.score_read
    tokens = torch.tensor(task.tokens).to(device, dtype)

    @torch.inference_mode()
    def run() -> np.ndarray:
        out = []
        for query, ids in enumerate(task.ids):
            own = torch.tensor(ids[ids != PAD])[None].long().to(device)
            mine = tokens[query * task.k : (query + 1) * task.k]
            out.append(score(*model.read_text(own, torch.ones_like(own)), mine))
        return torch.cat(out).cpu().numpy()

    return run


def published(
    task: Pairs, module: modeling_edje.EdjeModel, device: str, adapter: bool
) -> Callable[[], np.ndarray]:
    """Computation of the published evaluation for a query, written down from its description."""
    config = bert.write_config(task.config.joint_encoder)
    config = {name: value for name, value in config.items() if name != "architectures"}
    language = BertForMaskedLM(HfBertConfig(**config)).eval()
    state = {
        name.removeprefix("language_model."): tensor
        for name, tensor in module.state_dict().items()
        if name.startswith("language_model.")
    }
    language.load_state_dict(state, strict=False)
    language.to(device)
    words = language.bert.embeddings.word_embeddings
    head: Any = copy.deepcopy(module.classification_head).to(device)
    project = copy.deepcopy(module.vision_projection).to(device) if adapter else None
    tokens, patches = torch.tensor(task.tokens).to(device), torch.tensor(task.patches).to(device)
    length, m = int((task.ids != PAD).sum(axis=1).max()), task.tokens.shape[1]

    @torch.inference_mode()
    def run() -> np.ndarray:
        out = []
        for query, ids in enumerate(task.ids):
            used = int((ids != PAD).sum())
            vision = tokens[query * task.k : (query + 1) * task.k]
            if project is not None:
                # The result is not used, as tokens were drawn at random; the work is.
                project(patches.expand(task.k, -1, -1))
            text = words(torch.tensor(ids[:used]).long().to(device)).expand(task.k, -1, -1)
            sep = words(torch.tensor([SEP]).to(device)).expand(task.k, 1, -1)
            pad = words(torch.tensor([PAD] * (length - used)).long().to(device))
            rows = [text, vision, sep, pad.expand(task.k, -1, -1)]
            embedded = torch.cat(rows, dim=1)
            segments = torch.zeros(embedded.shape[:2], dtype=torch.long, device=device)
            segments[:, used : used + m + 1] = 1
            mask = torch.ones_like(segments)
            mask[:, used + m + 1 :] = 0
            answer = language(
                inputs_embeds=embedded, token_type_ids=segments, attention_mask=mask,
                output_hidden_states=True,
            )  # fmt: skip
            cls = answer.hidden_states[-1][:, 0]
            out.append(head[1](torch.tanh(head[0].dense(cls)))[:, 0])
        return torch.cat(out).cpu().numpy()

    return run


def compare(sides: dict[str, Side], rounds: int, task: Pairs) -> dict[str, Any]:
    """Pairs per second of each, and how many times ours (of no deferred layers) is faster."""
    logits = {name: side.run() for name, side in sides.items()}
    seconds = timed({name: side.run for name, side in sides.items()}, rounds, warm=True)
    slower = ratios(seconds)
    pairs = len(task.tokens)
    return {
        "machine": machine(),
        "queries": task.queries,
        "k": task.k,
        "logits_deviation": float(logits["ours"].std()),
        "sides": {
            name: {
                "pairs_per_second": pairs / statistics.median(seconds[name]),
                "ours_is_faster_by": slower[name],
                "seconds": seconds[name],
                "largest_difference": float(np.abs(logits[name] - logits[side.same_as]).max()),
            }
            for name, side in sides.items()
        },
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    table = Table("", "pairs/s", "ours is faster by", "largest difference of a logit")
    for name, side in result["sides"].items():
        table.add_row(
            name,
            f"{side['pairs_per_second']:.1f}",
            f"{side['ours_is_faster_by']:.2f}",
            f"{side['largest_difference']:.1e}",
        )
    Console().print(table, f"deviation of the logits: {result['logits_deviation']:.2f}")


if __name__ == "__main__":
    main()
