"""Files and folders: whole under their names or not there, whatever the file system refuses."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from edje_jax.system.files import BadJson, atomic_folder, atomic_path, move, read_json


def refuse(number: int):
    """A call of the system that fails."""

    def call(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_what_cannot_be_renamed_is_copied(number, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", refuse(number))
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    (tmp_path / "from" / "inner").mkdir(parents=True)
    for name in ("config.json", "inner/b.txt"):
        (tmp_path / "from" / name).write_text(name)
    move(tmp_path / "from", tmp_path / "to")
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {"a.txt", "to/config.json", "to/inner/b.txt"}
    assert (tmp_path / "to" / "inner" / "b.txt").read_text() == "inner/b.txt"


def test_half_a_copy_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", refuse(errno.ENOSYS))
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "a.txt").write_text("x")

    def fail(source, target):
        Path(target).write_text("ha")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(OSError, match="No space left"):
        move(tmp_path / "from", tmp_path / "to")
    with (
        pytest.raises(OSError, match="No space left"),
        atomic_path(tmp_path / "b.txt") as temporary,
    ):
        temporary.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["from"]


def test_a_disk_that_is_full_is_not_copied_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", refuse(errno.ENOSPC))
    with (
        pytest.raises(OSError, match="No space left"),
        atomic_path(tmp_path / "a.txt") as temporary,
    ):
        temporary.write_text("x")
    assert not list(tmp_path.iterdir())


def test_a_whole_folder_appears_only_when_it_is_whole(tmp_path):
    target = tmp_path / "deep" / "model"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert [p.name for p in target.parent.iterdir()] == ["model"]


def test_a_whole_folder_replaces_the_one_before_wholly(tmp_path):
    target = tmp_path / "model"
    for name in ("old", "new"):
        with atomic_folder(target) as folder:
            (folder / name).write_text(name)
    assert [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_whole_folder_leaves_nothing_when_its_writer_fails(error, tmp_path):
    target = tmp_path / "model"
    for expected in ([], ["model"]):
        with pytest.raises(error), atomic_folder(target) as folder:
            (folder / "half").write_text("")
            raise error
        assert [p.name for p in tmp_path.iterdir()] == expected
        with atomic_folder(target) as folder:
            (folder / "whole").write_text("")
    assert [p.name for p in target.iterdir()] == ["whole"]


def test_leftovers_of_a_killed_export_do_no_harm(tmp_path):
    for name in (".model.partial", ".model.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rubbish").write_text("")
    for _ in range(2):
        with atomic_folder(tmp_path / "model") as folder:
            (folder / "whole").write_text("")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["whole"]


def test_bytes_that_are_no_text_are_not_json(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(BadJson, match=r"config\.json: not valid JSON"):
        read_json(tmp_path / "config.json")


def test_json_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "config.json").write_text("{}", "utf-8-sig")
    assert read_json(tmp_path / "config.json") == {}
