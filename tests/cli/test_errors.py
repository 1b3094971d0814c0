"""Every failure: its exit code, one line (which the fixture checks), and nothing secret in it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

import oram as library
from oram import errors
from oram.cli import exits, formats, places

SECRET = "hunter2-is-my-secret"

KEY = bytes(range(32))  # of the fixtures
Oram = Callable[..., Any]


def test_wrong_key(oram: Oram, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORAM_KEY", bytes(32).hex())
    for command in (
        ["get", store, SECRET],
        ["verify", store],
        ["dump", store],
        ["rekey", store, "--new-key-file", "n"],
    ):
        done = oram(*command)
        assert done.code == 4
        assert SECRET not in done.err
    assert not Path("n").exists()
    monkeypatch.delenv("ORAM_KEY")
    monkeypatch.delenv("ORAM_KEY_FILE")
    monkeypatch.setenv("ORAM_PASSPHRASE", SECRET)
    done = oram("get", store, "k")
    assert done.code == 4
    assert SECRET not in done.err


def test_missing_store(oram: Oram, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORAM_KEY_FILE", str(key_file))
    (tmp_path / "f.csv").write_text("key,value\n")
    commands = (
        ["info", "x"], ["get", "x", "k"], ["put", "x", "k", "v"], ["delete", "x", "k"], ["load", "x", "f.csv"], ["dump", "x"], ["keys", "x"], ["verify", "x"],
        ["backup", "x", "y"], ["restore", "x", "y"], ["rekey", "x", "--new-key-file", "n"], ["doctor", "x"],
    )  # fmt: skip
    for command in commands:
        assert oram(*command).code == 3
    assert not (tmp_path / "x").exists()


def test_existing_store(oram: Oram, store: Path) -> None:
    done = oram("create", store, "--capacity", 10)
    assert (done.code, done.err) == (3, "oram: there is a store at this place already\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scheme", "path", "-S", 3], "-S: only with --scheme ring"),
        (["--scheme", "path", "-Z", 4, "--xor"], "--xor: only with --scheme ring"),
        (["--scheme", "linear", "-Z", 4], "-Z: only with --scheme path or --scheme ring"),
        (["-Z", 4], "-Z: only with --scheme path or --scheme ring"),
        (["-A", 3, "--metadata", "client"], "-A, --metadata: only with --scheme ring"),
        (["--scheme", "ring", "-A", 3], "A and S need Z"),
        (["--scheme", "ring", "-Z", 2], "Z must be an integer from 3 to 128: below 3 no stash is bounded"),
        (["--scheme", "ring", "-Z", 4, "-A", 4], "with Z=4 the stash is bounded for A of at most 3"),
        (["--scheme", "ring", "--metadata", "both"], 'metadata must be "client" or "server"'),
        (["--scheme", "ring", "--xor"], "this backend cannot XOR slots: give xor=None or False"),
        (["--eps", 0.2], "--eps: only with --scheme cuckoo"),
        (["--scheme", "ring", "--rebuild", "amortized"], "--rebuild: only with --scheme cuckoo"),
        (["--scheme", "cuckoo", "-A", 3], "-A: only with --scheme ring"),
        (["--scheme", "cuckoo", "-A", 3, "--eps", 0.2], "-A, --eps: no scheme has all of these"),
        (
            ["--scheme", "cuckoo", "--eps", 0.05],
            "eps must be a number from 0.1 to 3: below, the stash of a level has no useful bound",
        ),
        (["--scheme", "cuckoo", "--rebuild", "never"], 'rebuild must be "deamortized" or "amortized"'),
        (["--scheme", "ring", "--index", "none"], "--index: only with --scheme cuckoo"),
        (["--scheme", "cuckoo", "--index", "server"], 'index must be "client" or "none"'),
        (["--scheme", "square", "-Z", 4], "scheme must be one of path, ring, cuckoo, linear"),
    ],
)
def test_parameters_of_schemes(oram: Oram, key_file: Path, tmp_path: Path, options: list[object], message: str) -> None:
    done = oram("create", "s", "--capacity", 50, "--key-file", key_file, *options)
    assert (done.code, done.err) == (2, f"oram: {message}\n")
    assert not (tmp_path / "s").exists()


def test_changed_slots(oram: Oram, store: Path) -> None:
    for i in range(5):
        oram("put", store, f"k{i}", "v")
    _flip(store, b"region slots.1")
    assert oram("verify", store).code == 5
    done = oram("verify", store, "--json")
    assert done.code == 5
    found = json.loads(done.text)
    assert (found["ok"], found["exit"]) == (False, 5)
    assert found["error"] in done.err
    assert oram("dump", store, "--output", "d.jsonl").code == 5
    assert not Path("d.jsonl").exists()
    assert not list(Path().glob(".d.jsonl*"))


def _flip(store: Path, name: bytes) -> None:
    """Change one bit of each slot of a region, as the server could."""
    with lmdb.open(str(store), max_dbs=256) as environment, environment.begin(write=True) as txn:
        region = environment.open_db(name, txn=txn, create=False)
        for key, value in list(txn.cursor(region)):
            txn.put(key, bytes([value[0] ^ 1]) + value[1:], db=region)


def test_damaged_file(oram: Oram, store: Path) -> None:
    data = store / "data.mdb"
    data.write_bytes(data.read_bytes()[: -(1 << 14)])
    assert oram("get", store, "k").code in (5, 7)


def test_rolled_back_state(oram: Oram, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORAM_KEY_FILE", str(key_file))
    state = ("--state", "client")
    assert oram("create", "s", "--capacity", 100, "--block-size", 128, *state).code == 0
    oram("put", "s", "k", "v", *state)
    old = (tmp_path / "client" / "data.mdb").read_bytes()
    oram("put", "s", "k", "w", *state)
    (tmp_path / "client" / "data.mdb").write_bytes(old)
    assert oram("get", "s", "k", *state).code == 5


def test_missing_state(oram: Oram, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORAM_KEY_FILE", str(key_file))
    assert oram("create", "s", "--capacity", 100, "--state", "client").code == 0
    assert oram("get", "s", "k").code == 3
    assert oram("get", "s", "k", "--state", "elsewhere").code == 3


def test_locked_store(oram: Oram, store: Path) -> None:
    code = f"import oram, sys; s = oram.open('lmdb:{store}', key=bytes.fromhex('{KEY.hex()}')); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        assert oram("get", store, "k").code == 6
        assert oram("info", store).code == 6
        assert other.stdin is not None
        other.stdin.close()
        assert other.wait(30) == 0
    assert oram("get", store, "k").code == 1


def test_too_large(oram: Oram, store: Path) -> None:
    for command in (["put", store, "k", SECRET * 20], ["put", store, SECRET * 20, "v"], ["get", store, SECRET * 20]):
        done = oram(*command)
        assert done.code == 8
        assert SECRET not in done.err


def test_full(oram: Oram, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORAM_KEY_FILE", str(key_file))
    assert oram("create", "s", "--capacity", 2, "--block-size", 64).code == 0
    assert [oram("put", "s", key, "v").code for key in ("a", "b", SECRET, "a")] == [0, 0, 8, 0]


def test_no_space(oram: Oram, store: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oram.backends.lmdb.LMDBBackend.read", _no_space)
        assert oram("get", store, "k").code == 7


def _no_space(*_: object, **__: object) -> None:
    raise errors.BackendFullError("no room at this place")


def test_backup_opened_directly(oram: Oram, store: Path) -> None:
    assert oram("backup", store, "backup").code == 0
    assert oram("get", "backup", "k").code == 9
    assert oram("verify", "backup").code == 9


def test_unclean(oram: Oram, store: Path) -> None:
    code = f"""
