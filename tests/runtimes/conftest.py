"""Fixtures that the tests of inference share."""

import dataclasses

import pytest

from edje_jax.runtimes.jax import Engine
from edje_jax.search.reranker import Reranker


@pytest.fixture(scope="session", params=[0, 1], ids=["published", "deferred"])
def engine(trained, request) -> Engine:
    """The engine of a small trained model, and of one with a deferred layer."""
    engine = Reranker.from_pretrained(trained, precision="float32").engine
    joint = dataclasses.replace(engine.config.joint_encoder, deferred_layers=request.param)
    config = dataclasses.replace(engine.config, joint_encoder=joint)
    return dataclasses.replace(engine, config=config)
