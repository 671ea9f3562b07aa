"""A train step of an EDJE, beside PyTorch on the same weights and batch.

    python benchmarks/train_step.py [--rounds 3] [--size small|B|L] [--batch 16] [--out FILE]

Ours is `edje_train_step` as `train.py` runs it, "loop" the same with --scan-layers. The peers, all
float32 on a CPU:
  good       one pass of transformers' SigLIP under no_grad, the joint encoder of a model folder's
             `modeling_edje.py` (SDPA, last layer for the rows that are read), the vocabulary head
             on masked positions, AdamW; on a GPU bfloat16 autocast and torch.compile (which took
             over three minutes on an H200 at size B)
  eager      the same, never compiled; left out unless --sides names it
  published  what the published script computes: the ViT run three times (student, miner, teacher),
             eager BERT with its vocabulary head on every position of every pass
The same masked pieces, hard negatives and losses: matching (K = 1), masked LM, text recovery.
`--only SIDE` runs one side alone and prints its peak memory; the table's column comes from that,
unless --no-peak leaves it out. `--sides` takes some of the sides.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
from pairs import random_params
from rich.console import Console
from rich.table import Table
from side_by_side import forget_peak, machine, ratios, resident_peak, timed
from transformers import BertConfig as HfBertConfig
from transformers import BertForMaskedLM, SiglipConfig, SiglipModel

from edje_jax.config.model import (
    AdapterConfig,
    BackboneConfig,
    BertConfig,
    EdjeConfig,
    ImageRecipe,
    TextConfig,
    VisionConfig,
)
from edje_jax.config.run import LossConfig, MeshConfig
from edje_jax.data.images import normalise
from edje_jax.models.edje import Edje
from edje_jax.runtimes.devices import compute_dtype
from edje_jax.system.allocator import give_back_freed_memory, keep_freed_memory
from edje_jax.training import flops
from edje_jax.training.edje_step import Frozen, StepSetup, edje_train_step
from edje_jax.training.losses.table import step_flops
from edje_jax.training.losses.term import Objective
from edje_jax.training.masking import choose_masked
from edje_jax.training.sharding import Devices
from edje_jax.training.state import init_state
from edje_jax.types import Batch
from edje_jax.weights import bert, edje
from edje_jax.weights.backbone import backbone_rules
from edje_jax.weights.backbone import expected_params as backbone_params
from edje_jax.weights.families import siglip
from edje_jax.weights.families.registry import make_backbone
from edje_jax.weights.mapping import to_theirs
from edje_jax.weights.torch import modeling_edje

CLS, SEP, PAD, MASK = 101, 102, 0, 103
SPECIAL = (PAD, 100, CLS, SEP, MASK)
LOSS = LossConfig(negatives=1)


def config_of(size: str) -> EdjeConfig:
    """ "small" suits two cores: a ViT of 12 layers x 192 on 224 px, MiniLM-L6; B and L are SigLIP2
    at 384 px with MiniLM-L12."""
    if size == "small":
        vision = VisionConfig(192, 768, 12, 3, image_size=224, patch_size=16)
        text = TextConfig(8000, 192, 768, 12, 3, 64, projection_size=192)
        return EdjeConfig(
            BackboneConfig("siglip", vision, text), AdapterConfig("compress", 64, 1536),
            BertConfig(num_hidden_layers=6), ImageRecipe(224),
        )  # fmt: skip
    width, inner, depth, heads = (768, 3072, 12, 12) if size == "B" else (1024, 4096, 24, 16)
    vision = VisionConfig(width, inner, depth, heads, image_size=384, patch_size=16)
    text = TextConfig(256_000, width, inner, depth, heads, 64, projection_size=width)
    adapter = AdapterConfig("compress", 64)
    return EdjeConfig(
        BackboneConfig("siglip", vision, text), adapter, BertConfig(), ImageRecipe(384)
    )


class Work:
    """Weights and a batch, for every side alike."""

    def __init__(self, size: str, rows: int):
        self.config = config = config_of(size)
        rng = np.random.default_rng(0)
        side, text = config.image.size, config.backbone.text
        ids = np.full((rows, 32), PAD, np.int32)
        for row in ids:
            pieces = int(rng.integers(9, 25))
            row[: pieces + 2] = [CLS, *rng.integers(1000, 30000, pieces), SEP]
        self.batch = Batch(
            images=rng.integers(0, 256, (rows, side, side, 3), np.uint8),
            backbone_ids=rng.integers(2, text.vocab_size, (rows, 64)).astype(np.int32),
            joint_ids=ids,
            image_ids=np.arange(rows, dtype=np.int32),
            caption_ids=np.arange(rows, dtype=np.int32),
            valid=np.ones(rows, bool),
        )
        self.frozen = random_params(backbone_params(config.backbone), 0.02)
        self.params = random_params(edje.expected_params(config), 0.02)
        _, masking = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
        self.masked = np.asarray(
            choose_masked(ids, self.batch.valid, LOSS.mask_probability, SPECIAL, masking)
        )


def ours(work: Work, chunks: int = 1, scan: bool = False) -> Callable[[], float]:
    """Returns the loss of a step, worked through in so many parts; `scan` makes layers a loop."""
    config, dtype = work.config, compute_dtype("auto")
    devices = Devices.of(MeshConfig(data=1), len(work.batch.valid), chunks)
    optimiser = optax.adamw(1e-4, weight_decay=0.05)
    state = init_state(jax.tree.map(jnp.array, work.params), optimiser)
    shardings = devices.shardings(state)
    state = jax.device_put(state, shardings)
    setup = StepSetup(
        Objective(Edje(config, dtype, scan=scan), LOSS, "all", MASK, devices),
        make_backbone(config.backbone, dtype, scan=scan),
        config.image,
        SPECIAL,
        seed=0,
        optimiser=optimiser,
        learning_rate=optax.constant_schedule(1e-4),
        chunks=chunks,
    )
    step = jax.jit(
        partial(edje_train_step, setup=setup),
        donate_argnums=0,
        # Else the second step's state would lie another way than the first one's: compiled again.
        out_shardings=(shardings, devices.replicated),
    )
    frozen = Frozen(work.frozen, None)

    def run() -> float:
        nonlocal state
        state, metrics = step(state, frozen, work.batch)
        return float(metrics["loss"])

    return run


class Torch:
    """The PyTorch step, either way."""

    def __init__(self, work: Work, published: bool, compiled: bool = True):
        self.published = published
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        config, batch = work.config, work.batch
        raw = siglip.write_config(config.backbone)
        siglip_config = SiglipConfig(
            vision_config=raw["vision_config"], text_config=raw["text_config"]
        )
        attention = "eager" if published else "sdpa"
        self.backbone = SiglipModel._from_config(siglip_config, attn_implementation=attention)
        self._load(self.backbone, to_theirs(backbone_rules(config.backbone), _numpy(work.frozen)))
        joint = bert.write_config(config.joint_encoder)
        self.model = modeling_edje.EdjeModel(
            modeling_edje.EdjeConfig(
                adapter=vars(config.adapter), joint_encoder=joint,
                vision_width=config.backbone.vision.hidden_size,
                vision_heads=config.backbone.vision.num_attention_heads,
                embedding_size=config.backbone.text.projection_size,
                max_text_length=config.max_text_length,
            )
        )  # fmt: skip
        self._load(self.model, to_theirs(edje.rules(config), _numpy(work.params)))
        self.parts: list[Any] = [self.model]
        if published:
            plain = {name: value for name, value in joint.items() if name != "architectures"}
            hf = HfBertConfig(**plain, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
            self.language = BertForMaskedLM._from_config(hf, attn_implementation="eager")
            state = self.model.language_model.state_dict()
            self.language.load_state_dict(state, strict=False)
            self.parts.append(self.language.to(self.device).train())
        self.backbone.to(self.device).eval()
        self.model.to(self.device).train()
        weights = [w for part in self.parts for w in part.parameters()]
        self.optimiser = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.05)
        pixels = np.array(normalise(batch.images, config.image)).transpose(0, 3, 1, 2)
        self.pixels = torch.tensor(np.ascontiguousarray(pixels)).to(self.device)
        self.backbone_ids = torch.tensor(batch.backbone_ids).long().to(self.device)
        self.ids = torch.tensor(batch.joint_ids).long().to(self.device)
        self.masked = torch.tensor(work.masked).to(self.device)
        self.step = self._step
        if self.device == "cuda" and compiled and not published:
            self.step = torch.compile(self._step)

    def _load(self, module: Any, tensors: dict[str, np.ndarray]) -> None:
        missing = module.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()}, False)
        assert not missing.unexpected_keys, missing.unexpected_keys[:3]

    def __call__(self) -> float:
        """A whole step; the loss."""
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            loss = self.step()
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())

    def _step(self) -> torch.Tensor:
        with torch.no_grad():
            vision = self.backbone.vision_model(self.pixels)
            for _ in range(2 if self.published else 0):
                vision = self.backbone.vision_model(self.pixels)
            text = self.backbone.text_model(self.backbone_ids).pooler_output
            text = F.normalize(text, dim=-1)
            similarity = text @ F.normalize(vision.pooler_output, dim=-1).T
            similarity.fill_diagonal_(-torch.inf)
            images, captions = similarity.argmax(dim=1), similarity.argmax(dim=0)
        tokens = self.model.vision_projection(vision.last_hidden_state)
        present = self.ids != PAD
        own = torch.arange(len(self.ids), device=self.device)
        text_rows = torch.cat([own, own, captions])
        image_rows = torch.cat([own, images, own])
        logits = self.match(self.ids[text_rows], present[text_rows], tokens[image_rows]).view(3, -1)
        zero = torch.zeros_like(own)
        loss = sum(F.cross_entropy(torch.stack([logits[0], n], 1), zero) for n in logits[1:]) / 2
        hidden = torch.where(self.masked, MASK, self.ids)
        words = self.words(hidden, present, tokens)
        loss = loss + F.cross_entropy(words.float(), self.ids[self.masked])
        guess = self.model.text_projection(self.alone(present)).float()
        return loss + (1 - F.cosine_similarity(guess, text)).mean()

    def match(self, ids, present, tokens) -> torch.Tensor:
        """Match logits."""
        if not self.published:
            return self.model.score(ids, present, tokens)
        head: Any = self.model.classification_head
        cls = self.everything(ids, present, tokens).hidden_states[-1][:, 0]
        return head[1](torch.tanh(head[0].dense(cls)))[:, 0].float()

    def words(self, ids, present, tokens) -> torch.Tensor:
        """Word logits of the masked pieces."""
        if self.published:
            return self.everything(ids, present, tokens).logits[:, : ids.shape[1]][self.masked]
        bert, cls = self.model.language_model.bert, self.model.language_model.cls.predictions
        m, length = tokens.shape[1], ids.shape[1]
        lengths = present.long().sum(1, keepdim=True)
        table = bert.embeddings.word_embeddings
        content = torch.cat([tokens, table(torch.cat([ids.gather(1, lengths - 1), ids], 1))], 1)
        count = partial(torch.arange, device=self.device)
        text = count(length).expand(len(ids), -1)
        positions = torch.cat([lengths + count(m + 1), text], 1)
        vision = torch.ones_like(positions[:, : m + 1])
        segments = torch.cat([vision, torch.zeros_like(text)], 1)
        mask = torch.cat([vision, present.long()], 1).bool()
        rows = through(bert, content, positions, segments, mask, slice(m + 1, None))[self.masked]
        rows = cls.transform.LayerNorm(F.gelu(cls.transform.dense(rows)))
        return F.linear(rows, table.weight, cls.bias)

    def alone(self, present) -> torch.Tensor:
        """[CLS] of a pass over the text alone."""
        if self.published:
            answer = self.language(
                self.ids, attention_mask=present.long(), output_hidden_states=True
            )
            return answer.hidden_states[-1][:, 0]
        bert = self.model.language_model.bert
        count = torch.arange(self.ids.shape[1], device=self.device).expand_as(self.ids)
        content = bert.embeddings.word_embeddings(self.ids)
        return through(bert, content, count, torch.zeros_like(count), present, slice(0, 1))[:, 0]

    def everything(self, ids, present, tokens) -> Any:
        """The published pass: [CLS] caption [SEP] vision [SEP] padding, all heads everywhere.

        Built with padding between, which attention cannot tell from padding behind.
        """
        lengths = present.long().sum(1, keepdim=True)
        table = self.language.bert.embeddings.word_embeddings
        content = torch.cat([table(ids), tokens, table(ids.gather(1, lengths - 1))], 1)
        count = partial(torch.arange, device=self.device)
        m = tokens.shape[1]
        text = count(ids.shape[1]).expand(len(ids), -1)
        positions = torch.cat([text, lengths + count(m + 1)], 1)
        vision = torch.ones(len(ids), m + 1, dtype=torch.long, device=self.device)
        return self.language(
            inputs_embeds=content,
            position_ids=positions,
            token_type_ids=torch.cat([torch.zeros_like(text), vision], 1),
            attention_mask=torch.cat([present.long(), vision], 1),
            output_hidden_states=True,
        )


def through(
    bert: modeling_edje.Bert,
    content: torch.Tensor,
    positions: torch.Tensor,
    segments: torch.Tensor,
    present: torch.Tensor,
    rows: slice,
) -> torch.Tensor:
    """All layers, of which the last computes some rows only."""
    x = bert.run(slice(-1), bert.embed(content, positions, segments), present)
    return bert.encoder.layer[-1](x, present[:, None, None, :], rows)


SIDES: dict[str, Callable[[Work], Callable[[], float]]] = {
    "ours": ours,
    "loop": partial(ours, scan=True),
    "good": partial(Torch, published=False),
    "published": partial(Torch, published=True),
    "eager": partial(Torch, published=False, compiled=False),
}
DEFAULT_SIDES = ("ours", "loop", "good", "published")


def main() -> None:
    """Time all, print a table, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", choices=["small", "B", "L"], default="small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--only", choices=list(SIDES))
    parser.add_argument("--sides", choices=list(SIDES), nargs="+", default=DEFAULT_SIDES)
    parser.add_argument("--no-peak", action="store_true", help="do not measure memory")
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    keep_freed_memory()  # As train.py does
    work = Work(options.size, options.batch)
    if options.only:
        run = SIDES[options.only](work)
        run()
        give_back_freed_memory()
        forget_peak()  # That of compiling is another matter
        run()
        peak = resident_peak() / 2**20
        if jax.default_backend() == "gpu":
            stats = jax.devices()[0].memory_stats() or {}
            used = (
                stats.get("peak_bytes_in_use", 0)
                if options.only in ("ours", "loop")
                else (torch.cuda.max_memory_allocated())
            )
            peak = used / 2**20
        print(json.dumps({"peak_megabytes": peak}))
        return
    sides = {name: SIDES[name](work) for name in options.sides}
    first = {name: run() for name, run in sides.items()}
    seconds = timed(sides, options.rounds)
    slower = ratios(seconds)
    flops_of_step = step_flops(work.config, LOSS, options.batch, teacher=None)
    table = Table("", "seconds a step", "ours is faster by", "peak MB", "first loss")
    result: dict[str, Any] = {
        "machine": machine(), "size": options.size, "batch": options.batch, "sides": {}
    }  # fmt: skip
    for name in sides:
        middle = statistics.median(seconds[name])
        row = {
            "seconds": seconds[name],
            "images_per_second": options.batch / middle,
            "ours_is_faster_by": slower[name],
            "peak_megabytes": None if options.no_peak else _peak(name, options),
            "first_loss": first[name],
        }
        if peak := flops.peak_flops(jax.devices()[0].device_kind):
            row["model_flop_utilisation"] = flops_of_step / middle / peak
        result["sides"][name] = row
        table.add_row(
            name, f"{middle:.3f}", f"{slower[name]:.2f}",
            "" if options.no_peak else f"{row['peak_megabytes']:.0f}", f"{first[name]:.5f}",
        )  # fmt: skip
    Console().print(table)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def _peak(side: str, options: argparse.Namespace) -> float:
    """Peak memory of a process that runs this side alone: resident, or the GPU's."""
    command = [sys.executable, __file__, "--only", side, "--size", options.size]
    answer = subprocess.run(
        [*command, "--batch", str(options.batch)], capture_output=True, text=True, check=True
    )
    return json.loads(answer.stdout.splitlines()[-1])["peak_megabytes"]


def _numpy(tree: Any) -> Any:
    return jax.device_get(tree)


if __name__ == "__main__":
    main()
