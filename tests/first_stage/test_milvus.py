"""Collections of Milvus against NumPy: in a file, and on a server that EDJE_TEST_MILVUS names
(http://127.0.0.1:19530), where there is one.

Covers first_stage/milvus_address.py, first_stage/milvus_table.py and
first_stage/milvus_vectors.py.
"""

import os
import signal
import subprocess
import sys
import uuid

import numpy as np
import pytest

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

from edje_jax.first_stage import milvus
from edje_jax.first_stage.milvus import MilvusCollection, StaleCollection, Synced
from edje_jax.first_stage.milvus_address import MilvusAddress
from edje_jax.first_stage.milvus_vectors import VectorIndex, VectorRows, default_kind
from edje_jax.first_stage.packing import hamming, hamming_similarity

SHARD = 7 << 32
SERVER = os.environ.get("EDJE_TEST_MILVUS")
ROWS, WIDTH = 2000, 64
LICENSES = ("cc-by", "cc0", None)


def unit(rows: int, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def random_codes(rows: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, size), np.uint8)


def blocks(vectors: np.ndarray, numbers: np.ndarray | None = None, size: int = 600):
    """Rows of a shard, in blocks; metadata follow from the number of a row."""
    numbers = np.arange(len(vectors)) if numbers is None else numbers
    for start in range(0, max(len(numbers), 1), size):
        some = numbers[start : start + size]
        yield VectorRows(
            SHARD | some.astype(np.int64),
            [f"image {number}" for number in some],
            vectors[some],
            {
                "year": [2000 + int(number) % 25 for number in some],
                "license": [LICENSES[number % 3] for number in some],
            },
        )


