"""Formats of weights that are not read, told apart for messages."""

from pathlib import Path

_CONVERTED = (
    "take the transformers version of the same weights, a folder with config.json and"
    " model.safetensors"
)
_OLD = "open it with a transformers older than 5, and save it again as model.safetensors"
_FORMATS = {
    "open_clip_*": ("in open_clip's (OpenCLIP's) format", _CONVERTED),
    "*.npz": ("in big_vision's format", _CONVERTED),
    "tf_model.h5": ("in TensorFlow's format", _OLD),
    "flax_model.msgpack": ("in Flax's format", _OLD),
    "adapter_model.*": ("a LoRA adapter", "merge it into its model, and save that whole"),
    "*.onnx": ("in ONNX's format", _CONVERTED),
    "*.gguf": ("in GGUF's format", _CONVERTED),
    "*.safetensors": ("not called so", "call it model.safetensors if it is the whole model"),
    "*.bin": ("not called so", "call it pytorch_model.bin if it is the whole model"),
    "*.pt*": ("a single file of PyTorch", _CONVERTED),
}
"""File pattern of another library's weights -> (their format, what to do)."""


def other_format(folder: Path) -> str:
    """Suffix of an error message that names the format of a folder's weights; "" if unknown."""
    for pattern, (what, remedy) in _FORMATS.items():
        if found := sorted(path.name for path in folder.glob(pattern)):
            return f" ({found[0]} is {what}: {remedy})"
    return ""
