"""`edje convert`: between the model folder, training checkpoints, the published `.pth` and ONNX."""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from edje_jax.cli.program import UsageError
from edje_jax.runtimes.devices import log_devices
from edje_jax.system.files import atomic_folder
from edje_jax.training.load_checkpoint import is_checkpoint, load_checkpoint
from edje_jax.weights.card import model_card
from edje_jax.weights.folder import Model, load_model, save_model
from edje_jax.weights.published import load_published, save_published

log = logging.getLogger(__name__)

KINDS = ("edje", "published", "onnx")


def convert(
    source: str, target: str, to: str, backbone: str | None = None, language: str | None = None
) -> Path:
    """Convert `source`, whose kind is recognised, into `target`; the path that was written.

    Raises:
        UsageError: `target` is there already, or the two folders were named for no `.pth`.
        FileNotFoundError, ValueError, CheckpointError: the source cannot be read.
    """
    out = Path(target).expanduser()
    if out.exists():
        raise UsageError(f"{out}: is there already; choose another name, or delete it")
    if (backbone or language) and not _is_published(source):
        raise UsageError(
            f"{source}: --backbone and --language-model are for published .pth files; a model"
            " folder and a checkpoint know their own"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    log_devices("float32", 1)
    _WRITERS[to](source, out, backbone, language)
    log.info("wrote %s", out)
    return out


def _is_published(source: str) -> bool:
    return Path(source).expanduser().is_file()


def _read(source: str, backbone: str | None, language: str | None) -> tuple[Model, str]:
    """Model and its card, read from any of the formats."""
    path = Path(source).expanduser()
    if _is_published(source):
        model = load_published(str(path), backbone, language)
        return model, model_card(model)
    if path.is_dir() and is_checkpoint(path):
        return load_checkpoint(path)
    model = load_model(source)
    return model, model_card(model)


def _to_edje(source: str, out: Path, backbone: str | None, language: str | None) -> None:
    model, card = _read(source, backbone, language)
    with atomic_folder(out) as folder:
        save_model(folder, model, card)


def _to_published(source: str, out: Path, backbone: str | None, language: str | None) -> None:
    if out.suffix not in (".pth", ".pt"):
        raise UsageError(f"{out}: a published checkpoint is one file; call it NAME.pth")
    save_published(out, _read(source, backbone, language)[0])


def _to_onnx(source: str, out: Path, backbone: str | None, language: str | None) -> None:
    try:
        from edje_jax.weights.onnx import export_onnx
    except ImportError as error:
        raise UsageError(f"ONNX needs more ({error}); pip install 'edje-jax[onnx]'") from error

    def note(path: str) -> None:
        log.info("exported %s", Path(path).name)

    with atomic_folder(out) as folder, tempfile.TemporaryDirectory() as temporary:
        # The graphs are traced from the module that a model folder is loaded into.
        model = Path(temporary)
        save_model(model, *_read(source, backbone, language))
        export_onnx(model, folder, note)


_WRITERS: dict[str, Callable[[str, Path, str | None, str | None], None]] = {
    "edje": _to_edje,
    "published": _to_published,
    "onnx": _to_onnx,
}
