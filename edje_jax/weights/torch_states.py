"""State dicts as trainers leave them in torch files, and why torch refuses one."""

import re
from collections.abc import Iterator
from typing import Any

_KEYS = ("model", "state_dict", "model_state_dict", "module", "net", "network")
"""Keys of the weights in a trainer's file, which are also prefixes of parameter names."""
_OTHER_KEYS = (
    *("checkpoint", "ckpt", "weights", "params"),
    *("ema", "ema_state_dict", "ema_model", "model_ema", "params_ema"),
)
"""Further keys of the weights; averaged weights are taken only if there are no others."""
_MODULES = (
    "module",
    "_orig_mod",
    "_forward_module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
)
"""Modules that DDP, torch.compile, Lightning and FSDP put around others, anywhere in a model."""


def wrappings(loaded: Any) -> Iterator[dict[str, Any]]:
    """Yield a loaded torch file and the dicts of weights in it, outermost first."""
    while isinstance(loaded, dict):
        yield loaded
        inner = (loaded.get(key) for key in _KEYS + _OTHER_KEYS)
        # Some trainers store a model's settings under "model" or "params".
        loaded = next((value for value in inner if _holds_tensors(value)), None)


def _holds_tensors(value: Any) -> bool:
    """Whether a dict, or one in it, has tensors by name."""
    import torch

    return isinstance(value, dict) and any(
        isinstance(name, str) and (isinstance(one, torch.Tensor) or _holds_tensors(one))
        for name, one in value.items()
    )


def unwrapped(name: str) -> str:
    """A parameter's name as it was before its model was wrapped for training."""
    parts = [part for part in name.split(".") if part not in _MODULES]
    while len(parts) > 1 and parts[0] in _KEYS:
        del parts[0]
    return ".".join(parts)


def refusal(error: Exception) -> str:
    """Why `torch.load(weights_only=True)` failed, and what to do.

    torch's own message is a page long, and advises to trust the file.
    """
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return (
            f"it holds {found[1]}, which is no tensor; save the weights alone, as"
            ' torch.save({"model": model.state_dict()}, PATH)'
        )
    if "TorchScript" in text:
        return (
            "it is a TorchScript archive; save the weights alone, as"
            ' torch.save({"model": torch.jit.load(PATH).state_dict()}, OTHER)'
        )
    return "fetch it again, or save the weights alone with torch.save"
