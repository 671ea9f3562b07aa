"""The log says once where a program computes, and JAX's own warning is heard."""

import subprocess
import sys

import jax.numpy as jnp
import pytest

from edje_jax.cli.convert import convert
from edje_jax.runtimes import devices as runtime_devices
from edje_jax.runtimes.devices import Compute, compute_dtype, log_devices
from edje_jax.search.reranker import Reranker
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def forgotten(caplog):
    """Clear the record of the devices that this process has logged."""
    log_devices.cache_clear()
    caplog.set_level("INFO")


def test_a_model_says_once_where_it_computes(trained, caplog):
    for _ in range(2):
        Reranker.from_pretrained(trained, precision="bfloat16")
    told = [text for text in caplog.messages if "platform" in text]
    assert told == ["platform cpu · 1 of 8 devices (cpu) · computing in bfloat16"]


def test_so_does_a_conversion(trained, tmp_path, caplog):
    convert(str(trained), str(tmp_path / "model"), "edje")
    told = [text for text in caplog.messages if "platform" in text]
    assert told == ["platform cpu · 1 of 8 devices (cpu) · computing in float32"]


def test_every_kind_of_device_is_named(monkeypatch, caplog):
    devices = [type("Device", (), {"device_kind": kind}) for kind in ("H100", "H100", "H200")]
    monkeypatch.setattr(runtime_devices.jax, "devices", lambda: devices)
    monkeypatch.setattr(runtime_devices.jax, "device_count", lambda: 3)
    monkeypatch.setattr(runtime_devices.jax, "default_backend", lambda: "gpu")
    log_devices(Compute(jnp.bfloat16), 3)
    assert caplog.messages == ["platform gpu · 3 devices (H100, H200) · computing in bfloat16"]


def test_int8_is_of_products_and_the_rest_is_what_the_platform_computes_in(monkeypatch):
    assert Compute.of("int8") == Compute(jnp.float32, True)
    assert Compute.of("bfloat16") == Compute(jnp.dtype("bfloat16"), False)
    monkeypatch.setattr(runtime_devices.jax, "default_backend", lambda: "gpu")
    assert str(Compute.of("int8")) == "int8 and bfloat16"
    with pytest.raises(ValueError, match=r"precision 'int4': give one of auto, .*int8"):
        Compute.of("int4")


def test_int8_does_not_train():
    with pytest.raises(ValueError, match='"int8" is one of inference alone'):
        compute_dtype("int8")


def test_that_there_is_a_gpu_which_jax_does_not_use_is_heard():
    """A GPU is pretended, for which this JAX has no part."""
    code = (
        "from jax._src import hardware_utils\n"
        "hardware_utils.has_visible_nvidia_gpu = lambda: True\n"
        "from edje_jax.cli.program import run_program\n"
        "def main(arguments):\n    import jax\n    jax.devices()\n"
        "run_program(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": "", "JAX_PLATFORMS": "", "HOME": "/nowhere"},
    )
    assert done.returncode == 0 and "Falling back to cpu" in done.stderr
    assert done.stderr.count("\n") == 1
