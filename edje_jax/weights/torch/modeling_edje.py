"""EDJE (arXiv 2510.06820) in PyTorch, in one file that travels with the weights. No JAX.

    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)     # transformers, or
    model = EdjeModel.from_folder(FOLDER)                                 # without its Auto classes

    tokens = model.encode_image(model.preprocess(["dogs.jpg", "boat.jpg"]))  # [N, m, d], keep them
    logits = model.score(**model.tokenize(["two dogs", "two dogs"]), tokens=tokens)

Where layers of the joint encoder are deferred, tokens have been through them, and so can a caption,
once for all its candidates:

    text = model.read_text(**model.tokenize(["two dogs"]))
    logits = model.score_read(*text, tokens)

A captioner (`CaptionerModel`) is called in the same way; its scores are log-probabilities in nats.

A model of videos ("video" in config.json) takes up to that many frames of each; an image is a video
of one frame. It is for the caller to read a file and to choose the frames, as the entry says:

    videos = model.preprocess_videos([["a.jpg", "b.jpg", "c.jpg"], ["d.jpg"]])
    tokens, embeddings = model.encode_image(**videos), model.embed_image(**videos)

Tokens of a frame that is not there are all zeros, which nothing attends to.

The first stage, which finds the candidates, compares embeddings or, of a model with a code head,
packed codes by their Hamming distance:

    cosines = model.embed_text(["two dogs"]) @ model.embed_image(pixels).T
    codes = model.pack(model.project_image(pixels), bits=256)  # [N, 32], uint8

Parameters have the published checkpoints' names. The frozen backbone stands in `backbone/` and is
read when it is first asked for: scoring stored tokens does not need it.
"""

import html
import io
import json
import math
import os
import re
import shutil
import string
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, PretrainedConfig, PreTrainedModel

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
PROFILES = {
    b"RGB ": ("RGB", ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr", "HSV")),
    b"GRAY": ("L", ("1", "L", "LA")),
    b"CMYK": ("CMYK", ("CMYK",)),
    b"Lab ": ("LAB", ("LAB",)),
}
"""Colour space that an ICC profile states (bytes 16 to 20) -> (mode that it describes, modes that
are brought into it)."""


class EdjeConfig(PretrainedConfig):
    """`config.json` of a model folder."""

    model_type = "edje"

    def __init__(
        self,
        adapter=None,
        joint_encoder=None,
        backbone="backbone",
        vision_width=0,
        vision_heads=0,
        embedding_size=0,
        vision_tokens=None,
        num_tokens=0,
        max_text_length=63,
        similarity_prior=None,
        first_stage=None,
        text_recipe="published",
        captioner=None,
        video=None,
        **rest,
    ):
        self.adapter = adapter or {}
        self.joint_encoder = joint_encoder or {}
        self.backbone = backbone
        self.vision_width = vision_width
        self.vision_heads = vision_heads
        self.embedding_size = embedding_size
        self.vision_tokens = vision_tokens or {}
        self.num_tokens = num_tokens
        self.max_text_length = max_text_length
        self.similarity_prior = similarity_prior
        self.first_stage = first_stage
        self.text_recipe = text_recipe
        self.captioner = captioner
        self.video = video
        super().__init__(**rest)


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class GridUpsampler(nn.Module):
    """[last map, earlier maps] of a square grid -> a grid of 2^steps times the side, row by row.

    A step doubles a grid u: f = a up(u) + b fold(W C) with a, b >= 0 and a + b = 1, then
    norm(f + depthwise3x3(gelu(f))); C is the next earlier map.
    """

    def __init__(self, width: int, steps: int):
        super().__init__()
        self.steps = steps
        for step in range(1, steps + 1):
            depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
            self.add_module(f"lateral_{step}", nn.Linear(width, 4**step * width))
            self.register_parameter(f"shares_{step}", nn.Parameter(torch.ones(2)))
            self.add_module(f"depthwise_{step}", depthwise)
            self.add_module(f"norm_{step}", nn.LayerNorm(width, eps=1e-6))

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps stand beside each other in the last axis."""
        side = math.isqrt(tokens.shape[1])
        grid, *earlier = tokens.unflatten(1, (side, side)).chunk(1 + self.steps, dim=-1)
        for step, earlier_map in enumerate(earlier, start=1):
            grid = self._doubled(grid, earlier_map, step)
        return grid.flatten(1, 2)

    def _doubled(self, grid: Tensor, earlier: Tensor, step: int) -> Tensor:
        """A grid [N, g, g, w] at twice the side."""
        names = ("lateral", "shares", "depthwise", "norm")
        lateral, shares, depthwise, norm = (getattr(self, f"{name}_{step}") for name in names)
        # The vectors of each place of the earlier map, laid out as a square of the finer one.
        squares = lateral(earlier).unflatten(-1, (2**step, 2**step, -1))
        folded = squares.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        a, b = (F.relu(shares) + 1e-4) / (F.relu(shares) + 1e-4).sum()
        up = F.interpolate(grid.permute(0, 3, 1, 2), scale_factor=2.0, mode="bilinear")
        fused = a * up + b * folded.permute(0, 3, 1, 2)
        return norm((fused + depthwise(F.gelu(fused))).permute(0, 2, 3, 1))


class TokenCompressor(nn.Module):
    """m learned queries attend to the vision tokens; H + MLP(norm(H)), projected."""

    def __init__(
        self, width: int, heads: int, tokens: int, inner: int, out: int, upsampling: nn.Module
    ):
        super().__init__()
        self.upsampling = upsampling
        self.query = nn.Parameter(torch.empty(1, tokens, width))
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.layernorm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, inner)
        self.projection = nn.Linear(width, out)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.upsampling(tokens)
        query = self.query.expand(tokens.shape[0], -1, -1)
        key, value = self.key(tokens), self.value(tokens)
        attended = self.attention(query, key, value, need_weights=False)[0]
        return self.projection(attended + self.mlp(self.layernorm(attended)))


def make_adapter(config: EdjeConfig) -> nn.Module:
    """Compressing, or token by token ("local"); of the backbone's grid, or of a finer one."""
    inner, out = config.adapter["intermediate_size"], config.joint_encoder["hidden_size"]
    width, steps = config.vision_width, config.adapter.get("upsampling", 1).bit_length() - 1
    upsampling = GridUpsampler(width, steps) if steps else nn.Identity()
    if config.adapter["kind"] == "local":
        layers = {"0": nn.Linear(width, inner), "1": nn.GELU(), "2": nn.Linear(inner, out)}
        return nn.Sequential(OrderedDict(upsampling=upsampling, **layers))
    queries = config.adapter["num_tokens"]
    return TokenCompressor(width, config.vision_heads, queries, inner, out, upsampling)


class Holder(nn.Module):
    """Modules under the names that checkpoints have."""

    def __init__(self, /, **modules: nn.Module):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)


