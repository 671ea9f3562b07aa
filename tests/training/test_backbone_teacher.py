"""Distillation of an EDJE into a whole dual encoder: against the formulas, list by list."""

import dataclasses
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edje_jax.config.model import EdjeConfig, SimilarityPrior
from edje_jax.config.run import BackboneRun, DataConfig, MeshConfig, OptimConfig
from edje_jax.data.images import normalise
from edje_jax.models.scorers import make_scorer
from edje_jax.training.loop import run
from edje_jax.training.losses import listwise
from edje_jax.training.negatives import positive_pairs
from edje_jax.training.state import Metrics
from edje_jax.training.tasks.backbone import BackboneTask
from edje_jax.types import Batch
from edje_jax.weights import edje
from edje_jax.weights.families.registry import make_backbone
from edje_jax.weights.folder import load_model, save_model
from edje_jax.weights.published import load_published
from tests.small_runs import TINY, read_log
from tests.training.captioner_runs import captioner as captioner  # a fixture
from tests.training.tasks.test_tasks import taken
from tests.training.test_sharding import EVERY_MESH, MESHES

K = 3
RUN = BackboneRun(
    steps=4,
    init=str(TINY / "siglip"),
    distillation=20.0,
    distillation_temperature=0.2,
    distilled_candidates=K,
    data=DataConfig(train="shapes:train", batch_size=16),
    optim=OptimConfig(lr=3e-3, warmup_steps=1),
    mesh=MeshConfig(data=1),
    precision="float32",
)


@pytest.fixture(scope="module")
def teachers(captioner, tmp_path_factory) -> dict[str, Path]:
    """Model folders of random weights: one as published, one with a similarity prior and a deferred
    layer; and a captioner that reads an earlier layer too."""
    published = load_published(
        str(TINY / "compressed.pth"), str(TINY / "siglip"), str(TINY / "bert")
    )
    config = dataclasses.replace(
        published.config,
        joint_encoder=dataclasses.replace(published.config.joint_encoder, deferred_layers=1),
        similarity_prior=SimilarityPrior(0.1, 0.05),
    )
    rng = np.random.default_rng(0)
    prior = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        edje.expected_params(config)["joint_encoder"]["similarity_prior"],
    )
    joint = {**published.params["joint_encoder"], "similarity_prior": prior}
    other = dataclasses.replace(
        published, config=config, params={**published.params, "joint_encoder": joint}
    )
    folders = {"captioner": captioner}
    for name, model in (("published", published), ("prior", other)):
        folders[name] = tmp_path_factory.mktemp(name)
        save_model(folders[name], model, "A card.\n")
    return folders


def a_batch(task: BackboneTask) -> Batch:
    """The first batch, with an image twice and an unreadable one among its rows."""
    batch, _ = task.reader[0]
    batch.image_ids[3] = batch.image_ids[11]
    batch.valid[5] = False
    return batch


@partial(jax.jit, static_argnums=(0, 1))
def all_scores(config: EdjeConfig, rows: int, params, backbone, batch: Batch) -> jax.Array:
    """The teacher's match logits of every text with every image, text by image."""
    towers = make_backbone(config.backbone).bind({"params": backbone})
    image = towers.encode_image(normalise(batch.images, config.image))
    cosines = towers.encode_text(batch.backbone_ids) @ image.embedding.T
    model = make_scorer(config).bind({"params": params})
    tokens = jnp.tile(model.compress(image.tokens), (rows, 1, 1))
    ids = jnp.repeat(batch.joint_ids, rows, axis=0)
    return model.match(ids, tokens, similarity=cosines.reshape(-1)).reshape(rows, rows)


def student_logits(task: BackboneTask, params, batch: Batch) -> np.ndarray:
    def logits(params, batch):
        return task.model.apply(
            {"params": params}, normalise(batch.images, task.image), batch.backbone_ids
        )

    return np.asarray(jax.jit(logits)(params, batch))


def hardest(logits: np.ndarray, batch: Batch) -> np.ndarray:
    """Each row's own column, and the K highest ones of other valid pairs: int [16, 1 + K]."""
    rows = jax.tree.map(jnp.asarray, batch)
    allowed = ~np.asarray(positive_pairs(rows, rows)) & batch.valid[None]
    ranked = np.argsort(-np.where(allowed, logits, -np.inf), axis=1)[:, :K]
    return np.concatenate([np.arange(len(logits))[:, None], ranked], axis=1)


