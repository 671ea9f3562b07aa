"""Timing of one piece of work in several processes, which differ in how they are started and take
turns.

What slows the machine for a while then slows all of them. A process calls `serve`, which does the
work once for every line of its standard input and answers the seconds that it took.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence


def in_turns(
    commands: Mapping[str, Sequence[str]], environments: Mapping[str, dict[str, str]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of every round, by side; a first round, which compiles, is not counted.

    `commands` gives the arguments after the interpreter of each side, `environments` its variables.
    """
    processes = {
        side: subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environments[side],
        )
        for side, command in commands.items()
    }
    seconds: dict[str, list[float]] = {side: [] for side in commands}
    for number in range(rounds + 1):
        for side, process in processes.items():
            assert process.stdin and process.stdout
            process.stdin.write("\n")
            process.stdin.flush()
            took = float(process.stdout.readline())
            if number:
                seconds[side].append(took)
    for process in processes.values():
        process.communicate()
    return seconds


def serve(work: Callable[[], object]) -> None:
    """Do the work once for every line of standard input, and print the seconds that it took."""
    for _ in sys.stdin:
        began = time.perf_counter()
        work()
        print(time.perf_counter() - began, flush=True)
