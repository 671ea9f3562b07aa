"""Surroundings of every test: eight CPU devices, no network, checked array annotations.

`EDJE_TEST_PLATFORM=cuda` (or `tpu`) runs the tests on an accelerator instead. Flags in `XLA_FLAGS`
stand: `XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true"` compiles
as programs do outside the tests (from jaxlib 0.11.1 on there is no second flag).
"""

import ast
import gc
import importlib
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import jaxlib
import pytest

ROOT = Path(__file__).resolve().parents[1]
FUSION_EMITTERS = tuple(map(int, jaxlib.__version__.split(".")[:3])) < (0, 11, 1)
"""Whether jaxlib knows the flag xla_cpu_use_fusion_emitters: others end because of it."""
PLATFORM = os.environ.get("EDJE_TEST_PLATFORM") or "cpu"
MAPPINGS = 20_000
"""Linux gives a process 65,530 memory mappings unless told otherwise. Every compiled program takes
ten and more, and where none is left the process dies of a segmentation fault. No one file of tests
comes near it."""


def xla_flags(given: str, devices: int = 8) -> str:
    """Flags of a process that has so many CPU devices; those that are given come first."""
    ours = {"xla_force_host_platform_device_count": devices}
    if PLATFORM == "cpu":
        # Compiling takes most of the tests' time, and most of that goes into making programs fast
        # that run once: without, it takes a seventh.
        ours["xla_backend_optimization_level"] = 0
        # A program cut into parts, for as many threads, takes a quarter more; the cores are busy
        # with other tests.
        ours["xla_cpu_parallel_codegen_split_count"] = 1
        if FUSION_EMITTERS:
            ours["xla_cpu_use_fusion_emitters"] = "false"
    added = [f"--{name}={value}" for name, value in ours.items() if name not in given]
    return " ".join([given, *added]).strip()


def _set_environment() -> None:
    """Before JAX is imported. Programs that a test starts inherit it."""
    os.environ["JAX_PLATFORMS"] = PLATFORM
    os.environ["XLA_FLAGS"] = xla_flags(os.environ.get("XLA_FLAGS", ""))
    # A second run reads the programs from disk.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    # What programs keep for their user, such as files of indexes behind URLs
    os.environ["XDG_CACHE_HOME"] = str(ROOT / ".cache" / "user")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _check_annotations() -> None:
    """Before `edje_jax` is imported: a wrong shape or dtype fails where it enters a function."""
    hook = importlib.import_module("jaxtyping").install_import_hook
    hook(
        ["edje_jax.models", "edje_jax.training", "edje_jax.scenes.patch_naming"],
        "beartype.beartype",
    )


_set_environment()
_check_annotations()

pytest_plugins = ("tests.small_runs", "tests.small_gallery", "tests.small_disk")
"""Fixtures that many folders share; imported after the environment is set."""


def pytest_configure() -> None:
    """JAX's own settings."""
    import jax

    # Shapes of different rank do not broadcast silently.
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if PLATFORM != "cpu":
        # Goldens are float32; accelerators multiply in TF32 or bfloat16 unless told otherwise.
        jax.config.update("jax_default_matmul_precision", "highest")


OF_TORCH = (
    "torch", "mteb", "onnxruntime", "sentence_transformers",
    "edje_jax.runtimes.onnx", "edje_jax.runtimes.onnx_export",
    "edje_jax.weights.onnx", "edje_jax.weights.published", "edje_jax.weights.torch",
)  # fmt: skip
"""Modules that need PyTorch, or packages of an extra that has it."""


def needs_torch(path: Path) -> bool:
    """Whether a file of tests imports PyTorch, or what cannot do without it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(f"{name}.".startswith(f"{module}.") for name in names for module in OF_TORCH):
            return True
    return False


collect_ignore = []
"""Files of tests that need PyTorch, where it is not installed."""
if find_spec("torch") is None:
    collect_ignore = [
        str(path) for path in sorted((ROOT / "tests").rglob("*.py")) if needs_torch(path)
    ]


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what imports have made, which stays to the end."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count what was left out."""
    if collect_ignore:
        count = sum(Path(path).read_text("utf-8").count("\ndef test_") for path in collect_ignore)
        terminalreporter.write_line(
            f"PyTorch is not installed: {len(collect_ignore)} files with {count} test functions"
            " that need it were skipped"
        )


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run in which every test was skipped has shown nothing: it fails as an empty one does."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if exitstatus != pytest.ExitCode.OK or session.config.option.collectonly or reporter is None:
        return
    if not any(reporter.stats.get(outcome) for outcome in ("passed", "xfailed")):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.fixture(autouse=True, scope="module")
def few_mappings() -> Iterator[None]:
    """Clear the compiled programs after a test file if they have become too many."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MAPPINGS:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture
def goldens() -> Path:
    """The folder of committed expected values."""
    return ROOT / "tests" / "goldens"


@pytest.fixture
def strict_dtypes() -> Iterator[None]:
    """Mixing dtypes raises while the test runs: for losses, metrics and float32 models.

    Not on everywhere, as libraries mix them themselves: Optax multiplies float schedules by
    integer counts, and Flax's LayerNorm and `jax.nn.dot_product_attention` widen bfloat16.
    """
    import jax

    with jax.numpy_dtype_promotion("strict"):
        yield
