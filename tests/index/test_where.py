"""Filters: the language, its mistakes, nulls as in SQL, and Milvus' form of it."""

import random
import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from edje_jax.index.metadata import Kind, kinds_of, metadata_table
from edje_jax.index.where import MOST_COMPARISONS, BadWhere, Where
from edje_jax.types import Scalar

pytest.importorskip("pyarrow")

NAMES = ("year", "weight", "license", "is_free", "nothing")
ROWS: list[dict[str, Scalar]] = [
    {"year": 2009, "weight": 0.5, "license": "cc0", "is_free": True},
    {"year": 2010, "weight": -2.5, "license": "cc-by", "is_free": False},
    {"year": 2011, "license": "Österreich's"},
    {"weight": 3.0, "license": ""},
    {"year": -4, "is_free": True},
    {},
]


def fits(text: str) -> list[int]:
    """Rows of `ROWS` that a filter lets through."""
    table, _ = metadata_table(ROWS, NAMES)
    where = Where.parse(text)
    where.check([kinds_of(table)])
    return np.flatnonzero(where.mask(table)).tolist()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("year == 2010", [1]),
        ("year != 2010", [0, 2, 4]),
        ("not year == 2010", [0, 2, 4]),
        ("year >= 2010", [1, 2]),
        ("2010 < year", [2]),
        ("2009 <= year < 2011", [0, 1]),
        ("not (2009 <= year < 2011)", [2, 4]),
        ("year == -4 or weight == -2.5", [1, 4]),
        ("year in [2009, 2011, 1]", [0, 2]),
        ("year not in [2009, 2011]", [1, 4]),
        ("license == 'cc0' or license == \"cc-by\"", [0, 1]),
        ("license > 'cc'", [0, 1, 2]),
        ("license not in ['cc0']", [1, 2, 3]),
        (r"license == 'Österreich\'s'", [2]),
        ("is_free == true", [0, 4]),
        ("is_free != True and year > 0", [1]),
        ("is_free in [false]", [1]),
        ("weight >= 0.5 and (year == 2009 or license == '')", [0, 3]),
        ("not (weight >= 0.5 and (year == 2009 or license == ''))", [1, 2]),
        ("not not year == 2010", [1]),
        ("nothing == 3 or nothing != 'a'", []),
        (" year == 2010\n  or year == 2011\n", [1, 2]),
    ],
)
def test_a_filter_lets_rows_through(text, rows):
    assert fits(text) == rows


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("year < 2009.5", [0, 4]),
        ("year <= 2009.5", [0, 4]),
        ("year > 2009.5", [1, 2]),
        ("year >= 2009.5", [1, 2]),
        ("year == 2009.5", []),
        ("year == 2009.0", [0]),
        ("year != 2009.5", [0, 1, 2, 4]),
        ("year in [2009.5, 2010.0]", [1]),
        ("year not in [2009.5, 2010.0]", [0, 2, 4]),
        ("year < 1e300", [0, 1, 2, 4]),
        ("year > 99999999999999999999", []),
        ("year != 99999999999999999999", [0, 1, 2, 4]),
        ("year >= -99999999999999999999", [0, 1, 2, 4]),
        ("weight == 3", [3]),
        ("weight in [3, 5]", [3]),
    ],
)
def test_whole_numbers_and_others_are_compared_by_value(text, rows):
    assert fits(text) == rows


def test_zero_is_zero():
    table, _ = metadata_table([{"w": 0.0}, {"w": -0.0}, {"w": 1.5}], ["w"])
    for text in ("w == 0", "w == -0.0", "w in [0, 9]", "w in [-0.0]", "w < 1.5", "w >= -0.0"):
        expected = [True, True, text.startswith("w >=")]
        assert Where.parse(text).mask(table).tolist() == expected, text


def test_whole_numbers_are_compared_to_the_last_digit():
    table, _ = metadata_table([{"n": (1 << 62) + i} for i in range(3)], ["n"])
    assert Where.parse(f"n > {1 << 62}").mask(table).tolist() == [False, True, True]


