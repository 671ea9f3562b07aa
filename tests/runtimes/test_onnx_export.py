"""Graphs of ONNX Runtime in files: made once, never half, and again when the model has changed."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edje_jax.runtimes.onnx_export import FOLDER, Export
from edje_jax.system.files import atomic_path
from edje_jax.weights.folder import Model, load_model


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edje_jax" / FOLDER


@pytest.fixture
def folder(tmp_path) -> Path:
    """Folder that a model is said to come from."""
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("shapes-demo")


@pytest.fixture
def export(model) -> Callable[..., Export]:
    """Function that opens the shipped model's export as if the model came from elsewhere."""

    def opened(source: Path | str, precision: str = "int8") -> Export:
        return Export.of(dataclasses.replace(model, source=str(source)), precision)  # type: ignore[arg-type]

    return opened


def logits(one: Export) -> np.ndarray:
    """Logits of two pairs by both graphs of an export."""
    text = one.session("text").run(None, {"ids": np.array([[1, 5, 7, 2]])})[0]
    tokens = np.random.default_rng(0).normal(size=(2, 16, 96)).astype(np.float32)
    pairs = {"text": text.repeat(2, axis=0), "tokens": tokens}
    return one.session("pairs").run(None, pairs)[0]


def unmade(monkeypatch) -> None:
    """Let every graph fail that would be made anew, as without the package that writes them."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "edje_jax.runtimes.onnx_graph", raising=False)
    monkeypatch.delattr("edje_jax.runtimes.onnx_graph", raising=False)


def files_of(one: Export) -> list[str]:
    """Files of both graphs of an export in int8."""
    return [f"{part}-int8-{one.fingerprint}.onnx" for part in ("pairs", "text")]


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_graphs_are_kept_beside_the_model_and_found_again(export, folder, cache, monkeypatch):
    first = export(folder)
    expected = logits(first)
    assert names(folder / FOLDER) == files_of(first) and not cache.exists()
    unmade(monkeypatch)
    np.testing.assert_array_equal(logits(export(folder)), expected)
    with pytest.raises(ModuleNotFoundError, match=r"runtime onnx needs .*'edje-jax\[onnx\]'"):
        logits(export(folder, "float32"))


def test_a_model_that_changed_is_exported_again(export, folder, cache):
    before = export(folder)
    old = logits(before)
    classifier = dict(before.params["classifier"], bias=before.params["classifier"]["bias"] + 3)
    after = dataclasses.replace(before, params={**before.params, "classifier": classifier})
    np.testing.assert_allclose(logits(after), old + 3, atol=1e-5)
    assert after.fingerprint != before.fingerprint
    assert names(folder / FOLDER) == files_of(after)
    joint = dataclasses.replace(after.config.joint_encoder, hidden_act="gelu")
    config = dataclasses.replace(after.config, joint_encoder=joint)
    assert dataclasses.replace(after, config=config).fingerprint != after.fingerprint


def test_a_damaged_file_is_made_again(export, folder, cache):
    expected = logits(export(folder))
    for path in (folder / FOLDER).iterdir():
        whole = path.read_bytes()
        for left in (b"", whole[:100], whole[: len(whole) // 2], b"no graph"):
            path.write_bytes(left)
            np.testing.assert_array_equal(logits(export(folder)), expected)
            assert path.read_bytes() == whole


def test_what_another_process_is_writing_is_passed_over(export, folder, cache):
    one = export(folder)
    (folder / FOLDER).mkdir()
    writing = folder / FOLDER / f"pairs-int8-{one.fingerprint}.onnx.12345.tmp"
    writing.write_bytes(b"half")
    logits(one)
    assert len(names(folder / FOLDER)) == 3 and writing.read_bytes() == b"half"


def refusing(folder: Path):
    """`atomic_path` of a folder that is read-only, as permissions stop no superuser."""

    def guarded(path: Path):
        if folder in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return atomic_path(path)

    return guarded


def test_beside_a_read_only_model_the_cache_keeps_them(export, folder, cache, monkeypatch):
    monkeypatch.setattr("edje_jax.runtimes.onnx_export.atomic_path", refusing(folder))
    expected = logits(export(folder))
    (place,) = cache.iterdir()
    assert len(names(place)) == 2
    unmade(monkeypatch)
    np.testing.assert_array_equal(logits(export(folder)), expected)


def test_a_model_that_was_named_without_a_path_has_them_in_the_cache(export, cache):
    one = export("shapes-demo")
    logits(one)
    (place,) = cache.iterdir()
    assert names(place) == files_of(one)


def test_where_nothing_can_be_kept_it_still_runs(export, folder, cache, monkeypatch, caplog):
    expected = logits(export(folder))
    monkeypatch.setattr("edje_jax.runtimes.onnx_export.atomic_path", refusing(folder.parent))
    for path in (folder / FOLDER).iterdir():
        path.unlink()
    np.testing.assert_array_equal(logits(export(folder)), expected)
    assert "could not be kept" in caplog.text and not names(folder / FOLDER)


@pytest.mark.slow
def test_two_processes_without_torch_export_at_once(cache):
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from edje_jax import Reranker\n"
        "import numpy as np\n"
        "one = Reranker.from_pretrained('shapes-demo', runtime='onnx', precision='int8')\n"
        "print(one.score(['a red circle'], np.ones((1, 16, 96), np.float32))[0])\n"
    )
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [one.communicate(timeout=300)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0] and told[0] == told[1]
    (place,) = cache.iterdir()
    assert float(told[0]) and len(names(place)) == 2
