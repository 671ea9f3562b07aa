"""Filters of images: `year >= 2010 and license in ['cc0', 'cc-by']`.

A filter compares metadata with literals by `==`, `!=`, `<`, `<=`, `>`, `>=`, `in [...]` and `not in
[...]`; `and`, `or`, `not` and parentheses join comparisons. Texts stand in single or double quotes,
truth values are `true` and `false`, and `id` is the image's id. Where an image has no such value no
comparison holds, negated or not, as with NULL in SQL. A filter is a Python expression, read by
Python's parser and never run, and a boolean expression of Milvus.

While a filter is read, every `not` is carried inwards to the comparisons, where it becomes another
operator. What is left holds by its comparisons alone, and nulls need no logic of their own.
"""

import ast
import difflib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, NoReturn, TypeGuard

import numpy as np
from jaxtyping import Bool

from edje_jax.data.sources.texts import printable
from edje_jax.index.metadata import ID, INTEGERS, Kind, kinds_of
from edje_jax.types import Scalar

RowsOfIds = Callable[[Sequence[str]], Bool[np.ndarray, " rows"]]
"""Function from ids to whether each row of a shard has one of them."""

LONGEST = 100_000
"""Most characters of a filter."""
MOST_COMPARISONS = 100
"""Most comparisons in a filter: each reads a column of every image."""
_EXAMPLE = "year >= 2010 and license == 'cc-by'"
_SHOWN = 60
"""Characters of a long filter on either side of a fault that a message shows."""
_OPERATORS = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
    ast.In: "in", ast.NotIn: "not in",
}  # fmt: skip
_NEGATED = {
    "==": "!=", "!=": "==", "<": ">=", "<=": ">", ">": "<=", ">=": "<", "in": "not in",
    "not in": "in",
}  # fmt: skip
_MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_FUNCTIONS = {
    "==": "equal", "!=": "not_equal", "<": "less", "<=": "less_equal", ">": "greater",
    ">=": "greater_equal",
}  # fmt: skip
"""Functions of `pyarrow.compute`."""
_LITERALS = {str: "text", int: "number", float: "number", bool: "truth value"}
_KINDS = {"text": "text", "integer": "number", "float": "number", "boolean": "truth value"}
"""Type of the literals that values of a kind are compared with."""
_WRITTEN = {"text": "a text in quotes", "number": "a number", "truth value": "true or false"}


class BadWhere(ValueError):
    """A filter that cannot be read, or does not fit the metadata that there is."""


@dataclass(frozen=True)
class Comparison:
    """A comparison of a metadata value, or of the id, with literals."""

    name: str
    operator: str
    values: tuple[Scalar, ...]
    """Literals of one type: those of a list, or a single one."""
    place: int
    """Index in the filter, for messages."""

    @property
    def literal(self) -> str:
        """Type of the literals."""
        return _LITERALS[type(self.values[0])]


@dataclass(frozen=True)
class Junction:
    """Conditions of which all have to hold, or one."""

    word: Literal["and", "or"]
    parts: tuple["Junction | Comparison", ...]


@dataclass(frozen=True)
class Where:
    """A filter that was read.

        where = Where.parse("year >= 2010 and license in ['cc0', 'cc-by']")
        where.check(map(kinds_of, tables))
        masks = [where.mask(table) for table in tables]

    All shards of an index are checked at once, and each is then filtered by itself.
    """

    text: str
    condition: Junction | Comparison

    @classmethod
    def parse(cls, text: str) -> "Where":
        """Read a filter.

        Raises:
            BadWhere: it is not written in the language; the message has column and remedy.
        """
        return cls(text, _Reader(text).read())

    @property
    def names(self) -> frozenset[str]:
        """Names of the metadata that are compared."""
        return frozenset(each.name for each in _comparisons(self.condition)) - {ID}

    @property
    def asks_for_ids(self) -> bool:
        """Whether ids are compared."""
        return any(each.name == ID for each in _comparisons(self.condition))

    @property
    def ids(self) -> frozenset[str]:
        """Ids that are compared."""
        compared = [each for each in _comparisons(self.condition) if each.name == ID]
        return frozenset(str(value) for each in compared for value in each.values)

    def check(self, kinds: Iterable[Mapping[str, Kind]]) -> None:
        """Check that an index has metadata that the filter can be about.

        Args:
            kinds: kinds of the columns of each shard (`kinds_of`). They may differ: a comparison
                has to fit one shard, and holds nowhere in shards of another kind.

        Raises:
            BadWhere: a name is not among them, or is compared with literals of another type.
        """
        known: dict[str, set[str]] = {}
        for shard in kinds:
            for name, kind in shard.items():
                known.setdefault(name, set()).update({_KINDS[kind]} if kind in _KINDS else ())
        for each in _comparisons(self.condition):
            if each.name != ID and (fault := _misfit(each, known)):
                raise _bad(self.text, each.place, fault)

    def mask(self, table: Any, rows_of_ids: RowsOfIds | None = None) -> Bool[np.ndarray, " rows"]:
        """Whether the filter holds for each row of a shard.

        A column that the table has not, or of another kind, is null here: `check` comes first.

        Args:
            table: a `pyarrow.Table` of the form that `metadata_table` makes.
            rows_of_ids: the shard's; needed where the filter `asks_for_ids`.
        """
        return _mask(self.condition, table, rows_of_ids)

    def to_milvus(self) -> str:
        """The filter as a boolean expression of Milvus, which holds for the same images.

        Milvus Lite lets nulls through `not in`, which is written as one `!=` for each value, and
        servers do so with `!=`, which comes with `exists`.
        """
        return _milvus(self.condition)


