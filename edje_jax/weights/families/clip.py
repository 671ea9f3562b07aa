"""The family of CLIP: Hugging Face's `CLIPModel` <-> `edje_jax.models.clip`."""

from typing import Any

from edje_jax.config.model import BackboneConfig, TextConfig, VisionConfig
from edje_jax.models.clip import Clip
from edje_jax.weights.families.base import Family
from edje_jax.weights.families.towers import TEXT_FIELDS, VISION_FIELDS, layer_rules, stated_fields
from edje_jax.weights.mapping import Rule, norm, under


def rules(config: BackboneConfig) -> list[Rule]:
    """Every parameter of a `CLIPModel`."""
    return [
        *under("vision/", "vision_model.", vision_rules(config.vision)),
        Rule("vision/projection/kernel", "visual_projection.weight", "transpose"),
        *under("text/", "text_model.", text_rules(config.text)),
        Rule("text/projection/kernel", "text_projection.weight", "transpose"),
        Rule("logit_scale", "logit_scale"),
    ]


def vision_rules(config: VisionConfig) -> list[Rule]:
    """The vision tower, as in `CLIPVisionModel` (whose norm is called pre_layrnorm)."""
    return [
        Rule("class_embedding", "embeddings.class_embedding"),
        Rule("patch_embedding/kernel", "embeddings.patch_embedding.weight", "patch"),
        Rule("position_embedding", "embeddings.position_embedding.weight"),
        *norm("pre_layernorm", "pre_layrnorm"),
        *layer_rules(config.num_hidden_layers),
        *norm("post_layernorm", "post_layernorm"),
    ]


def text_rules(config: TextConfig) -> list[Rule]:
    """The text tower."""
    return [
        Rule("token_embedding/embedding", "embeddings.token_embedding.weight"),
        Rule("position_embedding", "embeddings.position_embedding.weight"),
        *layer_rules(config.num_hidden_layers),
        *norm("final_layer_norm", "final_layer_norm"),
    ]


def read_config(
    raw: dict[str, Any], source: str, tokenizer: dict[str, Any]
) -> tuple[VisionConfig, TextConfig]:
    """Shapes that a `CLIPModel`'s `config.json` states; a key left out has transformers' default.

    `tokenizer` is not asked.

    Raises:
        ValueError: a value is not of its field's type.
    """
    vision, text = dict(_VISION), dict(_TEXT)
    # Older files have both sections twice, and transformers lets the second one win.
    for ending in ("", "_dict"):
        vision |= stated_fields(VISION_FIELDS, raw, source, f"vision_config{ending}")
        text |= stated_fields(TEXT_FIELDS, raw, source, f"text_config{ending}")
    shared = stated_fields({"projection_dim": int}, raw, source)
    text["projection_size"] = shared.get("projection_dim", 512)
    return VisionConfig(**vision), TextConfig(**text)


def write_config(config: BackboneConfig) -> dict[str, Any]:
    """A `config.json` that transformers' `CLIPModel` reads."""
    shared = {"attention_dropout": 0.0, "projection_dim": config.text.projection_size}
    ours = ("projection_size", "mask_padding")
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": "float32",
        "projection_dim": config.text.projection_size,
        "vision_config": {
            **vars(config.vision), **shared, "model_type": "clip_vision_model", "num_channels": 3
        },
        "text_config": {
            **{k: v for k, v in vars(config.text).items() if k not in ours},
            **shared, "model_type": "clip_text_model",
        },
    }  # fmt: skip


# transformers leaves defaults out of config.json; these are its CLIPConfig's (B/32).
_SHARED: dict[str, Any] = {
    "num_hidden_layers": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_VISION = {
    **_SHARED,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}
_TEXT = {
    **_SHARED,
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "pad_token_id": 1,
    "eos_token_id": 49407,
}

CLIP = Family(
    kind="clip",
    models="a CLIP (DFN's and MetaCLIP's too)",
    module=Clip,
    rules=rules,
    read_config=read_config,
    write_config=write_config,
    pad_tokens={"CLIP": "<|endoftext|>"},
    image_processors={
        "CLIP": {
            "size": {"shortest_edge": 224},
            "do_center_crop": True,
            "crop_size": {"height": 224, "width": 224},
            "resample": 3,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        }
    },
    token_layer=-2,  # EDJE, section 4
    has_class_token=True,
)
