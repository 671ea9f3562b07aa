"""Peers are the models that they are named after, and the table of them is computed rightly."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def module(monkeypatch):
    """Import a script of benchmarks/ by name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


ONLINE = {
    "blip-b": 137.3, "blip-l": 142.0, "blip2-l": 182.1, "blip2-g": 185.7, "vilt": 111.6,
}  # fmt: skip
"""Millions of parameters that scoring takes, counted from transformers' classes by other means."""


@pytest.mark.parametrize("name", ONLINE)
def test_peers_have_the_sizes_of_the_published_checkpoints(module, name):
    sizes = module("peers_torch").sizes(name, False)
    assert sizes["online"] / 1e6 == pytest.approx(ONLINE[name], abs=0.06)
    vision = {"blip-b": 86.1, "blip-l": 303.7, "blip2-g": 986.0}
    if name in vision:
        assert (sizes["total"] - sizes["online"]) / 1e6 == pytest.approx(vision[name], abs=1)


def forward(name: str, peer, ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Match logits as the class itself computes them from pixels."""
    rows, model = ids.expand(len(pixels), -1), peer.whole
    mask = torch.ones_like(rows)
    if name == "blip-b":
        return model(rows, pixels, attention_mask=mask).itm_score[:, 1]
    if name == "blip2-l":
        return model(pixels, rows, mask, use_image_text_matching_head=True).logits_per_image[:, 1]
    if name == "vilt":
        return model(input_ids=rows, attention_mask=mask, pixel_values=pixels).logits[:, 0]
    # Nobody else computes the ALBEF-shaped one: each pair alone.
    features = peer.read(pixels)
    return torch.cat([peer.score(ids, features[i : i + 1]) for i in range(len(pixels))])


@pytest.mark.parametrize("name", ["albef", "blip-b", "blip2-l", "vilt"])
@torch.inference_mode()
def test_scores_from_cached_features_are_those_of_the_whole_model(module, name):
    torch.manual_seed(0)
    peers = module("peers_torch")
    peer = peers.make_peer(name, tiny=True)
    pixels, ids = torch.randn(3, 3, 32, 32), torch.tensor([101, 2000, 3000, 102])
    scores = peer.score(ids, peer.read(pixels))
    torch.testing.assert_close(scores, forward(name, peer, ids, pixels), rtol=0, atol=1e-6)
    assert scores.unique().numel() == 3, "scores do not depend on the image"
    assert not torch.equal(scores, peer.score(ids.flip(0), peer.read(pixels)))


def test_in_the_albef_shaped_peer_words_see_those_behind_them(module):
    peer = module("peers_torch").make_peer("albef", tiny=True)
    hidden = torch.randn(1, 4, 32, requires_grad=True)
    mask = torch.ones(1, 1, 1, 4, dtype=torch.bool)
    fused = peer.whole.fusion(hidden, mask, encoder_hidden_states=torch.randn(1, 5, 32))
    fused.last_hidden_state[0, 0, 0].backward()
    assert hidden.grad[0, 3].abs().sum() > 0


def test_ours_and_the_published_score_the_same_pairs_with_the_same_weights(module, tmp_path):
    peers, torch_sides, our_sides = map(module, ("peers", "peers_torch", "peers_ours"))
    settings = module("pairs").Settings(str(tmp_path), queries=2, k=3, tiny=True)
    peers.save_layouts(settings)
    assert [path.name for path in sorted(tmp_path.iterdir())] == sorted(peers.layouts(settings))
    spec = {"layout": "ours", "runtime": "jax", "precision": "float32"}
    ours = our_sides.scoring_side(spec, settings)
    theirs = torch_sides.published_side(settings, adapter=False)
    logits = ours.parts["score"]()
    assert logits.std() > 0.1
    np.testing.assert_allclose(logits, theirs.parts["score"](), atol=1e-4)
    together = our_sides.scoring_side(spec | {"together": True}, settings).parts["score"]()
    np.testing.assert_allclose(together, logits, atol=1e-5)
    assert ours.facts == theirs.facts


def result() -> dict:
    """Result with two captions of 4 candidates, and vision towers that read 2 images a call."""
    ours = {
        "seconds": [0.03, 0.01, 0.02], "parameters": {"online": 33_400_000, "total": 373_000_000},
        "stored": [64, 384], "tower": "small", "poster": "EDJE Compressed-64",
    }  # fmt: skip
    blip = {
        "seconds": [0.4], "parameters": {"online": 137_000_000, "total": 224_000_000},
        "stored": [577, 768], "tower": "ViT", "poster": "BLIP B/16",
    }  # fmt: skip
    return {
        "machine": {
            "devices": ["cpu"], "cores": 2, "processor": "X", "torch_threads": 2, "torch": "2.13",
        },
        "queries": 2, "k": 4, "images": 2, "rounds": 3, "tiny": False,
        "rows": {
            "BLIP": blip,
            "ours, float32 (JAX 0.10.2)": ours,
            "ours, int8 (JAX 0.10.2)": {"why": "ValueError: a | b", "tower": "", "poster": ""},
        },
        "towers": {"ViT": {"seconds": [1.0]}, "small": {"why": "MemoryError: none"}},
    }  # fmt: skip


def test_figures_are_computed_from_seconds(module):
    blip, ours = module("peers_report").lines(result())
    assert ours.cached == pytest.approx(10) and (ours.fastest, ours.slowest) == (5, 15)
    assert ours.uncached is None and ours.slower == 1
    assert blip.cached == pytest.approx(200) and blip.slower == pytest.approx(20)
    assert blip.uncached == pytest.approx(200 + 4 * 500)
    assert ours.stored == 49_152 and blip.stored == 2 * 577 * 768


def test_the_page_has_a_place_for_every_table(module):
    tables = module("peers_report").tables(result())
    assert "| BLIP | 50 | 200 | 200 to 200 | 2,200 | 20 | *83.27* |" in tables["times"]
    assert "| ours, int8 (JAX 0.10.2) | ValueError: a / b |" in tables["left out"]
    assert "| small | MemoryError: none |" in tables["left out"]
    assert "| 64 x 384 | 49 | 33.4M | 373.0M | *49* | *33M* |" in tables["sizes"]
    page = (ROOT / "docs" / "peers.md").read_text("utf-8")
    filled = module("pages").filled(page, "peers", tables)
    assert all(table in filled for table in tables.values())
    assert not re.search(r"Not measured yet", filled)


@pytest.mark.extra
def test_one_command_times_peers_and_ours(module, tmp_path, capsys):
    """Each in a process of its own; an interpreter that is not there is a row that says so."""
    out, page = tmp_path / "peers.json", tmp_path / "peers.md"
    page.write_text("<!-- peers times -->\n<!-- /peers times -->\n")
    module("peers").main(
        [
            "--tiny", "--rounds", "1", "--k", "3", "--queries", "1", "--images", "1",
            "--only", "BLIP, ViT-B/16", "published EDJE", "ours, float32 (JAX",
            "--jax-python", str(tmp_path / "python"), "--out", str(out), "--markdown", str(page),
        ]
    )  # fmt: skip
    told = json.loads(out.read_text())
    (missing,) = [row for row in told["rows"].values() if "why" in row]
    assert missing["why"] == "its interpreter cannot be started: No such file or directory"
    ran = {name: row for name, row in told["rows"].items() if "why" not in row}
    assert len(ran) == 4 and all(len(row["seconds"]) == 1 for row in ran.values())
    ours = next(row for name, row in ran.items() if name.startswith("ours"))
    assert ours["stored"] == ran["published EDJE"]["stored"] == [4, 48]
    assert ours["parameters"]["online"] == ran["published EDJE"]["parameters"]["online"]
    assert page.read_text().count("\n| ") == 2 + 4
    assert "ms a pair" in capsys.readouterr().out
    assert str(tmp_path) not in out.read_text()
