"""Reading of a compiled program's text (HLO): collectives, memory traffic, shapes in memory.

The text of a TPU's program names some collectives many times: an asynchronous one has a start and
a done, and one that is fused with other work stands in a computation for each of its steps. All
texts of one collective have one `channel_id`, by which they are counted once; what stands in a loop
counts as often as the loop runs.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "s4": 0.5, "u4": 0.5, "c64": 8, "token": 0, "opaque": 0}
"""Bytes of types whose name does not end in their bits."""
NOT_COMPUTED = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "async-update",
}  # fmt: skip
"""Instructions that move nothing; a loop's body is counted by itself."""
SLICES = {"dynamic-slice", "slice", "gather"}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*)$")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_OPCODE = re.compile(r"\s*([a-z][\w-]*)\(")
_NAME = re.compile(r"%([\w.-]+)")


class Shape(NamedTuple):
    """An array: data type, sizes, and memory space (0 is the main memory, HBM)."""

    dtype: str
    sizes: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> float:
        """Bytes without padding."""
        bits = re.search(r"\d+", self.dtype)
        size = BYTES[self.dtype] if self.dtype in BYTES else int(bits[0]) / 8 if bits else 1
        return size * math.prod(self.sizes)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.sizes))}]"


class Instruction(NamedTuple):
    """A line of a computation."""

    name: str
    shapes: tuple[Shape, ...]
    """Results of the instruction; a tuple has several."""
    opcode: str
    operands: tuple[str, ...]
    rest: str
    """Text from the operands on, with the attributes."""
    is_root: bool

    def attribute(self, name: str) -> str | None:
        """Name or number that an attribute has."""
        found = re.search(rf"\b{name}=%?([\w.-]+)", self.rest)
        return found[1] if found else None


@dataclass
class Module:
    """Computations of a program by name, and how often each of them runs."""

    computations: dict[str, dict[str, Instruction]]
    entry: str
    runs: dict[str, float] = field(default_factory=dict)
    fused: set[str] = field(default_factory=set)
    """Computations inside a fusion, whose results never reach the memory."""


def parse(text: str) -> Module:
    """Read a program's text."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, inside = "", None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            inside = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            inside = None
        elif inside is not None and (found := _INSTRUCTION.match(line)):
            instruction = _instruction(found[2], found[3], bool(found[1]))
            inside[instruction.name] = instruction
    module = Module(computations, entry)
    _count_runs(module, entry, 1.0, False)
    return module


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    opcode = _OPCODE.match(text, end)
    assert opcode, text[:200]
    behind = _closing(text, opcode.end() - 1)
    operands = tuple(_NAME.findall(text[opcode.end() : behind]))
    rest = text[opcode.end() - 1 :]
    return Instruction(name, _shapes(text[:end]), opcode[1], operands, rest, is_root)


def _closing(text: str, at: int) -> int:
    """Index behind the parenthesis that closes the one at `at`."""
    depth = 0
    for index in range(at, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index + 1
    raise ValueError(f"no closing parenthesis: {text[at : at + 80]}")


def _shapes(text: str) -> tuple[Shape, ...]:
    shapes = []
    for dtype, sizes, layout in _SHAPE.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size) for size in sizes.split(",") if size)
        shapes.append(Shape(dtype, sizes, int(space[1]) if space else 0))
    return tuple(shapes)


def _count_runs(module: Module, name: str, times: float, fused: bool) -> None:
    """Add `times` runs of a computation, and of those that it calls."""
    module.runs[name] = module.runs.get(name, 0.0) + times
    if fused:
        module.fused.add(name)
    for one in module.computations[name].values():
        trips = _trips(module, one) if one.opcode == "while" else 1.0
        for attribute in (
            "calls",
            "body",
            "condition",
            "called_computations",
            "branch_computations",
        ):
            found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.-]+)", one.rest)
            for called in _NAME.findall(found[1]) if found else ():
                _count_runs(module, called, times * trips, fused or one.opcode == "fusion")


def _trips(module: Module, loop: Instruction) -> float:
    """Runs of a loop whose condition compares a count from 0 on with a constant; 1 of any other."""
    condition = module.computations[loop.attribute("condition") or ""]
    for line in condition.values():
        if line.is_root and line.opcode == "compare" and "direction=LT" in line.rest:
            limit = condition[line.operands[1]]
            if limit.opcode == "constant":
                return float(limit.rest[1 : limit.rest.index(")")])
    return 1.0


def collectives(module: Module) -> dict[str, dict[str, float]]:
    """{kind: {"count", "bytes"}} of one run of the program on one chip; bytes are those of the
    whole arrays, the gathered or the one that is to be scattered."""
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for name, computation in module.computations.items():
        for one in computation.values():
            kind = one.opcode.removesuffix("-start").removesuffix("-done")
            if kind not in COLLECTIVES or name not in module.runs:
                continue
            begun = computation[one.operands[0]] if one.opcode.endswith("-done") else one
            key = kind, begun.attribute("channel_id") or begun.name
            size = 0.0 if one.opcode.endswith("-start") else _collective_bytes(computation, one)
            runs, known = found.get(key, (math.inf, 0.0))
            # A collective that begins and ends outside of a loop may have steps inside.
            found[key] = min(runs, module.runs[name]), max(known, size)
    total: dict[str, dict[str, float]] = {}
    for (kind, _), (runs, size) in sorted(found.items()):
        sums = total.setdefault(kind, {"count": 0, "bytes": 0})
        sums["count"] += int(runs)
        sums["bytes"] += int(runs * size)
    return total


def _collective_bytes(computation: dict[str, Instruction], one: Instruction) -> float:
    made = _bytes(one.shapes)
    if one.opcode.endswith("-done"):
        return made
    return max(made, sum(_bytes(computation[name].shapes) for name in one.operands))


def products(module: Module) -> dict[str, int]:
    """Matrix products in a program's text, by the data type of their result."""
    lines = (line for name in module.runs for line in module.computations[name].values())
    made = (line.shapes[0].dtype for line in lines if line.opcode in ("dot", "convolution"))
    return dict(sorted(Counter(made).items()))