@pytest.mark.parametrize(
    ("kind", "teacher"),
    [
        ("softmax", "published"),
        ("order", "prior"),
        pytest.param("softmax", "captioner", marks=pytest.mark.extra),
    ],
)
def test_the_loss_is_that_of_the_hardest_candidates_of_both_directions(
    kind, teacher, teachers, tmp_path
):
    folder = str(teachers[teacher])
    config = dataclasses.replace(RUN, teacher=folder, distillation_kind=kind)
    task = BackboneTask(config, tmp_path)
    state, batch = task.init(), a_batch(task)
    student = student_logits(task, state.params["siglip"], batch)
    model = load_model(folder)
    scores = all_scores(model.config, 16, model.params, model.backbone.params, batch)
    scores = np.asarray(scores)
    lists = [
        np.take_along_axis(values, hardest(logits, batch), axis=1)[batch.valid]
        for values, logits in (
            (scores, student), (scores.T, student.T), (student, student), (student.T, student.T)
        )
    ]  # fmt: skip
    h, f = (jnp.asarray(np.concatenate(pair)) for pair in (lists[:2], lists[2:]))
    usable, temperature = jnp.ones(h.shape, bool), config.distillation_temperature
    expected = (
        listwise.order_likelihood(h, f, usable)
        if kind == "order"
        else listwise.softmax_cross_entropy(h, f, usable, temperature)
    )
    entropy = listwise.teacher_entropy(h, usable, temperature)
    assert 0.05 < float(entropy) < 0.95 * np.log(1 + K), "a teacher that prefers none of the lists"
    state, told = task.step(state, batch, 0)
    np.testing.assert_allclose(told["loss/distillation"], expected, rtol=1e-4)
    np.testing.assert_allclose(told["teacher_entropy"], entropy, rtol=1e-4)
    whole = told["loss/sigmoid"] + 20.0 * told["loss/distillation"]
    np.testing.assert_allclose(told["loss"], whole, rtol=1e-6)
    for number in range(1, 25):
        state, later = task.step(state, batch, number)
    assert later["loss/distillation"] < told["loss/distillation"] - 0.05, "nothing was learned"


def test_a_weight_of_0_leaves_the_teacher_out(teachers, tmp_path):
    config = dataclasses.replace(RUN, teacher=str(teachers["published"]), distillation=0.0)
    task = BackboneTask(config, tmp_path)
    batch, _ = task.reader[0]
    assert task.taught_by is None and batch.joint_ids.shape == (16, 0)
    _, told = task.step(task.init(), batch, 0)
    assert set(told) == {"loss", "loss/sigmoid", "grad_norm"}


@cache
def first_steps(teacher: str, data: int, fsdp: int, workdir: Path) -> list[Metrics]:
    config = dataclasses.replace(RUN, teacher=teacher, mesh=MeshConfig(data, fsdp))
    return taken(BackboneTask(config, workdir), 3)[0]


@pytest.mark.parametrize("mesh", EVERY_MESH)
def test_eight_devices_take_the_steps_of_one(mesh, teachers):
    told = [
        first_steps(str(teachers["prior"]), *shape, teachers["prior"])
        for shape in ((1, 1), MESHES[mesh])
    ]
    for number, (one, eight) in enumerate(zip(*told, strict=True)):
        assert one.keys() == eight.keys() >= {"loss/sigmoid", "loss/distillation"}
        for name in one:
            rtol = 1e-4 if number else 1e-5
            np.testing.assert_allclose(eight[name], one[name], rtol=rtol, err_msg=name)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(teachers, tmp_path):
    whole, stopped = (tmp_path / name for name in ("whole", "stopped"))
    config = dataclasses.replace(
        RUN, steps=4, teacher=str(teachers["published"]), log_every=1, checkpoint_every=2
    )
    assert run(BackboneTask(config, whole), whole)
    task = BackboneTask(config, stopped)
    steps = task.step

    def until_the_third(state, batch, number):
        if number == 3:
            raise RuntimeError("stopped")
        return steps(state, batch, number)

    task.step = until_the_third
    with pytest.raises(RuntimeError, match="stopped"):
        run(task, stopped)
    assert run(BackboneTask(config, stopped), stopped)
    straight, resumed = (
        [[line[name] for name in ("step", "loss", "loss/distillation", "teacher_entropy")]
         for line in read_log(folder)]
        for folder in (whole, stopped)
    )  # fmt: skip
    assert resumed == straight and len(straight) == 4
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (whole, stopped)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("teacher", "change", "told"),
    [
        (
            "published", {"init": "shapes-backbone"},
            r"--teacher .*: reads images in another way than this run \(size 32 there, 64 here,"
            r" resample bicubic there, bilinear here\); take one over a backbone",
        ),
        (
            "published", {"distilled_candidates": 16},
            r"--distilled-candidates 16 cannot be found in batches of 16; raise --data.batch-size",
        ),
        (
            "prior", {"init": "other"},
            r"--teacher .*: its match head is given its backbone's cosine, and that backbone reads"
            r" captions in other tokens than this run's; name that backbone as --init",
        ),
    ],
)  # fmt: skip
def test_teachers_that_do_not_fit_are_refused(teacher, change, told, teachers, tmp_path):
    if change.get("init") == "other":
        change = {"init": str(with_another_tokenizer(tmp_path / "other"))}
    config = dataclasses.replace(RUN, teacher=str(teachers[teacher]), **change)
    with pytest.raises(ValueError, match=told):
        BackboneTask(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def with_another_tokenizer(folder: Path) -> Path:
    """A copy of the tiny dual encoder with the tokenizer of another one."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (folder / name).write_bytes((TINY / "siglip" / name).read_bytes())
    shapes = Path(edje.__file__).parents[1] / "assets" / "shapes_backbone"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((shapes / name).read_bytes())
    return folder