def expected(scores: np.ndarray, k: int, allowed: np.ndarray | None = None) -> np.ndarray:
    """Keys by falling score, and -1 where the allowed ones have come to an end."""
    scores = scores if allowed is None else np.where(allowed, scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.isfinite(np.take_along_axis(scores, order, axis=1))
    return np.where(found, SHARD | order, -1)


@pytest.fixture(scope="module", params=["file", "server"] if SERVER else ["file"])
def uri(request, tmp_path_factory):
    if request.param == "server":
        return f"milvus:{SERVER}"
    return f"milvus:{tmp_path_factory.mktemp('milvus') / 'images.db'}"


@pytest.fixture
def collection(uri):
    with MilvusCollection.open(uri, uuid.uuid4().hex, "embeddings") as made:
        yield made
        made.drop()


@pytest.fixture(scope="module")
def graph(uri):
    """Collection with a graph, that tests only search."""
    with MilvusCollection.open(uri, uuid.uuid4().hex, "embeddings") as made:
        made.sync(blocks(unit(ROWS)), {"rows": ROWS}, "HNSW")
        yield made
        made.drop()


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    shares = [np.isin(b[b >= 0], a).mean() for a, b in zip(found, truth, strict=True)]
    return float(np.mean(shares))


def test_flat_finds_what_sorting_gives(collection):
    embeddings, queries = unit(ROWS), unit(20, seed=1)
    assert collection.sync(blocks(embeddings), {"rows": ROWS}, "FLAT") == Synced(0, ROWS, 0)
    assert len(collection) == ROWS and collection.stamp() == {"rows": ROWS}
    found = collection.nearest(queries, 100)
    scores = queries @ embeddings.T
    np.testing.assert_array_equal(found.rows, expected(scores, 100))
    np.testing.assert_allclose(found.similarities, -np.sort(-scores, axis=1)[:, :100], atol=1e-6)
    alone = collection.nearest(queries[3:4], 100)
    np.testing.assert_array_equal(alone.rows[0], found.rows[3])


def test_an_address_names_the_index(uri):
    named = (uuid.uuid4().hex, "embeddings")
    with MilvusCollection.open(f"{uri}?index=IVF_FLAT", *named) as made:
        made.sync(blocks(unit(300)), {"rows": 300})
        told = made._client.describe_index(made.name, "edje_vector")
        assert told["index_type"] == "IVF_FLAT"
        with pytest.raises(ValueError, match="IVF_FLAT compares no codes; these do: BIN_FLAT"):
            made.sync(blocks(random_codes(3, 8)), {})
        made.sync(blocks(unit(300)), {"rows": 300}, "FLAT")
        assert made._client.describe_index(made.name, "edje_vector")["index_type"] == "FLAT"
        made.drop()


def test_queries_are_asked_in_parts(graph, monkeypatch):
    queries = unit(7, seed=1)
    together = graph.nearest(queries, 10)
    monkeypatch.setattr(milvus, "MOST_FOUND", 30)
    np.testing.assert_array_equal(graph.nearest(queries, 10).rows, together.rows)


def test_a_graph_is_built_as_it_was_asked_for(graph):
    told = graph._client.describe_index(graph.name, "edje_vector")
    assert told["index_type"] == "HNSW" and "efConstruction" in str(told)


@pytest.mark.slow
def test_a_graph_finds_nearly_all_and_lists_most(collection):
    embeddings, queries = unit(10_000), unit(50, seed=1)
    truth = expected(queries @ embeddings.T, 100)
    collection.sync(blocks(embeddings, size=4096), {"rows": 10_000}, "HNSW")
    assert recall(collection.nearest(queries, 100).rows, truth) >= 0.98
    same = Synced(10_000, 0, 0)
    assert collection.sync(blocks(embeddings), {"rows": 10_000}, "IVF_FLAT") == same
    assert 0.3 <= recall(collection.nearest(queries, 100).rows, truth) < 1
    # Lists are followed to their ends where a filter is given.
    few = np.arange(10_000) % 25 == 4
    found = collection.nearest(queries, 100, where="year == 2004")
    np.testing.assert_array_equal(found.rows, expected(queries @ embeddings.T, 100, few))


@pytest.mark.parametrize(
    "where, allowed",
    [
        ("year == 2004", lambda n: n % 25 == 4),
        ("year >= 2004 and license == 'cc-by'", lambda n: (n % 25 >= 4) & (n % 3 == 0)),
        ("license in ['cc0'] or year < 2002", lambda n: (n % 3 == 1) | (n % 25 < 2)),
        ("(exists license) and (license != 'cc0')", lambda n: n % 3 == 0),
        ("year > 3000", lambda n: n < 0),
    ],
)
def test_a_filter_lets_through_what_it_says(graph, where, allowed):
    queries = unit(10, seed=2)
    truth = expected(queries @ unit(ROWS).T, 100, allowed(np.arange(ROWS)))
    found = graph.nearest(queries, 100, where=where)
    np.testing.assert_array_equal(found.rows < 0, truth < 0)
    assert not (truth >= 0).any() or recall(found.rows, truth) >= 0.98
    assert (found.similarities[found.rows < 0] == -np.inf).all()


def test_only_given_ids_are_found(graph):
    queries, numbers = unit(5, seed=3), np.array([5, 77, 1999])
    allowed = np.isin(np.arange(ROWS), numbers)
    names = [f"image {number}" for number in numbers]
    truth = expected(queries @ unit(ROWS).T, 4, allowed)
    np.testing.assert_array_equal(graph.nearest(queries, 4, ids=[*names, "nosuch"]).rows, truth)
    both = graph.nearest(queries, 4, where="year == 2005", ids=names).rows
    np.testing.assert_array_equal(both, np.tile([SHARD | 5, -1, -1, -1], (5, 1)))
    assert (graph.nearest(queries, 4, ids=[]).rows == -1).all()


def test_ids_may_hold_any_character(collection):
    ids = [
        'a"b',
        "a'b",
        "a\\b",
        "a\\",
        'a\\"b',
        "a\nb",
        "a\tb",
        "a\x01b",
        "ü☃😀",
        "{x}",
        "%",
        "a,b]",
    ]
    vectors = unit(len(ids))
    keys = np.arange(len(ids), dtype=np.int64)
    collection.sync([VectorRows(keys, ids, vectors)], {}, "FLAT")
    for number, id in enumerate(ids):
        assert collection.nearest(vectors[:1], 2, ids=[id]).rows.tolist() == [[number, -1]], id


def test_codes_rank_by_hamming_distance(collection):
    codes, queries = random_codes(ROWS, 8), random_codes(20, 8, seed=1)
    collection.sync(blocks(codes), {"rows": ROWS})
    found = collection.nearest(queries, 50)
    similarities = hamming_similarity(hamming(queries, codes), 64)
    np.testing.assert_array_equal(found.similarities, -np.sort(-similarities, axis=1)[:, :50])
    for keys, values, own in zip(found.rows, found.similarities, similarities, strict=True):
        np.testing.assert_array_equal(own[keys - SHARD], values)
        sure = values > values[-1]  # Which rows of the last similarity are found is open
        np.testing.assert_array_equal(keys[sure], expected(own[None], 50)[0][sure])
    collection.sync(blocks(codes), {"rows": ROWS}, "BIN_IVF_FLAT")
    assert 0.2 <= recall(collection.nearest(queries, 50).rows, found.rows) < 1


def test_equal_similarities_rank_by_key(collection):
    same = np.tile(unit(1), (10, 1))
    collection.sync(blocks(same), {}, "FLAT")
    np.testing.assert_array_equal(collection.nearest(same[:2], 10).rows[1] - SHARD, np.arange(10))


def test_rows_that_went_and_came_are_deleted_and_written(collection):
    embeddings, queries = unit(ROWS), unit(10, seed=1)
    now = np.setdiff1d(np.arange(300, ROWS - 300), np.arange(800, 1100))
    collection.sync(blocks(embeddings, np.arange(ROWS - 600)), {"state": 1}, "FLAT")
    gone = 300 + 300
    assert collection.sync(blocks(embeddings, now), {"state": 2}, "FLAT") == Synced(
        len(now) - 300, 300, gone
    )
    assert collection.stamp() == {"state": 2} and len(collection) == len(now)
    allowed = np.isin(np.arange(ROWS), now)
    found = collection.nearest(queries, 100)
    np.testing.assert_array_equal(found.rows, expected(queries @ embeddings.T, 100, allowed))
    assert collection.sync(blocks(embeddings, now[:0]), {}) == Synced(0, 0, len(now))
    assert (collection.nearest(queries, 2).rows == -1).all() and len(collection) == 0


KILLED = """
import os, signal, sys
from tests.first_stage.test_milvus import *

def rows():
    for number, block in enumerate(blocks(unit(ROWS))):
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield block

MilvusCollection.open(*sys.argv[1:]).sync(rows(), {"rows": ROWS})
"""

ASKED = """
import sys
from tests.first_stage.test_milvus import *

with MilvusCollection.open(*sys.argv[1:]) as collection:
    collection.check({"rows": ROWS})
    print(*collection.nearest(unit(3, seed=1), 5).rows.ravel() - SHARD)
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_what_was_killed_goes_on_and_is_found_by_the_next_process(uri, tmp_path):
    uri = uri if "http" in uri else f"milvus:{tmp_path}/images.db"
    named = (uri, uuid.uuid4().hex, "embeddings")
    assert run(KILLED, *named).returncode == -signal.SIGKILL
    with MilvusCollection.open(*named) as collection:
        assert collection.stamp() is None and len(collection) == 1200
        with pytest.raises(StaleCollection, match="it is unfinished"):
            collection.check({"rows": ROWS})
        done = collection.sync(blocks(unit(ROWS)), {"rows": ROWS}, "FLAT")
        assert done == Synced(1200, 800, 0)
        truth = expected(unit(3, seed=1) @ unit(ROWS).T, 5)
        np.testing.assert_array_equal(collection.nearest(unit(3, seed=1), 5).rows, truth)
        if "http" not in uri:
            told = run(ASKED, *named)
            assert told.returncode and "another process has it open" in told.stderr
    told = run(ASKED, *named)
    assert told.stdout.split() == [str(key - SHARD) for key in truth.ravel()], told.stderr
    with MilvusCollection.open(*named) as collection:
        collection.drop()


def test_a_failed_sync_takes_the_stamp_away(collection):
    def failing():
        yield from list(blocks(unit(ROWS)))[:2]
        raise OSError("disk gone")

    collection.sync(blocks(unit(ROWS)), {"state": 1}, "FLAT")
    with pytest.raises(OSError, match="disk gone"):
        collection.sync(failing(), {"state": 2}, "FLAT")
    assert collection.stamp() is None


def test_a_stale_collection_names_itself_what_differs_and_the_remedy(uri, collection):
    stamp = {"rows": 3, "shards": "a" * 100}
    with pytest.raises(StaleCollection, match="there is none"):
        collection.check(stamp)
    collection.sync(blocks(unit(3)), stamp, "FLAT")
    collection.check(dict(stamp))
    with pytest.raises(StaleCollection) as told:
        collection.check(stamp | {"rows": 4, "shards": "b" * 100})
    assert str(told.value) == (
        f"{uri}: the collection {collection.name} is not of the index as it is now: it holds"
        f' another state (rows 3, now 4, shards "{"a" * 36}..., now "{"b" * 36}...); bring it up to'
        f" date with edje index first-stage INDEX {uri}"
    )


def test_a_collection_of_something_else_is_left_alone(uri):
    name = f"{uri}#t{uuid.uuid4().hex}"
    with (
        MilvusCollection.open(name, "one", "embeddings") as one,
        MilvusCollection.open(name, "two", "embeddings") as two,
    ):
        one.sync(blocks(unit(3)), {"rows": 3}, "FLAT")
        with pytest.raises(StaleCollection, match="it holds another index"):
            two.check({"rows": 3})
        with pytest.raises(ValueError, match="holds another index; name another after a #"):
            two.sync(blocks(unit(3)), {})
        with pytest.raises(ValueError, match="embeddings of width 64, not codes of width 64"):
            one.sync(blocks(random_codes(3, 8)), {})
        one._table._set("edje.about", "")
        for refused in (lambda: one.check({}), lambda: one.sync(blocks(unit(3)), {}), one.drop):
            with pytest.raises(ValueError, match="is of something else"):
                refused()
        one._client.drop_collection(one.name)


def test_what_milvus_cannot_do_is_told_in_a_line(graph):
    queries = unit(2)
    with pytest.raises(ValueError, match="k 20,000: Milvus finds at most 16,384 rows"):
        graph.nearest(queries, 20_000)
    with pytest.raises(ValueError, match="compared with embeddings of width 8"):
        graph.nearest(unit(2, 8), 3)
    with pytest.raises(ValueError, match=r"^milvus:\S+: [^\n]+$"):
        graph.nearest(queries, 3, where="year >>> 3")


def test_rows_that_do_not_fit_are_told_in_a_line(collection):
    first, *_ = blocks(unit(9))
    for rows, told in (
        ([], "no block of rows"),
        ([first, first], "keys have to rise from 0, and do not after"),
        ([first._replace(keys=first.keys[::-1])], "keys have to rise"),
        ([first._replace(metadata={"id": ["a"] * 9})], "metadata cannot be called id"),
        ([first._replace(ids=["a" * 70_000] * 9)], r"a\.\.\.: Milvus keeps ids of at most 65535"),
        (
            [first, *blocks(unit(20, 8), np.arange(10, 20))],
            "width 64 go on as embeddings of width 8",
        ),
    ):
        with pytest.raises(ValueError, match=told):
            collection.sync(rows, {}, "FLAT")
    with pytest.raises(ValueError, match="BIN_FLAT compares no embeddings; these do: HNSW, FLAT"):
        collection.sync([first], {}, "BIN_FLAT")
    assert collection.stamp() is None


def test_addresses():
    parse = MilvusAddress.parse
    assert parse("milvus:a/b.db") == parse("a/b.db") == MilvusAddress("a/b.db")
    assert str(parse("http://host:19530#dogs")) == "milvus:http://host:19530#dogs"
    assert parse("milvus:a.db#dogs").collection("0" * 64, "codes-256") == "dogs_codes_256"
    assert parse("a.db").collection("0123456789abcdef01", "captions") == (
        "edje_0123456789abcdef_captions"
    )
    chosen = parse("milvus:a.db?index=HNSW#dogs")
    assert (chosen.location, chosen.prefix, chosen.kind) == ("a.db", "dogs", "HNSW")
    assert parse(str(chosen)) == chosen and chosen.path == parse("a.db").path
    assert chosen.collection("0" * 64, "captions") == "dogs_captions"
    for wrong, told in (
        ("milvus:a.db?index=", r"\?index=: write \?index= and one of HNSW, FLAT, IVF_FLAT"),
        ("milvus:a.db?HNSW", r"\?HNSW: write \?index= and one of"),
        ("milvus:photos", "a file NAME.db, or http://HOST:19530"),
        ("milvus:", "a file NAME.db"),
        ("milvus:a.db#two words", "write letters, digits and _"),
        ("milvus:a.db#", "names no collection"),
        ("milvus:https://me:secret@host", "MILVUS_TOKEN=user:password"),
    ):
        with pytest.raises(ValueError, match=told) as error:
            parse(wrong)
        assert "secret" not in str(error.value)


def test_a_milvus_that_is_not_there_is_told_in_a_line(tmp_path, monkeypatch):
    with pytest.raises(ConnectionError, match=r"^milvus:http://127.0.0.1:9: no Milvus answers \("):
        MilvusCollection.open("milvus:http://127.0.0.1:9", "one", "embeddings")
    with pytest.raises(FileNotFoundError, match="no folder"):
        MilvusCollection.open(f"milvus:{tmp_path}/no/a.db", "one", "embeddings")
    (tmp_path / "other.db").write_text("SQLite")
    with pytest.raises(FileExistsError, match="a file of something else"):
        MilvusCollection.open(f"milvus:{tmp_path}/other.db", "one", "embeddings")
    with (
        MilvusCollection.open(f"milvus:{tmp_path}/a.db", "one", "embeddings") as empty,
        pytest.raises(FileNotFoundError, match="the collection edje_one_embeddings is not there"),
    ):
        empty.nearest(unit(1), 1)
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ModuleNotFoundError, match=r"edje-jax\[milvus\]"):
        MilvusCollection.open(f"milvus:{tmp_path}/a.db", "one", "embeddings")


def test_a_file_is_searched_exactly_and_a_server_by_a_graph():
    assert default_kind("embeddings", True) == "FLAT" and default_kind("codes", True) == "BIN_FLAT"
    assert default_kind("embeddings", False) == "HNSW"


def test_lists_follow_the_number_of_rows():
    index = VectorIndex.over("IVF_FLAT", 10_000)
    assert index.lists == 256 and index.suits(15_000) and not index.suits(1_000_000)
    assert VectorIndex.over("IVF_FLAT", 10**9).lists == 16_384
    assert VectorIndex.over("HNSW", 10**9).suits(3)
