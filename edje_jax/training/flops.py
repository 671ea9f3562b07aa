"""FLOPs of the parts of an EDJE: multiplications and additions of their matrix products."""

import re

from edje_jax.config.model import BertConfig, EdjeConfig, TextConfig, VisionConfig
from edje_jax.config.run import LossConfig

PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "TPU v6": 918e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # As a v5p may call itself; after the others of its name
    "TPU v4": 275e12,
}
"""Dense bfloat16 FLOP/s that the makers state, by a part of the device's name."""


def peak_flops(device_kind: str) -> float:
    """A device's bfloat16 FLOP/s; 0 if it is not known here."""
    fits = (peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", device_kind))
    return next(fits, 0.0)


def layers(
    shape: VisionConfig | TextConfig | BertConfig,
    rows: int,
    count: int | None = None,
    beside: int = 0,
) -> float:
    """FLOPs of `count` layers of a transformer, by default all, over `rows` rows, forward; `beside`
    further rows are attended to and do not change."""
    width, inner = shape.hidden_size, shape.intermediate_size
    products = rows * (4 * width * width + 2 * width * inner) + beside * 2 * width * width
    attention = 2 * rows * (rows + beside) * width
    return 2.0 * (shape.num_hidden_layers if count is None else count) * (products + attention)


def backbone(config: EdjeConfig) -> float:
    """FLOPs of one image, or of a video's frames, and one caption in the frozen towers, forward."""
    vision, text = config.backbone.vision, config.backbone.text
    patches = 2 * vision.num_patches * 3 * vision.patch_size**2 * vision.hidden_size
    towers = layers(vision, config.backbone.num_vision_tokens)
    return config.frames * (patches + towers) + layers(text, text.max_position_embeddings)


def adapter(config: EdjeConfig) -> float:
    """FLOPs of an image's vision tokens -> compressed tokens, forward; of a video's, frame by
    frame."""
    return config.frames * _adapter_of_frame(config)


def _adapter_of_frame(config: EdjeConfig) -> float:
    width, out = config.backbone.vision.hidden_size, config.joint_encoder.hidden_size
    kept, inner = config.tokens_per_frame, config.adapter.intermediate_size
    tokens = config.backbone.num_vision_tokens * config.adapter.upsampling**2
    if config.adapter.kind == "local":
        return upsampling(config) + 2.0 * tokens * inner * (width + out)
    # Keys and values are projected twice, queries and the result once.
    attention = 4 * tokens * width**2 + 2 * kept * width**2 + 2 * kept * tokens * width
    return upsampling(config) + 2.0 * (attention + kept * width * (2 * inner + out))


def upsampling(config: EdjeConfig) -> float:
    """FLOPs of bringing an image's vision tokens to a finer grid, forward; 0 if they are not."""
    width, factor = config.backbone.vision.hidden_size, config.adapter.upsampling
    grids = [4**step for step in range(1, factor.bit_length())]
    # A step makes `grid` vectors of each vision token, and each of them has 9 neighbours.
    products = sum(grid * width**2 + 9 * grid * width for grid in grids)
    return 2.0 * config.backbone.num_vision_tokens * products


def fused(config: EdjeConfig) -> float:
    """FLOPs of a pair in the layers that see both sides, its caption at full length, forward."""
    if config.captioner:
        return decoders(config, config.num_tokens)
    joint, vision, text = config.joint_encoder, config.num_tokens, 1 + config.max_text_length
    if joint.online_vision == "attended":
        return layers(joint, text, joint.online_layers, vision)
    return layers(joint, vision + text, joint.online_layers)


def matching(config: EdjeConfig, loss: LossConfig) -> float:
    """FLOPs of all pairs of a row of a batch, whose caption deferred layers read once, forward."""
    return encode_text(config) + (1 + 2 * loss.all_negatives) * fused(config)


def encode_text(config: EdjeConfig) -> float:
    """FLOPs of a caption's way through the deferred layers, or through a captioner's decoders
    without an image, forward."""
    if config.captioner:
        return decoders(config, 1)
    joint = config.joint_encoder
    return layers(joint, 1 + config.max_text_length, joint.deferred_layers)


def decoders(config: EdjeConfig, tokens: int) -> float:
    """FLOPs of a captioner's decoders over a caption at full length beside `tokens` tokens of an
    image, forward."""
    assert config.captioner is not None
    joint, rows = config.joint_encoder, config.max_text_length - 1
    width = joint.hidden_size
    cross = 2 * rows * width**2 + 2 * rows * tokens * width
    if config.captioner.cross_attention == "projected":
        cross += 2 * tokens * width**2
    words = rows * width * (width + joint.vocab_size)
    each = layers(joint, rows) + 2.0 * (joint.num_hidden_layers * cross + words)
    return len(config.captioner.reads) * each


def stored(config: EdjeConfig) -> float:
    """FLOPs of an image's vision tokens -> the tokens that a store keeps, forward."""
    joint = config.joint_encoder
    return adapter(config) + layers(joint, config.num_tokens, joint.deferred_layers)
