"""Two checkpoints in the published layout: every value on the way equals the published code's.

The goldens in `goldens/reference_tiny/` are what the published PyTorch code made of eight
images and eight captions, with random weights scaled so that a wrong detail shows. Each check
is one function that returns a difference, so that the same code also shows that it can fail: with
another activation, another position, another order of the tokens.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edje_jax.config.model import BackboneConfig, EdjeConfig
from edje_jax.data.text import BackboneTokenizer, JointTokenizer
from edje_jax.models.bert import Embeddings
from edje_jax.models.edje import Edje
from edje_jax.models.layers import ACTIVATIONS
from edje_jax.models.siglip import Siglip
from edje_jax.models.towers import VisionOutput
from edje_jax.training.losses.distillation import distillation_loss
from edje_jax.training.losses.masked_lm import masked_lm_loss
from edje_jax.training.losses.match import matching_loss
from edje_jax.training.losses.text_recovery import text_recovery_loss
from edje_jax.training.negatives import Examples, Kinds, Negatives, choose_negatives
from edje_jax.weights.published import load_published

TINY = Path(__file__).parents[1] / "goldens" / "reference_tiny"
KINDS = ("local", "compressed")
IGNORED = -100
"""Label of a position that masked LM does not score."""


# --- our side -------------------------------------------------------------------------------------


class BackboneOutput(NamedTuple):
    vision: VisionOutput
    text_embeddings: jax.Array
    logits: jax.Array


@functools.partial(jax.jit, static_argnums=0)
def run_backbone(config: BackboneConfig, params, pixels, ids) -> BackboneOutput:
    """All of the backbone in one program, as compiling is what takes the time here."""
    apply = functools.partial(Siglip(config).apply, {"params": params})
    return BackboneOutput(
        apply(pixels, method="encode_image"), apply(ids, method="encode_text"), apply(pixels, ids)
    )


@functools.partial(jax.jit, static_argnames=("config", "methods", "gelu"))
def run_edje(params, shift, *args, config: EdjeConfig, methods: tuple[str, ...], gelu="gelu"):
    """Outputs of each of the model's methods for the same arguments.

    `shift` and `gelu`, the activation that goes by this name, are for sabotage.
    """
    patched = mock.patch.dict(ACTIVATIONS, gelu=ACTIVATIONS[gelu])
    with nn.intercept_methods(functools.partial(shifting, shift)), patched:
        return [Edje(config).apply({"params": params}, *args, method=name) for name in methods]


def shifting(shift, next_method, args, kwargs, context):
    """Add `shift` (text, vision) to the position ids that the embeddings are called with."""
    if not isinstance(context.module, Embeddings) or context.method_name != "__call__":
        return next_method(*args, **kwargs)
    content, positions, segments, train = args
    # Segment 1 is the vision rows and the [SEP] that closes them.
    moved = positions + jnp.where(segments == 1, shift[1], shift[0])
    return next_method(content, moved, segments, train, **kwargs)


@dataclass(frozen=True)
class Case:
    """Checkpoint as our code reads it, its outputs for the inputs, and the expected ones.

    The last four fields are for sabotage.
    """

    config: EdjeConfig
    backbone_config: BackboneConfig
    backbone: dict[str, Any]
    params: dict[str, Any]
    pixels: np.ndarray
    expected: dict[str, np.ndarray]
    adapter_gelu: str = "gelu"
    joint_shift: tuple[int, int] = (0, 0)
    vision_backwards: bool = False
    compressed_backwards: bool = False

    @functools.cached_property
    def backbone_ids(self) -> np.ndarray:
        length = self.backbone_config.text.max_position_embeddings
        return BackboneTokenizer(TINY / "siglip", length)(captions())

    @functools.cached_property
    def joint_ids(self) -> np.ndarray:
        """As long as the published code's padding to the longest caption."""
        length = self.expected["pair_input_ids"].shape[1] - self.config.num_tokens - 1
        return JointTokenizer(TINY / "bert", self.config.max_text_length)(captions(), length)

    @functools.cached_property
    def backbone_output(self) -> BackboneOutput:
        return run_backbone(self.backbone_config, self.backbone, self.pixels, self.backbone_ids)

    @functools.cached_property
    def vision(self) -> VisionOutput:
        out = self.backbone_output.vision
        return out._replace(tokens=out.tokens[:, ::-1] if self.vision_backwards else out.tokens)

    @property
    def text_embeddings(self) -> jax.Array:
        return self.backbone_output.text_embeddings

    @functools.cached_property
    def compressed(self) -> jax.Array:
        (out,) = self._edje("compress", args=(self.vision.tokens,), gelu=self.adapter_gelu)
        return out[:, ::-1] if self.compressed_backwards else out

    @functools.cached_property
    def pairs(self) -> tuple[list[jax.Array], jax.Array]:
        """Hidden states and match logits of every caption with every image, captions first."""
        n = len(self.joint_ids)
        text, image = (grid.ravel() for grid in np.mgrid[:n, :n])
        args = self.joint_ids[text], self.compressed[image]
        states, logits = self._edje("hidden_states", "match", args=args)
        return states, logits

    @property
    def hidden_states(self) -> np.ndarray:
        """Hidden states of the positive pairs: [layers + 1, 8, m + 1 + t, d] in memory order."""
        n = len(self.joint_ids)
        return np.stack(self.pairs[0])[:, np.arange(n) * (n + 1)]

    @property
    def match_logits(self) -> np.ndarray:
        """[captions, images]."""
        n = len(self.joint_ids)
        return np.asarray(self.pairs[1]).reshape(n, n)

    @functools.cached_property
    def recovered(self) -> jax.Array:
        return self._edje("recover_text", args=(self.joint_ids,))[0]

    @functools.cached_property
    def negatives(self) -> Negatives:
        ids = jnp.arange(len(self.pixels))
        valid = jnp.ones(ids.shape, bool)
        rows = Examples(self.text_embeddings, self.vision.embedding, ids, ids, valid, valid)
        return choose_negatives(rows, rows, Kinds(2, 2), jax.random.key(0))

    def masked_lm(self, ids: np.ndarray, positions: np.ndarray) -> jax.Array:
        return self._edje("masked_lm", args=(ids, self.compressed, positions[None]))[0][0]

    def _edje(self, *methods: str, args: tuple, gelu: str = "gelu"):
        static = {"config": self.config, "methods": methods, "gelu": gelu}
        return run_edje(self.params, self.joint_shift, *args, **static)


