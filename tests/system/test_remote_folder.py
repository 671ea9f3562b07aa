"""A folder behind a URL: its files by their names, on fsspec's file systems of memory and disk."""

import errno
from importlib.util import find_spec
from pathlib import Path
from time import sleep

import pytest

from edje_jax.system.remote_folder import RemoteFolder, in_threads, is_url


@pytest.fixture(params=["memory", "file"])
def folder(request, tmp_path) -> RemoteFolder:
    # A name with a space and characters that patterns know
    return RemoteFolder(f"{request.param}://{tmp_path}/a [b]/photos.index/")


def test_a_file_is_written_read_listed_and_deleted(folder, tmp_path):
    assert folder.names() == [] and folder.size("a.json") is None
    folder.write("a.json", b"{}")
    folder.write("a.json", b"{1}")
    (tmp_path / "b.bin").write_bytes(b"0123")
    folder.put(tmp_path / "b.bin", "b.bin")
    folder.put(tmp_path / "b.bin", "below/it/c.bin")
    assert folder.names() == ["a.json", "b.bin", "below"] and folder.names("*.bin") == ["b.bin"]
    assert folder.names(folder="below/it") == ["c.bin"]
    assert folder.read("a.json") == b"{1}" and folder.size("below/it/c.bin") == 4
    folder.get("b.bin", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"0123"
    known = "1be2e452b46d7a0d9656bbb1f768e8248eba1b75baed65f5d99eafa948899a6a"
    assert folder.checksum("b.bin") == known
    folder.delete("b.bin")
    folder.delete("b.bin")
    assert folder.names() == ["a.json", "below"]


def test_a_file_that_is_not_there_is_named_with_its_url(folder, tmp_path):
    for act in (folder.read, folder.checksum, lambda name: folder.get(name, tmp_path / "copy")):
        with pytest.raises(FileNotFoundError) as error:
            act("tokens.npy")
        assert error.value.filename == f"{folder.url}/tokens.npy"


def test_whatever_a_library_raises_is_an_error_of_the_system_that_names_the_file(
    folder, monkeypatch
):
    class NoCredentialsError(Exception):
        pass

    def refuse(*_, **__):
        raise NoCredentialsError("Unable to locate credentials\nmore")

    monkeypatch.setattr(folder._files, "cat_file", refuse)
    with pytest.raises(OSError) as error:
        folder.read("manifest.json")
    told = str(error.value)
    assert told.startswith(f"{folder.url}/manifest.json: cannot be reached (NoCredentialsError: Un")
    assert "check the URL, the credentials and the network" in told and "\n" not in told


def test_a_full_disk_is_told_as_that(folder, tmp_path, monkeypatch):
    folder.write("a.bin", b"0")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder._files, "get_file", full)
    with pytest.raises(OSError) as error:
        folder.get("a.bin", tmp_path / "copy")
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(tmp_path / "copy")


@pytest.mark.skipif(find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_package_that_is_missing_is_named():
    with pytest.raises(ModuleNotFoundError, match="s3://b/i: needs more: pip install s3fs"):
        RemoteFolder("s3://b/i")


def test_an_unknown_kind_of_url_is_refused():
    with pytest.raises(ValueError, match="nfs://b/i: Protocol not known: nfs; write s3://BUCKET"):
        RemoteFolder("nfs://b/i")


def test_urls_are_told_from_paths():
    assert is_url("s3://bucket/photos.index") and is_url("file:///tmp/i")
    assert not is_url("photos.index") and not is_url(Path("/a:b/photos.index"))


def test_an_error_in_a_thread_ends_what_was_not_begun():
    done = []

    def act(i: int) -> int:
        if not i:
            raise ValueError("first")
        # Work that takes time, so that the threads cannot end all of it before the error is seen.
        sleep(0.01)
        done.append(i)
        return i

    assert in_threads(act, [3, 1, 2]) == [3, 1, 2]
    done.clear()
    with pytest.raises(ValueError, match="first"):
        in_threads(act, range(10_000))
    assert len(done) < 9_999
