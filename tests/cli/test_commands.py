"""What each command does when all is well."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import oram as library
from oram import kernels
from oram.cli.doctor import _EXTRAS

ROOT = Path(__file__).resolve().parents[2]
KEY = bytes(range(32))  # of the fixtures
Oram = Callable[..., Any]


def test_put_get_delete(oram: Oram, store: Path) -> None:
    assert oram("put", store, "name", "välue").code == 0
    assert oram("get", store, "name").out == "välue".encode()
    assert oram("delete", store, "name").code == 0
    gone = oram("get", store, "name")
    assert (gone.code, gone.out, gone.err) == (1, b"", "oram: no such key\n")
    assert oram("delete", store, "name").code == 1


def test_values_from_files_and_stdin_are_raw(oram: Oram, store: Path, tmp_path: Path) -> None:
    data = bytes(range(200))
    (tmp_path / "data").write_bytes(data)
    assert oram("put", store, "a", "--file", "data").code == 0
    assert oram("put", store, "b", "-", stdin=data[::-1]).code == 0
    assert oram("get", store, "a").out == data
    assert oram("get", store, "b", "--output", "out").out == b""
    out = tmp_path / "out"
    assert out.read_bytes() == data[::-1]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


@pytest.mark.parametrize(("option", "key", "value"), [("--hex", "00ff", "fe0a"), ("--base64", "AP8=", "/go=")])
def test_binary_arguments(oram: Oram, store: Path, option: str, key: str, value: str) -> None:
    assert oram("put", store, option, key, value).code == 0
    assert oram("get", store, option, key).out == value.encode() + b"\n"
    with library.open(f"lmdb:{store}", key=KEY) as opened:
        assert opened[b"\x00\xff"] == b"\xfe\n"
    assert oram("delete", store, option, key).code == 0


def test_urls_and_paths_name_the_same_store(oram: Oram, store: Path) -> None:
    oram("put", f"lmdb:{store}", "k", "v")
    assert oram("get", store.name, "k").out == b"v"
    assert oram("get", f"lmdb:{store.name}", "k").out == b"v"
    assert oram("get", f"lmdb://{store}", "k").out == b"v"


def test_values_that_look_like_options(oram: Oram, store: Path) -> None:
    assert oram("put", store, "--", "-k", "--v").code == 0
    assert oram("get", store, "--", "-k").out == b"--v"


# --- keys


def test_create_writes_a_missing_key_file(oram: Oram, tmp_path: Path) -> None:
    done = oram("create", "s", "--capacity", 10, "--key-file", "new.key")
    key = tmp_path / "new.key"
    assert done.code == 0
    assert "wrote a new key to new.key" in done.err
    assert key.read_text().strip() not in done.err + done.text
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(bytes.fromhex(key.read_text())) == 32
    assert oram("put", "s", "k", "v", "--key-file", "new.key").code == 0


def test_a_create_that_fails_leaves_no_key_behind(oram: Oram, store: Path, tmp_path: Path) -> None:
    assert oram("create", store, "--capacity", 10, "--key-file", "a.key").code == 3
    assert oram("create", "other", "--capacity", 0, "--key-file", "a.key").code == 2
    assert not (tmp_path / "a.key").exists()


@pytest.mark.parametrize("text", [KEY, KEY.hex().encode(), KEY.hex().upper().encode() + b"\n"])
def test_key_files(oram: Oram, store: Path, tmp_path: Path, text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORAM_KEY_FILE")
    path = tmp_path / "other"
    path.write_bytes(text)
    path.chmod(0o600)
    done = oram("put", store, "k", "v", "--key-file", path)
    assert (done.code, done.err) == (0, "")


def test_a_key_file_that_others_can_read(oram: Oram, store: Path, key_file: Path) -> None:
    key_file.chmod(0o644)
    done = oram("put", store, "k", "v")
    assert done.code == 0
    assert done.err == f"oram: warning: the key file {key_file} can be read by others (chmod 600 it)\n"


def test_keys_from_the_environment(oram: Oram, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORAM_KEY_FILE")
    monkeypatch.setenv("ORAM_KEY", KEY.hex())
    assert oram("put", store, "k", "v").code == 0
    monkeypatch.setenv("ORAM_KEY", KEY.hex()[:-1])
    broken = oram("get", store, "k")
    assert broken.code == 2
    assert KEY.hex()[:20] not in broken.err


def test_a_store_is_asked_for_what_it_opens_with(oram: Oram, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORAM_KEY_FILE")
    monkeypatch.setattr("oram.cli.credentials._terminal", lambda: False)
    done = oram("get", store, "k")
    assert done.code == 2
    assert done.err == "oram: this store opens with a key: give --key-file, or set ORAM_KEY or ORAM_KEY_FILE\n"
    with monkeypatch.context() as patch:
        patch.setenv("ORAM_PASSPHRASE", "words")
        assert oram("create", "s", "--capacity", 10).code == 0
    done = oram("get", "s", "k")
    assert (done.code, done.err) == (2, "oram: nobody to ask for a passphrase: set ORAM_PASSPHRASE\n")


def test_passphrases(oram: Oram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORAM_PASSPHRASE", "correct horse")
    assert oram("create", "s", "--capacity", 10).code == 0
    assert json.loads(oram("info", "s", "--json").text)["opens_with"] == "passphrase"
    assert oram("put", "s", "k", "v").code == 0
    monkeypatch.delenv("ORAM_PASSPHRASE")

    answers = iter(["battery staple", "correct horse"])
    prompts = []

    def getpass(prompt: str) -> str:
        prompts.append(prompt)
        return next(answers)

    monkeypatch.setattr("oram.cli.credentials._terminal", lambda: True)
    monkeypatch.setattr("getpass.getpass", getpass)
    assert oram("get", "s", "k").code == 4
    assert oram("get", "s", "k").out == b"v"
    assert prompts == ["Passphrase: ", "Passphrase: "]


def test_a_new_passphrase_is_asked_for_twice(oram: Oram, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["one", "two", "three", "three"])
    monkeypatch.setattr("oram.cli.credentials._terminal", lambda: True)
    monkeypatch.setattr("getpass.getpass", lambda _: next(answers))
    differ = oram("create", "s", "--capacity", 10)
    assert (differ.code, differ.err) == (2, "oram: the two passphrases differ\n")
    assert oram("create", "s", "--capacity", 10).code == 0
    monkeypatch.setenv("ORAM_PASSPHRASE", "three")
    assert oram("verify", "s").code == 0


def test_nobody_to_ask(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "oram", "create", "s", "--capacity", "10"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=tmp_path, start_new_session=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert (
        done.stderr
        == "oram: nobody to ask for a passphrase: give --key-file, or set ORAM_KEY, ORAM_KEY_FILE or ORAM_PASSPHRASE\n"
    )


# --- the whole store


def test_info(oram: Oram, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORAM_KEY_FILE")
    found = json.loads(oram("info", store, "--json").text)
    assert (found["capacity"], found["block_size"], found["key_and_value_limit"]) == (200, 256, 249)
    assert (found["scheme"], found["cipher"], found["opens_with"]) == ("path", "aes-256-gcm", "key")
    with library.open(f"lmdb:{store}", key=KEY) as opened:
        assert found["key_and_value_limit"] == opened.value_limit
    assert oram("open-info", store).text == oram("info", store).text
    assert "capacity             200" in oram("info", store).text


def test_create_passes_everything_on(oram: Oram, key_file: Path) -> None:
    done = oram(
        "create", "s", "--capacity", 500, "--block-size", "1KiB", "--blocks-per-value", 2, "--scheme", "path",
        "--cipher", "aes-256-gcm", "--tree-top", "64KiB", "--durability", "process", "--key-file", key_file, "--state", "client",
    )  # fmt: skip
    assert done.code == 0
    found = json.loads(oram("info", "s", "--state", "client", "--json").text)
    assert (found["capacity"], found["block_size"], found["blocks_per_value"], found["cached_levels"]) == (
        500,
        1024,
        2,
        4,
    )
    assert oram("put", "s", "k", "v" * 2000, "--key-file", key_file, "--state", "client").code == 0
    assert oram("get", "s", "k", "--key-file", key_file, "--state", "client").out == b"v" * 2000
    assert oram("get", "s", "k", "--key-file", key_file).code == 3


def test_create_passes_the_parameters_of_ring_on(oram: Oram, key_file: Path) -> None:
    done = oram(
        "create", "s", "--capacity", 500, "--block-size", 256, "--scheme", "ring", "-Z", 8, "-A", 6, "-S", 12,
        "--metadata", "server", "--no-xor", "--tree-top", 0, "--durability", "process", "--key-file", key_file,
    )  # fmt: skip
    assert done.code == 0
    found = json.loads(oram("info", "s", "--json").text)
    assert (found["blocks_a_bucket"], found["accesses_an_eviction"], found["dummies_a_bucket"]) == (8, 6, 12)
    assert (found["scheme"], found["metadata"], found["xor"], found["cached_levels"]) == ("ring", "server", "never", 0)
    assert found["slots"] == (2 ** found["levels"] - 1) * 20
    assert found["server_bytes"] > found["slots"] * found["slot_bytes"] == found["slots"] * (256 + 16)
    assert "accesses an eviction 6" in oram("info", "s").text
    assert oram("put", "s", "k", "v", "--key-file", key_file).code == 0
    assert oram("get", "s", "k", "--key-file", key_file).out == b"v"
    assert json.loads(oram("verify", "s", "--json", "--key-file", key_file).text)["records"] == 1
    assert oram("backup", "s", "b", "--key-file", key_file).code == 0
    assert oram("restore", "b", "t", "--key-file", key_file).text == "restored 1 record\n"
    assert json.loads(oram("info", "t", "--json").text)["scheme"] == "ring"


def test_create_passes_the_parameters_of_cuckoo_on(oram: Oram, key_file: Path) -> None:
    done = oram(
        "create", "s", "--capacity", 500, "--block-size", 256, "--scheme", "cuckoo", "--eps", 0.25, "--rebuild", "amortized",
        "--tree-top", "20KiB", "--durability", "process", "--key-file", key_file,
    )  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads(oram("info", "s", "--json").text)
    assert (found["scheme"], found["eps"], found["rebuild"], found["index"]) == ("cuckoo", 0.25, "amortized", "client")
    assert found["blocks_of_the_top_buffer"] == 8  # eight of these for each of its buffers, and fewer than sqrt(500)
    assert found["server_bytes"] == found["slots"] * (256 + 28)
    assert "rebuild amortized" in " ".join(oram("info", "s").text.split())
    assert oram("put", "s", "k", "v", "--key-file", key_file).code == 0
    assert oram("get", "s", "k", "--key-file", key_file).out == b"v"
    assert json.loads(oram("verify", "s", "--json", "--key-file", key_file).text)["records"] == 1
    assert oram("backup", "s", "b", "--key-file", key_file).code == 0
    assert oram("restore", "b", "t", "--key-file", key_file).text == "restored 1 record\n"
    assert json.loads(oram("info", "t", "--json").text)["eps"] == 0.25


def test_create_passes_Z_on_to_path(oram: Oram, key_file: Path) -> None:
    assert oram("create", "s", "--capacity", 50, "--scheme", "path", "-Z", 5, "--key-file", key_file).code == 0
    assert json.loads(oram("info", "s", "--json").text)["slots_a_bucket"] == 5


def test_create_makes_cuckoo_without_an_index(oram: Oram, key_file: Path) -> None:
    done = oram(
        "create", "s", "--capacity", 50, "--block-size", 256, "--scheme", "cuckoo", "--index", "none", "--durability", "process",
        "--key-file", key_file,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(oram("info", "s", "--json").text)["index"] == "none"
    assert oram("put", "s", "k", "v", "--key-file", key_file).code == 0
    assert oram("get", "s", "k", "--key-file", key_file).out == b"v"
    assert json.loads(oram("verify", "s", "--json", "--key-file", key_file).text)["records"] == 1
    assert oram("backup", "s", "b", "--key-file", key_file).code == 0
    assert oram("restore", "b", "t", "--key-file", key_file).text == "restored 1 record\n"
    assert json.loads(oram("info", "t", "--json").text)["index"] == "none"


@pytest.mark.parametrize("scheme", ["path", "cuckoo", "linear"])
def test_verify_counts_records(oram: Oram, key_file: Path, scheme: str) -> None:
    key = ("--key-file", key_file)
    oram("create", "s", "--capacity", 20, "--blocks-per-value", 2, "--block-size", 64, "--scheme", scheme, *key)
    oram("put", "s", "k", "v", *key)
    assert oram("verify", "s", *key).text == "ok: every slot opens, 1 record\n"
    assert json.loads(oram("verify", "s", "--json", *key).text) == {"ok": True, "exit": 0, "records": 1}


@pytest.mark.parametrize("scheme", ["path", "cuckoo", "linear"])
def test_verify_of_a_store_without_keys(oram: Oram, key_file: Path, tmp_path: Path, scheme: str) -> None:
    made = library.create(f"lmdb:{tmp_path / 's'}", key=KEY, capacity=20, block_size=64, scheme=scheme, keyed=False)
    with made:
        made.blocks.write(3, b"data")
    key = ("--key-file", key_file)
    assert oram("verify", "s", *key).text == "ok: every slot opens, 20 blocks\n"
    assert json.loads(oram("verify", "s", "--json", *key).text) == {"ok": True, "exit": 0, "blocks": 20}


def test_backup_and_restore(oram: Oram, store: Path) -> None:
    oram("put", store, "k", "old")
    assert oram("backup", store, "backup").code == 0
    oram("put", store, "k", "new")
    assert oram("restore", "backup", "again").text == "restored 1 record\n"
    assert oram("get", "again", "k").out == b"old"
    assert oram("get", store, "k").out == b"new"
    assert oram("restore", "backup", store).code == 3
    assert oram("backup", store, "backup").code == 3


@pytest.mark.parametrize(("copy", "again"), [("lmdb:b", "b"), ("b", "lmdb:b"), ("lmdb://{here}/b", "{here}/b")])
def test_backups_are_named_like_stores(oram: Oram, store: Path, tmp_path: Path, copy: str, again: str) -> None:
    oram("put", store, "k", "v")
    assert oram("backup", store, copy.format(here=tmp_path)).code == 0
    assert (tmp_path / "b" / "data.mdb").exists()
    assert oram("restore", again.format(here=tmp_path), "lmdb:c").code == 0
    assert oram("get", "c", "k").out == b"v"
    for nowhere in ("memory:", "lmdb:", "lmdb://b", "redis://b"):
        assert oram("backup", store, nowhere).code == 2
        assert oram("restore", nowhere, "d").code == 2


def test_rekey(oram: Oram, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oram("put", store, "k", "v")
    done = oram("rekey", store, "--new-key-file", "second")
    assert done.code == 0
    assert "wrote a new key to second" in done.err
    assert oram("get", store, "k").code == 4
    assert oram("get", store, "k", "--key-file", "second").out == b"v"
    monkeypatch.setenv("ORAM_NEW_PASSPHRASE", "third")
    assert oram("rekey", store, "--key-file", "second").code == 0
    monkeypatch.delenv("ORAM_KEY_FILE")
    monkeypatch.setenv("ORAM_PASSPHRASE", "third")
    assert oram("get", store, "k").out == b"v"


def test_doctor(oram: Oram, store: Path) -> None:
    found = json.loads(oram("doctor", store, "--json").text)
    assert found["kernels"]["active"] in ("native", "reference")
    assert found["ciphers"]["aes-256-gcm"]["seal_us"] > 0
    assert found["advice"]
    assert found["store"]["capacity"] == 200
    text = oram("doctor").text
    assert "active kernels" in text
    assert "store  " not in text


def test_doctor_knows_the_extras() -> None:
    """Those for users, each with the packages that pyproject.toml names."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    known = {extra: set(packages) for extra, (_, packages) in _EXTRAS.items()}
    for extra in declared.keys() - {"test", "bench", "docs"}:
        words = [re.match(r"([A-Za-z0-9-]+)(?:\[([a-z]+)\])?", requirement) for requirement in declared[extra]]
        assert known.pop(extra) == {name for word in words if word for name in word.groups() if name}, extra
    assert known == {}