class _Reader:
    """Reader of one filter."""

    def __init__(self, text: str):
        self._text = text
        self._line = text.replace("\r", " ").replace("\n", " ").lstrip()
        self._start = len(text) - len(self._line)
        self._count = 0

    def read(self) -> Junction | Comparison:
        """Condition that the filter stands for."""
        if not self._line:
            raise _bad(self._text, 0, f"the filter is empty; write one as {_EXAMPLE}")
        if len(self._text) > LONGEST:
            raise _bad(self._text, LONGEST, f"longer than {LONGEST:,} characters; shorten it")
        try:
            return self._condition(ast.parse(self._line, mode="eval").body, negated=False)
        except SyntaxError as error:
            # Counts from 1, and 0 stands for the end.
            place = self._start + (error.offset or len(self._line.rstrip()) + 1) - 1
            reason, _, _ = error.msg.partition(";")
            told = f"cannot be read ({reason}); write it as {_EXAMPLE}"
        except (RecursionError, MemoryError):
            place, told = 0, "nested too deeply; use fewer parentheses"
        except ValueError as error:
            if isinstance(error, BadWhere):
                raise
            place, told = 0, "no text that can be encoded; leave out NUL and half surrogate pairs"
        raise _bad(self._text, place, told)

    def _condition(self, node: ast.expr, negated: bool) -> Junction | Comparison:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return self._condition(node.operand, not negated)
        if isinstance(node, ast.BoolOp):
            word = "and" if isinstance(node.op, ast.And) != negated else "or"
            return Junction(word, tuple(self._condition(each, negated) for each in node.values))
        if not isinstance(node, ast.Compare):
            example = f"{node.id} == true" if _is_name(node) else _EXAMPLE
            self._refuse(node, f"no comparison; write one as {example}")
        sides = [node.left, *node.comparators]  # More than two in 2010 <= year < 2020
        parts = tuple(
            self._comparison(left, operator, right, negated)
            for left, operator, right in zip(sides, node.ops, sides[1:], strict=False)
        )
        return parts[0] if len(parts) == 1 else Junction("or" if negated else "and", parts)

    def _comparison(
        self, left: ast.expr, how: ast.cmpop, right: ast.expr, negated: bool
    ) -> Comparison:
        self._count += 1
        if self._count > MOST_COMPARISONS:
            self._refuse(left, f"more than {MOST_COMPARISONS} comparisons; use in [...]")
        if type(how) not in _OPERATORS:
            self._refuse(right, "is cannot be used; write == or !=")
        operator = _OPERATORS[type(how)]
        if operator in _MIRRORED and _is_name(right) and not _is_name(left):
            left, operator, right = right, _MIRRORED[operator], left
        if not _is_name(left):
            self._refuse(left, f"a name of metadata belongs on one side; write it as {_EXAMPLE}")
        values = self._values(right) if operator not in _MIRRORED else (self._value(right),)
        found = Comparison(
            left.id, _NEGATED[operator] if negated else operator, values, self._place(left)
        )
        is_ordered = operator in ("<", "<=", ">", ">=")
        if found.name == ID and (found.literal != "text" or is_ordered):
            self._refuse(right, "id is a text; compare it with texts, by ==, !=, in or not in")
        if found.literal == "truth value" and is_ordered:
            self._refuse(right, "truth values have no order; compare them by == or !=")
        return found

    def _values(self, node: ast.expr) -> tuple[Scalar, ...]:
        if not (isinstance(node, ast.List) and node.elts):
            self._refuse(node, "a list with a value or more has to follow in, as ['cc0', 'cc-by']")
        values = tuple(self._value(each) for each in node.elts)
        if len({_LITERALS[type(value)] for value in values}) > 1:
            self._refuse(node, "values of more than one type; give texts, or numbers")
        return values

    def _value(self, node: ast.expr) -> Scalar:
        value: Any = None
        if isinstance(node, ast.Constant):
            value = node.value
        elif isinstance(node, ast.Name) and not _is_name(node):
            value = node.id == "true"
        elif isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
            number: Any = node.operand.value
            if isinstance(node.op, ast.USub) and type(number) in (int, float):
                value = -number
        if type(value) not in _LITERALS:
            self._refuse(node, "compare with a text in quotes, a number, true or false")
        if isinstance(value, str):
            if printable(value) != value:
                self._refuse(node, "half of a surrogate pair; leave it out")
        elif not -sys.float_info.max <= value <= sys.float_info.max:
            self._refuse(node, "a number beyond 64 bits; give a smaller one")
        return value

    def _place(self, node: ast.expr) -> int:
        before = self._line.encode()[: node.col_offset].decode()  # The parser counts bytes
        return self._start + len(before)

    def _refuse(self, node: ast.expr, told: str) -> NoReturn:
        raise _bad(self._text, self._place(node), told)


