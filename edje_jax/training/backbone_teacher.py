"""An EDJE or a captioner whose scores of lists of candidates a whole dual encoder learns from.

Our reconstruction of the distillation of Fast & Slow (arXiv 2103.16553), which has no published
code. A list is a caption, its own image and the K other images of the batch that the student holds
for the most similar; and an image with captions likewise. With h the teacher's scores, which get
no gradient, and f.g the student's cosines times its trained scale, the loss is the
cross-entropy H(p, q), averaged over the lists of both directions, of

    p = softmax(h / temperature)        q = softmax(scale * f.g)

FAQ. *Departures?* Fast & Slow distils one text over many images; here both directions count. The
paper's tau, the length of its lists and the weight of its contrastive loss are not known to us.
*Why another kind?* Scores of a cross-encoder are peaked (CPRD, arXiv 2407.07479): see
`losses.listwise`.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from edje_jax.config.model import ImageRecipe
from edje_jax.config.run import BackboneRun
from edje_jax.data.images import normalise
from edje_jax.data.tokenizer import same_tokenizer
from edje_jax.models.pair_scorer import PairScorer
from edje_jax.models.scorers import make_scorer
from edje_jax.models.towers import DualTower
from edje_jax.training.losses import listwise
from edje_jax.training.match_pairs import ScoredRows, match_pairs
from edje_jax.training.negatives import (
    Examples,
    Kinds,
    Negatives,
    Pairs,
    choose_negatives,
    pair_similarities,
)
from edje_jax.training.sharding import Devices
from edje_jax.training.state import Metrics
from edje_jax.types import Batch, Frames
from edje_jax.weights.backbone import Backbone
from edje_jax.weights.families.registry import make_backbone
from edje_jax.weights.folder import Model


class TeacherParams(NamedTuple):
    """Parameters of a teacher, which no step changes."""

    backbone: PyTree
    edje: PyTree


@dataclass(frozen=True)
class BackboneTeacher:
    """The teacher of a run, and the loss of its lists."""

    run: BackboneRun
    model: PairScorer
    backbone: DualTower
    devices: Devices

    @classmethod
    def of(
        cls, run: BackboneRun, model: Model, devices: Devices, dtype: jax.typing.DTypeLike
    ) -> "BackboneTeacher":
        """The teacher that a model folder holds.

        Raises:
            ValueError: it reads videos.
        """
        if model.config.video:
            raise ValueError(
                f"--teacher {run.teacher}: reads videos, and a dual encoder is trained on images;"
                " name a model of images"
            )
        towers = make_backbone(model.config.backbone, dtype)
        return cls(run, make_scorer(model.config, dtype), towers, devices)

    def loss(
        self, params: TeacherParams, batch: Batch, logits: Float[Array, "b b"], student: Examples
    ) -> tuple[Float[Array, ""], Metrics]:
        """(loss, metrics) of a batch.

        Args:
            logits: the student's, text by image; a constant on all of them makes no difference.
            student: the batch's rows with the student's embeddings, which choose the candidates.
        """
        run = self.run
        kinds = Kinds(run.distilled_candidates, run.distilled_candidates)
        # The key draws nothing: the very most similar are taken.
        chosen = choose_negatives(student, student, kinds, jax.random.key(0))
        h = jax.lax.stop_gradient(listwise.lists_of(*self._scores(params, batch, chosen)))
        f = listwise.lists_of(*pairs_of(self.devices.replicate(logits), chosen))
        usable = listwise.lists_of(*chosen.usable_of(batch.valid))
        if run.distillation_kind == "order":
            loss = listwise.order_likelihood(h, f, usable)
        else:
            loss = listwise.softmax_cross_entropy(h, f, usable, run.distillation_temperature)
        entropy = listwise.teacher_entropy(h, usable, run.distillation_temperature)
        return loss, {"loss/distillation": loss, "teacher_entropy": entropy}

    def _scores(self, params: TeacherParams, batch: Batch, chosen: Negatives) -> Pairs:
        """The teacher's scores of the chosen pairs. Each image is encoded once."""
        assert batch.images is not None and not isinstance(batch.images, Frames)
        devices, recipe = self.devices, self.model.config.image
        towers = self.backbone.bind({"params": params.backbone})
        edje = partial(self.model.bind, {"params": params.edje})
        image = towers.encode_image(normalise(batch.images, recipe))
        similarities = None
        if self.model.config.similarity_prior:
            text = towers.encode_text(batch.backbone_ids)
            own = examples_of(batch, text, image.embedding, devices)
            similarities = pair_similarities(own, own, chosen)
        rows = ScoredRows(jnp.arange(len(batch.valid)), chosen, similarities)
        tokens = devices.shard_rows(edje().compress(image.tokens))
        return match_pairs(edje, batch.joint_ids, tokens, rows, devices)


def examples_of(
    batch: Batch, text: Float[Array, "b e"], image: Float[Array, "b e"], devices: Devices
) -> Examples:
    """The batch's rows with embeddings, on every device and without gradients."""
    embeddings = jax.lax.stop_gradient(devices.replicate((text, image)))
    return Examples(*embeddings, batch.image_ids, batch.caption_ids, batch.valid, batch.valid)


def pairs_of(logits: Float[Array, "b b"], chosen: Negatives) -> Pairs:
    """Pick the chosen pairs from a matrix of all pairs, text by image."""
    return Pairs(
        jnp.diagonal(logits),
        jnp.take_along_axis(logits, chosen.images, axis=1),
        jnp.take_along_axis(logits.T, chosen.captions, axis=1),
    )


def check_teacher(
    run: BackboneRun, teacher: Model, image: ImageRecipe, start: Backbone | None
) -> None:
    """Refuse a teacher that cannot read the batches of a run, or lists longer than a batch.

    Args:
        start: dual encoder that the run starts from.

    Raises:
        ValueError: the message names the option.
    """
    if run.distilled_candidates >= run.data.batch_size:
        raise ValueError(
            f"--distilled-candidates {run.distilled_candidates} cannot be found in batches of"
            f" {run.data.batch_size}; raise --data.batch-size above {run.distilled_candidates}"
        )
    # Both may normalise pixels as they like: that happens in the step.
    theirs, ours = (
        {**dataclasses.asdict(recipe), "mean": None, "std": None}
        for recipe in (teacher.config.image, image)
    )
    other = [f"{name} {theirs[name]} there, {ours[name]} here" for name in ours
             if theirs[name] != ours[name]]  # fmt: skip
    if other:
        raise ValueError(
            f"--teacher {run.teacher}: reads images in another way than this run"
            f" ({', '.join(other)}); take one over a backbone that reads them alike"
        )
    if teacher.config.similarity_prior and not (start and _read_alike(start, teacher.backbone)):
        raise ValueError(
            f"--teacher {run.teacher}: its match head is given its backbone's cosine, and that"
            " backbone reads captions in other tokens than this run's; name that backbone as"
            " --init, or take a teacher without a similarity prior"
        )


def _read_alike(a: Backbone, b: Backbone) -> bool:
    """Whether two backbones make the same tokens of captions."""
    shapes = [(each.config.text.max_position_embeddings, each.config.text.pad_token_id)
              for each in (a, b)]  # fmt: skip
    return same_tokenizer(a.folder, b.folder) and shapes[0] == shapes[1]