import os, oram
store = oram.open("lmdb:{store}", key=bytes.fromhex("{KEY.hex()}"), durability="none")
store[b"k"] = b"v"
os._exit(0)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    done = oram("get", store, "k")
    assert done.code == 9
    assert done.err.endswith("its client state is lost: restore a backup\n")


@pytest.mark.parametrize(
    "command",
    [
        ["create", "n"],
        ["create", "n", "--capacity", "many"],
        ["create", "n", "--capacity", "0"],
        ["create", "n", "--capacity", "10", "--block-size", "4 potatoes"],
        ["create", "n", "--capacity", "10", "--block-size", "7"],
        ["create", "n", "--capacity", "10", "--scheme", "round"],
        ["create", "n", "--capacity", "10", "--cipher", "rot13"],
        ["create", "n", "--capacity", "10", "--durability", "some"],
        ["create", "n", "--capacity", "10", "--items", "none.csv"],
        ["create", "n", "--capacity", "10", "--items", "items.txt"],
        ["create", "n", "--capacity", "10", "--items", "-"],
        ["create", "n", "--capacity", "10", "--blocks-per-value", "0"],
        ["create", "memory:", "--capacity", "10"],
        ["create", "redis://host/0", "--capacity", "10"],
        ["create", "redis:host", "--capacity", "10", "--state", "n"],
        ["create", "redis://", "--capacity", "10", "--state", "n"],
        ["create", "redis://host/0?colour=red", "--capacity", "10", "--state", "n"],
        ["create", "redis://[host", "--capacity", "10", "--state", "n"],
        ["create", "unix://host/socket", "--capacity", "10", "--state", "n"],
        ["get", "rediss://host", "k"],
        ["info", "unix:///socket"],
        ["doctor", "redis://host"],
        ["demo", "store"],
        ["demo", "memory:"],
        ["demo", "redis://host", "--dir", "n"],
        ["demo", "redis://host?colour=red"],
        ["create", "", "--capacity", "10"],
        ["get", "store"],
        ["get", "store", "k", "--hex"],
        ["get", "store", "k", "--hex", "--base64"],
        ["put", "store", "k"],
        ["put", "store", "k", "v", "--file", "f"],
        ["put", "store", "k", "--file", "missing"],
        ["load", "store", "missing.csv"],
        ["load", "store", "-"],
        ["dump", "store", "--format", "xml"],
        ["keys", "store", "--json", "--hex"],
        ["get", "store", "k", "--key-file", "missing"],
        ["frobnicate"],
        ["demo", "--seed", "-1"],
        ["demo", "--output", "no/such/directory.html"],
    ],
)
def test_usage(oram: Oram, store: Path, command: list[str]) -> None:
    assert store.name == "store"
    assert oram(*command).code == 2
    assert not Path("n").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["k", "v", SECRET],
        ["k", f"--{SECRET}"],
        ["k", f"-{SECRET}"],
        [f"--{SECRET}=v", "k"],
        ["--hex", SECRET, SECRET],
        ["--base64", "a", SECRET],
    ],
)
def test_a_wrong_command_line_is_not_repeated(oram: Oram, store: Path, words: list[str]) -> None:
    done = oram("put", store, *words)
    assert done.code == 2
    assert SECRET not in done.err
    assert SECRET[:5] not in done.err


