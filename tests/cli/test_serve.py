"""`edje serve`: what it refuses before anything is loaded, and how it ends.

Covers cli/commands/search.py.
"""

import socket
import subprocess
import sys
import time
from unittest.mock import Mock

import pytest
import tyro

from edje_jax.cli.commands.search import Serve
from edje_jax.cli.program import UsageError
from edje_jax.cli.serve import listen, serve
from edje_jax.serving.limits import Limits


def parsed(*arguments: str) -> Serve:
    return tyro.cli(Serve, args=["no/such.index", *arguments])


def test_a_port_in_use_is_told_before_anything_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match=f"port {port} of 127.0.0.1 is in use.*--port"):
            serve(parsed("--port", str(port)))


def test_a_port_is_taken_from_the_start():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(RuntimeError, match="is in use"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--port", "70000"), "--port 70000: ports count from 0"),
        (("--host", "no.such.host.invalid"), "--host no.such.host.invalid: no such address"),
        (("--max-documents", "0"), "--max-documents 0: has to be more than 0"),
        (("--max-images", "-1"), "--max-images -1"),
        (("--max-body-mib", "0"), "--max-body-mib 0"),
        (("--timeout", "nan"), "--timeout nan"),
        (("--root-path", "http://a/b"), "--root-path http://a/b: give a path alone"),
        (("--cors-origin", "https://a/"), "--cors-origin https://a/: give scheme and host"),
        (("--cors-origin", "a.example"), "--cors-origin a.example"),
    ],
)
def test_options_that_make_no_sense(arguments, told):
    with pytest.raises(UsageError, match=told):
        serve(parsed(*arguments))


def test_an_address_that_is_not_this_machines():
    with pytest.raises(RuntimeError, match="--host is no address of this machine"):
        listen("192.0.2.1", 0)


def test_a_privileged_port(monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(RuntimeError, match=r"port 80 of .* may not be listened on by this"):
        listen("127.0.0.1", 80)


def test_every_option_reaches_the_application(monkeypatch):
    made = {}

    class Index:
        store = Mock()

        def __len__(self):
            return 3

    def keep(service, **options):
        made.update(options)
        raise InterruptedError

    monkeypatch.setattr("edje_jax.cli.search.ImageIndex.open", lambda *_, **__: Index())
    monkeypatch.setattr(
        "edje_jax.cli.serve.model_of", lambda *_: type("Model", (), {"stamp": {}, "source": "m"})
    )
    monkeypatch.setattr("edje_jax.cli.serve.check_model", lambda *_: None)
    monkeypatch.setattr("edje_jax.serving.app.make_app", keep)
    with pytest.raises(InterruptedError):
        serve(parsed(
            "--port", "0", "--max-documents", "7", "--max-images", "5", "--max-pixels", "99",
            "--max-body-mib", "2", "--max-k", "11", "--max-waiting", "3", "--max-batch", "4",
            "--timeout", "1.5", "--root-path", "find/", "--no-warm",
            "--cors-origin", "https://a", "--cors-origin", "http://b:8000",
        ))  # fmt: skip
    limits = Limits(
        body_bytes=2 << 20, documents=7, images=5, pixels=99, k=11,
        waiting=3, batch=4, seconds=1.5,
    )  # fmt: skip
    assert made["limits"] == limits and made["root_path"] == "/find" and not made["warm"]
    assert made["cors_origins"] == ("https://a", "http://b:8000")


@pytest.mark.slow
def test_it_ends_while_it_still_compiles(tmp_path):
    """Python would wait for a compiler that cannot be interrupted."""
    program = tmp_path / "program.py"
    program.write_text(
        """
import os, signal, threading, time
from unittest.mock import Mock
import edje_jax.cli.search as search
import edje_jax.cli.serve as serve
from edje_jax.cli.commands.search import Serve

class Index:
    store = Mock()
    def __len__(self):
        return 0

class Service:
    index = Index()
    def __init__(self, *_):
        pass
    def run(self, jobs):
        return []
    def warm(self):
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        time.sleep(60)

search.ImageIndex = type("Indexes", (), {"open": staticmethod(lambda *_, **__: Index())})
serve.model_of = lambda *_: type("Model", (), {"stamp": {}, "source": "m"})
serve.check_model = lambda *_: None
import edje_jax.serving.service
edje_jax.serving.service.Service = Service
serve.serve(Serve("index", port=0))
"""
    )
    began = time.monotonic()
    ran = subprocess.run([sys.executable, program], timeout=50, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert time.monotonic() - began < 45
