"""Real clients against `edje serve` on loopback: each orders the images as the model does.

They send strings: ids of the index and data: URIs.
"""

import asyncio
import base64
import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.serving.browser import free_port, until

# None of them shall reach for anything outside.
os.environ |= {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "LANGSMITH_TRACING": "false",
    "DO_NOT_TRACK": "1",
}
KEY = "sesame"
QUERY = "a red circle left of a blue square"
MODEL = "edje"

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("cohere", "litellm", "haystack", "llama_index")),
    reason="needs the clients: pip install 'edje-jax[clients]'",
)


@pytest.fixture(scope="module")
def address(indexed) -> Iterator[str]:
    """A server of the index that asks for a key."""
    port = free_port()
    command = [sys.executable, "-m", "edje_jax.cli.edje", "serve", str(indexed), "--no-warm"]
    server = subprocess.Popen([*command, "--port", str(port), "--api-key", KEY])
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert server.poll() is None, "the server ended"
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{address}/ready", timeout=5).status == 200
        return False

    try:
        until(answers, "the server is ready", 120)
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


@pytest.fixture(scope="module")
def documents(service) -> list[str]:
    """Ids of the index and an image of it as a data: URI, all strings."""
    rows = [service.index.store.row(i) for i in range(4)]
    with open(rows[3].path, "rb") as file:
        data = base64.b64encode(file.read()).decode()
    return [*(row.id for row in rows[:3]), f"data:image/png;base64,{data}"]


@pytest.fixture(scope="module")
def expected(service) -> list[tuple[int, float]]:
    """(index, probability) in the model's order."""
    paths = [service.index.store.row(i).path for i in range(4)]
    scores = service.reranker.predict([(QUERY, path) for path in paths])
    return sorted(enumerate(scores.tolist()), key=lambda one: -one[1])


def check(found, expected) -> None:
    """(index, score) pairs are the first of `expected`; the index keeps tokens as bfloat16."""
    found = list(found)
    assert [index for index, _ in found] == [index for index, _ in expected[: len(found)]]
    for (_, score), (_, probability) in zip(found, expected, strict=False):
        assert score == pytest.approx(probability, abs=1e-2)


def pairs(results) -> list[tuple[int, float]]:
    return [(one.index, one.relevance_score) for one in results]


def test_cohere_v1(address, documents, expected):
    import cohere

    client = cohere.Client(api_key=KEY, base_url=address)
    answer = client.rerank(model=MODEL, query=QUERY, documents=documents, return_documents=True)
    check(pairs(answer.results), expected)
    for one in answer.results:
        assert one.document.text == documents[one.index]
    assert answer.meta.tokens.input_tokens > 0 and answer.id
    # The form with fields that version 1 has beside strings.
    fields = [{"text": document} for document in documents]
    answer = client.rerank(model=MODEL, query=QUERY, documents=fields, top_n=2)
    assert len(answer.results) == 2
    check(pairs(answer.results), expected)


def test_cohere_v2(address, documents, expected):
    import cohere

    client = cohere.ClientV2(api_key=KEY, base_url=address)
    answer = client.rerank(model=MODEL, query=QUERY, documents=documents, top_n=3)
    assert len(answer.results) == 3
    check(pairs(answer.results), expected)
    with pytest.raises(cohere.UnprocessableEntityError) as told:
        client.rerank(model=MODEL, query=QUERY, documents=["00.png", "a caption"])
    assert "documents[0], documents[1]: a text" in str(told.value.body)
    with pytest.raises(cohere.UnauthorizedError):
        cohere.ClientV2(api_key="other", base_url=address).rerank(
            model=MODEL, query=QUERY, documents=documents
        )


@pytest.mark.parametrize(
    ("provider", "returned"),
    [("cohere", True), ("jina_ai", True), ("infinity", False), ("hosted_vllm", False)],
)
def test_litellm(address, documents, expected, provider, returned):
    import litellm

    model = f"{provider}/{MODEL}"
    # LiteLLM asks for the documents unless told not to.
    answer = litellm.rerank(
        model=model, query=QUERY, documents=documents, api_base=address, api_key=KEY
    )
    check([(one["index"], one["relevance_score"]) for one in answer.results], expected)
    for one in answer.results:
        assert ("document" in one) == returned
        assert not returned or one["document"]["text"] == documents[one["index"]]
    assert answer.meta["tokens"] or answer.meta["billed_units"]
    answer = litellm.rerank(
        model=model, query=QUERY, documents=[{"id": document} for document in documents[:3]],
        api_base=address, api_key=KEY, top_n=1,
    )  # fmt: skip
    assert len(answer.results) == 1


def test_litellm_asynchronously(address, documents, expected):
    import litellm

    asked = litellm.arerank(
        model=f"cohere/{MODEL}", query=QUERY, documents=documents, api_base=address, api_key=KEY
    )
    answer = asyncio.run(asked)
    check([(one["index"], one["relevance_score"]) for one in answer.results], expected)


def test_langchain(address, documents, expected):
    from langchain_cohere import CohereRerank
    from langchain_core.documents import Document

    reranker = CohereRerank(model=MODEL, base_url=address, cohere_api_key=KEY, top_n=3)
    held = [Document(text, metadata={"place": place}) for place, text in enumerate(documents)]
    found = reranker.compress_documents(held, QUERY)
    assert len(found) == 3
    check([(one.metadata["place"], one.metadata["relevance_score"]) for one in found], expected)
    # Objects are sent as YAML.
    found = reranker.rerank([{"id": name} for name in documents[:3]], QUERY, top_n=None)
    assert len(found) == 3


def test_llama_index(address, documents, expected):
    from llama_index.core.schema import NodeWithScore, TextNode
    from llama_index.postprocessor.cohere_rerank import CohereRerank

    reranker = CohereRerank(model=MODEL, base_url=address, api_key=KEY, top_n=4)
    nodes = [NodeWithScore(node=TextNode(text=text, id_=text[:99])) for text in documents]
    found = reranker.postprocess_nodes(nodes, query_str=QUERY)
    check([(documents.index(one.node.text), one.score) for one in found], expected)


def test_haystack(address, documents, expected):
    from haystack import Document
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.cohere import CohereRanker

    ranker = CohereRanker(model=MODEL, api_base_url=address, api_key=Secret.from_token(KEY))
    held = [Document(content=text) for text in documents]
    found = ranker.run(query=QUERY, documents=held, top_k=4)["documents"]
    check([(documents.index(one.content), one.score) for one in found], expected)
