"""Mean and deviation of the first stage's cosine, by which a similarity prior standardises it."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from edje_jax.config.model import ImageRecipe, SimilarityPrior
from edje_jax.data.loader import TrainingBatches
from edje_jax.models.towers import DualTower
from edje_jax.system.files import read_json, write_json
from edje_jax.training.edje_step import encode
from edje_jax.training.processes import is_first, main_process_first

NAME = "similarity_prior.json"
"""File of a workdir: all processes, a run that resumes and its exports standardise alike."""
ROWS = 256
"""Rows of the first batch that are compared, at most."""


def known_prior(workdir: Path) -> SimilarityPrior:
    """The prior that a run has measured.

    Raises:
        FileNotFoundError: it has not, or its file was not copied along.
    """
    path = workdir / NAME
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: missing; a run with --model.similarity-prior writes it when it starts, and"
            " its checkpoints mean nothing without it: copy it along with config.json"
        )
    return SimilarityPrior(**read_json(path))


def measured_prior(
    workdir: Path,
    reader: TrainingBatches,
    backbone: DualTower,
    params: PyTree[np.ndarray],
    recipe: ImageRecipe,
) -> SimilarityPrior:
    """The prior of a run: measured by its first process and kept in the workdir, or found there.

    Raises:
        ValueError: the first batch has no two rows that differ.
    """
    with main_process_first("similarity prior"):
        if is_first() and not (workdir / NAME).exists():
            prior = _measured(reader, backbone, params, recipe)
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(workdir / NAME, dataclasses.asdict(prior))
    return known_prior(workdir)


def _measured(
    reader: TrainingBatches, backbone: DualTower, params: PyTree[np.ndarray], recipe: ImageRecipe
) -> SimilarityPrior:
    """Mean and deviation over all pairs of the first rows that are trained on."""
    rows = min(reader.data.batch_size, ROWS)
    data = dataclasses.replace(reader.data, batch_size=rows)
    batch, _ = dataclasses.replace(reader, data=data, process=(0, 1))[0]

    @jax.jit
    def embed(params, batch):
        features = encode(backbone, params, batch, recipe)
        return features.text_embeddings, features.image_embeddings

    features = batch.features
    embedded = (
        (features.text_embeddings, features.image_embeddings) if features else embed(params, batch)
    )
    texts, images = (np.asarray(x, np.float64)[batch.valid] for x in embedded)
    cosines = texts @ images.T
    if not cosines.size or cosines.std() < 1e-6:
        raise ValueError(
            f"--model.similarity-prior: the first {rows} rows of the set have no two that the"
            " backbone tells apart, so that its cosines say nothing; check --model.backbone and"
            " --data.train"
        )
    return SimilarityPrior(round(float(cosines.mean()), 6), round(float(cosines.std()), 6))
