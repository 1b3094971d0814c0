"""Backends by URL."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from oram.backends import LMDBBackend, MemoryBackend, RegionShape, open_url
from oram.errors import ParameterError, StoreNotFoundError


def test_memory() -> None:
    with open_url("memory:", sync=True, create=True) as backend:
        assert isinstance(backend, MemoryBackend)
        assert open_url("memory:", sync=True, create=False) is not backend


@pytest.mark.parametrize("slashes", ["", "//"])
def test_lmdb(tmp_path: Path, slashes: str) -> None:
    path = tmp_path / "a b%20?c#d:e@f"
    with pytest.raises(StoreNotFoundError):
        open_url(f"lmdb:{slashes}{path}", sync=True, create=False)
    with open_url(f"lmdb:{slashes}{path}", sync=False, create=True) as backend:
        assert isinstance(backend, LMDBBackend)
        assert backend.path == path
        backend.allocate("tree", RegionShape(1, 1))
    with open_url(f"lmdb:{slashes}{path}", sync=True, create=False) as backend:
        assert "tree" in backend.regions()


def test_lmdb_relative_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    open_url("lmdb:here", sync=False, create=True).close()
    open_url("lmdb:~/there", sync=False, create=True).close()
    assert (tmp_path / "here/data.mdb").exists()
    assert (tmp_path / "home/there/data.mdb").exists()


@pytest.mark.parametrize(
    "url", ["", "memory", "lmdb", "lmdb:", "memory:x", "lmdb://host/path", "http://host", "/a/path"]
)
def test_the_known_ones_are_listed(url: str) -> None:
    with pytest.raises(ParameterError, match=r"memory: and lmdb:PATH"):
        open_url(url, sync=True, create=True)


@pytest.mark.parametrize(
    "url",
    ["redis://user:hunter2@host:6379/0", "redis://:hunter2@host", "lmdb://user:hunter2@host/x", "x://u:a/hunter2@host"],
)
def test_passwords_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ParameterError, match="password") as raised:
        open_url(url, sync=True, create=True)
    assert "hunter2" not in str(raised.value)


def test_no_message_repeats_the_url() -> None:
    with pytest.raises(ParameterError) as raised:
        open_url("hunter2:hunter2?password=hunter2", sync=True, create=True)
    assert "hunter2" not in str(raised.value)


def test_the_package_works_without_lmdb(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["lmdb"] = None
import oram.backends
from oram.errors import ParameterError
oram.backends.open_url("memory:", sync=True, create=True).close()
for make in (oram.backends.LMDBBackend, oram.backends.LMDBStateFile.at):
    try:
        make(sys.argv[1])
    except ParameterError as error:
        assert "pip install lmdb" in str(error)
    else:
        raise AssertionError
"""
    path = tmp_path / "never made"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, path], env=environment, check=True, timeout=60)
    assert not path.exists()
