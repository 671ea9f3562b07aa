"""Damaged requests to a server: no failure of it, valid JSON, as many results as asked for, and no
path of the server.

A fifth of `EDJE_FUZZ_INPUTS` (500) requests, each a function of its number alone. The model is a
stand-in: what is fuzzed is everything between the socket and it.
"""

import base64
import copy
import io
import json
import os
import random
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from edje_jax.config.calibration import Calibration
from edje_jax.config.model import ImageRecipe
from edje_jax.index.shard_files import ImageRecord
from edje_jax.search.results import RankedCandidates, Timings
from edje_jax.serving.app import make_app
from edje_jax.serving.jobs import Answer, Reranked
from edje_jax.serving.service import Service

INPUTS = int(os.environ.get("EDJE_FUZZ_INPUTS", "500")) // 5
IDS = ("0.png", "391895", "a b/ö.png", "caf\udce9.png")
NONE = Timings(0.0, 0.0, 0.0, 0.0, 0.0)


def png(side: int, colour: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), (colour, 60, 90)).save(out, "PNG")
    return out.getvalue()


def bomb() -> bytes:
    """A PNG that says it has 60,000 x 60,000 pixels."""
    head = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    chunk = (13).to_bytes(4, "big") + head + zlib.crc32(head).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def uri(raw: bytes) -> str:
    return f"data:image/png;base64,{b64(raw)}"


# --- the server -----------------------------------------------------------------------------------


class Index:
    """Four images with a caption each."""

    def __init__(self, folder: Path):
        self.rows = []
        for number, name in enumerate(IDS):
            path = folder / f"{number}.png"
            path.write_bytes(png(8))
            self.rows.append(ImageRecord(name, str(path), [f"caption {number} \ud83d"], (0, 0)))
        self.store = SimpleNamespace(
            image_of_id={name: number for number, name in enumerate(IDS)},
            odd_images=lambda: [IDS.index("caf\udce9.png")],
            captions=[(number, f"caption {number} \ud83d") for number in range(len(IDS))],
            row=self.rows.__getitem__,
            thumbnail=lambda _: png(4),
            frames=0,
        )

    def __len__(self) -> int:
        return len(self.rows)


