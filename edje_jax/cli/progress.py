"""Progress bars of the commands."""

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bars:
    """A progress bar per kind of work; none when standard error is not a terminal."""

    def __enter__(self) -> "Bars":
        console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, Any] = {}
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """Show how much of some work is done."""
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total, rate="")
        task = self._tasks[what]
        self._bars.update(task, completed=done, total=total)
        if speed := self._bars.tasks[task].speed:
            self._bars.update(task, rate=f"{speed:.0f} a second")