class Expressions:
    """Random filters, in our language and in SQL."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def value(self, name: str) -> Scalar:
        choices = {
            "year": [2009, 2010, -4, 2010.5, 7.0],
            "weight": [0.5, -2.5, 3, 0],
            "license": ["cc0", "cc-by", "", 'it"s', "Ö", "it's"],
            "is_free": [True, False],
        }
        return self.random.choice(choices[name])

    def comparison(self) -> tuple[str, str]:
        name = self.random.choice(["year", "weight", "license", "is_free"])
        ordered = [] if name == "is_free" else ["<", "<=", ">", ">="]
        operator = self.random.choice(["==", "!=", "in", "not in", *ordered])
        if operator in ("in", "not in"):
            values = [self.value(name) for _ in range(self.random.randint(1, 3))]
            sql = ", ".join(map(quoted, values))
            return f"{name} {operator} {values!r}", f"{name} {operator} ({sql})"
        value = self.value(name)
        return f"{name} {operator} {value!r}", f"{name} {operator} {quoted(value)}"

    def expression(self, depth: int = 4) -> tuple[str, str]:
        kind = self.random.choice(["comparison", "and", "or", "not"]) if depth else "comparison"
        if kind == "comparison":
            return self.comparison()
        parts = [self.expression(depth - 1) for _ in range(1 if kind == "not" else 2)]
        if kind == "not":
            return f"not ({parts[0][0]})", f"not ({parts[0][1]})"
        return tuple(f"({left}) {kind} ({right})" for left, right in zip(*parts, strict=True))


def quoted(value: Scalar) -> str:
    """A literal of SQL."""
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


MADE = NAMES[:4]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Scalar]]:
    """Random metadata, of which nearly a third is absent."""
    made = Expressions(0)
    return [
        {name: made.value(name) for name in MADE if made.random.random() > 0.3} for _ in range(200)
    ]


def test_random_filters_agree_with_sql(rows):
    """Nulls included, under "not" and "!=" too."""
    database = sqlite3.connect(":memory:")
    database.execute("create table images (row, year, weight, license, is_free)")
    for number, row in enumerate(rows):
        values = (number, *map(row.get, MADE))
        database.execute("insert into images values (?, ?, ?, ?, ?)", values)
    table, faults = metadata_table(rows, MADE)
    assert not faults
    made = Expressions(1)
    counts = []
    for _ in range(400):
        ours, sql = made.expression()
        where = Where.parse(ours)
        found = database.execute(f"select row from images where {sql} order by row").fetchall()
        expected = [row for (row,) in found]
        assert np.flatnonzero(where.mask(table)).tolist() == expected, ours
        # The form for Milvus is in our language too, but for `exists`, and says the same.
        again = Where.parse(re.sub(r"\(exists \w+\) and ", "", where.to_milvus()))
        assert np.array_equal(again.mask(table), where.mask(table)), ours
        counts.append(len(expected))
    assert len(set(counts)) > 50


def test_random_filters_let_the_same_rows_through_milvus(rows, tmp_path):
    pytest.importorskip("milvus_lite")
    pymilvus = pytest.importorskip("pymilvus")
    client = pymilvus.MilvusClient(str(tmp_path / "rows.db"))
    schema = client.create_schema(enable_dynamic_field=True)
    schema.add_field("row", pymilvus.DataType.INT64, is_primary=True)
    schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=2)
    parameters = client.prepare_index_params()
    parameters.add_index("vector", index_type="FLAT", metric_type="L2")
    client.create_collection("rows", schema=schema, index_params=parameters)
    given = [{"row": i, "vector": [0.0, 0.0], **row} for i, row in enumerate(rows)]
    client.insert("rows", given)
    client.load_collection("rows")
    table, _ = metadata_table(rows, MADE)
    made = Expressions(2)
    for _ in range(50):
        where = Where.parse(made.expression()[0])
        found = client.query("rows", where.to_milvus(), output_fields=["row"], limit=len(rows))
        assert sorted(each["row"] for each in found) == np.flatnonzero(where.mask(table)).tolist()
    client.close()


def test_ids_are_asked_of_the_shard():
    table, _ = metadata_table([{"year": 1}, {"year": 2}, {}], ["year"])
    ids, asked = ["a", "b", "c"], []

    def rows_of_ids(wanted: list[str]) -> np.ndarray:
        asked.append(wanted)
        return np.isin(ids, wanted)

    def mask(text: str) -> list[bool]:
        where = Where.parse(text)
        assert where.asks_for_ids
        return where.mask(table, rows_of_ids).tolist()

    assert mask("id == 'b'") == [False, True, False]
    assert mask("id in ['c', 'a', 'q']") == [True, False, True]
    assert mask("not id in ['c', 'a']") == [False, True, False]
    assert mask("id != 'c' and year > 1") == [False, True, False]
    assert asked == [["b"], ["c", "a", "q"], ["c", "a"], ["c"]]
    assert Where.parse("id != 'c' and year > 1").names == {"year"}
    assert not Where.parse("year > 1").asks_for_ids
    with pytest.raises(ValueError, match="asks for ids"):
        Where.parse("id == 'b'").mask(table)


def test_a_table_of_many_pieces_and_one_of_none_are_filtered_alike():
    import pyarrow as pa

    pieces = [metadata_table([row], NAMES)[0] for row in ROWS[:2]]
    table = pa.concat_tables(pieces)
    assert table["license"].num_chunks == 2
    for text in ("license == 'cc-by'", "year > 2009", "is_free == false"):
        where = Where.parse(text)
        assert where.mask(table).tolist() == [False, True]
        assert where.mask(table.slice(0, 0)).tolist() == []
    empty, _ = metadata_table([], NAMES)
    assert Where.parse("year > 2009").mask(empty).tolist() == []


def test_in_shards_of_another_kind_a_comparison_holds_nowhere():
    numbers, _ = metadata_table([{"year": 2010}], ["year"])
    texts, _ = metadata_table([{"year": "2010"}], ["year"])
    without, _ = metadata_table([{"license": "cc0"}], ["license"])
    tables = [numbers, texts, without]
    for text, expected in {
        "year == 2010": [True, False, False],
        "year == '2010'": [False, True, False],
        "year != 2009": [True, False, False],
        "not year == '2009' or license == 'cc0'": [False, True, True],
    }.items():
        where = Where.parse(text)
        where.check(map(kinds_of, tables))
        assert [bool(where.mask(table)[0]) for table in tables] == expected, text


KINDS: list[dict[str, Kind]] = [
    {"year": "integer", "license": "text", "is_free": "nothing"},
    {"year": "float", "is_free": "boolean", "size": "nothing", "mixed": "text"},
    {"mixed": "integer"},
]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("licence == 'cc0'", 'column 1: no metadata "licence"; did you mean license?'),
        ("year > 3 and q == 1", 'column 14: .* There are is_free, license, mixed, size, year'),
        ("year >= '2010'", "column 1: year is no text; compare it with a number"),
        ("license < 3", "column 1: license is no number; compare it with a text in quotes"),
        ("license in [true]", "license is no truth value; compare it with a text in quotes"),
        ("is_free == 1", "is_free is no number; compare it with true or false"),
        ("mixed == true", "mixed is no truth value; compare it with a number or a text in quo"),
    ],
)  # fmt: skip
def test_a_filter_that_fits_no_metadata_is_refused(text, message):
    with pytest.raises(BadWhere, match=message) as caught:
        Where.parse(text).check(KINDS)
    assert text in str(caught.value)


def test_without_metadata_the_remedy_is_to_build_with_some():
    with pytest.raises(BadWhere, match="There are none; build the index with --metadata"):
        Where.parse("year == 1").check([{}])
    Where.parse("id == 'a'").check([])
    Where.parse("size == 1 or size == 'a'").check(KINDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column 1: the filter is empty; write one as year >= 2010"),
        (" \n ", "column 1: the filter is empty"),
        ("year = 2010", r"column 6: cannot be read .*; write it as year >= 2010 and license == "),
        ("year == 1 && a == 2", "column 12: cannot be read"),
        ("year == 1) or (a == 2", "column 10: cannot be read"),
        ("  year == 1 or", "column 15: cannot be read"),
        ("class == 1", "column 1: cannot be read"),
        ("license == cc0", "column 12: compare with a text in quotes, a number, true or false"),
        ("width > height", "column 9: compare with a text in quotes"),
        ("'é' == 'é' or x == 1", "column 1: a name of metadata belongs on one side"),
        ("x == 'é' or 1 == 2", "column 13: a name of metadata belongs on one side"),
        ("x == 'é' or q.y == 2", "column 13: a name of metadata"),
        ("'a' in license", "column 1: a name of metadata"),
        ("year", "column 1: no comparison; write one as year == true"),
        ("not is_free", "column 5: no comparison; write one as is_free == true"),
        ("true", "column 1: no comparison"),
        ("len(license) == 3", "column 1: a name of metadata"),
        ("__import__('os')", "column 1: no comparison"),
        ("x == (y := 3)", "column 7: compare with a text"),
        ("x == f'{y}'", "column 6: compare with a text"),
        ("x == b'a'", "column 6: compare with a text"),
        ("x == 3j", "column 6: compare with a text"),
        ("x == 1 + 1", "column 6: compare with a text"),
        ("x == None", "column 6: compare with a text"),
        ("x == -true", "column 6: compare with a text"),
        ("x == --1", "column 6: compare with a text"),
        ("x is 3", "column 6: is cannot be used; write == or !="),
        ("x in []", "column 6: a list with a value or more has to follow in"),
        ("x in (1, 2)", "column 6: a list with a value or more"),
        ("x in y", "column 6: a list with a value or more"),
        ("x in [1, 'a']", "column 6: values of more than one type"),
        ("x in [1, true]", "column 6: values of more than one type"),
        ("x < true", "column 5: truth values have no order"),
        ("id == 3", "column 7: id is a text"),
        ("id < 'a'", "column 6: id is a text"),
        ("x == 1e999", "column 6: a number beyond 64 bits"),
        ("x == 1" + 400 * "0", "column 6: a number beyond 64 bits"),
        ("x == 1" + 5000 * "0", "cannot be read .Exceeds the limit"),
        ("x == '\\ud800'", "column 6: half of a surrogate pair"),
        ("x == '\ud800'", "column 1: no text that can be encoded"),
        ("x == '\0'", "cannot be read|no text that can be encoded"),
        ("(" * 190 + "x == 1", "column 190: cannot be read"),
        ("not " * 20_000 + "x == 1", "column 1: nested too deeply"),
        ("x == 1 or " * 20_000 + "x == 1", "column 100001: longer than 100,000 characters"),
    ],
)
def test_a_mistake_is_named_with_its_column_and_the_remedy(text, message):
    with pytest.raises(BadWhere, match=message) as caught:
        Where.parse(text)
    told = str(caught.value)
    assert "\n" not in told and len(told) < 600
    told.encode()


def test_the_messages_on_the_page_are_those_of_the_code():
    page = (Path(__file__).parents[2] / "docs" / "guide" / "search.md").read_text("utf-8")
    (block,) = re.findall(r"^```text\n(where .*?)^```", page, re.DOTALL | re.MULTILINE)
    for line in block.splitlines():
        text = line.removeprefix("where ").split(": column")[0]
        with pytest.raises(BadWhere) as caught:
            Where.parse(text).check([{"year": "integer", "license": "text"}])
        assert str(caught.value) == line


def test_the_filters_on_the_page_can_be_read():
    page = (Path(__file__).parents[2] / "docs" / "guide" / "search.md").read_text("utf-8")
    (table,) = re.findall(r"^\| written \|.*?\n\n", page, re.DOTALL | re.MULTILINE)
    written = " ".join(row.split("|")[1] for row in table.splitlines()[2:-1])
    filters = re.findall(r"`(\w[^`]* [^`]*)`", written)
    assert len(filters) > 8
    for text in filters:
        Where.parse(re.sub(r"\b[AB]\b", "year == 1", text))


def test_a_filter_has_so_many_comparisons_at_most():
    Where.parse(" or ".join(MOST_COMPARISONS * ["x == 1"]))
    with pytest.raises(BadWhere, match="more than 100 comparisons; use in"):
        Where.parse(" or ".join((MOST_COMPARISONS + 1) * ["x == 1"]))


@pytest.mark.parametrize("piece", ["(", "not ", "-", "a.", "1+", "a<", "f'{", "[", "a==1 and ("])
def test_no_nesting_ends_the_process(piece):
    for count in (100, 1000, 90_000 // len(piece)):
        with pytest.raises(BadWhere):
            Where.parse(piece * count + "1")


@pytest.mark.parametrize(
    ("text", "milvus"),
    [
        ("year >= 2010 and license == 'cc-by'", 'year >= 2010 and license == "cc-by"'),
        ("not (a == 1 or b in ['x'])", '((exists a) and a != 1) and ((exists b) and b != "x")'),
        ("a == 1 or b not in ['x', 'y']", 'a == 1 or ((exists b) and b != "x" and b != "y")'),
        ("id not in ['x', 'y']", 'id not in ["x", "y"]'),
        ("not (a == 1 and not b < -2.5)", "((exists a) and a != 1) or b < -2.5"),
        ("1 < a <= 3 or b == True", "(a > 1 and a <= 3) or b == true"),
        ("(a == 1 or b == 2) and c == false", "(a == 1 or b == 2) and c == false"),
        (r"""a == 'it\'s "so"\n\\'""", r'''a == "it's \"so\"\n\\"'''),
        ("id in ['ä', 'b']", 'id in ["ä", "b"]'),
    ],
)
def test_the_form_for_milvus(text, milvus):
    assert Where.parse(text).to_milvus() == milvus
