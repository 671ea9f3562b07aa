"""Reductions come out right as users compile, which the flags of the test suite do not show."""

import os
import subprocess
import sys

import jaxlib.version
import pytest

from edje_jax.system import xla_flags
from edje_jax.system.xla_flags import (
    FAULTY,
    FLAG,
    GPU_FLAG,
    avoid_wrong_reductions,
    leave_products_to_cublas,
)

REDUCE = """
import jax, jax.numpy as jnp, numpy as np
rng = np.random.default_rng(0)
m = rng.integers(-3, 4, (3, 3)).astype(np.float32)
rows = rng.integers(-9, 10, (40_000, 3)).astype(np.float32)
found = jax.jit(jax.vmap(lambda r: jnp.sum((m @ r) ** 2)))(rows)
print("wrong", int((np.asarray(found) != ((rows @ m.T) ** 2).sum(axis=1)).sum()))
"""


def compiled_as_users_do(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, without the flags that the tests run under."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=kept | {"JAX_PLATFORMS": "cpu"} | environment,
        timeout=300,
    )


@pytest.mark.parametrize("before", ["import edje_jax", "import jax, edje_jax"])
def test_reductions_are_right_once_edje_jax_is_imported(before):
    done = compiled_as_users_do(before + REDUCE)
    assert done.stdout == "wrong 0\n" and not done.stderr


@pytest.mark.skipif(
    jaxlib.version.__version__ != FAULTY, reason="this jaxlib computes them rightly"
)
def test_the_fault_is_there_without_the_flag_and_a_running_backend_is_warned_of():
    """Else nothing above was shown, and the flag can go."""
    done = compiled_as_users_do(REDUCE + "import edje_jax")
    assert int(done.stdout.split()[1]) > 1000
    assert done.stderr.count("\n") == 1
    assert "import edje_jax before JAX is first used" in done.stderr


@pytest.mark.parametrize(
    ("version", "given", "expected"),
    [
        (FAULTY, None, FLAG),
        (FAULTY, " ", FLAG),
        (FAULTY, "--xla_dump_to=/d", f"--xla_dump_to=/d {FLAG}"),
        # What a user decided stands.
        (FAULTY, "--xla_cpu_experimental_ynn_fusion_type=", None),
        (FAULTY, f"{FLAG} --xla_dump_to=/d", None),
        # Others may not know the flag, and end because of it.
        ("0.10.1", None, None),
        ("0.12.0.1", "--xla_dump_to=/d", None),
    ],
)
def test_the_flag_is_added_where_it_is_needed(version, given, expected, monkeypatch, caplog):
    monkeypatch.setattr(jaxlib.version, "__version__", version)
    monkeypatch.setattr(xla_flags, "_computes_on_cpu", lambda: False)
    if given is None:
        monkeypatch.delenv("XLA_FLAGS", raising=False)
    else:
        monkeypatch.setenv("XLA_FLAGS", given)
    avoid_wrong_reductions()
    assert os.environ.get("XLA_FLAGS") == (given if expected is None else expected)
    assert not caplog.records


def test_a_file_of_flags_is_left_as_it_is_and_checked(tmp_path, monkeypatch, caplog):
    path = tmp_path / "flags"
    monkeypatch.setattr(jaxlib.version, "__version__", FAULTY)
    monkeypatch.setenv("XLA_FLAGS", str(path))
    path.write_text(f"--xla_dump_to=/d\n{FLAG}\n")
    avoid_wrong_reductions()
    assert not caplog.records
    path.write_text("--xla_dump_to=/d\n")
    avoid_wrong_reductions()
    assert f"add {FLAG} to {path}" in caplog.text and os.environ["XLA_FLAGS"] == str(path)


@pytest.mark.parametrize(
    ("version", "plugin", "given", "expected"),
    [
        ("0.11.2", "jax_cuda13_plugin", None, GPU_FLAG),
        ("0.10.2", "jax_cuda12_plugin", "--xla_dump_to=/d", f"--xla_dump_to=/d {GPU_FLAG}"),
        # No GPU, what a user decided, a file, and a release that may not know the flag
        ("0.11.2", None, None, None),
        ("0.11.2", "jax_cuda13_plugin", "--xla_gpu_enable_triton_gemm=true", None),
        ("0.11.2", "jax_cuda13_plugin", "/flags", None),
        ("0.13.0", "jax_cuda13_plugin", None, None),
    ],
)
def test_products_on_gpus_are_left_to_cublas(version, plugin, given, expected, monkeypatch):
    monkeypatch.setattr(jaxlib.version, "__version__", version)
    monkeypatch.setattr(xla_flags, "find_spec", lambda name: name if name == plugin else None)
    if given is None:
        monkeypatch.delenv("XLA_FLAGS", raising=False)
    else:
        monkeypatch.setenv("XLA_FLAGS", given)
    leave_products_to_cublas()
    assert os.environ.get("XLA_FLAGS") == (given if expected is None else expected)


def test_this_jaxlib_knows_the_flag_of_gpus():
    done = compiled_as_users_do("import jax; jax.devices()", XLA_FLAGS=GPU_FLAG)
    assert done.returncode == 0, done.stderr
