"""Micro-batching: requests that arrive together are computed together."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class Busy(RuntimeError):
    """The queue is full."""


@dataclass(frozen=True, eq=False)
class Waiting(Generic[Job, Result]):
    """Job in the queue."""

    job: Job
    done: "asyncio.Future[Result]"
    since: float


class Batcher(Generic[Job, Result]):
    """Compute on a thread, or on several; the jobs that are queued while all of them are busy
    become the next batch.

    `run` gets a list of jobs and returns a result, or an exception, for each. `taken`, if set, is
    called with the seconds that each job of a batch has waited, before it is computed.
    """

    taken: Callable[[Sequence[float]], None] | None = None

    def __init__(
        self,
        run: Callable[[Sequence[Job]], Sequence[Result | Exception]],
        max_waiting: int,
        max_batch: int,
        threads: int = 1,
    ):
        self._run = run
        self._max_batch = max_batch
        self._waiting: asyncio.Queue[Waiting[Job, Result]] = asyncio.Queue(max_waiting)
        self._num_threads = threads
        self._threads = ThreadPoolExecutor(threads, "compute")
        self._workers: list[asyncio.Task[None]] = []

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return self._waiting.qsize()

    def start(self) -> None:
        """Begin to work; to be called from the event loop."""
        self._workers = [asyncio.create_task(self._work()) for _ in range(self._num_threads)]

    async def stop(self) -> None:
        """Finish what is queued, then end."""
        await self._waiting.join()
        for worker in self._workers:
            worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await worker
        self._threads.shutdown()

    async def first(self, work: Callable[[], None]) -> None:
        """Do `work` on a thread that computes; where there is but one, jobs wait meanwhile."""
        await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def submit(self, job: Job) -> Result:
        """Result of `run` for the job.

        Raises:
            Busy: the queue is full.
        """
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait(Waiting(job, done, time.perf_counter()))
        except asyncio.QueueFull:
            raise Busy from None
        return await done

    async def _work(self) -> None:
        while True:
            taken = [await self._waiting.get()]
            while len(taken) < self._max_batch and not self._waiting.empty():
                taken.append(self._waiting.get_nowait())
            # The client has closed its connection: compute nothing.
            wanted = [one for one in taken if not one.done.cancelled()]
            if wanted:
                if self.taken:
                    now = time.perf_counter()
                    self.taken([now - one.since for one in wanted])
                await self._compute(wanted)
            for _ in taken:
                self._waiting.task_done()

    async def _compute(self, wanted: list["Waiting[Job, Result]"]) -> None:
        loop = asyncio.get_running_loop()
        jobs = [one.job for one in wanted]
        try:
            results = await loop.run_in_executor(self._threads, self._run, jobs)
        except Exception as error:
            results = [error] * len(wanted)
        for one, result in zip(wanted, results, strict=True):
            if one.done.cancelled():
                continue
            if isinstance(result, Exception):
                one.done.set_exception(result)
            else:
                one.done.set_result(result)
