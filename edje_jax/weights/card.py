"""The README.md that a model folder carries: the hub's model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edje_jax.config.captioner import CaptionScore
from edje_jax.config.model import BertConfig, EdjeConfig, ImageRecipe, ModelKind
from edje_jax.config.run import EdjeRun, RunConfig
from edje_jax.config.saved_run import run_to_dict
from edje_jax.models.token_formats import FORMATS
from edje_jax.system.files import atomic_path
from edje_jax.weights.folder import Model
from edje_jax.weights.hub import is_hub_id


def model_card(
    model: Model,
    run: RunConfig | None = None,
    metrics: Mapping[str, Any] | None = None,
    name: str = "PATH/TO/THIS/FOLDER",
) -> str:
    """Model card: description, use, metrics and training of a model, as far as they are known.

    `metrics` is an evaluation's metrics.json; `name` is what users load it by.
    """
    parts = [_front_matter(model, run), _what_it_is(model)]
    parts.append(_usage(name, model))
    if metrics:
        parts.append(_results(metrics, _what(model.config)))
    if run:
        parts.append(f"## Training\n\n```json\n{json.dumps(run_to_dict(run), indent=1)}\n```\n")
    return "\n".join(parts)


def state_calibration(folder: Path) -> None:
    """Say in the model card of a folder, if there is one, that its scores are calibrated.

    The rest of the card stays as it is, and the passage stands where `model_card` puts it: at the
    end of the section "Use", or of a card without that section.
    """
    path = folder / "README.md"
    # As bytes, so that a card of another encoding stays as it is too.
    card, passage = path.read_bytes() if path.exists() else b"", _CALIBRATED.encode()
    if not card or passage.strip() in card:
        return
    use = card.find(b"## Use\n")
    end = card.find(b"\n## ", use + 1) if use >= 0 else -1
    before, after = (card[:end], card[end:]) if end >= 0 else (card.rstrip(b"\n") + b"\n", b"")
    with atomic_path(path) as temporary:
        temporary.write_bytes(before + passage + after)


def _front_matter(model: Model, run: RunConfig | None) -> str:
    lines = [
        "---",
        "pipeline_tag: text-ranking",
        "library_name: edje_jax",
        f"tags: [vision-language, reranking, {_what(model.config)}-retrieval, edje]",
    ]
    if bases := _base_models(model, run):
        lines += ["base_model:", *(f"- {base}" for base in bases)]
    return "\n".join([*lines, "---", ""])


def _base_models(model: Model, run: RunConfig | None) -> list[str]:
    """Hub ids that the model was made from; folders on a disk say nothing to others."""
    spec = run.model if isinstance(run, EdjeRun) else None
    named = [spec.backbone, spec.joint_encoder] if spec else []
    return [name for name in named if name and is_hub_id(name) and not Path(name).exists()]


def _what_it_is(model: Model) -> str:
    c = model.config
    vision, width = c.backbone.vision, c.joint_encoder.hidden_size
    title, sentence, architecture = _KINDS[c.kind]
    what = "an image"
    if c.video:
        what = "a video"
        title += " of videos" if c.kind == "edje" else " videos"
    return f"""# {title}

{sentence.replace("an image", what)} from {c.num_tokens} stored tokens of {width} numbers
({c.num_tokens * width * 2:,} bytes {what} in 16 bits). Architecture: {architecture}, trained with
edje_jax.

| part | shape |
|---|---|
| backbone | {c.backbone.kind}, {vision.num_hidden_layers} layers x {vision.hidden_size}, \
{vision.image_size} px, patches of {vision.patch_size} px |
| adapter | {c.adapter.kind}, {c.tokens_per_frame} tokens{_upsampling(c)} |
{_videos(c)}{_scorer(c)}{_reading(c.image)}{_captions(c)}{_first_stage(c)}"""


_KINDS: dict[ModelKind, tuple[str, str, str]] = {
    "edje": (
        "An EDJE reranker",
        "Scores a caption against an image",
        "EDJE (arXiv 2510.06820)",
    ),
    "captioner": (
        "A captioner that reranks",
        "Scores a caption by how well an image explains it,",
        "the slow model of Fast & Slow (arXiv 2103.16553), as edje_jax reconstructs it",
    ),
}
"""Title, first words and architecture of a card."""


def _what(config: EdjeConfig) -> str:
    """Word for what captions are scored against."""
    return "video" if config.video else "image"


def _videos(config: EdjeConfig) -> str:
    """Rows on the frames of a video that are read, and on what is stored of them."""
    if not config.video:
        return ""
    kept = f"{config.tokens_per_frame} tokens of each frame, in their order"
    if config.video.pooling == "mean":
        kept = f"the mean of the frames, {config.tokens_per_frame} tokens"
    rows = config.num_tokens, config.joint_encoder.hidden_size
    formats = [
        name for name in FORMATS if name != "float16" and not (name == "int4" and rows[1] % 2)
    ]
    sizes = ", ".join(f"{name} {FORMATS[name].bytes_per_image(*rows):,}" for name in formats)
    return (
        f"| videos | {config.video.sampling.words}; an image is a video of one frame |\n"
        f"| stored of a video | {kept} (pooling {config.video.pooling}) |\n"
        f"| bytes a video | {sizes} |\n"
    )


def _upsampling(config: EdjeConfig) -> str:
    """Words on the grid that the adapter reads, where it is finer than the backbone's."""
    factor = config.adapter.upsampling
    vision = config.backbone.vision
    side = vision.image_size // vision.patch_size * factor
    return f", of a grid upsampled {factor} times to {side} x {side}" if factor > 1 else ""