def squares(module: Module, dtype: str, lengths: set[int]) -> list[str]:
    """Shapes of a data type in memory that have two axes as long as one of `lengths`."""
    found = {
        str(shape)
        for name in module.runs.keys() - module.fused
        for one in module.computations[name].values()
        for shape in one.shapes
        if shape.dtype == dtype and any(shape.sizes.count(length) > 1 for length in lengths)
    }
    return sorted(found)


def traffic(module: Module) -> float:
    """Bytes that one run of the program reads from the main memory and writes to it."""
    total = 0.0
    for name in module.runs.keys() - module.fused:
        computation = module.computations[name]
        moved = sum(_moved(module, computation, one) for one in computation.values())
        total += module.runs[name] * moved
    return total


def _moved(module: Module, computation: dict[str, Instruction], one: Instruction) -> float:
    if one.opcode in NOT_COMPUTED or one.opcode.endswith("-start"):
        return 0.0
    written = _in_memory(one.shapes)
    if one.opcode.endswith("-done"):  # A copy or a slice, to another memory or within one
        begun = computation[one.operands[0]]
        source = computation[begun.operands[0]].shapes
        return written + (_bytes(one.shapes) if _in_memory(source) else 0.0)
    if one.opcode in SLICES:
        return 2 * written
    if one.opcode == "dynamic-update-slice":
        return 2 * _in_memory(computation[one.operands[1]].shapes)
    if one.opcode == "fusion":
        return _written(module, one) + sum(
            _read(module, one, number, _in_memory(computation[name].shapes))
            for number, name in enumerate(one.operands)
        )
    return written + sum(_in_memory(computation[name].shapes) for name in one.operands)


def _written(module: Module, fusion: Instruction) -> float:
    """Bytes that a fusion writes: its results, but of an array that it updates the new part."""
    inner = module.computations[fusion.attribute("calls") or ""]
    root = next(line for line in inner.values() if line.is_root)
    results = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(results) != len(fusion.shapes):
        return _written(module, root) if root.opcode == "fusion" else _in_memory(fusion.shapes)
    total = 0.0
    for shape, line in zip(fusion.shapes, results, strict=True):
        while line.opcode == "bitcast":
            line = inner[line.operands[0]]
        if line.opcode == "dynamic-update-slice":
            total += min(_in_memory((shape,)), _bytes(inner[line.operands[1]].shapes))
        elif line.opcode == "fusion" and len(line.shapes) == 1:
            total += min(_in_memory((shape,)), _written(module, line))
        else:
            total += _in_memory((shape,))
    return total


def _read(module: Module, fusion: Instruction, number: int, size: float) -> float:
    """Bytes that a fusion reads of an operand: all, or only the slices that it takes."""
    inner = module.computations[fusion.attribute("calls") or ""]
    names = [
        line.name
        for line in inner.values()
        if line.opcode == "parameter" and line.rest.startswith(f"({number})")
    ]
    total = 0.0
    for name in names:
        for user in inner.values():
            if name not in user.operands:
                continue
            if user.opcode == "bitcast":
                names.append(user.name)
            elif user.opcode in SLICES:
                total += _bytes(user.shapes)
            elif user.opcode == "fusion":
                total += _read(module, user, user.operands.index(name), size)
            elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
                return size
    return min(size, total)


def _bytes(shapes: tuple[Shape, ...]) -> float:
    return sum(shape.bytes for shape in shapes)


def _in_memory(shapes: tuple[Shape, ...]) -> float:
    """Bytes of what lies in the main memory."""
    return sum(shape.bytes for shape in shapes if shape.space == 0)
