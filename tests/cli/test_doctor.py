"""`edje doctor` tells what is installed and names known trouble with its remedy."""

import pytest

from edje_jax.cli import doctor
from edje_jax.cli.edje import main
from edje_jax.system.xla_flags import FAULTY, FLAG

CPU = doctor.Backend("cpu", ("cpu", "cpu"), "float32")


@pytest.fixture
def versions(monkeypatch, tmp_path) -> dict[str, str]:
    """Versions that are pretended; others are the real ones. Caches lie in a folder of the test."""
    told: dict[str, str] = {}
    real = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: told.get(name, real(name)))
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: "")
    monkeypatch.setenv("XLA_FLAGS", FLAG)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return told


@pytest.fixture
def package(monkeypatch) -> dict[str, list[str]]:
    """Requirements of packages that are pretended, as their metadata have them."""
    told = {
        "edje-jax": [
            "numpy>=2.0",
            "fastapi>=0.115; extra == 'serve'",
            "faiss-cpu>=1.14; extra == 'faiss'",
            "jax[cuda13]; extra == 'gpu'",
            "edje-jax[faiss,serve]; extra == 'all'",
            "pytest; extra == 'test'",
        ],
        "jax": ["numpy", 'jax-cuda13-plugin[with-cuda]==1.0; extra == "cuda13"'],
    }
    monkeypatch.setattr(doctor, "requires", lambda name: told.get(name))
    return told


def test_versions_devices_folders_and_extras_are_told(versions, package, monkeypatch, capsys):
    versions |= {"edje-jax": "0.1.0", "faiss-cpu": "", "onnxruntime": "1.31.0"}
    monkeypatch.setattr(doctor, "start_jax", lambda: CPU)
    cache = doctor.folders()["cache"] / "jax"
    cache.mkdir(parents=True)
    (cache / "program").write_bytes(bytes(3_000_000))
    assert main(["doctor"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"jax │ {doctor.installed('jax')}" in told and "platform │ cpu" in told
    assert "runtimes │ jax, onnx" in told and "onnxruntime │ 1.31.0" in told
    assert "devices │ 2 x cpu" in told and "computes in │ float32" in told
    assert "(3 MB)" in told and "extra serve │ installed" in told
    assert "extra faiss │ pip install 'edje-jax[faiss]' (faiss-cpu)" in told
    assert "extra test" not in told and told.endswith("no known trouble")


def test_an_extra_lacks_what_the_extras_that_it_names_lack(versions, package):
    versions |= {"edje-jax": "0.1.0", "faiss-cpu": "", "jax-cuda13-plugin": ""}
    assert doctor.extras() == ["all", "faiss", "gpu", "serve"]
    assert doctor.missing_packages("edje-jax", "all") == ["faiss-cpu"]
    assert doctor.missing_packages("edje-jax", "gpu") == ["jax-cuda13-plugin"]
    versions["jax-cuda13-plugin"] = "1.0"
    assert doctor.missing_packages("edje-jax", "gpu") == []


def test_trouble_is_told_and_is_a_failure(versions, monkeypatch, capsys):
    failed = doctor.Backend(failure="Unknown flag in XLA_FLAGS: --xla_no")
    monkeypatch.setattr(doctor, "start_jax", lambda: failed)
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    told = capsys.readouterr().out
    assert stop.value.code == 1 and "no known trouble" not in told
    assert told.endswith("--xla_no; take the flag out of XLA_FLAGS\n")


def test_releases_that_do_not_fit_and_wrong_reductions(versions, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")
    versions |= {"jax": "0.11.0", "jaxlib": FAULTY}
    apart, wrong = doctor.troubles(CPU)
    assert apart.startswith(f"jax 0.11.0 with jaxlib {FAULTY}: pip install --upgrade jax jaxlib")
    assert f"add {FLAG} to XLA_FLAGS" in wrong and "Python 3.12" in wrong


@pytest.mark.parametrize(
    ("driver", "plugin", "platform", "told"),
    [
        ("580.65.06", "", "cpu", "pip install 'edje-jax[gpu]'"),
        ("550.54", "", "cpu", "pip install 'jax[cuda12]'"),
        ("550.54", "0.12.0", "cpu", "too old for CUDA 13: install driver 580"),
        ("580.65.06", "0.12.0", "gpu", None),
        ("550.54", "", "gpu", None),
    ],
)
def test_gpus_that_jax_does_not_use(driver, plugin, platform, told, versions, monkeypatch):
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: driver)
    versions |= {"jax": "0.12.0", "jaxlib": "0.12.0", "jax-cuda13-plugin": plugin}
    found = list(doctor.troubles(CPU._replace(platform=platform)))
    assert len(found) == (told is not None) and (told or "") in "".join(found)


def test_folders_that_cannot_be_written(versions, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file" / "jax"))
    (told,) = doctor.troubles(CPU)
    assert told.startswith("compiled programs: ") and "set JAX_COMPILATION_CACHE_DIR" in told
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setattr(doctor, "cache_base", lambda: None)
    (told,) = doctor.troubles(CPU)
    assert "no home folder" in told and "set XDG_CACHE_HOME" in told


def test_the_driver_is_asked_of_nvidia_smi(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 580.65.06\necho 580.65.06\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert doctor.nvidia_driver() == "580.65.06"
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert doctor.nvidia_driver() == ""


def test_jax_is_started_in_another_process(monkeypatch):
    started = doctor.start_jax()
    assert started.platform == "cpu" and set(started.devices) == {"cpu"} and not started.failure
    monkeypatch.setenv("XLA_FLAGS", "--xla_no_such_flag=1")
    assert doctor.start_jax().failure.startswith("Unknown flag in XLA_FLAGS: --xla_no_such_flag")


def test_a_runtime_that_is_not_installed_is_not_named(versions):
    assert doctor.runtimes() == ["jax", "onnx"]
    versions["onnxruntime"] = ""
    assert doctor.runtimes() == ["jax"]