class StandIn(Service):
    """Answers of the right shapes, without a model."""

    def __init__(self, folder: Path):
        config = SimpleNamespace(image=ImageRecipe(size=8), num_tokens=4, video=None)
        reranker = SimpleNamespace(config=config, source=str(folder), calibration=Calibration())
        super().__init__(reranker, Index(folder))

    def pair_tokens(self, texts):
        return sum(len(text.encode("utf-8").split()) for text in texts)

    def _search(self, jobs):
        return [Answer(self._found(min(job.k, len(IDS))), NONE) for job in jobs]

    _captions = _search

    def _rerank(self, jobs):
        sizes = [len(job.images.rows) + len(job.images.pixels) for job in jobs]
        logits = [np.linspace(-2, 2, size, dtype=np.float32) for size in sizes]
        return [Reranked(one, one, one) for one in logits]

    @staticmethod
    def _found(k):
        one = np.zeros(k, np.float32)
        return RankedCandidates(np.arange(k), one, one, one, np.arange(1, k + 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("secret-folder")


@pytest.fixture(scope="module")
def client(folder):
    with TestClient(make_app(StandIn(folder)), raise_server_exceptions=False) as client:
        yield client


# --- requests -------------------------------------------------------------------------------------

PART = {"type": "image_url", "image_url": {"url": uri(png(9))}}
WORDS = {"type": "text", "text": "a medal"}
DOCUMENTS: tuple[Any, ...] = (
    "0.png", 391895, uri(png(5)), {"id": "caf\ufffd.png"}, {"id": "0.png", "text": "a medal"},
    {"image": b64(png(7))}, {"content": [PART, WORDS]}, {"text": "391895"}, {"image_url": PART},
    "id: 0.png\n", PART,
)  # fmt: skip
SCRAPS: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, float("nan"), float("inf"), 10**40, 10**400, "", " ", "\x00", "\ud800",
    "\udfff\ud83d", "🙂", "a" * 20_000, [], {}, [[]], [None], {"": None}, "data:", "data:,",
    "data:image/png;base64,", "http://127.0.0.1/a.png", "file:///etc/passwd", "/etc/passwd",
    "../0.png", "%00", "a caption", {"url": 7}, {"text": {}}, {"content": {}}, b64(png(6)[:40]),
    b64(bomb()), b64(b"RIFF0000WEBPVP8 "), b64(b"GIF89a" + b"\xff" * 20), uri(b"<svg/>"),
    b64(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "id: ", "image: '",
)  # fmt: skip
KINDS = ("application/json", "application/x-www-form-urlencoded", "text/plain; charset=\xe9", "x")


def request(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A route and a good body for it."""
    route = rng.choice(("/rerank", "/v1/rerank", "/v2/rerank", "/rerank", "/search", "/captions"))
    if route == "/captions":
        return route, {"id": rng.choice(IDS), "k": 3, "top_k": 2}
    query = rng.choice(("a medal", {"text": "a medal"}, {"content": [WORDS]}, "ö \x00 🙂"))
    if route == "/search":
        return route, {"query": query, "k": rng.randint(1, 9), "top_k": 2}
    documents: Any = rng.choices(DOCUMENTS, k=rng.randint(1, 5))
    if rng.random() < 0.2:
        return route, {"query": query, "texts": rng.choices(IDS, k=3), "return_text": True}
    if rng.random() < 0.2:
        documents = {"content": [PART, {"type": "text", "text": "0.png"}]}
    body = {"model": "edje", "query": query, "documents": documents, "return_documents": True}
    return route, body | {"top_n": rng.choice((None, 0, 1, 2, "2", 99))}


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in it."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in list(keys)]
    return found + [
        one for key in keys if isinstance(value[key], dict | list) for one in nodes(value[key])
    ]


def change(body: Any, rng: random.Random) -> None:
    """Change one value of the body: replace, drop, repeat, nest it, or damage its text."""
    container, key = rng.choice(nodes(body) or [(body, "query")])
    kind, value = rng.randrange(6), container.get(key) if isinstance(container, dict) else None
    if isinstance(container, list):
        value = container[key]
    if kind == 0 and len(container) > 1:
        del container[key]
    elif kind == 1:
        for _ in range(rng.choice((1, 3, 40))):
            value = rng.choice(([value], {"content": value}, {"image": value}))
        container[key] = value
    elif kind == 2 and isinstance(container, list):
        container.extend([value] * rng.choice((1, 70, 1100)))
    elif kind == 3 and isinstance(value, str) and value:
        at = rng.randrange(len(value))
        container[key] = value[:at] + rng.choice(("", "\n", " ", "%2B", "_", "\ud800", "=", "\x00"))
        container[key] += value[at + rng.randrange(3) :]
    else:
        container[key] = copy.deepcopy(rng.choice(SCRAPS))


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, inserted, cut out or repeated; another encoding; or deep nesting."""
    kind = rng.randrange(6)
    if kind == 0:
        return data[: rng.randrange(len(data) + 1)]
    if kind == 5:
        deep = rng.choice((200, 990, 50_000))
        return data.replace(b'"0.png"', b"[" * deep + b"]" * deep)
    if kind == 1:
        return data.decode("ascii").encode(rng.choice(("utf-16", "utf-8-sig", "utf-32-le")))
    out = bytearray(data)
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(out) + 1)
        piece = out[at : at + rng.randrange(9)] if kind == 2 else rng.randbytes(1)
        out[at : at + rng.randrange(2)] = piece * rng.choice((1, 2, 200))
    return bytes(out)


def mutated(number: int) -> tuple[str, bytes, str]:
    """Route, body and content type of one request."""
    rng = random.Random(number)
    route, body = request(rng)
    body = json.loads(json.dumps(body))  # Parts of its own to change
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        change(body, rng)
    data = json.dumps(body).encode()
    return route, damaged(data, rng) if rng.random() < 0.3 else data, rng.choice(KINDS)


# --- answers --------------------------------------------------------------------------------------


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def check(route: str, body: bytes, answer, folder: Path) -> None:
    assert answer.status_code in (200, 404, 413, 422), answer.status_code
    told = json.loads(answer.content.decode("utf-8"), parse_constant=refuse_constant)
    for path in (str(folder), str(Path(__file__).parents[2]), sys.prefix, "site-packages"):
        assert path not in answer.text
    if answer.status_code != 200:
        assert told["detail"]
    elif "rerank" in route:
        check_results(json.loads(body), told)
    else:
        assert len(told["results"]) <= min(told["k"], len(IDS))


def check_results(asked: dict[str, Any], told: Any) -> None:
    """Every document once, best first, at most `top_n` of them."""
    texts = asked.get("texts") is not None
    documents = asked["texts"] if texts else asked["documents"]
    count = len(documents["content"] if isinstance(documents, dict) else documents)
    results = told if texts else told["results"]
    assert len(results) == min(int(asked.get("top_n") or 0) or count, count)
    indices = [one["index"] for one in results]
    assert len(set(indices)) == len(indices) and set(indices) <= set(range(count))
    scores = [one["score" if texts else "relevance_score"] for one in results]
    assert scores == sorted(scores, reverse=True)


def test_damaged_requests_are_answered_or_told_why(client, folder):
    codes: list[int] = []
    for number in range(INPUTS):
        route, body, kind = mutated(number)
        answer = client.post(route, content=body, headers={b"content-type": kind.encode("latin-1")})
        try:
            check(route, body, answer, folder)
        except Exception as error:
            error.add_note(
                f"request {number}: {route} {kind} {body[:500]!r} -> {answer.text[:500]}"
            )
            raise
        codes.append(answer.status_code)
    # Neither all good nor all refused: the checks of both were at work.
    assert INPUTS / 10 < codes.count(200) < INPUTS and codes.count(422) > INPUTS / 10
    assert client.get("/health").json()["waiting"] == 0


def test_a_request_is_a_function_of_its_number():
    assert [mutated(number) for number in range(20)] == [mutated(number) for number in range(20)]


def test_names_and_captions_that_are_no_whole_characters(client):
    """They are shown with U+FFFD, and found again by what was shown."""
    shown = "caf\ufffd.png"
    answer = client.post("/search", json={"query": "a", "k": 9}).json()
    assert shown in [one["id"] for one in answer["results"]]
    assert answer["results"][0]["captions"] == ["caption 0 \ufffd"]
    assert client.get("/info").json()["examples"][0] == "caption 0 \ufffd"
    answer = client.post("/rerank", json={"query": "a", "documents": [shown, {"id": shown}]})
    assert answer.status_code == 200
    assert client.get("/images/caf%EF%BF%BD.png").headers["content-type"] == "image/png"
    assert client.post("/captions", json={"id": shown}).json()["id"] == shown