def test_bad_key_files(oram: Oram, store: Path, tmp_path: Path) -> None:
    for text in (b"", SECRET.encode(), b"g" * 64, b"0" * 63):
        path = tmp_path / "bad"
        path.write_bytes(text)
        path.chmod(0o600)
        done = oram("get", store, "k", "--key-file", path)
        assert done.code == 2
        assert SECRET not in done.err


def test_output_that_cannot_be_written(oram: Oram, store: Path) -> None:
    oram("put", store, "k", "v")
    assert oram("get", store, "k", "--output", "no/such/file").code == 7


@pytest.mark.parametrize("command", ["dump", "keys"])
def test_a_reader_that_goes_away_hears_nothing_of_it(store: Path, oram: Oram, command: str) -> None:
    oram("put", store, "k", "v")
    with subprocess.Popen(
        [sys.executable, "-m", "oram", command, str(store)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as dump:
        assert dump.stdout is not None
        assert dump.stderr is not None
        dump.stdout.close()
        assert dump.stderr.read() == b""
        assert dump.wait(30) == 141


def test_an_output_file_that_is_there(oram: Oram, store: Path, tmp_path: Path) -> None:
    oram("put", store, "k", "v")
    there = tmp_path / "there.jsonl"
    for command in (["get", store, "k"], ["dump", store]):
        there.write_text("mine")
        done = oram(*command, "--output", there)
        assert (done.code, done.err) == (2, f"oram: {there} is there already: --force replaces it\n")
        assert there.read_text() == "mine"
        assert oram(*command, "--output", there, "--force").code == 0
        assert b"v" in there.read_bytes()
        assert oram(*command, "--output", tmp_path, "--format" if command[0] == "dump" else "--force", "csv").code == 2
    (tmp_path / "away").symlink_to(tmp_path / "nowhere")
    assert oram("get", store, "k", "--output", "away", "--force").code == 2
    assert oram("get", store, "k", "--output", "/dev/null", "--force").code == 2
    assert Path("/dev/null").is_char_device()


def test_an_output_file_that_comes_meanwhile(store: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    with pytest.raises(exits.InputError, match="already"), formats.replacing(there) as file:
        file.write(b"new")
        there.write_text("mine")
    assert there.read_text() == "mine"
    assert not list(tmp_path.glob(".there*"))


def test_rekey_to_the_same_key(oram: Oram, store: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oram("put", store, "k", "v")
    copy = key_file.with_name("copy")
    copy.write_text(KEY.hex())
    copy.chmod(0o600)
    done = oram("rekey", store, "--new-key-file", copy)
    assert (done.code, done.err) == (2, "oram: the new key is the one that the store has: nothing was changed\n")
    monkeypatch.setenv("ORAM_NEW_PASSPHRASE", SECRET)
    assert oram("rekey", store).code == 0
    monkeypatch.delenv("ORAM_KEY_FILE")
    monkeypatch.setenv("ORAM_PASSPHRASE", SECRET)
    done = oram("rekey", store)
    assert (done.code, done.err) == (2, "oram: the new passphrase is the one that the store has: nothing was changed\n")
    assert oram("get", store, "k").out == b"v"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["get", "--hex", "store", "0g"], "KEY is not hex, an even number of the digits 0-9 and a-f"),
        (["put", "--hex", "store", "00", "0"], "VALUE is not hex, an even number of the digits 0-9 and a-f"),
        (["put", "--base64", "store", "AA==", "AA"], "VALUE is not base64, with its padding"),
    ],
)
def test_which_argument_is_wrong(oram: Oram, store: Path, words: list[str], problem: str) -> None:
    assert oram(*words).err == f"oram: the argument {problem}\n"


def test_a_cipher_that_is_not_here(oram: Oram, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pyaegis", "pyaegis._aegis_ffi"):
        monkeypatch.setitem(sys.modules, module, None)
    done = oram("create", "new", "--capacity", 10, "--cipher", "aegis-256", "--key-file", key_file)
    assert done.code == 2
    assert "pip install" in done.err
    assert not (tmp_path / "new").exists()


def test_a_header_cannot_command_the_terminal(oram: Oram, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public = library.info(f"lmdb:{store}")
    monkeypatch.setattr("oram.info", lambda place, state: {**public, "store": "\x1b]0;title\x07", "cipher": "\x9b1m\n"})
    for command in ("info", "doctor"):
        text = oram(command, store).text
        assert "\\x1b]0;title\\x07" in text
        assert "\\x9b1m\n" in text
        assert all(c.isprintable() or c == "\n" for c in text)
    monkeypatch.setattr("oram.info", lambda place, state: {**public, "blocks": "many"})
    assert oram("info", store).code == 5
    monkeypatch.setattr("oram.info", lambda place, state: {**public, "cipher": ["a"]})
    assert oram("info", store).code == 5


@pytest.mark.parametrize(("text", "line"), [("a\n b", "a b"), ("\x1b[2J", "\\x1b[2J"), ("n\u202em", "n\\u202em")])
def test_a_message_is_one_line_of_text(text: str, line: str) -> None:
    assert exits.one_line(text) == line


# --- what fails leaves nothing


@pytest.mark.parametrize("state", [(), ("--state", "deep/client")])
def test_a_create_that_fails_late_leaves_nothing(
    oram: Oram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: tuple[str, ...]
) -> None:
    monkeypatch.setattr("oram.store.install", _no_space)
    assert oram("create", "deep/er/store", "--capacity", 10, "--key-file", "new", *state).code == 7
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    assert oram("create", "mine", "--capacity", 10, "--key-file", "new").code == 7
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "mine"]


def test_a_restore_that_fails_late_leaves_nothing(oram: Oram, store: Path, tmp_path: Path) -> None:
    assert oram("backup", store, "backup").code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oram.store.install", _no_space)
        assert oram("restore", "backup", "again").code == 7
    assert not (tmp_path / "again").exists()
    assert oram("restore", "backup", "again").code == 0


def test_a_create_that_finds_the_store_of_another_leaves_it(oram: Oram, tmp_path: Path, key_file: Path) -> None:
    """It came between the look and the making."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oram.cli.places.refuse_existing", lambda place, state: _make(place))
        assert oram("create", "s", "--capacity", 10, "--key-file", "other").code == 3
    assert oram("verify", "s", "--key-file", key_file).code == 0
    assert not (tmp_path / "other").exists()


def _make(place: str) -> None:
    library.create(place, key=KEY, capacity=10, block_size=64).close()


def test_an_unfinished_file_of_a_full_disk_is_removed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), places.making("lmdb:s", None):
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / "data.mdb").touch()
        raise OSError("full")
    assert not (tmp_path / "s").exists()


def test_an_unforeseen_error_says_nothing_of_what_it_was_about(oram: Oram, store: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oram.store.ObliviousStore.__getitem__", _unforeseen)
        done = oram("get", store, "k")
    assert done.code == 10
    assert SECRET not in done.err


def _unforeseen(*_: object) -> None:
    raise RuntimeError(SECRET)


def test_interrupted(oram: Oram, store: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oram.store.ObliviousStore.__getitem__", _interrupted)
        done = oram("get", store, "k")
    assert (done.code, done.err) == (130, "oram: interrupted\n")


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_every_error_of_the_library_has_its_code() -> None:
    expected = {
        "AddressError": 2, "BackendAccessError": 12, "BackendError": 7, "BackendFullError": 7, "BackendReadOnlyError": 7,
        "BackendUnavailableError": 11, "BackupError": 9, "BlockSizeError": 2, "CapacityError": 8, "CipherUnavailableError": 2,
        "FencedError": 6, "ForkedStoreError": 10, "HandleError": 10, "IntegrityError": 5, "KeyTooLargeError": 8, "KeyTypeError": 2,
        "MissingKeyError": 1, "OramError": 10, "ParameterError": 2, "PoisonedError": 5, "RollbackError": 5, "ShardOverflowError": 10, "StaleStateError": 5,
        "StashOverflowError": 10, "StateMissingError": 3, "StoreClosedError": 10, "StoreExistsError": 3, "StoreLockedError": 6, "StoreNotFoundError": 3,
        "TookEffectError": 13, "UncleanShutdownError": 9, "ValueTooLargeError": 8, "WrongKeyError": 4,
    }  # fmt: skip
    kinds = {name: getattr(errors, name) for name in errors.__all__}
    warned = {name for name, kind in kinds.items() if issubclass(kind, Warning)}
    assert warned == {"BackendWarning"}  # shown, never raised
    assert {name: exits.explain(kind("x"))[0] for name, kind in kinds.items() if name not in warned} == expected


def test_a_key_in_the_wrong_store_type_is_no_key_of_it() -> None:
    assert exits.explain(library.errors.MissingKeyError(SECRET)) == (1, "no such key")
