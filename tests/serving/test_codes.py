"""The HTTP of an index whose first stage compares codes."""

import pytest
from fastapi.testclient import TestClient

from edje_jax import ImageIndex, Reranker
from edje_jax.data.sources.registry import open_captioned
from edje_jax.first_stage.screening import Screening
from edje_jax.index.build import build
from edje_jax.scenes.shapes import SPLITS
from edje_jax.serving.app import make_app
from edje_jax.serving.service import Service

QUERY = "a red circle left of a blue square"


@pytest.fixture(scope="module")
def services(coded, tmp_path_factory) -> dict[str, Service]:
    """Services over one index of ten scenes: by codes, of which all are found, and exact."""
    folder = tmp_path_factory.mktemp("coded") / "index"
    reranker = Reranker.from_pretrained(coded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPLITS, "val", 10)
        source = open_captioned("shapes:val")
        assert build(reranker.runtime, reranker.stamp, source, "shapes:val", folder)
    codes = ImageIndex.open(folder, first_stage="codes", bits=8, screening=Screening(99, 99))
    return {
        "codes": Service(reranker, codes),
        "exact": Service(reranker, ImageIndex.open(folder)),
    }


def answers(services: dict[str, Service], route: str, body: dict) -> list[dict]:
    """Answers by codes, and by exact search."""
    out = []
    for service in services.values():
        with TestClient(make_app(service)) as client:
            answer = client.post(route, json=body)
            assert answer.status_code == 200, answer.text
            out.append(answer.json())
    return out


@pytest.mark.parametrize("route", ["/search", "/captions"])
def test_codes_find_what_exact_search_finds_if_none_is_left_out(services, route):
    name = services["codes"].index.store.row(3).id
    asked = {"query": QUERY} if route == "/search" else {"id": name}
    by_codes, exact = answers(services, route, {**asked, "k": 6, "top_k": 4})
    assert len(by_codes["results"]) == 4
    for ours, theirs in zip(by_codes["results"], exact["results"], strict=True):
        assert (ours["id"], ours["base_rank"]) == (theirs["id"], theirs["base_rank"])
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
    seconds = by_codes["seconds"]
    assert seconds["by_projection"] > 0 and seconds["by_embedding"] > 0
    parts = ("first_stage", "by_projection", "by_embedding", "rerank")
    assert sum(seconds[part] for part in parts) <= seconds["total"]
    assert exact["seconds"]["by_embedding"] == exact["seconds"]["by_projection"] == 0


def test_a_service_over_codes_warms_up(services, monkeypatch):
    asked = []
    stage = services["codes"].index.images
    nearest = type(stage).nearest
    monkeypatch.setattr(
        type(stage),
        "nearest",
        lambda self, q, k: asked.append((str(q.dtype), k)) or nearest(self, q, k),
    )
    services["codes"].warm(ks=(5, 200))
    # A search for five images asks for 99 codes.
    assert set(asked) == {("uint8", 99), ("uint8", 200)}
