"""Joint encoders of other papers and the published EDJE, in PyTorch: a worker of `peers.py`.

A peer reads an image once (its vision tower) and scores a caption against what the tower left. The
shapes are those of the published checkpoints, the weights are random. BLIP, BLIP-2 and ViLT are
transformers' classes. ALBEF's is not there: `AlbefShaped` has its shape.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from pairs import PAD, Pairs, Settings
from rerank import published, torch_module
from side_workers import Side, Spec, answer_requests
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipVisionConfig,
    BlipVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViltConfig,
    ViltForImageAndTextRetrieval,
)
from transformers.initialization import no_init_weights
from transformers.models.bert.modeling_bert import BertEncoder

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ACTIVATIONS = 2e9
"""Bytes that scoring a query's candidates takes beside the weights, about."""


class Vit(NamedTuple):
    """Shape of a vision tower."""

    width: int
    intermediate: int
    layers: int
    heads: int
    image: int = 384
    patch: int = 16


class Text(NamedTuple):
    """Shape of a BERT."""

    width: int = 768
    intermediate: int = 3072
    layers: int = 12
    heads: int = 12
    fused: int = 6
    """Layers with cross attention, in the ALBEF-shaped peer."""


VIT_B = Vit(768, 3072, 12, 12)
VIT_L = Vit(1024, 4096, 24, 16)
VIT_G = Vit(1408, 6144, 39, 16, 364, 14)
"""EVA-CLIP's ViT-g, in the resolution of BLIP-2's checkpoint for COCO."""
PATCHES_32 = Vit(768, 3072, 12, 12, 384, 32)
TINY = Vit(32, 64, 2, 2, 32, 16)
TINY_TEXT = Text(32, 64, 4, 2, 2)


class Peer(NamedTuple):
    """Joint encoder whose images are read before."""

    whole: nn.Module
    online: tuple[Any, ...]
    """Modules and parameters that scoring takes."""
    read: Callable[[Tensor], Tensor]
    """Pixels [n, 3, s, s] -> features [n, tokens, width]: all that is kept of images."""
    score: Callable[[Tensor, Tensor], Tensor]
    """Scorer: ids [t] of a caption, and the features of its k candidates -> scores [k]."""


def blip(vit: Vit, text: Text) -> Peer:
    """BLIP with its matching head; published checkpoints have 12 heads, and `is_decoder` makes the
    cross attention."""
    config = BlipConfig(
        vision_config=vision_settings(vit),
        text_config=text_settings(text) | {"vocab_size": 30524, "is_decoder": True},
        image_text_hidden_size=256,
    )
    model = fresh(partial(BlipForImageTextRetrieval, config))

    def score(ids: Tensor, features: Tensor) -> Tensor:
        rows = ids.expand(len(features), -1)
        hidden = model.text_encoder(
            input_ids=rows,
            attention_mask=torch.ones_like(rows),
            encoder_hidden_states=features,
            encoder_attention_mask=ones(features),
        ).last_hidden_state
        return model.itm_head(hidden[:, 0])[:, 1]

    online = (model.text_encoder, model.itm_head)
    return Peer(model, online, lambda x: model.vision_model(x).last_hidden_state, score)


def blip2(vit: Vit, text: Text) -> Peer:
    """BLIP-2's Q-Former with its matching head: 32 queries and the caption in one sequence, cross
    attention of the queries in every second layer."""
    settings: dict[str, Any] = text_settings(text) | {
        "vocab_size": 30523,
        "encoder_hidden_size": vit.width,
        "use_qformer_text_input": True,  # Without it the layers have no feed-forward for text
    }
    config = Blip2Config(
        vision_config=vision_settings(vit), qformer_config=settings, image_text_hidden_size=256,
        image_token_index=None,
    )  # fmt: skip
    model = fresh(partial(Blip2ForImageTextRetrieval, config))

    def score(ids: Tensor, features: Tensor) -> Tensor:
        rows = ids.expand(len(features), -1)
        queries = model.query_tokens.expand(len(features), -1, -1)
        mask = torch.cat([ones(queries), torch.ones_like(rows)], dim=1)
        hidden = model.qformer(
            query_embeds=model.embeddings(input_ids=rows, query_embeds=queries),
            query_length=queries.shape[1],
            attention_mask=mask,
            encoder_hidden_states=features,
            encoder_attention_mask=ones(features),
        ).last_hidden_state
        return model.itm_head(hidden[:, : queries.shape[1]]).mean(dim=1)[:, 1]

    online = (model.qformer, model.embeddings, model.query_tokens, model.itm_head)
    return Peer(model, online, lambda x: model.vision_model(pixel_values=x)[0], score)


