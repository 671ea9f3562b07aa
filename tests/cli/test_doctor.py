"""`edje doctor` tells what is installed and names known trouble with its remedy."""

import pytest

from edje_jax.cli import doctor
from edje_jax.cli.edje import main
from edje_jax.system.xla_flags import FAULTY


@pytest.fixture
def versions(monkeypatch) -> dict[str, str]:
    """Versions that are pretended; others are the real ones."""
    told: dict[str, str] = {}
    real = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: told.get(name, real(name)))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    return told


def test_versions_devices_and_extras_are_told(versions, capsys):
    versions |= {"faiss-cpu": "", "onnxruntime": "1.31.0"}
    assert main(["doctor"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"jax │ {doctor.installed('jax')}" in told and "platform │ cpu" in told
    assert "runtimes │ jax, onnx" in told and "onnxruntime │ 1.31.0" in told
    assert "computes in │ float32" in told and "extra serve │ installed" in told
    assert "extra faiss │ pip install 'edje-jax[faiss]' (faiss-cpu)" in told
    assert "extra test" not in told and told.endswith("no known trouble")


def test_each_known_trouble_has_a_remedy(versions, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    versions |= {"jax": "0.11.0", "jaxlib": FAULTY}
    apart, wrong, unused = doctor.troubles()
    assert apart.startswith(f"jax 0.11.0 with jaxlib {FAULTY}: pip install --upgrade jax jaxlib")
    assert "add --xla_cpu_experimental_ynn_fusion_type=-reduce to XLA_FLAGS" in wrong
    assert "pip install 'edje-jax[gpu]'" in unused


def test_a_runtime_that_is_not_installed_is_not_named(versions):
    assert doctor.runtimes() == ["jax", "onnx"]
    versions["onnxruntime"] = ""
    assert doctor.runtimes() == ["jax"]
