"""``oram watch`` up to the page itself, which ``tests/dashboard`` is about."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from oram.dashboard import server
from oram.dashboard.session import Settings

Oram = Callable[..., Any]
pytestmark = pytest.mark.one_kernel


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.1", "example.org", "::"])
def test_only_the_loopback(oram: Oram, host: str) -> None:
    done = oram("watch", "--host", host, "--port", 0)
    assert done.code == 2
    assert "on the loopback only" in done.err


def test_wrong_options(oram: Oram) -> None:
    done = oram("watch", "--scheme", "x", "--port", 0)
    assert (done.code, done.err) == (2, "oram: no such scheme: path, ring, cuckoo, linear\n")
    assert oram("watch", "--port", 70000).code == 2
    assert oram("watch", "--seed", -1).code == 2


def test_a_port_that_is_taken(oram: Oram) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = oram("watch", "--port", taken.getsockname()[1])
    assert done.code == 7
    assert "in use" in done.err


def test_without_the_extra(oram: Oram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "oram.dashboard.server")
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    done = oram("watch")
    assert done.code == 2
    assert "oram[dashboard]" in done.err


def test_the_extra_is_enough() -> None:
    """What only other extras bring is not needed, also where it is not installed."""
    others = ("pytest", "hypothesis", "redis", "pyaegis", "playwright", "httpx2")
    code = f"import sys; sys.modules.update(dict.fromkeys({others})); import oram.dashboard.server as s; s.Session().step(5)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ctrl_c_is_how_it_ends(oram: Oram, monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict[str, Any]()

    def serve(listening: socket.socket, **options: Any) -> None:
        given.update(options, port=listening.getsockname()[1])
        listening.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "serve", serve)
    done = oram("watch", "--port", 0, "--scheme", "ring", "--seed", 5)
    assert (done.code, done.err) == (0, "")
    assert done.text.splitlines() == [
        f"What the server sees: http://127.0.0.1:{given['port']}/ (Ctrl-C ends it)",
        "stopped",
    ]
    assert (given["settings"], given["seed"]) == (Settings().changed(scheme="ring"), 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_have_codes_of_their_own(
    oram: Oram, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def serve(listening: socket.socket, **_: Any) -> None:
        listening.close()
        signal.raise_signal(number)  # as uvicorn does, after all has ended

    monkeypatch.setattr(server, "serve", serve)
    done = oram("watch", "--port", 0)
    assert (done.code, done.err) == (128 + number, f"oram: ended by {number.name}\n")
