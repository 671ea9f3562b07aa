"""ONNX graphs of the online part, written from the joint encoder's parameters.

Two graphs, of which the first runs once for each caption and the second once for each pair:

    text    ids [b, t] ────────────────── embedded, through the deferred layers ── text
    pairs   text [b, 1 + t, d],
            tokens [b, m, d],
            similarities [b] ──────────── the other layers, match head ── logits [b]

Captions of a call have one length t, without padding, and its videos have the same number of
frames, so that nothing has to be masked. Rows stand in memory as `edje_jax.models.joint_encoder`
has them: `v_1..v_m [SEP] [CLS] caption [SEP]`. Where a video may have fewer frames than others, the
second graph takes the rows that are there, and embeds the [SEP] behind them, of which `text` has
the word.

Attention over heads is one operator of ONNX Runtime's own (domain com.microsoft), and so is a
product in int8. Graphs that PyTorch's exporter traces have a dozen operators in the place of the
first, and need PyTorch and a minute to be traced at full size; these take a second.
`tests/runtimes/test_onnx.py` holds their logits to those of the JAX model.

In int8 the products of the layers take int8 weights, with a scale for each output channel, and
uint8 activations, with a scale and a zero point that are found at run time over all rows of a call;
everything between them, embeddings and the match head are float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float32, Int8
from onnx import TensorProto, helper, numpy_helper

from edje_jax.config.model import EdjeConfig

MICROSOFT = "com.microsoft"
OPSET, IR_VERSION = 20, 10
"""Versions that ONNX Runtime reads from 1.20 on."""

Params = Mapping[str, Any]
"""Parameters of the joint encoder, or of a part of it, as NumPy arrays by name."""
Rows = tuple[str, str] | None
"""Rows that leave a layer, from the first to before the last, by the names of lists of one integer;
None is all."""


def text_graph(config: EdjeConfig, params: Params, is_int8: bool) -> onnx.ModelProto:
    """Graph of captions up to where they meet images: "ids" -> "text" [b, 1 + t, d]."""
    graph = GraphWriter(config, params, is_int8)
    text = graph.embedded_text("ids")
    for number in range(config.joint_encoder.deferred_layers):
        text = graph.layer(number, text)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["captions", "length"])
    shape = ["captions", "rows", config.joint_encoder.hidden_size]
    return graph.model([ids], text, helper.make_tensor_value_info("text", TensorProto.FLOAT, shape))


def pairs_graph(config: EdjeConfig, params: Params, is_int8: bool) -> onnx.ModelProto:
    """Graph of pairs: "text", "tokens" and, of a model with a similarity prior, "similarities" ->
    "logits" [b]."""
    joint, graph = config.joint_encoder, GraphWriter(config, params, is_int8)
    vision = "tokens" if joint.deferred_layers else graph.embedded_vision("tokens", "text")
    text = graph.closed("text", "tokens") if graph.closes_by_frames else "text"
    cls = graph.op("Squeeze", graph.encoded(vision, text), graph.ints(1))
    if config.similarity_prior:
        cls = graph.op("Add", cls, graph.prior("similarities"))
    pooled = graph.op("Tanh", graph.head_linear(cls, params["pooler"]))
    logits = graph.op("Squeeze", graph.head_linear(pooled, params["classifier"]), graph.ints(1))
    width = joint.hidden_size
    inputs = {
        "text": (TensorProto.FLOAT, ["pairs", "rows", width]),
        "tokens": (TensorProto.FLOAT, ["pairs", token_rows(config), width]),
    }
    if config.similarity_prior:
        inputs["similarities"] = (TensorProto.FLOAT, ["pairs"])
    infos = [helper.make_tensor_value_info(name, *info) for name, info in inputs.items()]
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["pairs"])
    return graph.model(infos, logits, out)


def token_rows(config: EdjeConfig) -> int | str:
    """Rows of "tokens": their number, or the name of one that differs from video to video."""
    return "token_rows" if config.may_miss_frames else config.num_tokens


def quantise(
    weights: Float32[np.ndarray, "i o"],
) -> tuple[Int8[np.ndarray, "i o"], Float32[np.ndarray, " o"]]:
    """Weights as integers from -127 to 127, and the scale of each output channel."""
    scales = np.abs(weights).max(axis=0) / 127
    scales[scales == 0] = 1
    return np.rint(weights / scales).astype(np.int8), scales.astype(np.float32)


@dataclass
class GraphWriter:
    """Graph under construction: methods add nodes, and return the names of their outputs."""

    config: EdjeConfig
    params: Params
    is_int8: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Output of an operator that has one; "" stands for an input that is left out."""
        return self.split_op(kind, *inputs, count=1, domain=domain, **attributes)[0]

    def split_op(
        self, kind: str, *inputs: str, count: int, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Outputs of an operator that has several."""
        outputs = [f"{kind}_{len(self.nodes)}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return outputs

    def constant(self, value: np.ndarray) -> str:
        """Constant tensor of the graph."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def ints(self, *values: int) -> str:
        """Constant list of integers."""
        return self.constant(np.array(values, np.int64))

    def model(
        self,
        inputs: list[onnx.ValueInfoProto],
        result: str,
        output: onnx.ValueInfoProto,
    ) -> onnx.ModelProto:
        """The graph as a whole, whose output is what `result` names."""
        self.nodes.append(helper.make_node("Identity", [result], [output.name]))
        graph = helper.make_graph(self.nodes, "edje", inputs, [output], self.constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edje_jax"
        )

    # --- embeddings -------------------------------------------------------------------------------

    def embedded_text(self, ids: str) -> str:
        """`[SEP] [CLS] caption [SEP]`, embedded: the [SEP] that closes the vision segment is the
        caption's last id again. Of videos it is the word alone, if `closes_by_frames`."""
        tables, limit = self.params["embeddings"], self.config.num_positions
        length = self.op("Shape", ids, start=1, end=2)
        closing = self.op("Slice", ids, self.ints(-1), self.ints(limit), self.ints(1))
        words = self.constant(tables["word"]["embedding"])
        if self.closes_by_frames:
            own = self.op(
                "Slice", self.constant(self._places(0)), self.ints(0), length, self.ints(0)
            )
            caption = self.op("Add", self.op("Gather", words, ids, axis=0), own)
            caption = self._normalised(caption, tables["norm"])
            return self.op("Concat", self.op("Gather", words, closing, axis=0), caption, axis=1)
        # Segment 1 is the image's, to which the closing [SEP] belongs.
        own = self.constant(self._places(0))
        of_closing = self.constant(self._places(1)[self.config.num_tokens :])
        if self.config.joint_encoder.deferred_layers:
            place = self.ints(self.config.max_text_length)
        else:
            place = length
        places = (
            self.op("Gather", of_closing, place, axis=0),
            self.op("Slice", own, self.ints(0), length, self.ints(0)),
        )
        content = self.op("Gather", words, self.op("Concat", closing, ids, axis=1), axis=0)
        x = self.op("Add", content, self.op("Concat", *places, axis=0))
        return self._normalised(x, tables["norm"])

    @property
    def closes_by_frames(self) -> bool:
        """Whether the [SEP] behind the vision rows is embedded where their number is known."""
        return self.config.may_miss_frames and not self.config.joint_encoder.deferred_layers

    def closed(self, text: str, tokens: str) -> str:
        """Text rows whose first, a word, is embedded at the place behind a video's rows."""
        rows = self.op("Shape", text, start=1, end=2)  # One more than the caption has
        place = self.op("Sub", self.op("Add", rows, self.token_count(tokens)), self.ints(1))
        end, axis = self.ints(self.config.num_positions), self.ints(1)
        word = self.op("Slice", text, self.ints(0), self.ints(1), axis)
        places = self.op("Gather", self.constant(self._places(1)), place, axis=0)
        closing = self._normalised(self.op("Add", word, places), self.params["embeddings"]["norm"])
        return self.op("Concat", closing, self.op("Slice", text, self.ints(1), end, axis), axis=1)

    def token_count(self, tokens: str) -> str:
        """Number of compressed tokens of an image or a video, as a list of one integer."""
        if self.config.may_miss_frames:
            return self.op("Shape", tokens, start=1, end=2)
        return self.ints(self.config.num_tokens)

    def embedded_vision(self, tokens: str, text: str) -> str:
        """Vision rows, embedded at the places that follow the caption's."""
        rows = self.op("Shape", text, start=1, end=2)  # One more than the caption has
        start = self.op("Sub", rows, self.ints(1))
        end = self.op("Add", start, self.token_count(tokens))
        places = self.op("Slice", self.constant(self._places(1)), start, end, self.ints(0))
        x = self.op("Add", tokens, places)
        return self._normalised(x, self.params["embeddings"]["norm"])

    def _places(self, segment: int) -> Float32[np.ndarray, "n d"]:
        """Embeddings of all positions in a segment; those past the table repeat its last row."""
        tables = self.params["embeddings"]
        positions = tables["position"]["embedding"]
        rows = np.minimum(np.arange(self.config.num_positions), len(positions) - 1)
        return positions[rows] + tables["segment"]["embedding"][segment]

    def _normalised(self, x: str, norm: Params) -> str:
        scale, bias = self.constant(norm["scale"]), self.constant(norm["bias"])
        epsilon = self.config.joint_encoder.layer_norm_eps
        return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)

    # --- layers -----------------------------------------------------------------------------------

    def encoded(self, vision: str, text: str) -> str:
        """[CLS] of every pair after the layers that see both sides, [b, 1, d]."""
        joint, m = self.config.joint_encoder, self.token_count(vision)
        last = joint.num_hidden_layers - 1
        x = self.op("Concat", vision, text, axis=1)
        for number in range(joint.deferred_layers, last):
            if joint.online_vision == "updated":
                x = self.layer(number, x)
            else:
                text = self.layer(number, x, (m, self.ints(self.config.num_positions)))
                x = self.op("Concat", vision, text, axis=1)
        first = self.op("Add", m, self.ints(1))
        return self.layer(last, x, (first, self.op("Add", m, self.ints(2))))

    def layer(self, number: int, x: str, rows: Rows = None) -> str:
        """norm(x + attention(x)), then norm(x + mlp(x)), of which only some rows leave."""
        layer = self.params[f"layers_{number}"]
        kept = x
        if rows is not None:
            kept = self.op("Slice", x, *rows, self.ints(1))
        context = self._attended(layer, kept, x)
        kept = self._added(kept, context, layer["attention_output"], layer["attention_norm"])
        return self._added(kept, self._inner(layer, kept), layer["output"], layer["output_norm"])

    def _attended(self, layer: Params, kept: str, x: str) -> str:
        """Attention of the kept rows to all; products of one input are made as one."""
        if kept == x:
            query, key, value = self._products(x, [layer[n] for n in ("query", "key", "value")])
        else:
            (query,) = self._products(kept, [layer["query"]])
            key, value = self._products(x, [layer[n] for n in ("key", "value")])
        heads = self.config.joint_encoder.num_attention_heads
        return self.op("MultiHeadAttention", query, key, value, domain=MICROSOFT, num_heads=heads)

    def _products(self, x: str, parts: list[Params]) -> list[str]:
        """Linear layers of one input, as one product."""
        kernel, bias = (
            np.concatenate([part[name] for part in parts], axis=-1) for name in ("kernel", "bias")
        )
        product = self._linear(x, kernel, bias)
        if len(parts) == 1:
            return [product]
        return self.split_op("Split", product, count=len(parts), axis=2, num_outputs=len(parts))

    def _inner(self, layer: Params, x: str) -> str:
        """Activations of the MLP."""
        dense = layer["intermediate"]
        return self._activated(self._linear(x, dense["kernel"], dense["bias"]))

    def _activated(self, x: str) -> str:
        """Activation that the config names."""
        kind = self.config.joint_encoder.hidden_act
        if kind == "quick_gelu":
            return self.op("QuickGelu", x, domain=MICROSOFT, alpha=1.702)
        return self.op("Gelu", x, approximate="none" if kind == "gelu" else "tanh")

    def _added(self, x: str, inner: str, dense: Params, norm: Params) -> str:
        """norm(x + dense(inner))."""
        dense_out = self._linear(inner, dense["kernel"], dense["bias"])
        return self._normalised(self.op("Add", x, dense_out), norm)

    def _linear(self, x: str, kernel: np.ndarray, bias: np.ndarray) -> str:
        """Linear layer, in int8 if that is asked for."""
        if not self.is_int8:
            product = self.op("MatMul", x, self.constant(kernel))
            return self.op("Add", product, self.constant(bias))
        weights, scales = (self.constant(part) for part in quantise(kernel))
        inputs = (x, weights, scales, "", self.constant(bias))
        return self.op("DynamicQuantizeMatMul", *inputs, domain=MICROSOFT)

    # --- head -------------------------------------------------------------------------------------

    def head_linear(self, x: str, dense: Params) -> str:
        """Linear layer of the head, which is never quantised."""
        return self.op("Gemm", x, self.constant(dense["kernel"]), self.constant(dense["bias"]))

    def prior(self, similarities: str) -> str:
        """Vectors of the similarity prior: see `edje_jax.models.heads.similarity_prior`."""
        prior, layers = self.config.similarity_prior, self.params["similarity_prior"]
        assert prior is not None
        mean, deviation = (np.array(x, np.float32) for x in (prior.mean, prior.deviation))
        z = self.op("Sub", similarities, self.constant(mean))
        z = self.op("Unsqueeze", self.op("Div", z, self.constant(deviation)), self.ints(1))
        hidden = self.op("Gelu", self.head_linear(z, layers["hidden"]), approximate="tanh")
        return self.head_linear(hidden, layers["out"])