@functools.cache
def captions() -> tuple[str, ...]:
    return tuple(json.loads((TINY / "captions.json").read_text()))


@functools.cache
def load(kind: str) -> Case:
    """A checkpoint, unspoiled."""
    model = load_published(str(TINY / f"{kind}.pth"), str(TINY / "siglip"), str(TINY / "bert"))
    with np.load(TINY / f"expected_{kind}.npz", allow_pickle=False) as file:
        expected = dict(file)
    with np.load(TINY / "inputs.npz", allow_pickle=False) as file:
        assert list(file["image_ids"]) == list(range(8))
        pixels = np.moveaxis(file["pixel_values"], 1, -1)
    backbone = model.backbone
    return Case(model.config, backbone.config, backbone.params, model.params, pixels, expected)


# --- the checks -----------------------------------------------------------------------------------


def absolute(ours, theirs: np.ndarray) -> float:
    """max |difference|."""
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max())


def relative(ours, theirs: np.ndarray) -> float:
    """max |difference| / max |value|."""
    return absolute(ours, theirs) / float(np.abs(theirs).max())


def vision_tokens(case: Case) -> float:
    return relative(case.vision.tokens, case.expected["vision_tokens"])


def vision_hidden_states(case: Case) -> float:
    states = zip(case.vision.hidden_states, case.expected["vision_hidden_states"], strict=True)
    return max(relative(ours, theirs) for ours, theirs in states)


def image_embeddings(case: Case) -> float:
    return relative(case.vision.embedding, case.expected["image_embeds"])


def text_embeddings(case: Case) -> float:
    return relative(case.text_embeddings, case.expected["text_embeds"])


