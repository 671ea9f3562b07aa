"""Requests per second and latency of `edje serve` under load, over loopback.

    python benchmarks/serve.py INDEX [--k 100] [--clients 1 8 64] [--seconds 10] [--out serve.json]

Starts the server on a free port, waits until it is warm, and lets so many clients ask without
pause. Every answer is looked at: a 200 with results, or a 429 with Retry-After when the queue is
full; anything else counts as lost.
"""

import argparse
import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from side_by_side import machine

from edje_jax.index.store import Store


def main() -> None:
    """Measure every number of clients, print a table, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("index", help="folder of an index with captions")
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--max-waiting", type=int, default=32)
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    queries = [caption for _, caption in Store(Path(options.index)).captions][:1000]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "edje_jax.cli.edje", "serve", options.index]
    limits = ["--port", str(port), "--max-waiting", str(options.max_waiting)]
    server = subprocess.Popen([*command, *limits], stderr=subprocess.DEVNULL)
    try:
        wait_until_up(server, port)
        rows = {
            count: load(port, queries, options.k, count, options.seconds)
            for count in options.clients
        }
    finally:
        server.terminate()
        code = server.wait(timeout=60)
    table = Table("clients", "answers/s", "p50 ms", "p99 ms", "answered", "429", "lost")
    for count, row in rows.items():
        table.add_row(
            str(count), f"{row['answers_per_second']:.1f}", f"{row['p50']:.0f}",
            f"{row['p99']:.0f}", *(str(row[name]) for name in ("answered", "refused", "lost")),
        )  # fmt: skip
    Console().print(table, f"exit code of the server on SIGTERM: {code}")
    if options.out:
        result = {"machine": machine(), "k": options.k, "clients": rows, "exit_code": code}
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def wait_until_up(server: subprocess.Popen, port: int) -> None:
    """Until it is warm and answers."""
    while server.poll() is None:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.2)
    raise RuntimeError("the server ended before it answered")


def load(port: int, queries: list[str], k: int, clients: int, seconds: float) -> dict[str, Any]:
    """So many clients, each asking again as soon as it is answered."""
    taken: list[float] = []
    counts = {"answered": 0, "refused": 0, "lost": 0}
    lock, end = threading.Lock(), time.perf_counter() + seconds

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        asked = number
        while time.perf_counter() < end:
            asked += clients
            body = json.dumps({"query": queries[asked % len(queries)], "k": k})
            began = time.perf_counter()
            try:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", "/search", body, headers)
                answer = connection.getresponse()
                found = json.loads(answer.read())
                good = answer.status == 200 and len(found["results"]) > 0
                refused = answer.status == 429 and answer.headers["Retry-After"]
            except (OSError, ValueError, http.client.HTTPException):
                good = refused = False
                connection.close()
            spent = time.perf_counter() - began
            with lock:
                counts["answered" if good else "refused" if refused else "lost"] += 1
                if good:
                    taken.append(1000 * spent)
            if refused:
                time.sleep(0.1)

    began = time.perf_counter()
    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        **counts,
        "answers_per_second": counts["answered"] / (time.perf_counter() - began),
        "p50": float(np.percentile(taken, 50)),
        "p99": float(np.percentile(taken, 99)),
    }


if __name__ == "__main__":
    main()
