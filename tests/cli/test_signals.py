"""SIGTERM and SIGHUP end a command as Ctrl-C does: with what it made cleaned up, and the exit code of the signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from oram.cli import signals
from oram.cli.exits import explain
from oram.cli.signals import EndedError, ending
from oram.testing.servers import Server, redis_server

pytestmark = pytest.mark.one_kernel

SIGNALS = [signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_an_exception(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    cleaned = list[int]()
    with pytest.raises(EndedError) as caught, ending():
        try:
            signal.raise_signal(number)
        except Exception:
            pytest.fail("it is no failure of what runs")
        finally:
            signal.raise_signal(signal.SIGHUP)  # of the shell, after that of the kernel
            cleaned.append(number)
    assert cleaned == [number]
    assert explain(caught.value) == (128 + number, f"ended by {number.name}")
    assert signal.getsignal(number) is before


def test_whatever_comes_of_it_it_is_the_signal_that_ended_it() -> None:
    with pytest.raises(EndedError) as caught, ending():
        try:
            signal.raise_signal(signal.SIGHUP)
        finally:
            raise OSError("the terminal is gone")
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(EndedError), ending(), suppress(BaseException):  # as a user's workload may
        signal.raise_signal(signal.SIGHUP)


def test_who_asks_again_later_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_ONCE", 0.0)
    heard = list[int]()
    with pytest.raises(EndedError), ending():
        for number in SIGNALS:
            try:
                signal.raise_signal(number)
            except EndedError as error:
                heard.append(error.number)
    assert heard == SIGNALS


def test_what_is_ignored_stays_ignored() -> None:
    """As under ``nohup``."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(KeyError), ending():
        raise KeyError
    with pytest.raises(KeyboardInterrupt), ending():
        raise KeyboardInterrupt


# --- of a command


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("server"), {"appendonly": "no"}) as server:
        yield server


def wait_until(there: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not there():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGINT])
@pytest.mark.parametrize("command", ["audit on disk", "audit on a server", "demo on a server"])
def test_a_command_leaves_nothing(number: signal.Signals, command: str, server: Server, tmp_path: Path) -> None:
    where = server.url("mine")
    words = {
        "audit on disk": ("audit", "--scheme", "path", "--backend", "lmdb"),
        "audit on a server": ("audit", "--scheme", "path", "--backend", where),
        "demo on a server": ("demo", where, "--fast", "--output", str(tmp_path / "page.html")),
    }[command]
    process = subprocess.Popen(
        [sys.executable, "-m", "oram", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    with process, redis.Redis(port=server.port) as client:
        try:
            disk = command == "audit on disk"
            wait_until(lambda: [*tmp_path.glob("oram-audit-*/*")] if disk else client.keys("*"), process)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
        said = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
        assert (process.returncode, err.splitlines()[-1]) == (128 + number, f"oram: {said}")
        assert client.keys("*") == []
    assert [*tmp_path.iterdir()] == []
