"""`edje serve --on ray`: an index behind HTTP, open in parts on a cluster."""

import logging
import time
from contextlib import ExitStack
from functools import partial
from typing import Any

from edje_jax.cli.cluster import connect_to
from edje_jax.cli.first_stage_options import screening_of
from edje_jax.cli.program import UsageError
from edje_jax.cli.search import model_of
from edje_jax.first_stage.registry import MILVUS
from edje_jax.index.files import LocalFiles, files_of
from edje_jax.index.store import Store, check_model
from edje_jax.search.reranker import Reranker
from edje_jax.serving.on_ray import Replicas, Spread
from edje_jax.serving.partitions import PartitionedIndex, PartitionedReranker, PartitionedService
from edje_jax.serving.service import Service

log = logging.getLogger(__name__)


def service_on_ray(asked: Any, ending: ExitStack) -> tuple[Service, int]:
    """Service over the processes of a cluster, and the number of threads that ask them; `ending`
    ends these processes.

    Raises:
        UsageError, BadStore, FileNotFoundError: as for `serve`.
        ValueError, RuntimeError: as for `Replicas`.
        ConnectionError: the cluster does not answer.
    """
    if asked.first_stage.startswith(MILVUS):
        raise UsageError(
            f"--first-stage {asked.first_stage} --on {asked.on}: Milvus holds the whole index, not"
            " parts of it; serve without --on, or choose another first stage"
        )
    ray = connect_to(asked.on)
    screening = screening_of(asked.first_stage, asked.bits, asked.by_codes, asked.by_projection)
    files = files_of(asked.index)
    if not isinstance(files, LocalFiles):
        raise UsageError(f"{files} --on {asked.on}: give a folder that all machines see")
    store = Store(files)
    reranker = model_of(store, asked)
    check_model(store, reranker.stamp)
    of_stage = {"first_stage": asked.first_stage, "bits": asked.bits, "screening": screening}
    spread = Spread(asked.replicas, asked.partitions)
    log.info(
        "starting %d parts of %s, %d processes each", spread.partitions,
        store.folder, spread.replicas,
    )  # fmt: skip
    began = time.monotonic()
    opened = partial(
        Reranker.from_pretrained, reranker.source,
        precision=asked.precision, runtime=asked.runtime,
    )  # fmt: skip
    options = {**of_stage, "tokens_on": asked.tokens_on}
    replicas = ending.enter_context(Replicas(ray, store, opened, spread, options, asked.warm))
    log.info("started in %.0f s", time.monotonic() - began)
    index = PartitionedIndex(replicas.ask, spread.partitions, store, **of_stage)
    partitioned = PartitionedReranker(replicas.ask, spread.partitions, reranker)
    # A thread waits while its processes compute; the next one has a batch ready for them.
    return PartitionedService(partitioned, index), 2 * spread.replicas
