"""Compiled programs are read rightly, and the page that quotes them shows what was found."""

import importlib
import json
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
RESULT = FOLDER / "results" / "tpu_compile.json"
ARCHITECTURE = FOLDER.parent / "docs" / "architecture.md"
PAGE = FOLDER.parent / "docs" / "guide" / "training.md"

TEXT = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%first_step (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=6, dimensions={0}
}

%second_step (p.1: bf16[4,8]) -> bf16[16,8] {
  %p.1 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %square = f32[16,16]{1,0:T(8,128)} broadcast(%p.1), dimensions={0,1}
  ROOT %all-gather.2 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=6, dimensions={0}
}

%row_of_table (table: f32[12,64], number: s32[]) -> f32[1,64] {
  %table = f32[12,64]{1,0:T(8,128)} parameter(0)
  %number = s32[]{:T(128)} parameter(1)
  ROOT %row = f32[1,64]{1,0:T(8,128)} dynamic-slice(%table, %number, %number), dynamic_slice_sizes={1,64}
}

%row_inside (outer: f32[12,64], index: s32[]) -> f32[1,64] {
  %outer = f32[12,64]{1,0:T(8,128)} parameter(0)
  %index = s32[]{:T(128)} parameter(1)
  ROOT %found = f32[1,64]{1,0:T(8,128)S(1)} fusion(%outer, %index), kind=kLoop, calls=%row_of_table
}

%update (old: f32[12,64], new: f32[1,64], place: s32[]) -> (f32[12,64], f32[1,64]) {
  %old = f32[12,64]{1,0:T(8,128)} parameter(0)
  %new = f32[1,64]{1,0:T(8,128)} parameter(1)
  %place = s32[]{:T(128)} parameter(2)
  %placed = f32[12,64]{1,0:T(8,128)} dynamic-update-slice(%old, %new, %place, %place)
  ROOT %both = (f32[12,64]{1,0:T(8,128)}, f32[1,64]{1,0:T(8,128)}) tuple(%placed, %new)
}

%body (carry: (s32[], f32[12,64])) -> (s32[], f32[12,64]) {
  %carry = (s32[]{:T(128)}, f32[12,64]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %t = f32[12,64]{1,0:T(8,128)} get-tuple-element(%carry), index=1
  %read = f32[1,64]{1,0:T(8,128)S(1)} fusion(%t, %i), kind=kLoop, calls=%row_inside
  %reduce = f32[1,64]{1,0:T(8,128)S(1)} all-reduce(%read), channel_id=9, to_apply=%add
  %write = (f32[12,64]{1,0:T(8,128)}, f32[1,64]{1,0:T(8,128)}) fusion(%t, %reduce, %i), kind=kLoop, calls=%update
  ROOT %next = (s32[]{:T(128)}, f32[12,64]{1,0:T(8,128)}) tuple(%i, %t)
}

%condition (carry.1: (s32[], f32[12,64])) -> pred[] {
  %carry.1 = (s32[]{:T(128)}, f32[12,64]{1,0:T(8,128)}) parameter(0)
  %limit = s32[]{:T(128)} constant(12)
  %at = s32[]{:T(128)} get-tuple-element(%carry.1), index=0
  ROOT %more = pred[]{:T(512)} compare(%at, %limit), direction=LT
}

ENTRY %main (x: bf16[4,8], y: (s32[], f32[12,64])) -> bf16[16,8] {
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %y = (s32[]{:T(128)}, f32[12,64]{1,0:T(8,128)}) parameter(1)
  %begin = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} fusion(%x), kind=kCustom, calls=%first_step
  %end = bf16[16,8]{1,0:T(8,128)(2,1)} fusion(%x), kind=kCustom, calls=%second_step
  %send = (f32[6,6]{1,0}, f32[6,6]{1,0}, /*index=2*/u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%end), channel_id=7, source_target_pairs={{0,1},{1,0}}
  %sent = f32[6,6]{1,0} collective-permute-done(%send)
  %loop = (s32[]{:T(128)}, f32[12,64]{1,0:T(8,128)}) while(%y), condition=%condition, body=%body
  %whole = s32[6,6]{1,0} convolution(%sent, %sent), dim_labels=bf_io->bf
  %scatter = bf16[4,8]{1,0:T(8,128)(2,1)} reduce-scatter(%end), channel_id=8, to_apply=%add
  ROOT %out = bf16[16,8]{1,0:T(8,128)(2,1)} copy(%end)
}
"""  # noqa: E501


@pytest.fixture
def benchmark(monkeypatch):
    """A module of the folder of benchmarks, by name."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def test_collectives_are_counted_once_and_in_loops_as_often_as_they_run(benchmark):
    hlo = benchmark("tpu_hlo")
    assert hlo.collectives(hlo.parse(TEXT)) == {
        "all-gather": {"count": 1, "bytes": 16 * 8 * 2},  # Of two steps
        "all-reduce": {"count": 12, "bytes": 12 * 64 * 4},
        "collective-permute": {"count": 1, "bytes": 6 * 6 * 4},  # Of a start and a done
        "reduce-scatter": {"count": 1, "bytes": 16 * 8 * 2},
    }


