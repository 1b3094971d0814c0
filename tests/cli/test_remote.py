"""The commands over a real server: what works, what is said where it does not, and that no password is in anything."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

import oram as library
from oram.backends import RedisBackend
from oram.cli import guest
from oram.errors import BackendFullError
from oram.testing.proxy import Proxy
from oram.testing.servers import Server, free_port, redis_server

Oram = Callable[..., Any]

KEY = bytes(range(32))  # of the fixtures
SECRET = "hunter2-is-my-secret"
STATE = ("--state", "client")
SMALL = ("--capacity", 100, "--block-size", 128, "--tree-top", 0, *STATE)

#: Nothing that the client warns of.
SAFE = {"appendfsync": "always"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("server"), SAFE) as server:
        yield server


@pytest.fixture
def keys(server: Server) -> Callable[[str], set[str]]:
    """The keys on the server that begin so."""

    def found(start: str) -> set[str]:
        with redis.Redis(port=server.port) as client:
            return {key.decode() for key in client.scan_iter(f"{{{start}*", count=10_000)}

    return found


@pytest.fixture
def place(server: Server, request: pytest.FixtureRequest, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a store for this test alone, with the key in the environment's key file."""
    monkeypatch.setenv("ORAM_KEY_FILE", str(key_file))
    return server.url(request.node.name.partition("[")[0][:60])


def test_the_commands(oram: Oram, place: str, tmp_path: Path) -> None:
    made = oram("create", place, *SMALL)
    assert (made.code, made.err) == (0, "")
    assert json.loads(oram("info", place, *STATE, "--json").text)["scheme"] == "ring"
    assert oram("put", place, "name", "välue", *STATE).code == 0
    assert oram("get", place, "name", *STATE).out == "välue".encode()
    assert oram("delete", place, "name", *STATE).code == 0
    assert oram("get", place, "name", *STATE).code == 1
    (tmp_path / "f.csv").write_text("key,value\na,1\nb,2\nc,3\n")
    assert oram("load", place, "f.csv", "--batch", 2, *STATE).text == "loaded 3 records in 2 batches of 2\n"
    assert sorted(oram("keys", place, *STATE).text.split()) == ["a", "b", "c"]
    assert oram("dump", place, "-o", "d.jsonl", *STATE).code == 0
    assert oram("verify", place, *STATE).text == "ok: every slot opens, 3 records\n"
    assert oram("rekey", place, "--new-key-file", "second", *STATE).code == 0
    assert oram("get", place, "a", *STATE).code == 4
    assert oram("get", place, "a", "--key-file", "second", *STATE).out == b"1"
    with library.open(place, key=bytes.fromhex(Path("second").read_text()), state="client") as store:
        assert dict(store) == {b"a": b"1", b"b": b"2", b"c": b"3"}


