"""What the tests of inference share."""

import pytest

from edje_jax.inference.engine import Engine
from edje_jax.retrieval.reranker import Reranker
from tests.small_runs import trained as trained


@pytest.fixture(scope="session")
def engine(trained) -> Engine:
    """The engine of a small trained model."""
    return Reranker.from_pretrained(trained, precision="float32").engine
