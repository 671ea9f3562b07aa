"""`edje push`: a model folder to the hub."""

import logging
import tempfile
from pathlib import Path

from edje_jax.cli.program import UsageError
from edje_jax.config.saved_run import read_run
from edje_jax.runtimes import onnx_export
from edje_jax.system.files import read_json
from edje_jax.weights.card import model_card
from edje_jax.weights.folder import load_model, model_folder
from edje_jax.weights.hub import SHIPPED

log = logging.getLogger(__name__)

LEFT_HERE = ["README.md", f"{onnx_export.FOLDER}/*"]
"""Files of the folder that are not uploaded with the others: the card comes last, and graphs that
were exported for this machine are made again elsewhere."""


def push(
    name: str,
    hub_id: str,
    metrics: str | None = None,
    private: bool = False,
    dry_run: str | None = None,
) -> str:
    """Upload a model folder as `hub_id`, with a card that states its results; the card.

    The run's config is found if `name` is a workdir or lies in one, the metrics in its `eval/`.

    Raises:
        UsageError: `hub_id` is no OWNER/NAME.
        FileNotFoundError, ValueError: the model or the metrics cannot be read.
    """
    if hub_id.count("/") != 1 or hub_id.startswith(("/", ".", "~")):
        raise UsageError(f"{hub_id}: a hub id is OWNER/NAME")
    folder = model_folder(name)
    workdir = folder.parent
    model = load_model(str(folder))
    if folder == SHIPPED.get(name):
        raise UsageError(
            f"{name}: ships without its backbone and the PyTorch module, which others would need;"
            f" run edje convert {name} model/ --to edje, and push model/"
        )
    raw = workdir / "config.json"
    run = read_run(raw) if folder.name == "model" and raw.exists() else None
    found = Path(metrics).expanduser() if metrics else workdir / "eval" / "metrics.json"
    figures = read_json(found) if metrics or found.exists() else None
    card = model_card(model, run, figures, hub_id)
    if dry_run:
        Path(dry_run).expanduser().write_text(card, "utf-8")
        log.info("wrote %s; nothing was uploaded", dry_run)
        return card
    _upload(folder, hub_id, card, private)
    return card


def _upload(folder: Path, hub_id: str, card: str, private: bool) -> None:
    # Late: it brings an HTTP client.
    from huggingface_hub import HfApi

    api = HfApi()
    url = api.create_repo(hub_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        written = Path(temporary) / "README.md"
        written.write_text(card, "utf-8")
        # One commit each: the card last, so that it never praises files that are not there.
        api.upload_folder(repo_id=hub_id, folder_path=folder, ignore_patterns=LEFT_HERE)
        api.upload_file(repo_id=hub_id, path_or_fileobj=written, path_in_repo="README.md")
    log.info("pushed %s to %s", folder, url)
