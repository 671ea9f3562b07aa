"""Batches of a random-access reader in order, prepared ahead in threads or processes by grain."""

import signal
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar, cast

Item = TypeVar("Item")
Read = TypeVar("Read", covariant=True)


class Reader(Protocol[Read]):
    """Random access to batches."""

    def __len__(self) -> int:
        """Batches."""
        ...

    def __getitem__(self, index: int) -> Read:
        """Batch at `index`."""
        ...


def prefetch(reader: Reader[Item], start: int, workers: int = 0) -> Iterator[Item]:
    """Batches `start`, `start + 1`, ..., in order.

    Args:
        workers: processes that read, each whole batches; 0 reads in two threads of this process.
    """
    # Imported late, as scoring needs neither.
    import grain
    from absl import flags

    dataset = grain.MapDataset.source(cast(Sequence, reader))[start:]
    if not workers:
        return iter(
            dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
        )
    # Grain reads its settings from flags, which nothing parses unless absl runs the program.
    flags.FLAGS.mark_as_parsed()
    return iter(
        dataset.to_iter_dataset(
            grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        ).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
            worker_init_fn=_ignore_interrupts,
        )
    )


def _ignore_interrupts(worker: int, workers: int) -> None:
    """Ignore Ctrl-C, which reaches every process: the main process alone decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
