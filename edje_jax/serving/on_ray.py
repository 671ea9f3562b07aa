"""Serving on a Ray cluster: parts of an index as deployments of Ray Serve, asked by this process.

Every part has as many replicas as were asked for, which Ray Serve starts, watches and replaces. The
HTTP of `edje serve` stays in the process of the command, whose `Service` asks the replicas through
Ray Serve's handles: a request is not held by a process that Ray may lose, and what a dying replica
had begun is asked of another one.
"""

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from edje_jax.index.partition import Partition
from edje_jax.index.store import Store
from edje_jax.search.reranker import Reranker
from edje_jax.serving.partitions import Ask, OpenPartition, Question
from edje_jax.system.ray_cluster import first_cause, go_to, machines

log = logging.getLogger(__name__)

WAITING = 4
"""Calls that a replica takes while it computes one."""
STARTS = 2
"""Times that a part's processes are started until it counts as one that cannot be opened."""
SECONDS = 120.0
"""Time for which a question is asked again and again while the replicas that have it are lost."""
PAUSE = 0.1
"""Seconds before it is asked again."""

OpenModel = Callable[[], Reranker]
"""Function that opens the model in any process; it pickles."""


@dataclass(frozen=True)
class Spread:
    """Processes over which an index is spread."""

    replicas: int
    """Processes that have the same part; each serves requests of its own."""
    partitions: int
    """Parts of the index; a request asks all of them."""


class Replica:
    """Process of a part of an index: it computes one call after the other on a thread, so that Ray
    Serve is answered meanwhile; it counts as started once everything is compiled."""

    def __init__(
        self,
        open_model: OpenModel,
        partition: Partition,
        options: dict[str, Any],
        folder: str,
        warm: bool,
    ):
        go_to(folder)
        self._thread = ThreadPoolExecutor(1, "compute")
        self._open = OpenPartition(open_model(), partition, **options)
        if warm:
            self._open.warm()

    async def ask(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """Result of a method of `OpenPartition`."""
        work = getattr(self._open, method)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


class Replicas:
    """Deployments of all parts of an index; `ask` is the function that `partitions` needs.

    Used as a context manager, it deletes them at the end.

    Raises:
        ValueError: the index has fewer shards than parts, or the cluster fewer accelerators than
            processes.
        RuntimeError: a part could not be opened; the message says why.
    """

    def __init__(
        self,
        ray: Any,
        store: Store,
        open_model: OpenModel,
        spread: Spread,
        options: dict[str, Any],
        warm: bool = True,
    ):
        self._ray, self._serve = ray, ray.serve
        if spread.partitions > (shards := len(store.manifest.shards)):
            raise ValueError(
                f"--partitions {spread.partitions}: {store.folder} has {shards} shards, which are"
                " not divided"
            )
        folder = store.folder.absolute()
        parts = [
            Partition(folder, store.manifest, number, spread.partitions)
            for number in range(spread.partitions)
        ]
        deployment = ray.serve.deployment(
            Replica,
            num_replicas=spread.replicas,
            ray_actor_options=_resources(ray, spread),
            max_ongoing_requests=WAITING,
            max_constructor_retry_count=STARTS,
            health_check_period_s=5,
            health_check_timeout_s=30,
            graceful_shutdown_timeout_s=5,
        )
        name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
        self._names = [f"edje-{name}-{part.number}" for part in parts]
        ray.serve.start(proxy_location="Disabled", logging_config=_QUIET)
        targets = [
            ray.serve.RunTarget(
                deployment.bind(open_model, part, options, os.getcwd(), warm),
                name=app, route_prefix=None, logging_config=_QUIET,
            )
            for app, part in zip(self._names, parts, strict=True)
        ]  # fmt: skip
        try:
            self._handles = ray.serve.run_many(targets)
        except RuntimeError as error:
            reason = self._why_it_failed() or str(error)
            self.__exit__()
            raise RuntimeError(f"{store.folder}: not served: {reason}") from error
        except BaseException:  # Interrupted, perhaps, while it waited for room
            self.__exit__()
            raise

    @property
    def ask(self) -> Ask:
        """Function that asks several questions at once; what a lost replica does not answer is
        asked of another one."""
        return self._ask

    def _ask(self, questions: Sequence[Question]) -> list[Any]:
        until = time.monotonic() + SECONDS
        begun = [self._begin(one) for one in questions]
        return [
            self._answer(one, response, until)
            for one, response in zip(questions, begun, strict=True)
        ]

    def _begin(self, question: Question) -> Any:
        return self._handles[question.partition].ask.remote(question.method, question.arguments)

    def _answer(self, question: Question, response: Any, until: float) -> Any:
        lost = (
            self._ray.exceptions.RayActorError,
            self._ray.serve.exceptions.ReplicaUnavailableError,
        )
        while True:
            try:
                return response.result(timeout_s=max(until - time.monotonic(), 0))
            except self._ray.exceptions.RayTaskError as error:
                raise first_cause(error) from error
            except lost as error:
                if time.monotonic() > until:
                    raise
                log.warning("a replica of part %d is lost: asked again", question.partition)
                log.debug("%s", error)
                time.sleep(PAUSE)
                response = self._begin(question)

    def _why_it_failed(self) -> str:
        """Last lines of what Ray Serve says about a part that does not start."""
        apps = self._serve.status().applications
        told = [
            one.message
            for name in self._names if name in apps
            for one in apps[name].deployments.values() if one.message
        ]  # fmt: skip
        return told[0].strip().splitlines()[-1] if told else ""

    def __enter__(self) -> "Replicas":
        return self

    def __exit__(self, *error: object) -> None:
        for name in self._names:
            self._serve.delete(name, _blocking=False)


_QUIET = {"log_level": "ERROR", "enable_access_log": False}


def _resources(ray: Any, spread: Spread) -> dict[str, Any]:
    """Options of Ray for each replica: an accelerator, or its share of the cores."""
    found, processes = machines(ray), spread.replicas * spread.partitions
    if found.options != {"num_cpus": 1}:
        if processes > found.count:
            raise ValueError(
                f"--partitions {spread.partitions} --replicas {spread.replicas}: {processes}"
                f" processes, and the cluster has accelerators for {found.count}"
            )
        return found.options
    cores = sum(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    return {"num_cpus": min(1.0, int(100 * cores / processes) / 100)}
