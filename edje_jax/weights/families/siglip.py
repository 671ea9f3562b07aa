"""The family of SigLIP and SigLIP2: Hugging Face's `SiglipModel` <-> `edje_jax.models.siglip`."""

from typing import Any

from edje_jax.config.model import BackboneConfig, TextConfig, VisionConfig
from edje_jax.models.siglip import Siglip
from edje_jax.weights.families.base import Family
from edje_jax.weights.families.towers import TEXT_FIELDS, VISION_FIELDS, layer_rules, stated_fields
from edje_jax.weights.mapping import Rule, linear, norm, torch_attention, under


def rules(config: BackboneConfig) -> list[Rule]:
    """Every parameter of a `SiglipModel`."""
    return [
        *under("vision/", "vision_model.", vision_rules(config.vision)),
        *under("text/", "text_model.", text_rules(config.text)),
        Rule("logit_scale", "logit_scale"),
        Rule("logit_bias", "logit_bias"),
    ]


def vision_rules(config: VisionConfig) -> list[Rule]:
    """The vision tower, as in `SiglipVisionModel`."""
    return [
        Rule("patch_embedding/kernel", "embeddings.patch_embedding.weight", "patch"),
        Rule("patch_embedding/bias", "embeddings.patch_embedding.bias"),
        Rule("position_embedding", "embeddings.position_embedding.weight"),
        *layer_rules(config.num_hidden_layers),
        *norm("post_layernorm", "post_layernorm"),
        Rule("head/probe", "head.probe"),
        *torch_attention("head/attention", "head.attention"),
        *norm("head/layernorm", "head.layernorm"),
        *linear("head/mlp/fc1", "head.mlp.fc1"),
        *linear("head/mlp/fc2", "head.mlp.fc2"),
    ]


def text_rules(config: TextConfig) -> list[Rule]:
    """The text tower."""
    return [
        Rule("token_embedding/embedding", "embeddings.token_embedding.weight"),
        Rule("position_embedding", "embeddings.position_embedding.weight"),
        *layer_rules(config.num_hidden_layers),
        *norm("final_layer_norm", "final_layer_norm"),
        *linear("head", "head"),
    ]


def read_config(
    raw: dict[str, Any], source: str, tokenizer: dict[str, Any]
) -> tuple[VisionConfig, TextConfig]:
    """Shapes that a Hugging Face `config.json` states; a key left out has transformers' default.

    `tokenizer` is the folder's `tokenizer_config.json`. SigLIP uses no attention mask, and the
    tokenizers it ships with hand out none. A generic tokenizer that does is what the model was
    then used with, the published EDJE code included: its padding is masked.

    Raises:
        ValueError: a value is not of its field's type.
    """
    vision = _VISION_DEFAULTS | stated_fields(VISION_FIELDS, raw, source, "vision_config")
    text = _TEXT_DEFAULTS | stated_fields(TEXT_FIELDS, raw, source, "text_config")
    text.setdefault("projection_size", text["hidden_size"])
    text["mask_padding"] = _hands_out_masks(tokenizer)
    return VisionConfig(**vision), TextConfig(**text)


def write_config(config: BackboneConfig) -> dict[str, Any]:
    """A `config.json` that transformers' `SiglipModel` reads."""
    shared, ours = {"attention_dropout": 0.0}, ("mask_padding", "eos_token_id")
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "dtype": "float32",
        "initializer_factor": 1.0,
        "vision_config": {
            **vars(config.vision), **shared, "model_type": "siglip_vision_model", "num_channels": 3
        },
        "text_config": {
            **{k: v for k, v in vars(config.text).items() if k not in ours},
            **shared, "model_type": "siglip_text_model",
            # Unused by the model; kept inside the vocabulary for readers that check.
            "bos_token_id": None, "eos_token_id": None,
        },
    }  # fmt: skip


def _hands_out_masks(tokenizer: dict[str, Any]) -> bool:
    # SigLIP's own classes (SigLIP2's once carried Gemma's name) never did where it was trained,
    # though newer transformers make them.
    if str(tokenizer.get("tokenizer_class", "")).startswith(("Siglip", "Gemma")):
        return False
    if "model_input_names" in tokenizer:
        return "attention_mask" in tokenizer["model_input_names"]
    return tokenizer.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")


# transformers leaves defaults out of config.json; these are its SiglipConfig's (base size).
_SHARED_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_VISION_DEFAULTS = {**_SHARED_DEFAULTS, "image_size": 224, "patch_size": 16}
_TEXT_DEFAULTS = {
    **_SHARED_DEFAULTS,
    "vocab_size": 32000,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}

SIGLIP = Family(
    kind="siglip",
    models="a SigLIP, a fixed-resolution SigLIP2",
    module=Siglip,
    rules=rules,
    read_config=read_config,
    write_config=write_config,
    pad_tokens={"Siglip2": "<pad>", "Gemma": "<pad>", "Siglip": "</s>"},
    image_processors={
        "Siglip": {
            "size": {"height": 224, "width": 224},
            "resample": 3,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        }
    },
    refused={
        "siglip2": "a SigLIP2 NaFlex model, whose images keep their shape, is not supported as a"
        " backbone; use one of the fixed-resolution SigLIP2 models (their model_type is 'siglip')"
    },
)