def test_products_are_told_by_the_type_of_their_results(benchmark):
    hlo = benchmark("tpu_hlo")
    assert hlo.products(hlo.parse(TEXT)) == {"s32": 1}


def test_arrays_inside_a_fusion_are_not_in_memory(benchmark):
    hlo = benchmark("tpu_hlo")
    module = hlo.parse(TEXT)
    assert hlo.squares(module, "f32", {6, 12, 16}) == ["f32[6,6]"]
    assert hlo.squares(module, "bf16", {6}) == []


def test_traffic_is_what_moves_between_the_main_memory_and_the_cores(benchmark):
    hlo = benchmark("tpu_hlo")
    x, gathered, table_row = 4 * 8 * 2, 16 * 8 * 2, 64 * 4
    expected = {
        "begin": x,  # Its result stays on the chip
        "end": x + gathered,
        "sent": 6 * 6 * 4 + 6 * 6 * 4,
        "read": 12 * (table_row + 4),  # A row of the table, and its number
        "write": 12 * (2 * table_row + 4),  # A row of the old table, another array, the number
        "more": 12 * (4 + 4 + 1),
        "whole": 3 * 6 * 6 * 4,
        "scatter": gathered + x,
        "out": 2 * gathered,
    }
    assert hlo.traffic(hlo.parse(TEXT)) == sum(expected.values())


def test_products_are_counted_through_loops_kernels_and_shards(benchmark):
    flops = benchmark("tpu_programs").product_flops
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,))
    rows = jax.P("data")
    sharded = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=rows, out_specs=rows)

    @jax.jit
    def program(x):
        x = jax.lax.scan(lambda x, _: (jax.checkpoint(jnp.tanh)(x @ x), None), x, length=5)[0]
        return sharded(x)

    assert flops(jax.make_jaxpr(program)(np.ones((8, 8))).jaxpr) == 2 * (5 * 8**3 + 8 * 8 * 4)


def test_collectives_on_a_ring(benchmark):
    sent = {"all-reduce": {"count": 2, "bytes": 100.0}, "all-gather": {"count": 1, "bytes": 8.0}}
    assert benchmark("tpu_compile").link_bytes(sent, 4) == 0.75 * (4 * 100 + 2 * 8)
    assert benchmark("tpu_compile").link_bytes(sent, 1) == 0


def test_the_message_of_what_does_not_fit_is_cut_to_its_figures(benchmark):
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space"
        " hbm. Used 19.29G of 15.75G hbm. Exceeded hbm capacity by 3.54G.\n\nTotal hbm usage"
    )
    assert benchmark("tpu_compile").too_large(message) == "Used 19.29G of 15.75G hbm"


def test_the_pages_show_the_result(benchmark):
    """Tables of docs/guide/training.md, and collectives of docs/architecture.md."""
    result, module = json.loads(RESULT.read_text("utf-8")), benchmark("tpu_compile")
    for table in module.markdown(result).split("\n\n"):
        assert table in PAGE.read_text("utf-8")
    steps = [row for row in result["rows"] if row["fits"] and row["kind"] == "step"]
    sent = {kind for row in steps if row["fsdp"] == 1 for kind in row["collectives"]}
    table = ARCHITECTURE.read_text("utf-8").partition("| collective |")[2].partition("\n\n")[0]
    assert sent == {kind for kind in benchmark("tpu_hlo").COLLECTIVES if kind in table}


def test_layers_of_the_int8_scorer_are_integer_products():
    """Six in each of twelve layers."""
    rows = json.loads(RESULT.read_text("utf-8"))["rows"]
    (row,) = [row for row in rows if row["precision"] == "int8"]
    assert row["products"]["s32"] == 6 * 12


def test_no_program_has_a_float32_attention_array():
    rows = json.loads(RESULT.read_text("utf-8"))["rows"]
    assert not [row["name"] for row in rows if row["fits"] and row["float32_attention"]]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu: pip install 'jax[tpu]'")
def test_the_smallest_program_compiles_for_a_tpu(benchmark):
    """An encoder of one layer: the kernel of attention is there, and no float32 array beside it."""
    compile_module, programs = benchmark("tpu_compile"), benchmark("tpu_programs")
    program = programs.Program("encode", programs.B, 64, "v5e:2x2", 1, layers=1)
    row, text = compile_module.compile_program(program)
    row |= compile_module.figures(program, row, text)
    assert row["fits"] and row["collectives"] == {} and row["float32_attention"] == []
    assert 1.0 <= row["flops"] / program.model_flops(1) < 1.1
    assert "flash_attention" in text and row["bytes"]["argument"] > 0