def _scorer(config: EdjeConfig) -> str:
    """Rows on what scores a pair."""
    joint, captioner = config.joint_encoder, config.captioner
    shape = f"BERT, {joint.num_hidden_layers} layers x {joint.hidden_size}"
    if not captioner:
        return f"| joint encoder | {shape}{_deferred(joint)} |\n"
    cross = f"cross-attention to {captioner.cross_attention} keys and values"
    return (
        f"| decoders | {' and '.join(captioner.reads)}: {shape} each, {cross} |\n"
        f"| score | {captioner.score}: {_SCORES[captioner.score]} |\n"
    )


_SCORES: dict[CaptionScore, str] = {
    "sum": "log p of the caption's tokens, in nats",
    "mean": "log p of the caption's tokens, by token, in nats",
    "pmi": "log p of the caption's tokens, less that without an image, in nats",
}


def _reading(image: ImageRecipe) -> str:
    """Row on the reading of image files, where it differs from the Hugging Face processors."""
    told = ", ".join(f"{name} {value}" for name, value in image.reading.items())
    return f"| images | {told} |\n" if told else ""


def _captions(config: EdjeConfig) -> str:
    """Row on the text recipe, where it is not the published one."""
    if config.text_recipe == "published":
        return ""
    return f"| captions | {config.text_recipe.replace('_', ' ')}: casing and punctuation kept |\n"


def _first_stage(config: EdjeConfig) -> str:
    """Sentence on the heads of the first stage, of a model that has them."""
    if not config.first_stage:
        return ""
    lengths = ", ".join(map(str, config.first_stage.code_lengths))
    return f"""
The first stage has heads (`first_stage.safetensors`) on the backbone's embeddings: they give
embeddings of {config.backbone.text.projection_size} numbers\
{f", and codes of {lengths} bits" if lengths else ""}.
"""


def _deferred(joint: BertConfig) -> str:
    if joint.is_published_layout:
        return ""
    offline = f", {joint.deferred_layers} of them offline" if joint.deferred_layers else ""
    return f"{offline}; vision {joint.online_vision} online"


def _usage(name: str, model: Model) -> str:
    prior, video = model.config.similarity_prior, model.config.video
    ending, pixels = ("mp4", "pixel_values, present") if video else ("jpg", "pixel_values")
    return f"""## Use

JAX:

```python
from edje_jax import Reranker

reranker = Reranker.from_pretrained("{name}")
reranker.rank("two dogs", ["dogs.{ending}", "boat.{ending}"], top_k=1)
```

PyTorch, with no JAX (`modeling_edje.py` stands beside the weights):

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
{_torch(bool(prior), bool(video))}
```

ONNX: `edje convert {name} onnx/ --to onnx` writes `offline.onnx` ({pixels} -> tokens) and
{_online(model.config)}{"; it takes each pair's cosine as `similarity` too" if prior else ""}.
{_CALIBRATED if model.calibration.is_fitted else ""}"""


def _torch(prior: bool, video: bool) -> str:
    """Lines of PyTorch that score two pairs."""
    made, pixels = 'model.preprocess(["dogs.jpg", "boat.jpg"])', "pixels"
    if video:
        # The module reads no files of videos: frames are chosen by whoever calls it.
        made, pixels = 'model.preprocess_videos([["1.jpg", "2.jpg"], ["boat.jpg"]])', "**pixels"
    if not prior:
        return f"""pixels = {made}
tokens = model.encode_image({pixels})
model.score(**model.tokenize(["two dogs"] * 2), tokens=tokens)"""
    return f"""texts, pixels = ["two dogs"] * 2, {made}
cosines = (model.embed_text(texts) * model.embed_image({pixels})).sum(1)
tokens = model.encode_image({pixels})
model.score(**model.tokenize(texts), tokens=tokens, similarity=cosines)"""


_CALIBRATED = """
Scores are calibrated: `calibration.json` turns a match logit and the first stage's cosine into the
probability of a match (in PyTorch `model.probability(model.mixed(logits, cosines))`).
"""


def _online(config: EdjeConfig) -> str:
    """Files of the online part of an ONNX export."""
    if not config.encodes_captions:
        return "`online.onnx` (input_ids, attention_mask, tokens -> logits)"
    made, taken = "text, text_mask", "text, text_mask"
    if config.captioner:
        made, taken = "without_image", "input_ids, attention_mask, without_image"
    return f"""`text.onnx` (input_ids, attention_mask -> {made}), once per caption, and
`online.onnx` ({taken}, each pair's `caption` among them, tokens -> logits)"""


def _results(metrics: Mapping[str, Any], what: str) -> str:
    """Section on an evaluation: base beside reranked, with the settings that it was made under."""
    names = list(metrics["t2i"]["base"])
    rows = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for direction, label in (("t2i", f"text to {what}"), ("i2t", f"{what} to text")):
        for kind in ("base", "reranked"):
            figures = " | ".join(f"{metrics[direction][kind][n]:.1f}" for n in names)
            rows.append(f"| {label}, {kind} | {figures} |")
    table = "\n".join(rows)
    settings = f"On `{metrics['data']}`, top {metrics['k']} reranked"
    if "similarity_weight" in metrics:  # A later calibration may choose another
        settings += f", similarity weight {metrics['similarity_weight']:g}"
    return f"## Results\n\n{settings}:\n\n{table}\n"
