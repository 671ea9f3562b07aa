"""Names of models -> folders on disk: a folder, a shipped model, or a hub id."""

import os
import re
from pathlib import Path

from edje_jax.system.files import first_line

ASSETS = Path(__file__).resolve().parents[1] / "assets"

SHIPPED = {"shapes-backbone": ASSETS / "shapes_backbone", "shapes-demo": ASSETS / "shapes_demo"}
"""Folders of the models that come with the package, by name: a dual encoder trained on the built-in
scenes, and an EDJE over it (configs/demo_four_layers.py)."""

_FILES = ("*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "*.md", "*.py")


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


_FILE = re.compile(r"\.(pth|pt|bin|npz|ckpt|safetensors|msgpack|h5|onnx|json|tar|zip|gz)$")


def resolve(name: str | os.PathLike[str], what: str) -> Path:
    """Folder of a model: the one at the path `name`, else the shipped one, else the hub's.

    A folder in the working directory goes before the shipped model and the hub id of its name.
    `what` says in messages what the folder was wanted for. HF_HUB_OFFLINE is honoured.

    Raises:
        FileNotFoundError: neither a folder nor a reachable hub id.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if str(name) in SHIPPED:
        return SHIPPED[str(name)]
    if folder.is_file():
        raise FileNotFoundError(
            f"{name}: {what} is a file; give the folder with config.json and the weights that it"
            f" belongs to, or make one of a published .pth: edje convert {name} model/ --to edje"
        )
    if not is_hub_id(str(name)):
        raise FileNotFoundError(f"{name}: {what}: no such folder")
    # Late: most runs name folders, and this pulls in an HTTP client.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=list(_FILES)))
    except Exception as error:
        raise FileNotFoundError(
            f"{name}: {what} is neither a folder here nor a hub id that can be fetched"
            f" ({_reason(error)})"
        ) from error


def exported(folder: Path) -> Path:
    """The model that a training workdir ends with; any other folder as it is."""
    if not (folder / "model.safetensors").exists() and (folder / "model").is_dir():
        return folder / "model"
    return folder


def is_hub_id(name: str) -> bool:
    """Whether a name can be a hub id: OWNER/NAME, or NAME alone as of bert-base-uncased."""
    return name not in SHIPPED and bool(_HUB_ID.fullmatch(name)) and not _FILE.search(name)


def _reason(error: Exception) -> str:
    """Why the hub's library has no folder for an id."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not isinstance(error, LocalEntryNotFoundError):
        return f"{type(error).__name__}: {first_line(error)}"
    hub = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
    return f"it is not in the cache {constants.HF_HUB_CACHE}, and {hub}"
