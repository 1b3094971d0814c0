"""Runs commands in this process, and keeps the keys of whoever runs the tests out of them."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from oram.cli import main

KEY = bytes(range(32))


@dataclass(frozen=True)
class Result:
    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()


Oram = Callable[..., Result]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours = ("KEY", "KEY_FILE", "PASSPHRASE", "NEW_PASSPHRASE", "TRACEBACK", "REDIS_USERNAME", "REDIS_PASSWORD")
    for name in (f"ORAM_{kind}" for kind in ours):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def oram(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Oram:
    """``oram("get", ...)`` runs a command; ``stdin=`` feeds it. A failure must be one line on stderr, whatever the command."""

    def run(*args: object, stdin: bytes = b"") -> Result:
        capfdbinary.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            code = main([str(arg) for arg in args])
        out, err = capfdbinary.readouterr()
        if code:
            assert err.decode().count("\n") == 1
            assert err.startswith(b"oram: ")
        return Result(code, out, err.decode())

    return run


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(KEY)
    path.chmod(0o600)
    return path


@pytest.fixture
def store(oram: Oram, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small store whose key is in the environment's key file."""
    monkeypatch.setenv("ORAM_KEY_FILE", str(key_file))
    path = tmp_path / "store"
    done = oram("create", path, "--capacity", 200, "--block-size", 256, "--tree-top", 0, "--durability", "process")
    assert done.code == 0
    return path
