"""Models by hub id: from the cache that every Hugging Face library shares, with no network."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from edje_jax.weights.backbone import load_backbone
from edje_jax.weights.bert import load_language_model
from edje_jax.weights.hub import resolve

TINY = Path(__file__).parents[1] / "goldens" / "reference_tiny"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache that holds one model, as huggingface_hub lays it out."""
    assert constants.HF_HUB_OFFLINE
    commit = "0123456789abcdef0123456789abcdef01234567"
    for name, source in (("someone--tiny-siglip", "siglip"), ("tiny-bert", "bert")):
        model = tmp_path / f"models--{name}"
        (model / "refs").mkdir(parents=True)
        (model / "refs" / "main").write_text(commit)
        shutil.copytree(TINY / source, model / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_cached_model_is_found_offline(cache):
    folder = resolve("someone/tiny-siglip", "the backbone")
    assert folder.is_relative_to(cache)
    ours, theirs = load_backbone("someone/tiny-siglip"), load_backbone(str(TINY / "siglip"))
    assert ours.config == theirs.config


def test_an_id_of_one_segment_is_found(cache):
    """As of bert-base-uncased."""
    folder = resolve("tiny-bert", "the joint encoder")
    assert folder.is_relative_to(cache)
    assert load_language_model("tiny-bert").config == load_language_model(folder).config


@pytest.mark.parametrize("name", ["tiny-bert", "someone/tiny-siglip"])
def test_a_folder_goes_before_the_id_of_its_name(name, cache, monkeypatch):
    monkeypatch.chdir(cache)
    (cache / name).mkdir(parents=True)
    assert resolve(name, "the backbone") == Path(name)


@pytest.mark.parametrize("name", ["someone/else", "bert-base-uncased"])
def test_what_is_not_cached_is_told_with_the_cache(name, cache):
    told = f"{name}: the model is neither a folder here nor a hub id that can be fetched (it is not"
    with pytest.raises(FileNotFoundError) as caught:
        resolve(name, "the model")
    assert str(caught.value) == f"{told} in the cache {cache}, and HF_HUB_OFFLINE is set)"


def test_a_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "siglip.npz").touch()
    with pytest.raises(FileNotFoundError, match=r"siglip\.npz: the backbone is a file; give the"):
        load_backbone(str(tmp_path / "siglip.npz"))