def test_items_and_bulk_loads(oram: Oram, place: str, tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("key,value\na,1\nb,2\nc,3\n")
    assert (
        oram("create", place, *SMALL, "--items", "f.csv").text == "created a store for 100 records, loaded 3 records\n"
    )
    assert oram("load", place, "f.csv", *STATE).text == "loaded 3 records in bulk\n"
    assert oram("get", place, "c", *STATE).out == b"3"


def test_backup_and_restore(oram: Oram, place: str) -> None:
    assert oram("create", place, *SMALL).code == 0
    assert oram("put", place, "k", "old", *STATE).code == 0
    assert oram("backup", place, "copy", *STATE).code == 0
    assert oram("put", place, "k", "new", *STATE).code == 0
    assert oram("restore", "copy", place, *STATE).code == 3
    assert oram("restore", "copy", place, "--state", "other").code == 3
    assert not Path("other").exists()
    assert oram("restore", "copy", f"{place}.2", "--state", "other").text == "restored 1 record\n"
    assert oram("get", f"{place}.2", "k", "--state", "other").out == b"old"
    assert oram("restore", "copy", "here").code == 0
    assert oram("get", "here", "k").out == b"old"
    assert oram("get", place, "k", *STATE).out == b"new"
    assert oram("restore", place, "there", *STATE).code == 2
    assert oram("backup", "here", place).code == 2


def test_a_unix_socket(oram: Oram, tmp_path: Path, key_file: Path) -> None:
    with redis_server(tmp_path / "s", SAFE, unix=True) as server:
        assert oram("create", server.url(), *SMALL, "--key-file", key_file).code == 0
        assert oram("put", server.url(), "k", "v", *STATE, "--key-file", key_file).code == 0
        assert oram("get", server.url(), "k", *STATE, "--key-file", key_file).out == b"v"


# --- the demo


def test_the_demo(
    oram: Oram, server: Server, keys: Callable[[str], set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: dict[str, int] = {}
    erase = RedisBackend.erase

    def counted(self: RedisBackend) -> None:
        there[self.options.name] = len(keys(self.options.name))
        erase(self)

    monkeypatch.setattr(RedisBackend, "erase", counted)
    done = oram("demo", server.url("guest"), "--fast", "--accesses", 100, "--output", "page.html")
    assert (done.code, done.err) == (0, "")
    assert "All four stores are on the server" in " ".join(done.text.split())
    assert "What was made on the server is removed." in done.text
    assert "memory that plays" not in done.text + (tmp_path / "page.html").read_text()
    assert [line.split()[1:4:2] for line in done.text.splitlines() if line.startswith("│ process")] == [
        ["process", "encrypted"],
        ["process", "Path"],
        ["process", "Ring"],
        ["process", "Cuckoo"],
    ]
    assert [name.rpartition("-")[2] for name in there] == ["encrypted", "oblivious", "ring", "cuckoo"]
    assert all(name.startswith("guest-demo-") for name in there)
    assert min(there.values()) > 1000
    assert keys("guest") == set()
    assert list(tmp_path.iterdir()) == [tmp_path / "page.html"]


def test_a_demo_that_fails_is_removed_too(oram: Oram, tmp_path: Path) -> None:
    """The server is full, and refuses even to have regions dropped."""
    with redis_server(tmp_path / "s", SAFE) as server, redis.Redis(port=server.port) as client:
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + (4 << 20))
        done = oram("demo", server.url(), "--fast")
        assert done.code == 7
        assert "maxmemory" in done.err
        assert client.dbsize() == 0


def test_what_a_guest_leaves_is_said(capsys: pytest.CaptureFixture[str], server: Server) -> None:
    """The server went away in the middle."""
    with Proxy(server.port) as proxy:
        options = library.backends.RedisOptions(port=proxy.port, name="left", retry=0)
        there = guest.Guest.of(options)
        with pytest.raises(BackendFullError), there.room("ring"):
            proxy.down()
            raise BackendFullError
    assert "see the server's keys {left-demo-" in capsys.readouterr().err


# --- what goes wrong


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that wants a password, and has a user who may not write."""
    users = [f"default on >{SECRET} ~* +@all", f"reader on >{SECRET} ~* resetchannels -@all +get +select +hgetall"]
    with redis_server(tmp_path_factory.mktemp("guarded"), {**SAFE, "user": users}) as server:
        yield server


def test_passwords(oram: Oram, guarded: Server, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORAM_KEY_FILE", str(key_file))
    create = ("create", guarded.url(), *SMALL)
    missing = oram(*create)
    monkeypatch.setenv("ORAM_REDIS_PASSWORD", SECRET + "x")
    wrong = oram(*create)
    monkeypatch.setenv("ORAM_REDIS_USERNAME", "reader")
    monkeypatch.setenv("ORAM_REDIS_PASSWORD", SECRET)
    weak = oram(*create)
    inside = oram("create", guarded.url().replace("//", f"//default:{SECRET}@"), *SMALL)
    assert [done.code for done in (missing, wrong, weak, inside)] == [12, 12, 12, 2]
    for done in (missing, wrong, weak, inside):
        assert SECRET not in done.err + done.text
        assert "ORAM_REDIS_PASSWORD" in done.err
    assert not Path("client").exists()
    monkeypatch.delenv("ORAM_REDIS_USERNAME")
    for command in (create, ("put", guarded.url(), "k", "v", *STATE), ("doctor", guarded.url(), *STATE)):
        done = oram(*command)
        assert done.code == 0
        assert SECRET not in done.err + done.text


@pytest.mark.parametrize(
    "where", ["redis://user:{}@host", "redis://{}@host", "redis://{}\u2100@host", "unix://{}@/s", "redis://[{}"]
)
def test_a_url_with_a_password_is_refused_and_not_repeated(oram: Oram, where: str) -> None:
    for command in (("get", where.format(SECRET), "k", *STATE), ("demo", where.format(SECRET))):
        done = oram(*command)
        assert done.code == 2
        assert SECRET not in done.err


def test_a_fresh_user_without_a_server(tmp_path: Path) -> None:
    """The program as a whole: soon, in one line, and nothing is left."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "oram", "create", "redis://localhost:1", "--capacity", "10", "--key-file", "k", "--state", "s"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "ORAM_REDIS_PASSWORD": SECRET}, check=False,
    )  # fmt: skip
    assert time.monotonic() - start < 10  # a second, on a machine that does nothing else
    assert (done.returncode, done.stdout) == (11, "")
    assert done.stderr == "oram: no answer from redis://localhost:1/0?name=oram: Connection refused\n"
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_went_away(oram: Oram, server: Server, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORAM_KEY_FILE", str(key_file))
    with Proxy(server.port) as proxy:
        place = f"redis://127.0.0.1:{proxy.port}?name=away&retry=0&timeout=0.5"
        assert oram("create", place, *SMALL).code == 0
        assert oram("put", place, "k", "v", *STATE).code == 0
        proxy.down()
        start = time.monotonic()
        for command in (
            ("get", place, "k"),
            ("put", place, "k", "w"),
            ("verify", place),
            ("info", place),
            ("doctor", place),
        ):
            assert oram(*command, *STATE).code == 11
        assert time.monotonic() - start < 10
        proxy.up()
        proxy.cut("down", 1)
        assert oram("get", place, "k", *STATE).code == 11
        proxy.up()
        assert oram("get", place, "k", *STATE).out == b"v"


def test_a_server_that_says_nothing(oram: Oram, key_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"redis://127.0.0.1:{silent.getsockname()[1]}?timeout=0.2"
        done = oram("create", place, *SMALL, "--key-file", key_file)
    assert (done.code, done.err.endswith(": timed out\n")) == (11, True)


def test_another_client(oram: Oram, place: str) -> None:
    assert oram("create", place, *SMALL).code == 0
    with library.open(place, key=KEY, state="client"):
        for command in (("get", place, "k"), ("put", place, "k", "v"), ("info", place)):
            done = oram(*command, *STATE)
            assert done.code == 6
            assert "another client has the store open; if it died, its lease expires in " in done.err
    assert oram("put", place, "k", "v", *STATE).code == 0


def test_client_state_that_is_missing(oram: Oram, place: str, tmp_path: Path) -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}"  # what is asked for no state is asked of no server
    (tmp_path / "f.csv").write_text("key,value\n")
    commands = (
        ["create", nowhere, "--capacity", 10], ["info", nowhere], ["get", nowhere, "k"], ["put", nowhere, "k", "v"], ["delete", nowhere, "k"],
        ["load", nowhere, "f.csv"], ["dump", nowhere], ["keys", nowhere], ["verify", nowhere], ["backup", nowhere, "y"], ["restore", "x", nowhere],
        ["rekey", nowhere, "--new-key-file", "n"], ["doctor", nowhere],
    )  # fmt: skip
    for command in commands:
        done = oram(*command)
        assert done.code == 2
        assert done.err.startswith("oram: give --state PATH: ")
    assert oram("create", place, *SMALL).code == 0
    for command in (["get", place, "k"], ["info", place], ["create", place, "--capacity", 10]):
        assert oram(*command, "--state", "another").code == 3
    assert not (tmp_path / "another").exists()
    assert not (tmp_path / "n").exists()
    assert oram("get", f"{place}.none", "k", "--state", "another").code == 3


def test_a_create_that_fails_late_leaves_no_slots(
    oram: Oram, place: str, keys: Callable[[str], set[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "f.csv").write_text("key,value\na,1\n")
    name = place.partition("name=")[2]
    with monkeypatch.context() as patch:
        patch.setattr("oram.store.install", _no_space)
        assert oram("create", place, *SMALL, "--items", "f.csv", "--key-file", "new").code == 7
    assert keys(name) == {f"{{{name}}}:fence", f"{{{name}}}:regions"}
    assert not Path("client").exists()
    assert not Path("new").exists()
    assert oram("create", place, *SMALL).code == 0


def _no_space(*_: object, **__: object) -> None:
    raise BackendFullError("no room at this place")


# --- what is said where all is well


def test_settings_are_warned_of_once(tmp_path: Path, oram: Oram, key_file: Path) -> None:
    warning = "oram: warning: appendfsync is not always: a loss of power takes the last writes back, and with them the store\n"
    key = ("--key-file", key_file)
    with redis_server(tmp_path / "s", {"appendfsync": "everysec"}) as server:
        place = server.url()
        made = oram("create", place, *SMALL, *key)  # asks several times
        assert (made.code, made.err) == (0, warning)
        assert oram("put", place, "k", "v", *STATE, *key).err == warning
        got = oram("get", place, "k", *STATE, *key)
        assert (got.out, got.err) == (b"v", warning)
        told = oram("doctor", place, *STATE)
        assert (told.code, told.err) == (0, "")
        assert "The server's setting: appendfsync is not always" in told.text
        found = json.loads(oram("doctor", place, *STATE, "--json").text)
        assert [setting.split()[0] for setting in found["server"]["settings"]] == ["appendfsync"]
        assert found["store"]["capacity"] == 100
        assert "Nothing to improve." not in found["advice"]


def test_doctor_of_a_safe_server(oram: Oram, place: str) -> None:
    assert oram("create", place, *SMALL).code == 0
    assert json.loads(oram("doctor", place, *STATE, "--json").text)["server"] == {"settings": []}
    assert "can lose slots, as far as it says: none" in oram("doctor", place, *STATE).text


def test_without_the_extra(oram: Oram, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"extra redis      installed: redis {redis.__version__}, hiredis " in oram("doctor").text
    monkeypatch.setattr("oram.backends.redis.backend.missing", "No module named 'redis'")
    done = oram("create", "redis://localhost", *SMALL, "--key-file", key_file)
    assert done.code == 2
    assert "pip install oram[redis]" in done.err
    monkeypatch.setattr("oram.cli.doctor._version", lambda name: None if name == "redis" else "1.0")
    assert "extra redis      not installed (redis missing, hiredis 1.0)" in oram("doctor").text
    assert "pip install 'oram[redis]'" in oram("doctor").text


def test_help_names_the_urls(oram: Oram) -> None:
    for command in ("create", "get", "restore", "demo", "--help"):
        assert "redis://" in oram(command, "--help").text
    assert "ORAM_REDIS_PASSWORD" in oram("--help").text


def test_shards(oram: Oram, place: str, keys: Callable[[str], set[str]], tmp_path: Path) -> None:
    """Names on a server, found again by what the client state says; and nothing stays of one that was not made."""
    name = place.rpartition("=")[2]
    assert oram("create", place, *SMALL, "--shards", 0).code == 2
    assert oram("create", place, *SMALL, "--shards", 200).code == 2
    (tmp_path / "bad.csv").write_text("key,value\n" + "k," + "x" * 999 + "\n")
    assert oram("create", place, *SMALL, "--shards", 3, "--items", "bad.csv").code != 0
    (tmp_path / "f.csv").write_text("key,value\na,1\nb,2\nc,3\n")
    assert oram("create", place, *SMALL, "--shards", 3, "--items", "f.csv").code == 0
    assert json.loads(oram("info", place, *STATE, "--json").text)["shards"] == 3
    slots = {key for key in keys(name) if key.count(":") > 1}
    assert {key.partition("}")[0] for key in slots} == {f"{{{name}.{j}" for j in range(3)}
    assert oram("put", place, "d", "4", *STATE).code == 0
    assert oram("get", place, "d", *STATE).out == b"4"
    assert oram("verify", place, *STATE).text == "ok: every slot opens, 4 records\n"
    assert "shards" in oram("doctor", place, *STATE).text
    assert oram("backup", place, "copy", *STATE).code == 0
    assert oram("restore", "copy", f"{place}2", "--state", "other").text == "restored 4 records\n"
    assert oram("get", f"{place}2", "d", "--state", "other").out == b"4"
    assert oram("restore", "copy", "here").code == 0
    assert oram("get", "here", "d").out == b"4"
    assert oram("create", place, *SMALL[:-1], "third", "--shards", 3).code == 3
    assert not Path("third").exists()


def test_shards_that_do_not_get_far_leave_nothing(
    oram: Oram, place: str, keys: Callable[[str], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise BackendFullError("no room")

    monkeypatch.setattr("oram.store.install", full)
    assert oram("create", place, *SMALL, "--shards", 2).code != 0
    name = place.rpartition("=")[2]
    assert {key for key in keys(name) if key.count(":") > 1} == set()
    assert not Path("client").exists()