def siglip_logits(case: Case) -> float:
    return relative(case.backbone_output.logits, case.expected["siglip_logits_per_text"])


def projected_tokens(case: Case) -> float:
    return relative(case.compressed, case.expected["projected_tokens"])


def joint_hidden_states(case: Case) -> float:
    """Row by row in the published order; what stands in padding has no meaning."""
    worst, m = 0.0, case.config.num_tokens
    states = zip(case.hidden_states, case.expected["joint_hidden_states"], strict=True)
    for ours, theirs in states:
        for row, length in enumerate(text_lengths(case)):
            text = ours[row, m + 1 : m + 1 + length]
            published = np.concatenate([text, ours[row, : m + 1]])
            worst = max(worst, relative(published, theirs[row, : length + m + 1]))
    return worst


def match_logits(case: Case) -> float:
    return absolute(case.match_logits, case.expected["pair_logits"])


def matching(case: Case) -> float:
    loss = sum(
        matching_loss(positive, hard, jnp.ones(hard.shape, bool), jnp.ones(positive.shape, bool))
        for positive, hard in sides(case, case.match_logits)
    )
    return absolute(loss / 2, case.expected["itm_loss"])


def distillation(case: Case) -> float:
    """The teacher is the local checkpoint, as it should be."""
    student, teacher = case.match_logits, load("local").match_logits
    (positive, images), (_, texts) = sides(case, student)
    (taught, taught_images), (_, taught_texts) = sides(case, teacher)
    pairs = [(positive, taught), (images, taught_images), (texts, taught_texts)]
    loss = sum(distillation_loss(s, t, jnp.ones(s.shape, bool)) for s, t in pairs)
    return absolute(loss / 3, case.expected["distillation_loss_with_local_as_teacher"])


def masked_lm(case: Case) -> float:
    labels = case.expected["mlm_labels"]
    length = case.joint_ids.shape[1]
    assert (labels[:, length:] == IGNORED).all()
    labels = labels[:, :length]
    masked = labels != IGNORED
    assert (case.joint_ids[masked] == labels[masked]).all()
    mask_id = JointTokenizer(TINY / "bert", 63).mask_id
    ids = np.where(masked, mask_id, case.joint_ids).astype(np.int32)
    logits = case.masked_lm(ids, np.flatnonzero(masked))
    wanted = jnp.asarray(labels[masked], jnp.int32)
    loss = masked_lm_loss(logits, wanted, jnp.ones(wanted.shape, bool))
    return absolute(loss, case.expected["mlm_loss"])


def text_recovery(case: Case) -> float:
    valid = jnp.ones(len(case.joint_ids), bool)
    loss = text_recovery_loss(case.recovered, case.text_embeddings, valid)
    return absolute(loss, case.expected["text_recovery_loss"])


def negatives(case: Case) -> float:
    """Indices that differ."""
    assert case.negatives.images_usable.all() and case.negatives.captions_usable.all()
    return float(
        (np.asarray(case.negatives.images) != case.expected["negative_image_idx"]).sum()
        + (np.asarray(case.negatives.captions) != case.expected["negative_text_idx"]).sum()
    )


def text_lengths(case: Case) -> np.ndarray:
    """[CLS] caption [SEP], per row."""
    return (case.joint_ids != case.config.joint_encoder.pad_token_id).sum(1)


def sides(case: Case, logits: np.ndarray) -> list[tuple[jax.Array, jax.Array]]:
    """Positives [8] and hard negatives [8, 2], with negative images, then negative captions."""
    rows = np.arange(len(logits))[:, None]
    images = logits[rows, case.expected["negative_image_idx"]]
    texts = logits[case.expected["negative_text_idx"], rows]
    positive = jnp.asarray(logits.diagonal())
    return [(positive, jnp.asarray(images)), (positive, jnp.asarray(texts))]


class Check(NamedTuple):
    difference: Callable[[Case], float]
    tolerance: float