def test_doctor_without_native_kernels(oram: Oram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORAM_KERNELS", "reference")
    text = oram("doctor").text
    assert "active kernels   reference" in text
    monkeypatch.setenv("ORAM_KERNELS", "turbo")
    done = oram("doctor")
    assert done.code == 0
    assert "unset it" in done.text


def test_doctor_lists_a_store_one_parameter_a_line(oram: Oram, store: Path) -> None:
    lines = oram("doctor", store).text.splitlines()
    assert set(oram("info", store).text.splitlines()) <= set(lines)
    assert "cipher               aes-256-gcm" in lines


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ('{"url": "file:///a%20b", "dir_info": {"editable": true}}', "--no-cache-dir --editable '/a b'"),
        ('{"url": "file:///src", "dir_info": {}}', "--no-cache-dir /src"),
        (
            '{"url": "file:///dist/oram-0.1.0-py3-none-any.whl", "archive_info": {}}',
            "--no-cache-dir --no-binary oram oram",
        ),
        (None, "--no-cache-dir --no-binary oram oram"),
    ],
)
def test_doctor_says_how_to_build_the_kernels(
    oram: Oram, monkeypatch: pytest.MonkeyPatch, origin: str | None, command: str
) -> None:
    def load(name: str) -> Any:
        if name == "native":
            raise library.errors.ParameterError("the native kernels are not built here")
        return load_any(name)

    load_any = kernels.load
    monkeypatch.setattr("oram.kernels.load", load)
    monkeypatch.setattr("importlib.metadata.PathDistribution.read_text", lambda self, name: origin)
    monkeypatch.setattr("oram.cli.doctor._PACKAGES", ())
    monkeypatch.setenv("ORAM_KERNELS", "reference")
    assert f"pip install --force-reinstall --no-deps {command}" in oram("doctor").text


# --- the program


def test_version_and_help(oram: Oram) -> None:
    assert oram("--version").text == f"oram {library.__version__}\n"
    for text in (oram().text, oram("--help").text, oram("-h").text):
        for code in (*range(13), 130, 141):
            assert f"\n      {code} " in text
    for command in (
        "create",
        "info",
        "put",
        "get",
        "delete",
        "load",
        "dump",
        "keys",
        "verify",
        "backup",
        "restore",
        "rekey",
        "doctor",
        "demo",
    ):
        assert f"Usage: oram {command}" in oram(command, "--help").text
        assert oram(command, "-h").text == oram(command, "--help").text


def test_the_module_is_the_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "oram", "get", "nowhere", "k"],
        env={**os.environ, "ORAM_KEY": KEY.hex()},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr.startswith("oram: ")
    assert done.stderr.count("\n") == 1


def test_importing_the_command_line_imports_neither_typer_nor_rich() -> None:
    code = "import sys, oram.cli; sys.exit(bool({'typer', 'rich', 'click'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = (
        "import sys, oram.cli.app; sys.exit(bool({'rich.progress', 'rich.table', 'oram.cli.demo'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