def _is_name(node: ast.expr) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and node.id not in ("true", "false")


def _bad(text: str, place: int, told: str) -> BadWhere:
    start, end = max(place - _SHOWN, 0), place + _SHOWN
    before, after = "..." if start else "", "..." if end < len(text) else ""
    part = printable(" ".join(text[start:end].split()))
    return BadWhere(f"where {before}{part}{after}: column {place + 1}: {told}")


def _comparisons(condition: Junction | Comparison) -> Iterator[Comparison]:
    if isinstance(condition, Comparison):
        yield condition
    else:
        for part in condition.parts:
            yield from _comparisons(part)


def _misfit(comparison: Comparison, known: Mapping[str, set[str]]) -> str:
    """Why a comparison fits no shard, with the remedy; "" if it fits one."""
    name = comparison.name
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        there = ", ".join(sorted(known)) or "none; build the index with --metadata"
        return f'no metadata "{name}"; {guess}There are {there}'
    if not known[name] or comparison.literal in known[name]:
        return ""
    wanted = " or ".join(_WRITTEN[literal] for literal in sorted(known[name]))
    return f"{name} is no {comparison.literal}; compare it with {wanted}"


def _mask(
    condition: Junction | Comparison, table: Any, rows_of_ids: RowsOfIds | None
) -> Bool[np.ndarray, " rows"]:
    import pyarrow.compute as pc

    if isinstance(condition, Junction):
        join = np.logical_and if condition.word == "and" else np.logical_or
        return reduce(join, (_mask(part, table, rows_of_ids) for part in condition.parts))
    name, operator = condition.name, condition.operator
    if name == ID:
        if rows_of_ids is None:
            raise ValueError("the filter asks for ids, and no rows_of_ids is given")
        found = rows_of_ids([str(value) for value in condition.values])
        return found if operator in ("==", "in") else ~found
    kind = kinds_of(table).get(name, "nothing")
    if _KINDS.get(kind) != condition.literal:
        return np.zeros(table.num_rows, bool)
    return pc.fill_null(_fits(table[name], operator, condition.values), False).to_numpy()


def _fits(column: Any, operator: str, values: Sequence[Scalar]) -> Any:
    """Whether each value of an Arrow array fits literals of its own type; null where that is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind):
        chunks = [
            pc.take(_fits(chunk.dictionary, operator, values), chunk.indices)
            for chunk in column.chunks
        ]
        return pa.chunked_array(chunks, pa.bool_())
    if pa.types.is_integer(kind):
        operator, values = _of_integers(operator, values)
    elif pa.types.is_floating(kind):
        values = [float(value) + 0.0 for value in values]  # Never -0.0, as in the column
    if operator in _FUNCTIONS:
        return pc.call_function(_FUNCTIONS[operator], [column, pa.scalar(values[0], kind)])
    found = pc.call_function("is_in", [column], pc.SetLookupOptions(pa.array(values, kind)))
    if operator == "in":
        return found
    absent = pc.call_function("is_null", [column])
    return pc.call_function("invert", [pc.call_function("or", [found, absent])])


def _of_integers(operator: str, values: Sequence[Any]) -> tuple[str, list[int]]:
    """Comparison with int64 literals that holds for the same whole numbers."""
    if operator in ("<", ">=", "<=", ">"):
        bound = math.ceil(values[0]) if operator in ("<", ">=") else math.floor(values[0])
        if bound in INTEGERS:
            return operator, [bound]
        return "not in" if (bound > 0) == (operator in ("<", "<=")) else "in", []
    whole = [int(value) for value in values if value == int(value) and int(value) in INTEGERS]
    if len(whole) == len(values):
        return operator, whole
    return "in" if operator in ("==", "in") else "not in", whole


def _milvus(condition: Junction | Comparison) -> str:
    if isinstance(condition, Junction):
        parts = (
            f"({_milvus(part)})" if isinstance(part, Junction) else _milvus(part)
            for part in condition.parts
        )
        return f" {condition.word} ".join(parts)
    name, operator = condition.name, condition.operator
    values = [json.dumps(value, ensure_ascii=False) for value in condition.values]
    if operator in ("!=", "not in") and name != ID:
        # A server lets through rows without the value, unless it is asked for.
        different = " and ".join(f"{name} != {value}" for value in values)
        return f"((exists {name}) and {different})"
    listed = f"[{', '.join(values)}]" if operator in ("in", "not in") else values[0]
    return f"{name} {operator} {listed}"