# Looser ones would do for parity, but then a wrong activation would pass in the logits and losses.
CHECKS = {
    name: Check(difference, tolerance)
    for tolerance, differences in {
        1e-5: {
            "vision tokens": vision_tokens,
            "vision hidden states": vision_hidden_states,
            "image embeddings": image_embeddings,
            "text embeddings": text_embeddings,
            "siglip logits": siglip_logits,
            "projected tokens": projected_tokens,
            "joint hidden states": joint_hidden_states,
        },
        5e-5: {"match logits": match_logits},
        5e-6: {
            "matching loss": matching,
            "distillation loss": distillation,
            "masked-LM loss": masked_lm,
            "text-recovery loss": text_recovery,
        },
        0.0: {"negatives": negatives},
    }.items()
    for name, difference in differences.items()
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CHECKS)
def test_every_value_equals_the_published_code_s(kind, name):
    difference, tolerance = CHECKS[name]
    assert difference(load(kind)) <= tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_token_ids_equal_the_published_code_s(kind):
    case = load(kind)
    np.testing.assert_array_equal(case.backbone_ids, case.expected["siglip_text_ids"])
    ids, segments, mask = published_layout(case)
    np.testing.assert_array_equal(ids, case.expected["pair_input_ids"])
    np.testing.assert_array_equal(segments, case.expected["mlm_token_type_ids"])
    np.testing.assert_array_equal(mask, case.expected["mlm_attention_mask"])


