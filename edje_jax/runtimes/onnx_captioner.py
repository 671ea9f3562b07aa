"""ONNX graphs of a captioner, written from its parameters as `onnx_graph` writes a joint encoder's.

    text    ids [b, t] ── decoders, without an image ── text: sums of log p [b] ("pmi" alone)
    pairs   ids [b, t],
            tokens [b, m, d],
            text [b] ──── decoders ──────────────────── logits: scores in nats [b]

Captions of a call have one length t, without padding, and its videos the same number of frames. In
int8, products of the decoders' layers are quantised as in `onnx_graph`; the output layer over the
vocabulary stays float32.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import TensorProto, helper

from edje_jax.config.captioner import CaptionerConfig
from edje_jax.config.model import EdjeConfig
from edje_jax.runtimes.onnx_graph import MICROSOFT, GraphWriter, Params, token_rows

LAST, BEFORE_FIRST = 2**31 - 1, -(2**31)
"""Ends of slices that go to the end of an axis, and backwards to its beginning."""


def text_graph(config: EdjeConfig, params: Params, is_int8: bool) -> onnx.ModelProto:
    """Graph of captions without an image: "ids" -> "text" [b]."""
    graph = CaptionerGraphWriter(config, params, is_int8)
    rows = graph.op("Shape", "ids", start=0, end=1)
    shape = graph.op("Concat", rows, graph.ints(1, config.joint_encoder.hidden_size), axis=0)
    tokens = graph.op("Expand", graph.constant(params["no_image"]), shape)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["captions", "length"])
    out = helper.make_tensor_value_info("text", TensorProto.FLOAT, ["captions"])
    return graph.model([ids], graph.log_probability("ids", tokens), out)


def pairs_graph(config: EdjeConfig, params: Params, is_int8: bool) -> onnx.ModelProto:
    """Graph of pairs: "ids", "tokens" and, for "pmi", "text" -> "logits" [b]."""
    graph, width = CaptionerGraphWriter(config, params, is_int8), config.joint_encoder.hidden_size
    inputs = {
        "ids": (TensorProto.INT64, ["pairs", "length"]),
        "tokens": (TensorProto.FLOAT, ["pairs", token_rows(config), width]),
    }
    score = graph.log_probability("ids", "tokens")
    if graph.captioner.score == "pmi":
        inputs["text"] = (TensorProto.FLOAT, ["pairs"])
        score = graph.op("Sub", score, "text")
    elif graph.captioner.score == "mean":
        length = graph.op("Cast", graph.op("Shape", "ids", start=1, end=2), to=TensorProto.FLOAT)
        count = graph.op("Sub", length, graph.constant(np.ones(1, np.float32)))
        score = graph.op("Div", score, count)
    infos = [helper.make_tensor_value_info(name, *info) for name, info in inputs.items()]
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["pairs"])
    return graph.model(infos, score, out)


@dataclass
class CaptionerGraphWriter(GraphWriter):
    """Graph of decoders under construction; `params` are those of `captioner`."""

    @property
    def captioner(self) -> CaptionerConfig:
        """Settings of the model."""
        assert self.config.captioner is not None
        return self.config.captioner

    @cached_property
    def words(self) -> str:
        """Word table, which the output layer shares."""
        return self.constant(self.params["embeddings"]["word"]["embedding"])

    def log_probability(self, ids: str, tokens: str) -> str:
        """Sum of log p over directions and tokens, [b]."""
        first, *others = [self._read(name, ids, tokens) for name in self.captioner.reads]
        return self.op("Add", first, *others) if others else first

    def _read(self, direction: str, ids: str, tokens: str) -> str:
        """Sum of log p over the tokens that a direction predicts, [b]."""
        if direction == "backward":
            ids = self._sliced(ids, -1, BEFORE_FIRST, -1)
        read, predicted = self._sliced(ids, 0, -1), self._sliced(ids, 1, LAST)
        x = self._embedded(read)
        for number in range(self.config.joint_encoder.num_hidden_layers):
            x = self._decoder_layer(self.params[direction][f"layers_{number}"], x, tokens)
        shape, column = self.op("Shape", read), self.ints(-1, 1)
        rows = self.ints(-1, self.config.joint_encoder.hidden_size)
        logits = self._logits(self.op("Reshape", x, rows))
        chosen = self.op("GatherElements", logits, self.op("Reshape", predicted, column), axis=1)
        log_p = self.op("Sub", chosen, self.op("ReduceLogSumExp", logits, self.ints(1)))
        by_token = self.op("Reshape", log_p, shape)
        return self.op("ReduceSum", by_token, self.ints(1), keepdims=0)

    def _sliced(self, ids: str, start: int, end: int, step: int = 1) -> str:
        """Some of the tokens of each caption."""
        return self.op("Slice", ids, *(self.ints(x) for x in (start, end, 1, step)))

    def _embedded(self, ids: str) -> str:
        """Tokens at their places in the order of reading."""
        length = self.op("Shape", ids, start=1, end=2)
        own = self.constant(self._places(0))
        places = self.op("Slice", own, self.ints(0), length, self.ints(0))
        x = self.op("Add", self.op("Gather", self.words, ids, axis=0), places)
        return self._normalised(x, self.params["embeddings"]["norm"])

    def _decoder_layer(self, layer: Params, x: str, tokens: str) -> str:
        """norm(x + causal attention(x)), norm(x + attention(x, image)), then norm(x + mlp(x))."""
        heads = self.config.joint_encoder.num_attention_heads
        own = self._products(x, [layer[name] for name in ("query", "key", "value")])
        context = self.op(
            "MultiHeadAttention", *own, domain=MICROSOFT, num_heads=heads, unidirectional=1
        )
        x = self._added(x, context, layer["attention_output"], layer["attention_norm"])
        (query,) = self._products(x, [layer["cross_query"]])
        seen = [tokens, tokens]
        if self.captioner.cross_attention == "projected":
            seen = self._products(tokens, [layer[name] for name in ("cross_key", "cross_value")])
        context = self.op("MultiHeadAttention", query, *seen, domain=MICROSOFT, num_heads=heads)
        x = self._added(x, context, layer["cross_output"], layer["cross_norm"])
        return self._added(x, self._inner(layer, x), layer["output"], layer["output_norm"])

    def _logits(self, x: str) -> str:
        """Logits of every word, [n, v], of rows [n, d]."""
        head = self.params["word_head"]
        x = self._activated(self.head_linear(x, head["dense"]))
        x = self._normalised(x, head["norm"])
        return self.op("Gemm", x, self.words, self.constant(head["bias"]), transB=1)