def layer_shape(joint: dict) -> tuple[int, int, int, str, float]:
    """Width, heads, inner width, activation and epsilon of a layer."""
    heads, inner = joint["num_attention_heads"], joint["intermediate_size"]
    return joint["hidden_size"], heads, inner, joint["hidden_act"], joint["layer_norm_eps"]


class BertLayer(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)); only some `rows` leave."""

    def __init__(self, width: int, heads: int, inner: int, activation: str, eps: float):
        super().__init__()
        self.heads, self.activation = heads, ACTIVATIONS[activation]
        linear, norm = nn.Linear, partial(nn.LayerNorm, width, eps=eps)
        names = ("query", "key", "value")
        self.attention = Holder(
            self=Holder(**{name: linear(width, width) for name in names}),
            output=Holder(dense=linear(width, width), LayerNorm=norm()),
        )
        self.intermediate = Holder(dense=linear(width, inner))
        self.output = Holder(dense=linear(inner, width), LayerNorm=norm())

    def forward(self, x: Tensor, mask: Tensor, rows: slice = slice(None)) -> Tensor:
        return self._mlp(self._attended(self.attention, x[:, rows], x, attn_mask=mask))

    def _attended(self, part: Holder, x: Tensor, seen: Tensor, **options: Any) -> Tensor:
        """norm(x + attention(x, seen)); without projections of keys and values `seen` is both."""
        own = part.self
        key, value = (own.key(seen), own.value(seen)) if hasattr(own, "key") else (seen, seen)
        query, key, value = (self._split(rows) for rows in (own.query(x), key, value))
        attended = F.scaled_dot_product_attention(query, key, value, **options)
        return part.output.LayerNorm(x + part.output.dense(attended.transpose(1, 2).flatten(2)))

    def _mlp(self, x: Tensor) -> Tensor:
        """norm(x + mlp(x))."""
        inner = self.activation(self.intermediate.dense(x))
        return self.output.LayerNorm(x + self.output.dense(inner))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class DecoderLayer(BertLayer):
    """norm(x + causal attention(x)), norm(x + attention(x, image)), then norm(x + mlp(x))."""

    def __init__(self, joint: dict, projected: bool):
        super().__init__(*layer_shape(joint))
        width, eps = joint["hidden_size"], joint["layer_norm_eps"]
        names = ("query", "key", "value") if projected else ("query",)
        self.crossattention = Holder(
            self=Holder(**{name: nn.Linear(width, width) for name in names}),
            output=Holder(dense=nn.Linear(width, width), LayerNorm=nn.LayerNorm(width, eps=eps)),
        )

    def forward(self, x: Tensor, tokens: Tensor, seen: Tensor | None = None) -> Tensor:
        """`seen` [N, m] is true for the tokens that are there; None for all."""
        x = self._attended(self.attention, x, x, is_causal=True)
        mask = None if seen is None else seen[:, None, None, :]
        return self._mlp(self._attended(self.crossattention, x, tokens, attn_mask=mask))


class Bert(nn.Module):
    """Embeddings and layers over rows that may be words or given vectors."""

    def __init__(self, config: dict):
        super().__init__()
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        self.last_position = config["max_position_embeddings"] - 1
        self.embeddings = Holder(
            word_embeddings=nn.Embedding(config["vocab_size"], width),
            position_embeddings=nn.Embedding(config["max_position_embeddings"], width),
            token_type_embeddings=nn.Embedding(config["type_vocab_size"], width),
            LayerNorm=nn.LayerNorm(width, eps=eps),
        )
        layers = [BertLayer(*layer_shape(config)) for _ in range(config["num_hidden_layers"])]
        self.encoder = Holder(layer=nn.ModuleList(layers))

    def embed(self, content: Tensor, positions: Tensor, segments: Tensor) -> Tensor:
        e = self.embeddings
        places = e.position_embeddings(positions.clamp(max=self.last_position))
        return e.LayerNorm(content + places + e.token_type_embeddings(segments))

    def run(self, layers: slice, x: Tensor, mask: Tensor) -> Tensor:
        """Some of the layers; `mask` [N, n] is true for rows that are there."""
        for layer in self.encoder.layer[layers]:
            x = layer(x, mask[:, None, None, :])
        return x


def make_language_model(joint: dict) -> Holder:
    """BERT with its masked-LM head, whose decoder is the word table."""
    width, eps = joint["hidden_size"], joint["layer_norm_eps"]
    transform = Holder(dense=nn.Linear(width, width), LayerNorm=nn.LayerNorm(width, eps=eps))
    predictions = Holder(transform=transform)
    predictions.bias = nn.Parameter(torch.zeros(joint["vocab_size"]))
    return Holder(bert=Bert(joint), cls=Holder(predictions=predictions))


class HeadLayers(nn.Module):
    """A linear layer, with another and a GELU before it where `hidden` is not 0."""

    def __init__(self, inputs: int, hidden: int, outputs: int, bias: bool):
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden) if hidden else None
        self.out = nn.Linear(hidden or inputs, outputs, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.hidden(x), approximate="tanh") if self.hidden else x)


class ModalityHeads(nn.Module):
    """First-stage embedding and projection of images, or of captions; `inputs` is the width of
    the backbone's embedding, with that of a token where the heads read those too."""

    def __init__(self, settings: dict, inputs: int, width: int):
        super().__init__()
        hidden, bits = settings["hidden_size"], max(settings["code_lengths"], default=0)
        self.move = HeadLayers(inputs, hidden, width, bias=True)
        self.code = HeadLayers(inputs, hidden, bits, bias=False) if bits else None
        if bits:
            self.mean = nn.Parameter(torch.zeros(inputs))

    def forward(self, embeddings: Tensor, pooled: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings [N, e] of unit length and projections [N, bits], [N, 0] without codes."""
        x = embeddings if pooled is None else torch.cat([embeddings, pooled], dim=1)
        moved = F.normalize(embeddings + self.move(x), dim=-1)
        if self.code is None or self.mean is None:
            return moved, x[:, :0]
        return moved, self.code(x - self.mean)


class EdjeModel(PreTrainedModel):
    """Image -> compressed tokens, once; [text, tokens] -> match logit, as often as asked."""

    config_class = EdjeConfig
    base_model_prefix = "edje"
    main_input_name = "input_ids"

    def __new__(cls, config: EdjeConfig | None = None, *args, **options):
        """A `CaptionerModel` where the config says so: the Auto classes know one class of all
        configs of this file."""
        kind: Any = CaptionerModel if config and config.captioner else cls
        return super().__new__(kind)

    def __init__(self, config: EdjeConfig):
        super().__init__(config)
        self.vision_projection = make_adapter(config)
        self._make_scorer(config)
        self._held = {}  # Not modules of ours: the frozen backbone, tokenizers, the image recipe
        self.post_init()

    def _make_scorer(self, config: EdjeConfig) -> None:
        """Joint encoder and its heads."""
        width = config.joint_encoder["hidden_size"]
        self.language_model = make_language_model(config.joint_encoder)
        pooler = Holder(dense=nn.Linear(width, width))
        self.classification_head = nn.ModuleList([pooler, nn.Linear(width, 1)])
        self.text_projection = nn.Linear(width, config.embedding_size)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike) -> "EdjeModel":
        """Load a model folder without transformers' Auto classes."""
        from safetensors.torch import load_file

        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = EdjeConfig(**json.load(file))
        config._name_or_path = str(folder)
        model = cls(config)
        model.load_state_dict(load_file(os.path.join(folder, "model.safetensors")))
        return model.eval()

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **options) -> None:
        """Save a whole model folder: config and weights of this model, and copies of all other
        files that it was loaded with, such as heads, tokenizer and backbone."""
        super().save_pretrained(save_directory, *args, **options)
        source = self.config._name_or_path
        if not source:
            return  # Made of a config alone
        if not os.path.isdir(source):
            from huggingface_hub import snapshot_download

            source = snapshot_download(source, revision=getattr(self.config, "_commit_hash", None))
        source, target = Path(source), Path(save_directory)
        for path in (*source.glob("*"), *source.glob("backbone/*")):
            copy = target / path.relative_to(source)
            is_own = path.parent == source and path.name.startswith(("model.", "model-"))
            if path.is_file() and not is_own and not copy.exists():
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)

    # --- offline ----------------------------------------------------------------------------------

    def preprocess(self, images: list) -> Tensor:
        """Paths or PIL images -> pixel values [N, 3, S, S], by the backbone's own recipe.

        That is the file `preprocessor_config.json`, of which transformers reads all but two keys:
        "icc_profile": "applied" converts colours to sRGB by the embedded profile, and
        "transparency": "white" puts images on white; without them, both are disregarded.
        """
        from PIL import Image

        processor = self._hold("processor", "AutoImageProcessor", backend="pil")
        by_profile = getattr(processor, "icc_profile", "ignored") == "applied"
        on_white = getattr(processor, "transparency", "dropped") == "white"
        opened = (i if isinstance(i, Image.Image) else Image.open(i) for i in images)
        loaded = [_rgb(image, by_profile, on_white) for image in opened]
        pixels = processor(loaded, return_tensors="pt").pixel_values
        return pixels.to(self.device, self.dtype)

    def preprocess_videos(self, videos: list) -> dict[str, Tensor]:
        """Videos, each a list of paths or PIL images in the order in which they are shown ->
        `pixel_values` [N, f, 3, S, S] and `present` [N, f], false behind a video's last frame.

        Raises:
            ValueError: a video has no frame.
        """
        counts = torch.tensor([len(frames) for frames in videos])
        if not videos or not counts.all():
            raise ValueError("give videos of one frame at least")
        pixels = self.preprocess([frame for frames in videos for frame in frames])
        padded = nn.utils.rnn.pad_sequence(list(pixels.split(counts.tolist())), batch_first=True)
        present = torch.arange(padded.shape[1]) < counts[:, None]
        return {"pixel_values": padded, "present": present.to(self.device)}

    def vision_tokens(self, pixel_values: Tensor) -> Tensor:
        """Rows that the adapter reads, [N, n, w]: a layer of the frozen backbone, and beside it
        those of the earlier layers that an adapter which upsamples asks for."""
        layer = self.config.vision_tokens.get("token_layer", -1)
        earlier = self.config.vision_tokens.get("earlier_layers", ())
        out = self.backbone.vision_model(pixel_values, output_hidden_states=True)
        last = out.last_hidden_state if layer == -1 else out.hidden_states[layer]
        rows = torch.cat([last, *(out.hidden_states[one] for one in earlier)], dim=-1)
        return rows[:, rows.shape[1] - self.num_vision_tokens :]  # A class token stands first

    def encode_image(self, pixel_values: Tensor, present: Tensor | None = None) -> Tensor:
        """Pixel values [N, 3, S, S], or [N, f, 3, S, S] of videos -> compressed tokens [N, m, d]:
        what a store keeps.

        `present` [N, f] tells which frames are there; all of them without.

        Raises:
            ValueError: frames, and the model reads images, or fewer.
        """
        if self.config.video or pixel_values.ndim > 4:
            tokens = self._adapt_frames(*self._frames(pixel_values, present))
        else:
            tokens = self.vision_projection(self.vision_tokens(pixel_values))
        return self._run_deferred_layers(tokens) if self.deferred else tokens

    def _adapt_frames(self, pixel_values: Tensor, present: Tensor) -> Tensor:
        """Compressed tokens of each frame in turn, or their mean over the frames."""
        tokens = self.vision_projection(self.vision_tokens(pixel_values.flatten(0, 1)))
        tokens = tokens.unflatten(0, (-1, pixel_values.shape[1]))
        tokens = torch.where(present[:, :, None, None], tokens, 0)
        if self.pools_frames:
            count = present.sum(dim=1).clamp(min=1).to(tokens.dtype)
            return tokens.sum(dim=1) / count[:, None, None]
        tokens = tokens.flatten(1, 2)
        return F.pad(tokens, (0, 0, 0, self.num_tokens - tokens.shape[1]))

    def _run_deferred_layers(self, tokens: Tensor) -> Tensor:
        start = tokens.new_full((tokens.shape[0], 1), self.config.max_text_length, dtype=torch.long)
        vision, present = self._embed_vision(tokens, start), self._present(tokens)
        vision = self.language_model.bert.run(slice(self.deferred), vision, present)
        return torch.where(present[..., None], vision, 0) if self.may_miss_frames else vision

    def _frames(self, pixel_values: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """Pixel values [N, f, 3, S, S] and which frames are there; an image is one frame."""
        most = self.config.video["sampling"]["frames"] if self.config.video else 0
        if pixel_values.ndim == 4:
            pixel_values = pixel_values[:, None]
        elif not most:
            raise ValueError("this model reads images and no videos; give pixels [N, 3, S, S]")
        elif pixel_values.shape[1] > most:
            raise ValueError(f"{pixel_values.shape[1]} frames, and the model reads {most}")
        if present is None:
            present = torch.ones_like(pixel_values[:, :, 0, 0, 0], dtype=torch.bool)
        return pixel_values, present

    def _present(self, tokens: Tensor) -> Tensor:
        """Which rows of compressed tokens [N, m, d] are of frames that are there."""
        if self.may_miss_frames:
            return (tokens != 0).any(dim=-1)
        return torch.ones_like(tokens[:, :, 0], dtype=torch.bool)

    @property
    def pools_frames(self) -> bool:
        """Whether the tokens of a video are the mean of its frames'."""
        return bool(self.config.video) and self.config.video["pooling"] == "mean"

    @property
    def may_miss_frames(self) -> bool:
        """Whether rows of tokens may be of frames that are not there."""
        video = self.config.video
        return bool(video) and not self.pools_frames and video["sampling"]["frames"] > 1

    # --- online -----------------------------------------------------------------------------------

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        """Captions -> `input_ids` and `attention_mask`, [CLS] caption [SEP] and padding.

        A special token that a caption spells becomes an unknown one.
        """
        tokenizer, read = self.tokenizer, RECIPES[self.config.text_recipe]
        made = tokenizer(
            [read(text) for text in texts],
            padding=True, truncation=True, max_length=self.config.max_text_length,
            return_tensors="pt", return_attention_mask=True,
        )  # fmt: skip
        ids, mask = made["input_ids"], made["attention_mask"]
        names = ("pad", "cls", "sep", "mask")
        special = torch.tensor([getattr(tokenizer, f"{name}_token_id") for name in names])
        places = torch.arange(ids.shape[1])
        inside = (places > 0) & (places < mask.sum(dim=1, keepdim=True) - 1)
        ids = torch.where(inside & torch.isin(ids, special), tokenizer.unk_token_id, ids)
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    @property
    def tokenizer(self) -> Any:
        """The joint encoder's, read on first use."""
        # Told that it is a BERT's, transformers does not look for code in this folder's config.
        return self._hold("tokenizer", "AutoTokenizer", inside="", config=BertConfig())

    def score(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        tokens: Tensor,
        similarity: Tensor | None = None,
    ) -> Tensor:
        """Match logits, pair by pair, float32 [N].

        `similarity` is each pair's cosine (`embed_text`, `embed_image`), which a model with a
        similarity prior needs and any other leaves aside. Rows stand as
        `v_1..v_m [SEP] [CLS] caption [SEP] padding`; position ids follow the published order,
        `[CLS] caption [SEP] v_1..v_m [SEP]`, as if the caption were the longest where layers are
        deferred.
        """
        return self.score_read(*self.read_text(input_ids, attention_mask), tokens, similarity)

    forward = score

    def read_text(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Captions before they meet an image: (rows [N, 1 + t, d], which are there).

        Where the [SEP] behind the vision rows stands depends on how many frames a video has, its
        row is its word alone, and `score_read` embeds it.
        """
        bert = self.language_model.bert
        lengths = attention_mask.long().sum(dim=1, keepdim=True)
        words = torch.cat([input_ids.gather(1, lengths - 1), input_ids], dim=1)
        start = torch.full_like(lengths, self.config.max_text_length) if self.deferred else lengths
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        closing = start + self.num_tokens
        positions = torch.cat([closing, places.expand(input_ids.shape[0], -1)], dim=1)
        segments = torch.cat([torch.ones_like(closing), torch.zeros_like(input_ids)], dim=1)
        content = bert.embeddings.word_embeddings(words)
        rows = bert.embed(content, positions, segments)
        if self._closes_by_frames:
            rows = torch.cat([content[:, :1], rows[:, 1:]], dim=1)
        mask = torch.cat([torch.ones_like(closing), attention_mask.long()], dim=1).bool()
        return bert.run(slice(self.deferred), rows, mask), mask

    def score_read(
        self, text: Tensor, mask: Tensor, tokens: Tensor, similarity: Tensor | None = None
    ) -> Tensor:
        """Match logits of what `read_text` gave, of one caption for all images or of one each."""
        count, m = tokens.shape[:2]
        if text.shape[0] == 1:
            text, mask = text.expand(count, -1, -1), mask.expand(count, -1)
        lengths = mask[:, 1:].sum(dim=1, keepdim=True)
        tokens = tokens.to(text.dtype)
        vision = tokens if self.deferred else self._embed_vision(tokens, lengths)
        present = self._present(tokens)
        if self._closes_by_frames:
            place = lengths + present.sum(dim=1, keepdim=True)
            closing = self.language_model.bert.embed(text[:, :1], place, torch.ones_like(place))
            text = torch.cat([closing, text[:, 1:]], dim=1)
        mask = torch.cat([present, mask], dim=1)
        x, updated = torch.cat([vision, text], dim=1), self.online_vision == "updated"
        *layers, last = self.language_model.bert.encoder.layer[self.deferred :]
        for layer in layers:
            if updated:
                x = layer(x, mask[:, None, None, :])
            else:
                x = torch.cat([vision, layer(x, mask[:, None, None, :], slice(m, None))], dim=1)
        cls = last(x, mask[:, None, None, :], slice(m + 1, m + 2))[:, 0]
        if self.config.similarity_prior:
            if similarity is None:
                raise ValueError("a similarity prior needs the cosine of every pair")
            cls = cls + self.prior(self._standardised(similarity).to(cls.dtype)[:, None])
        head: Any = self.classification_head
        return head[1](torch.tanh(head[0].dense(cls)))[:, 0].float()

    @property
    def _closes_by_frames(self) -> bool:
        """Whether the [SEP] behind the vision rows stands right behind those that are there."""
        return self.may_miss_frames and not self.deferred

    def _standardised(self, similarity: Tensor) -> Tensor:
        prior = self.config.similarity_prior
        return (similarity.float() - prior["mean"]) / prior["deviation"]

    def probability(self, logits: Tensor) -> Tensor:
        """Scores from 0 to 1 of match logits (after `mixed`, where the folder has a weight of the
        first stage), float32: calibrated probabilities of a match if the folder has a
        `calibration.json`, else sigmoids."""
        return torch.sigmoid(self.calibrated(logits))

    def calibrated(self, logits: Tensor) -> Tensor:
        """Logits whose sigmoid is the score, float32."""
        settings = self.calibration
        return logits.float() / settings["temperature"] + settings["bias"]

    def mixed(self, logits: Tensor, similarity: Tensor) -> Tensor:
        """Match logits with the first stage's cosine of each pair added, as often as the folder's
        `similarity_weight` says: what `probability` takes and candidates are ordered by."""
        return logits.float() + self.calibration["similarity_weight"] * similarity.float()

    @property
    def calibration(self) -> dict[str, float]:
        """Temperature, bias and weight of the first stage, from the folder's `calibration.json`."""
        if "calibration" not in self._held:
            path = self._file("calibration.json")
            if path is None:
                settings = {"similarity_weight": 0.0, "temperature": 1.0, "bias": 0.0}
            else:
                with open(path, encoding="utf-8") as file:
                    settings = json.load(file)
            self._held["calibration"] = settings
        return self._held["calibration"]

    @property
    def prior(self) -> nn.Module:
        """The similarity prior's two layers, from `similarity_prior.safetensors`: a file of its
        own, as the rest has the published tensors alone."""
        if "prior" not in self._held:
            from safetensors.torch import load_file

            tensors = load_file(self._required_file("similarity_prior.safetensors"))
            hidden, width = (
                tensors[f"similarity_prior.{n}.bias"].shape[0] for n in ("hidden", "out")
            )
            gelu = nn.GELU(approximate="tanh")
            made = nn.Sequential(nn.Linear(1, hidden), gelu, nn.Linear(hidden, width))
            names = {"similarity_prior.hidden.": "0.", "similarity_prior.out.": "2."}
            made.load_state_dict(
                {
                    name.replace(theirs, ours): value
                    for name, value in tensors.items()
                    for theirs, ours in names.items()
                    if name.startswith(theirs)
                }
            )
            self._held["prior"] = made.eval()
        made = self._held["prior"]
        weight = made[0].weight
        if (weight.device, weight.dtype) != (self.device, self.dtype):
            made.to(self.device, self.dtype)
        return made

    def _file(self, name: str) -> str | None:
        """Path of a file of the folder or hub id; None if it is not there."""
        source = self.config._name_or_path
        if os.path.isdir(source):
            path = os.path.join(source, name)
            return path if os.path.exists(path) else None
        from transformers.utils.hub import cached_file

        revision = getattr(self.config, "_commit_hash", None)
        return cached_file(
            source, name, revision=revision, _raise_exceptions_for_missing_entries=False
        )

    def _required_file(self, name: str) -> str:
        path = self._file(name)
        if path is None:
            raise FileNotFoundError(
                f"{self.config._name_or_path}: no {name} here, which config.json speaks of; fetch"
                " or export the model again"
            )
        return path

    @property
    def num_tokens(self) -> int:
        """Compressed tokens per image or video."""
        adapter = self.config.adapter
        if self.config.video:
            return self.config.num_tokens
        if adapter["kind"] == "compress":
            return adapter["num_tokens"]
        if self.config.num_tokens:
            return self.config.num_tokens
        return self.num_vision_tokens  # An older folder does not say

    @property
    def num_vision_tokens(self) -> int:
        """Rows of an image that the adapter reads: its patches, and the class token if asked."""
        vision = self.backbone.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        return patches + int(self.config.vision_tokens.get("class_token", False))

    @property
    def deferred(self) -> int:
        """Layers in which vision and text attend within their own side."""
        return self.config.joint_encoder.get("deferred_layers", 0)

    @property
    def online_vision(self) -> str:
        """Treatment of vision rows in the other layers: "updated", or "attended" to alone."""
        return self.config.joint_encoder.get("online_vision", "updated")

    def _embed_vision(self, tokens: Tensor, start: Tensor) -> Tensor:
        positions = start + torch.arange(tokens.shape[1], device=tokens.device)
        return self.language_model.bert.embed(tokens, positions, torch.ones_like(positions))

    # --- first stage ------------------------------------------------------------------------------

    def embed_image(
        self, pixel_values: Tensor, tokens: Tensor | None = None, present: Tensor | None = None
    ) -> Tensor:
        """First-stage embeddings of images, unit length, float32 [N, e]; a video's is the mean of
        those of its frames. `pixel_values` and `present` are as for `encode_image`.

        Some models' heads read compressed tokens too. Give `tokens`, as `encode_image` made them
        of these images, and they are not computed anew.
        """
        return self._image_outputs(pixel_values, tokens, present)[0]

    def embed_text(self, texts: list[str]) -> Tensor:
        """First-stage embeddings of captions, unit length, float32 [N, e]."""
        return self._text_outputs(texts)[0]

    def project_image(
        self, pixel_values: Tensor, tokens: Tensor | None = None, present: Tensor | None = None
    ) -> Tensor:
        """Projections of images, whose signs are a code, float32 [N, bits]; [N, 0] without a code
        head. `tokens` and `present` are as for `embed_image`."""
        return self._image_outputs(pixel_values, tokens, present)[1]

    def project_text(self, texts: list[str]) -> Tensor:
        """Projections of captions, whose signs are a code, float32 [N, bits]; [N, 0] without a code
        head."""
        return self._text_outputs(texts)[1]

    @staticmethod
    def pack(projections: Tensor, bits: int | None = None) -> Tensor:
        """Codes of the first `bits` projections (of all without), uint8 [N, bits / 8].

        A bit is 1 where the projection is above 0; the first lies highest in its byte, as in
        `numpy.packbits`. A short code is the beginning of a longer one.

        Raises:
            ValueError: there are no projections, or `bits` is no multiple of 8 up to their number.
        """
        longest = projections.shape[1]
        bits = longest if bits is None else bits
        if not longest:
            raise ValueError(
                "projections [N, 0]: this model has no code head; train one with edje train"
                " first_stage --init MODEL"
            )
        if bits % 8 or not 0 < bits <= longest:
            raise ValueError(f"codes of {bits} bits: give a multiple of 8, from 8 to {longest}")
        octets = (projections[:, :bits] > 0).unflatten(1, (-1, 8))
        weights = 2 ** torch.arange(7, -1, -1, device=projections.device)
        return (octets * weights).sum(dim=2).to(torch.uint8)

    def _image_outputs(
        self, pixel_values: Tensor, tokens: Tensor | None, present: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Embeddings and projections of images."""
        pixels, there = self._frames(pixel_values, present)
        features = self.backbone.get_image_features(pixel_values=pixels.flatten(0, 1))
        embeddings = _unit(features)
        if pixels.shape[1] > 1:
            of_frames = torch.where(there[..., None], embeddings.unflatten(0, there.shape), 0)
            embeddings = F.normalize(of_frames.sum(dim=1), dim=-1)
        if not self.config.first_stage:
            return embeddings, embeddings[:, :0]
        if not self.config.first_stage["reads_tokens"]:
            return self.heads.image(embeddings)
        tokens = self.encode_image(pixel_values, present) if tokens is None else tokens
        return self.heads.image(embeddings, tokens.float().mean(dim=1))

    def _text_outputs(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Embeddings and projections of captions."""
        embeddings = self._backbone_text(texts)
        if not self.config.first_stage:
            return embeddings, embeddings[:, :0]
        return self.heads.text(embeddings)

    def _backbone_text(self, texts: list[str]) -> Tensor:
        tokenizer, text = self._hold("text", "AutoTokenizer"), self.backbone.config.text_config
        # SigLIP was trained without a mask; a generic tokenizer that hands one out is used with it.
        # In a causal tower, as CLIP's, padding is never seen and a mask changes nothing.
        own = type(tokenizer).__name__.startswith(("Siglip", "Gemma"))
        masked = not own and "attention_mask" in tokenizer.model_input_names
        made = tokenizer(
            [canonicalise(t) for t in texts],
            padding="max_length", truncation=True, max_length=text.max_position_embeddings,
            return_tensors="pt", return_attention_mask=True,
        )  # fmt: skip
        ids = made["input_ids"].to(self.device)
        mask = made["attention_mask"].to(self.device) if masked else None
        return _unit(self.backbone.get_text_features(input_ids=ids, attention_mask=mask))

    @property
    def heads(self) -> Any:
        """Heads of the first stage for `image` and `text`, from `first_stage.safetensors`; float32
        whatever the model's dtype."""
        if "heads" not in self._held:
            from safetensors.torch import load_file

            settings, width = self.config.first_stage, self.config.embedding_size
            pooled = self.config.joint_encoder["hidden_size"] if settings["reads_tokens"] else 0
            made = Holder(
                image=ModalityHeads(settings, width + pooled, width),
                text=ModalityHeads(settings, width, width),
            )
            made.load_state_dict(load_file(self._required_file("first_stage.safetensors")))
            self._held["heads"] = made.eval()
        return self._held["heads"].to(self.device)

    @property
    def backbone(self) -> Any:
        """The frozen dual encoder, read on first use."""
        model = self._hold("backbone", "AutoModel")
        if (model.device, model.dtype) != (self.device, self.dtype):
            model.to(self.device, self.dtype)
        return model

    def _hold(self, key: str, loader: str, inside: str = "backbone", **options) -> Any:
        """Load a part of the folder once."""
        if key not in self._held:
            import transformers

            name, place = self.config._name_or_path, {}
            if inside and self.config.backbone != "backbone":
                name = self.config.backbone
            elif inside and os.path.isdir(name):
                name = os.path.join(name, inside)
            elif inside:
                place = {"subfolder": inside}
            load = getattr(transformers, loader).from_pretrained
            part = load(name, **place, **options)
            self._held[key] = part.eval() if isinstance(part, nn.Module) else part
        return self._held[key]


READS = {
    "both": ("forward", "backward"),
    "forward": ("forward",),
    "backward": ("backward",),
}
"""A captioner's directions -> its decoders."""


class CaptionerModel(EdjeModel):
    """Image -> compressed tokens, once; [text, tokens] -> how well the image explains the caption.

    Decoders predict a caption's tokens from its first, from its last, or both, each from the tokens
    read before and the image's; "captioner" in config.json holds the settings.
    """

    def _make_scorer(self, config: EdjeConfig) -> None:
        """Decoders, and the embeddings and output layer that they share."""
        joint, settings = config.joint_encoder, config.captioner or {}
        self.reads = READS[_known(settings, "directions", READS)]
        self.scored_by = _known(settings, "score", ("sum", "mean", "pmi"))
        keys = _known(settings, "cross_attention", ("projected", "stored"))
        self.language_model = make_language_model({**joint, "num_hidden_layers": 0})
        for name in self.reads:
            layers = [
                DecoderLayer(joint, keys == "projected") for _ in range(joint["num_hidden_layers"])
            ]
            self.add_module(f"{name}_decoder", Holder(layer=nn.ModuleList(layers)))
        self.no_image = nn.Parameter(torch.zeros(1, 1, joint["hidden_size"]))

    def read_text(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Captions before they meet an image: (ids, mask, sums of log p without an image [N]); the
        last are zeros where the score is not "pmi"."""
        if self.scored_by != "pmi":
            without_image = torch.zeros_like(input_ids[:, 0], dtype=torch.float32)
        else:
            found = self.log_probabilities(input_ids, attention_mask, None)
            without_image = found.sum(dim=(0, 2))
        return input_ids, attention_mask, without_image

    def score_read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        without_image: Tensor,
        tokens: Tensor,
        similarity: Tensor | None = None,
    ) -> Tensor:
        """Scores in nats of what `read_text` gave, of one caption for all images or of one each:
        "sum" of log p, "mean" by token, or "pmi", the sum less that without an image. `similarity`
        is left aside."""
        if input_ids.shape[0] == 1:
            count = tokens.shape[0]
            input_ids, attention_mask = (x.expand(count, -1) for x in (input_ids, attention_mask))
        total = self.log_probabilities(input_ids, attention_mask, tokens).sum(dim=(0, 2))
        if self.scored_by == "mean":
            return total / attention_mask[:, 1:].sum(dim=1).clamp(min=1)
        return total - without_image

    def log_probabilities(
        self, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor | None
    ) -> Tensor:
        """Log p of all tokens but the first that is read, float32 [directions, N, t - 1] in the
        order of reading, beside an image or, with None for `tokens`, without one; 0 for padding,
        which stands behind."""
        count = attention_mask.long().sum(dim=1, keepdim=True)
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        backward = input_ids.gather(1, torch.where(place < count, count - 1 - place, place))
        orders = {"forward": input_ids, "backward": backward}
        seen = None
        if tokens is None:
            tokens = self.no_image.expand(input_ids.shape[0], -1, -1)
        elif self.may_miss_frames:
            seen = self._present(tokens)
        found = [self._read(name, orders[name], tokens, seen) for name in self.reads]
        return torch.where(attention_mask[:, 1:].bool(), torch.stack(found), 0.0)

    def _read(self, direction: str, ids: Tensor, tokens: Tensor, seen: Tensor | None) -> Tensor:
        """Log p of every token after the first, [N, t - 1]; padding sees what stands before it."""
        bert, head = self.language_model.bert, self.language_model.cls.predictions
        words, tokens = bert.embeddings.word_embeddings, tokens.to(self.dtype)
        read, predicted = ids[:, :-1], ids[:, 1:]
        place = torch.arange(read.shape[1], device=ids.device)
        x = bert.embed(words(read), place, torch.zeros_like(read))
        for layer in getattr(self, f"{direction}_decoder").layer:
            x = layer(x, tokens, seen)
        activation = ACTIVATIONS[self.config.joint_encoder["hidden_act"]]
        x = head.transform.LayerNorm(activation(head.transform.dense(x)))
        logits = F.linear(x, words.weight, head.bias).float()
        chosen = logits.gather(2, predicted[..., None])[..., 0]
        return chosen - logits.logsumexp(dim=2)


def _known(settings: dict, name: str, choices: Any) -> str:
    """A captioner's setting.

    Raises:
        ValueError: this version does not know its value.
    """
    if (value := str(settings.get(name))) not in choices:
        raise ValueError(f'config.json: captioner: {name} "{value}": {", ".join(choices)}')
    return value


def _rgb(image: Any, by_profile: bool, on_white: bool) -> Any:
    """An upright RGB image of a PIL image of any mode."""
    from PIL import Image, ImageCms, ImageOps

    image = ImageOps.exif_transpose(image)
    rgb, alpha, profile = None, None, image.info.get("icc_profile")
    if on_white and image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
    if by_profile and profile:
        try:
            mode, brought = PROFILES[profile[16:20]]
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if image.mode in brought:
                target = ImageCms.createProfile("sRGB")
                rgb = ImageCms.profileToProfile(
                    image.convert(mode), source, target, outputMode="RGB"
                )
        except (OSError, KeyError, ImageCms.PyCMSError):
            pass  # Damaged, or of another kind of image: viewers disregard it too
    rgb = rgb or image.convert("RGB")
    if alpha is None:
        return rgb
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white


def canonicalise(caption: str) -> str:
    """Mended, unescaped, no punctuation, lower case, single spaces."""
    bare = _mended(caption).replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\s+", " ", bare.lower()).strip()


def as_written(caption: str) -> str:
    """Mended, unescaped, single spaces; casing and punctuation stay."""
    return re.sub(r"\s+", " ", _mended(caption)).strip()


RECIPES = {"published": canonicalise, "as_written": as_written}
"""Text recipes of the joint encoder, `text_recipe` in config.json."""


def _mended(caption: str) -> str:
    if caption.isascii() and caption.isprintable() and "&" not in caption:
        return caption
    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(caption)))


def _unit(features) -> Tensor:
    """Unit-length rows, from transformers 5's output object or from the tensor of earlier ones."""
    pooled = features if isinstance(features, Tensor) else features.pooler_output
    return F.normalize(pooled.float(), dim=-1)