def vilt(vit: Vit, text: Text) -> Peer:
    """ViLT: only its patch embedding precedes the caption, so that all layers stay online."""
    config = ViltConfig(
        vocab_size=30522, hidden_size=vit.width, intermediate_size=vit.intermediate,
        num_hidden_layers=vit.layers, num_attention_heads=vit.heads, image_size=vit.image,
        patch_size=vit.patch, max_position_embeddings=64,
    )  # fmt: skip
    model = fresh(partial(ViltForImageAndTextRetrieval, config))

    def read(pixels: Tensor) -> Tensor:
        mask = torch.ones_like(pixels[:, 0], dtype=torch.long)
        return model.vilt.embeddings.visual_embed(pixels, mask, max_image_length=-1)[0]

    def score(ids: Tensor, features: Tensor) -> Tensor:
        rows = ids.expand(len(features), -1)
        return model(
            input_ids=rows, attention_mask=torch.ones_like(rows), image_embeds=features,
            pixel_mask=ones(features),
        ).logits[:, 0]  # fmt: skip

    return Peer(model, (model,), read, score)


class AlbefShaped(nn.Module):
    """ViT-B/16 beside a BERT whose last 6 of 12 layers have cross attention, and a matching head.

    ALBEF's sizes (arXiv 2107.07651) in BERT's modules of transformers. A caption passes the first
    layers once for all its candidates.
    """

    def __init__(self, vit: Vit, text: Text):
        super().__init__()
        settings: dict[str, Any] = text_settings(text) | {"attn_implementation": "sdpa"}
        first = BertConfig(**settings | {"num_hidden_layers": text.layers - text.fused})
        fused = BertConfig(
            **settings | {"num_hidden_layers": text.fused},
            is_decoder=True,
            add_cross_attention=True,
        )
        self.vision_model = BlipVisionModel(BlipVisionConfig(**vision_settings(vit)))
        self.text = BertModel(first, add_pooling_layer=False)
        self.fusion = BertEncoder(fused)
        self.itm_head = nn.Linear(text.width, 2)

    def score(self, ids: Tensor, features: Tensor) -> Tensor:
        """Match logits of one caption with k images."""
        hidden = self.text(input_ids=ids[None]).last_hidden_state.expand(len(features), -1, -1)
        # A mask that hides nothing: without one, layers with cross attention are causal.
        mask = torch.ones(1, 1, 1, len(ids), dtype=torch.bool, device=ids.device)
        fused = self.fusion(hidden, attention_mask=mask, encoder_hidden_states=features)
        return self.itm_head(fused.last_hidden_state[:, 0])[:, 1]


def albef(vit: Vit, text: Text) -> Peer:
    """ALBEF-shaped joint encoder."""
    model = fresh(partial(AlbefShaped, vit, text))
    online = (model.text, model.fusion, model.itm_head)
    return Peer(model, online, lambda x: model.vision_model(x).last_hidden_state, model.score)


PEERS: dict[str, tuple[Callable[[Vit, Text], Peer], Vit]] = {
    "albef": (albef, VIT_B),
    "blip-b": (blip, VIT_B),
    "blip-l": (blip, VIT_L),
    "blip2-l": (blip2, VIT_L),
    "blip2-g": (blip2, VIT_G),
    "vilt": (vilt, PATCHES_32),
}


def make_peer(name: str, tiny: bool = False) -> Peer:
    """Peer of full size, or a tiny one of the same form."""
    make, vit = PEERS[name]
    return make(TINY, TINY_TEXT) if tiny else make(vit, Text())


def vision_settings(vit: Vit) -> dict[str, Any]:
    """Settings of a vision tower as transformers' configs name them."""
    return {
        "hidden_size": vit.width,
        "intermediate_size": vit.intermediate,
        "num_hidden_layers": vit.layers,
        "num_attention_heads": vit.heads,
        "image_size": vit.image,
        "patch_size": vit.patch,
    }


def text_settings(text: Text) -> dict[str, Any]:
    """Settings of a BERT as transformers' configs name them."""
    return {
        "hidden_size": text.width,
        "intermediate_size": text.intermediate,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
    }