def published_layout(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, segments and attention mask of [CLS] caption [SEP] v_1..v_m [SEP] padding."""
    m, placeholder = case.config.num_tokens, case.config.joint_encoder.vocab_size - 1
    ids, segments = np.zeros((2, len(case.joint_ids), case.joint_ids.shape[1] + m + 1), int)
    for row, length in enumerate(text_lengths(case)):
        text = case.joint_ids[row, :length]
        ids[row, : length + m + 1] = [*text, *[placeholder] * m, text[-1]]
        segments[row, length : length + m + 1] = 1
    return ids, segments, (ids != case.config.joint_encoder.pad_token_id).astype(int)


# --- sabotage -------------------------------------------------------------------------------------


def backbone_part(tower: str, **changes: Any) -> Callable[[Case], Case]:
    """The config of the tower "vision" or "text", changed."""

    def spoil(case: Case) -> Case:
        changed = replace(getattr(case.backbone_config, tower), **changes)
        return replace(case, backbone_config=replace(case.backbone_config, **{tower: changed}))

    return spoil


def backbone_positions(tower: str) -> Callable[[Case], Case]:
    """Every row of a tower's position table one place on."""

    def spoil(case: Case) -> Case:
        table = np.roll(case.backbone[tower]["position_embedding"], 1, axis=0)
        changed = {**case.backbone[tower], "position_embedding": table}
        return replace(case, backbone={**case.backbone, tower: changed})

    return spoil


def joint_activation(name: str) -> Callable[[Case], Case]:
    """The joint encoder's activation; the adapter keeps its own."""

    def spoil(case: Case) -> Case:
        encoder = replace(case.config.joint_encoder, hidden_act=name)
        return replace(case, config=replace(case.config, joint_encoder=encoder))

    return spoil


def changed(**fields: Any) -> Callable[[Case], Case]:
    return lambda case: replace(case, **fields)


def transpose_patches(case: Case) -> Case:
    """Patches down the columns instead of along the rows; each stays as it is."""
    b, side, _, channels = case.pixels.shape
    p = case.backbone_config.vision.patch_size
    patches = case.pixels.reshape(b, side // p, p, side // p, p, channels).swapaxes(1, 3)
    return replace(case, pixels=patches.reshape(case.pixels.shape))


class Sabotage(NamedTuple):
    spoil: Callable[[Case], Case]
    fails: set[str]
    """Checks that must fail; those in neither set must still pass."""
    faint: frozenset[str] | set[str] = frozenset()
    """Checks on which it has an influence that may be too small to show."""
    kinds: tuple[str, ...] = KINDS


VISION = {"vision tokens", "vision hidden states", "image embeddings", "siglip logits"}
TEXT = {"text embeddings", "siglip logits"}
MATCH = {"joint hidden states", "match logits"}
LOSSES = {"matching loss", "distillation loss", "masked-LM loss"}
RECOVERY, NEGATIVES = {"text-recovery loss"}, {"negatives"}
ADAPTED = {"projected tokens"} | MATCH

# The two GELUs are within 5e-4 of each other. That shows in every tensor, but hardly in a loss
# that is a few towers away, and reorders no two similarities; quick_gelu is further off. The
# local checkpoint is its own teacher, where the distillation loss is at its minimum, and flat.
SABOTAGE = {
    "activation: vision, erf": Sabotage(
        backbone_part("vision", hidden_act="gelu"), VISION | ADAPTED, LOSSES | NEGATIVES
    ),
    "activation: vision, quick": Sabotage(
        backbone_part("vision", hidden_act="quick_gelu"),
        VISION | ADAPTED | NEGATIVES | LOSSES - {"distillation loss"},
        {"distillation loss"},
    ),
    "activation: text, erf": Sabotage(
        backbone_part("text", hidden_act="gelu"), TEXT, RECOVERY | NEGATIVES
    ),
    "activation: text, quick": Sabotage(
        backbone_part("text", hidden_act="quick_gelu"), TEXT | RECOVERY, NEGATIVES
    ),
    "activation: adapter, tanh": Sabotage(
        changed(adapter_gelu="gelu_pytorch_tanh"), ADAPTED, LOSSES
    ),
    "activation: joint, tanh": Sabotage(
        joint_activation("gelu_pytorch_tanh"),
        MATCH | RECOVERY | LOSSES - {"distillation loss"},
        {"distillation loss"},
    ),
    "activation: joint, quick": Sabotage(
        joint_activation("quick_gelu"), MATCH | RECOVERY | LOSSES, kinds=("local",)
    ),
    "position: vision table": Sabotage(
        backbone_positions("vision"), VISION | ADAPTED | LOSSES | NEGATIVES
    ),
    "position: text table": Sabotage(backbone_positions("text"), TEXT | RECOVERY | NEGATIVES),
    "position: vision rows one later": Sabotage(changed(joint_shift=(0, 1)), MATCH | LOSSES),
    "position: vision rows one earlier": Sabotage(changed(joint_shift=(0, -1)), MATCH | LOSSES),
    "position: text rows one later": Sabotage(
        changed(joint_shift=(1, 0)), MATCH | LOSSES | RECOVERY
    ),
    "order: patches": Sabotage(transpose_patches, VISION | ADAPTED | LOSSES | NEGATIVES),
    # The embeddings are pooled before; see below for what compressing makes of the order.
    "order: vision tokens": Sabotage(
        changed(vision_backwards=True), {"vision tokens"} | ADAPTED | LOSSES
    ),
    "order: compressed tokens": Sabotage(changed(compressed_backwards=True), ADAPTED | LOSSES),
    "mask: padding seen": Sabotage(
        backbone_part("text", mask_padding=False), TEXT | RECOVERY | NEGATIVES
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "sabotage, kind", [(name, kind) for name, s in SABOTAGE.items() for kind in s.kinds]
)
def test_what_depends_on_a_detail_fails_without_it_and_nothing_else_does(sabotage, kind):
    spoil, expected, faint, _ = SABOTAGE[sabotage]
    case = spoil(load(kind))
    if (sabotage, kind) == ("order: vision tokens", "compressed"):
        # Attention does not care about the order of its keys: nothing past the tokens changes.
        expected = {"vision tokens"}
    failed = {name for name, (difference, most) in CHECKS.items() if not difference(case) <= most}
    assert failed - faint == expected


@pytest.mark.parametrize("group", ["activation", "position", "order"])
def test_no_check_is_left_out_of_the_sabotage(group):
    failing = set().union(*(s.fails for name, s in SABOTAGE.items() if name.startswith(group)))
    # What is made of captions alone cannot know in which order images are read.
    assert failing == set(CHECKS) - ({"text embeddings", *RECOVERY} if group == "order" else set())
