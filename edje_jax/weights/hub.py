"""A folder on disk or a hub id -> a folder on disk."""

import os
from pathlib import Path

_FILES = ("*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "*.md", "*.py")


def resolve(name: str | os.PathLike[str], what: str) -> Path:
    """The folder called `name`; if there is none, the hub's model of that id, from the cache.

    `what` says in messages what the folder was wanted for. HF_HUB_OFFLINE is honoured.

    Raises:
        FileNotFoundError: neither a folder nor a reachable hub id.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    text = str(name)
    looks_local = os.path.isabs(text) or text.startswith((".", "~")) or text.count("/") != 1
    if not looks_local:
        # Late: most runs name folders, and this pulls in an HTTP client.
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(str(name), allow_patterns=list(_FILES)))
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise FileNotFoundError(
                f"{name}: {what} is neither a folder here nor a hub id that can be fetched"
                f" ({type(error).__name__}: {reason})"
            ) from error
    raise FileNotFoundError(f"{name}: {what}: no such folder")