def fresh(make: Callable[[], Any]) -> Any:
    """Module with random weights of deviation 0.02.

    transformers' own weights would be 1e-10 in the vision towers of BLIP: no score would depend on
    the image, and half precision would compute with zeros.
    """
    with no_init_weights():
        model = make()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.02)
            else:  # Norms and biases
                weight.fill_(float(name.endswith("weight")))
    return model.eval().requires_grad_(False)


def ones(rows: Tensor) -> Tensor:
    """Mask [b, n] that hides none of the rows [b, n, w]."""
    return torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device)


def count(*parts: Any) -> int:
    """Number of parameters of modules and of parameters, each once."""
    found = {
        id(p): p.numel()
        for part in parts
        for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())
    }
    return sum(found.values())


@cache
def sizes(name: str, tiny: bool) -> dict[str, int]:
    """Parameters of a peer; nothing is allocated."""
    with torch.device("meta"):
        peer = make_peer(name, tiny)
    return {"online": count(*peer.online), "total": count(peer.whole)}


@torch.inference_mode()
def peer_side(name: str, settings: Settings, dtype: torch.dtype) -> Side:
    """Parts "score" and "read" of a peer, with a query's candidates as one batch."""
    with torch.device(DEVICE):
        peer = make_peer(name, settings.tiny)
    peer.whole.to(DEVICE, dtype)
    task = Pairs(settings.queries, settings.k)
    captions = [torch.tensor(row[row != PAD]).long().to(DEVICE) for row in task.ids]
    side = TINY.image if settings.tiny else PEERS[name][1].image
    pixels = torch.randn(settings.images, 3, side, side).to(DEVICE, dtype)
    shape = tuple(peer.read(pixels[:1]).shape[1:])
    # Any values do, but candidates are not to be one image in the caches.
    stored = torch.randn(settings.k, *shape).to(DEVICE, dtype)

    @torch.inference_mode()
    def score() -> np.ndarray:
        scores = [peer.score(ids, stored) for ids in captions]
        return torch.cat(scores).float().cpu().numpy()

    @torch.inference_mode()
    def read() -> np.ndarray:
        return peer.read(pixels)[:, 0].float().cpu().numpy()

    facts = {"parameters": sizes(name, settings.tiny), "stored": shape}
    return Side({"score": score, "read": read}, facts)


def published_side(settings: Settings, adapter: bool) -> Side:
    """Part "score" of the published EDJE: from compressed tokens, or with the adapter run on each
    candidate's patch tokens."""
    task = Pairs(settings.queries, settings.k, settings.config)
    module = torch_module(task)
    online = count(module) - count(module.vision_projection)
    with torch.device("meta"):
        tower = count(siglip(settings))
    facts = {
        "parameters": {"online": online, "total": count(module) + tower},
        "stored": (task.patches if adapter else task.tokens).shape[1:],
    }
    if adapter:
        facts["parameters"]["online"] = count(module)
    return Side({"score": published(task, module, DEVICE, adapter)}, facts)


def siglip(settings: Settings) -> Any:
    """SigLIP2's vision tower, from which the published EDJE takes patch tokens."""
    vit = settings.config.backbone.vision
    shape = Vit(
        vit.hidden_size, vit.intermediate_size, vit.num_hidden_layers, vit.num_attention_heads,
        vit.image_size, vit.patch_size,
    )  # fmt: skip
    return fresh(partial(SiglipVisionModel, SiglipVisionConfig(**vision_settings(shape))))


def siglip_side(settings: Settings) -> Side:
    """Part "read" of SigLIP2's vision tower."""
    with torch.device(DEVICE):
        tower = siglip(settings)
    size = settings.config.backbone.vision.image_size
    pixels = torch.randn(settings.images, 3, size, size).to(DEVICE)

    @torch.inference_mode()
    def read() -> np.ndarray:
        return tower(pixel_values=pixels).last_hidden_state[:, 0].cpu().numpy()

    return Side({"read": read}, {})


def serve(text: str) -> None:
    """Serve `peers.py`."""
    settings = Settings.read(text)

    def needed(spec: Spec) -> float:
        if spec["peer"] not in PEERS or settings.tiny:
            return 0.0
        width = 2 if spec["dtype"] == "bfloat16" else 4
        return width * sizes(spec["peer"], settings.tiny)["total"] + ACTIVATIONS

    def build(spec: Spec) -> Side:
        torch.manual_seed(0)
        if spec["peer"] == "siglip":
            return siglip_side(settings)
        if spec["peer"] == "published":
            return published_side(settings, spec["adapter"])
        return peer_side(spec["peer"], settings, getattr(torch, spec["dtype"]))

    answer_requests(build, needed, {})
