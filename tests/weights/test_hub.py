"""Models by hub id: from the cache that every Hugging Face library shares, with no network."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from edje_jax.weights.backbone import load_backbone
from edje_jax.weights.hub import resolve

TINY = Path(__file__).parents[1] / "goldens" / "reference_tiny"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache that holds one model, as huggingface_hub lays it out."""
    assert constants.HF_HUB_OFFLINE
    commit = "0123456789abcdef0123456789abcdef01234567"
    model = tmp_path / "models--someone--tiny-siglip"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    shutil.copytree(TINY / "siglip", model / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_cached_model_is_found_offline(cache):
    folder = resolve("someone/tiny-siglip", "the backbone")
    assert folder.is_relative_to(cache)
    ours, theirs = load_backbone("someone/tiny-siglip"), load_backbone(str(TINY / "siglip"))
    assert ours.config == theirs.config


def test_what_is_not_cached_is_told_with_both_meanings(cache):
    message = (
        r"someone/else: the backbone is neither a folder here nor a hub id that can be fetched"
    )
    with pytest.raises(FileNotFoundError, match=message):
        load_backbone("someone/else")
