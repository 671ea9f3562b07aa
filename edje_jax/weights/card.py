"""The README.md that a model folder carries: the hub's model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edje_jax.config.model import BertConfig, EdjeConfig, ImageRecipe
from edje_jax.config.run import EdjeRun, RunConfig
from edje_jax.config.saved_run import run_to_dict
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
        parts.append(_results(metrics))
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
        "tags: [vision-language, reranking, image-retrieval, edje]",
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
    vision, joint = c.backbone.vision, c.joint_encoder
    store = c.num_tokens * joint.hidden_size * 2
    title, architecture, reader = _kind(c)
    return f"""# {title}

Scores a caption against an image from {c.num_tokens} stored tokens of {joint.hidden_size} numbers
({store:,} bytes an image in 16 bits). Architecture: {architecture}, trained with
edje_jax.

| part | shape |
|---|---|
| backbone | {c.backbone.kind}, {vision.num_hidden_layers} layers x {vision.hidden_size}, \
{vision.image_size} px, patches of {vision.patch_size} px |
| adapter | {c.adapter.kind}, {c.num_tokens} tokens |
| {reader} | BERT, {joint.num_hidden_layers} layers x {joint.hidden_size}\
{_deferred(joint)} |
{_reading(c.image)}{_captions(c)}{_first_stage(c)}"""


def _kind(config: EdjeConfig) -> tuple[str, str, str]:
    """Title of a model, its architecture, and the name of the part that reads captions."""
    if not (captioner := config.captioner):
        return "An EDJE reranker", "EDJE (arXiv 2510.06820)", "joint encoder"
    slow = "the slow model of Fast & Slow\n(arXiv 2103.16553), reconstructed"
    read = "in both directions" if captioner.directions == "both" else captioner.directions
    architecture = f'{slow}: captions are predicted {read},\nand the score is "{captioner.score}"'
    return "A captioner that ranks", architecture, "decoders"


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
    deferred, prior = model.config.joint_encoder.deferred_layers > 0, model.config.similarity_prior
    return f"""## Use

JAX:

```python
from edje_jax import Reranker

reranker = Reranker.from_pretrained("{name}")
reranker.rank("two dogs", ["dogs.jpg", "boat.jpg"], top_k=1)
```

PyTorch, with no JAX (`modeling_edje.py` stands beside the weights):

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
{_TORCH[bool(prior)]}
```

ONNX: `edje convert {name} onnx/ --to onnx` writes `offline.onnx` (pixel_values -> tokens) and
{_ONLINE[deferred]}{"; it takes each pair's cosine as `similarity` too" if prior else ""}.
{_CALIBRATED if model.calibration.is_fitted else ""}"""


_TORCH = {
    False: """tokens = model.encode_image(model.preprocess(["dogs.jpg", "boat.jpg"]))
model.score(**model.tokenize(["two dogs"] * 2), tokens=tokens)""",
    True: """texts, pixels = ["two dogs"] * 2, model.preprocess(["dogs.jpg", "boat.jpg"])
cosines = (model.embed_text(texts) * model.embed_image(pixels)).sum(1)
tokens = model.encode_image(pixels)
model.score(**model.tokenize(texts), tokens=tokens, similarity=cosines)""",
}

_CALIBRATED = """
Scores are calibrated: `calibration.json` turns a match logit and the first stage's cosine into the
probability of a match (in PyTorch `model.probability(model.mixed(logits, cosines))`).
"""


_ONLINE = {
    False: "`online.onnx` (input_ids, attention_mask, tokens -> logits)",
    True: """`text.onnx` (input_ids, attention_mask -> text, text_mask), once per caption, and
`online.onnx` (text, text_mask, each pair's `caption` among them, tokens -> logits)""",
}


def _results(metrics: Mapping[str, Any]) -> str:
    """Section on an evaluation: base beside reranked, with the settings that it was made under."""
    names = list(metrics["t2i"]["base"])
    rows = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for direction, label in (("t2i", "text to image"), ("i2t", "image to text")):
        for kind in ("base", "reranked"):
            figures = " | ".join(f"{metrics[direction][kind][n]:.1f}" for n in names)
            rows.append(f"| {label}, {kind} | {figures} |")
    table = "\n".join(rows)
    settings = f"On `{metrics['data']}`, top {metrics['k']} reranked"
    if "similarity_weight" in metrics:  # A later calibration may choose another
        settings += f", similarity weight {metrics['similarity_weight']:g}"
    return f"## Results\n\n{settings}:\n\n{table}\n"
