"""Place of the cache: as the XDG base directory specification says, or None."""

import os
from pathlib import Path

import pytest

from edje_jax.system import cache_folder as caches
from edje_jax.system.cache_folder import cache_folder


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (folder := tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def test_it_is_made_by_whoever_writes(home):
    assert cache_folder("tars") == home / ".cache" / "edje_jax" / "tars"
    assert not list(home.iterdir())


@pytest.mark.parametrize("value", ["", "relative/cache", ".", "~/mine"])
def test_a_cache_home_that_is_no_absolute_path_is_ignored(value, home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_folder("tars") == home / ".cache" / "edje_jax" / "tars"


def test_an_absolute_one_counts_though_it_is_not_there_yet(home, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a" / "b"))
    assert cache_folder("jax") == tmp_path / "a" / "b" / "edje_jax" / "jax"


@pytest.mark.parametrize("value", ["", "relative", "/nowhere/at/all", os.devnull])
def test_no_home_no_cache(value, home, monkeypatch):
    monkeypatch.setenv("HOME", value)
    assert cache_folder("tars") is None


def test_a_user_without_a_name_and_without_a_home(home, monkeypatch):
    monkeypatch.delenv("HOME")

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    assert cache_folder("tars") is None


def test_a_folder_that_cannot_be_written_to(home, monkeypatch):
    """Root may write anywhere, so the system's answer is replaced."""
    monkeypatch.setattr(caches.os, "access", lambda path, mode: False)
    assert cache_folder("tars") is None
    monkeypatch.undo()


def test_a_file_in_its_place(home):
    (home / ".cache").write_text("a file")
    assert cache_folder("tars") is None
