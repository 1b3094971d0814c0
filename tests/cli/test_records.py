"""load and dump: what they read, what they refuse, and that bytes survive the round trip."""

from __future__ import annotations

import base64
import csv
import io
import json
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import oram as library
from oram.backends import LMDBBackend
from oram.cli import formats
from oram.cli.exits import InputError
from oram.trace import TraceBackend

KEY = bytes(range(32))  # of the fixtures
Oram = Callable[..., Any]
AWKWARD = [
    b"",
    b"\0",
    b"\r",
    b"\n",
    b"\r\n",
    b"a,b",
    b'"',
    b"'",
    b" x ",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    "ä€😀".encode(),
    b"\\",
    b"{}",
    b"\xed\xa0\x80",
]
records = st.dictionaries(
    st.binary(max_size=40) | st.sampled_from(AWKWARD),
    st.binary(max_size=60) | st.sampled_from(AWKWARD) | st.text(max_size=15).map(str.encode),
    max_size=30,
)


def content(path: Path) -> dict[bytes, bytes]:
    with library.open(f"lmdb:{path}", key=KEY) as store:
        return dict(store.items())


@pytest.fixture
def used(store: Path) -> Path:
    """A store that has been accessed."""
    with library.open(f"lmdb:{store}", key=KEY, durability="process") as opened:
        opened[b"old"] = b"value"
    return store


# --- the lines


@given(records, st.sampled_from(formats.FORMATS))
def test_what_is_written_is_read(pairs: dict[bytes, bytes], form: str) -> None:
    file = io.BytesIO()
    write = formats.writer(file, form)
    for key, value in pairs.items():
        write(key, value)
    file.seek(0)
    assert list(formats.read(file, form, 256)) == list(pairs.items())


@given(
    st.binary(max_size=200) | st.text(alphabet='key,value"\r\n{}:_b64\\ ', max_size=60).map(str.encode),
    st.sampled_from(formats.FORMATS),
)
def test_garbage_is_an_error_of_input_or_nothing(data: bytes, form: str) -> None:
    with suppress(InputError):
        list(formats.read(io.BytesIO(data), form, 256))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"key": "a"}', 'give either "value" or "value_b64"'),
        (b'{"key": "a", "key_b64": "YQ==", "value": ""}', 'give either "key" or "key_b64"'),
        (b'{"key": 1, "value": ""}', "the key is not a string"),
        (b'{"key": "a", "value_b64": "?"}', "the value is not base64"),
        (b'{"key": "a", "value": "\\ud800"}', "the value is not text"),
        (b'{"key": "\xff", "value": ""}', "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_bad_json(line: bytes, problem: str) -> None:
    with pytest.raises(InputError, match=f"^line 3: {problem}"):
        list(formats.read([b'{"key": "a", "value": "b"}\n', b"\n", line + b"\n"], "jsonl", 256))


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ("", "the file is empty"),
        ("a,b\n", r"line 1: no column key \(or key_b64\): name it with --key-column$"),
        ("key,b\n", r"line 1: no column value \(or value_b64\): name it with --value-column$"),
        ("key,key,value\n", "line 1: the column key is there twice"),
        ("key,value\na\n", "line 2: 1 columns where the header has 2"),
        ("key,value\n\na,b,c\n", "line 3: 3 columns"),
        ('key,value\n"a,b\n', "line 2: not CSV"),
        ('key,value\n"a"x,b\n', "line 2: not CSV"),
        ("key,value_b64\na,!\n", "line 2: the value is not base64"),
        ("key,value,value_b64\na,b,YQ==\n", "line 2: both value and value_b64"),
    ],
)
def test_bad_csv(rows: str, problem: str) -> None:
    with pytest.raises(InputError, match=f"^{problem}"):
        list(formats.read(rows.encode().splitlines(keepends=True), "csv", 256))


def test_csv_of_others() -> None:
    rows = '\ufeffid,name,note\n1,"Ada, Countess","two\nlines"\n\n2,Bob,\n'
    found = formats.read(io.BytesIO(rows.encode()), "csv", 256, key_column="name", value_column="note")
    assert list(found) == [(b"Ada, Countess", b"two\nlines"), (b"Bob", b"")]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("16MiB", 16 << 20),
        ("16mib", 16 << 20),
        ("2 KiB", 2048),
        ("2k", 2048),
        ("2kB", 2000),
        ("1G", 1 << 30),
        ("7B", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert formats.size(text, "--x") == size


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5M", "1 XB", "1MiBs"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(InputError, match="--x"):
        formats.size(text, "--x")


# --- through stores


@pytest.mark.parametrize("form", formats.FORMATS)
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(pairs=records)
def test_dump_and_load_are_lossless(
    oram: Oram, key_file: Path, tmp_path_factory: pytest.TempPathFactory, form: str, pairs: dict[bytes, bytes]
) -> None:
    home = tmp_path_factory.mktemp("round")
    for name in ("a", "b"):
        oram(
            "create",
            home / name,
            "--capacity",
            40,
            "--block-size",
            128,
            "--key-file",
            key_file,
            "--durability",
            "process",
        )
    with library.open(f"lmdb:{home / 'a'}", key=KEY, durability="process") as store:
        store.put_many(pairs)
    file = home / f"all.{form}"
    assert oram("dump", home / "a", "--output", file, "--key-file", key_file).code == 0
    assert oram("load", home / "b", file, "--key-file", key_file, "--durability", "process").code == 0
    assert content(home / "b") == pairs
    on_stdout = oram("dump", home / "b", "--format", form, "--key-file", key_file).out
    assert sorted(on_stdout.split(b"\n")) == sorted(file.read_bytes().split(b"\n"))


def test_dump_writes_a_private_file_in_one_scan(oram: Oram, used: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("what was there before")
    target.chmod(0o644)
    assert oram("dump", used, "--output", target, "--force").code == 0
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert json.loads(target.read_text()) == {"key": "old", "value": "value"}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert list(csv.DictReader(oram("dump", used, "--format", "csv").text.splitlines())) == [
        {"key": "old", "value": "value", "key_b64": "", "value_b64": ""}
    ]


def write(path: Path, pairs: Iterable[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"key": key, "value": value}) + "\n" for key, value in pairs))
    return path


def test_a_store_without_accesses_is_loaded_in_bulk(oram: Oram, store: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "f.jsonl", ((str(i), "v") for i in range(150)))
    assert oram("load", store, file).text == "loaded 150 records in bulk\n"
    with library.open(f"lmdb:{store}", key=KEY) as opened:
        assert opened.stats().accesses == 0
        assert len(opened) == 150
    # still no access: the choice depends on nothing that is secret
    assert oram("load", store, file).text == "loaded 150 records in bulk\n"
    assert oram("load", store, file, "--no-bulk").text == "loaded 150 records in 3 batches of 64\n"


def test_a_used_store_is_loaded_in_batches(oram: Oram, used: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "f.jsonl", ((str(i), "v") for i in range(65)))
    assert oram("load", used, file, "--batch", 16).text == "loaded 65 records in 5 batches of 16\n"
    assert oram("load", used, file, "--bulk").text == "loaded 65 records in bulk\n"
    assert content(used) == {b"old": b"value"} | {str(i).encode(): b"v" for i in range(65)}


@pytest.mark.parametrize(("n", "batches"), [(1, 1), (16, 1), (17, 2), (32, 2)])
def test_the_server_sees_whole_batches_only(
    oram: Oram, used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int, batches: int
) -> None:
    sizes = []
    put_many = library.ObliviousStore.put_many

    def seen(store: library.ObliviousStore, items: Any, *, size: int | None = None) -> None:
        sizes.append(size)
        put_many(store, items, size=size)

    monkeypatch.setattr(library.ObliviousStore, "put_many", seen)
    assert oram("load", used, write(tmp_path / "f.jsonl", ((str(i), "v") for i in range(n))), "--batch", 16).code == 0
    assert sizes == [16] * batches


def test_padding_reaches_the_server(used: Path) -> None:
    trips = []
    for n in (1, 16):
        with LMDBBackend(used, create=False) as backend:
            trace = TraceBackend(backend)
            with library.open(trace, key=KEY) as store:
                trace.clear()
                store.put_many([(b"%d" % i, b"v") for i in range(n)], size=16)
                trips.append(
                    (
                        trace.round_trips,
                        len(trace.state_commits),
                        next(size for commit in trace.state_commits for _, size in commit),
                    )
                )
    assert trips[0] == trips[1]


@pytest.mark.parametrize("bulk", ["--bulk", "--no-bulk"])
@pytest.mark.parametrize(
    ("last", "code", "problem"),
    [
        ("{", 2, "line 101: not JSON"),
        (json.dumps({"key": "k", "value": "x" * 300}), 8, "line 101: key and value together may have 249 bytes"),
        (json.dumps({"key": "k" * 300, "value": ""}), 8, "line 101: "),
    ],
)
def test_a_bad_line_loads_nothing(
    oram: Oram, used: Path, tmp_path: Path, bulk: str, last: str, code: int, problem: str
) -> None:
    file = write(tmp_path / "f.jsonl", ((str(i), "v") for i in range(100)))
    file.write_text(file.read_text() + last + "\n")
    done = oram("load", used, file, bulk)
    assert done.code == code
    assert problem in done.err
    assert done.err.endswith("; nothing was loaded\n")
    assert "xxx" not in done.err
    assert "kkk" not in done.err
    assert content(used) == {b"old": b"value"}


@pytest.mark.parametrize("bulk", ["--bulk", "--no-bulk"])
def test_more_than_fits_loads_nothing(oram: Oram, used: Path, tmp_path: Path, bulk: str) -> None:
    done = oram("load", used, write(tmp_path / "f.jsonl", ((str(i), "v") for i in range(200))), bulk)
    assert done.code == 8
    assert done.err.endswith("; nothing was loaded\n")
    assert content(used) == {b"old": b"value"}
    # one of them is there already, so this many fit
    assert (
        oram(
            "load", used, write(tmp_path / "f.jsonl", [("old", "new"), *((str(i), "v") for i in range(199))]), bulk
        ).code
        == 0
    )


@pytest.mark.parametrize(
    ("error", "code", "more"),
    [
        (library.errors.BackendFullError, 7, ""),
        (library.errors.BackendUnavailableError, 11, ", and perhaps the next batch"),
    ],
)
def test_a_load_that_breaks_off_says_how_far_it_came(
    oram: Oram,
    used: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
    code: int,
    more: str,
) -> None:
    put_many = library.ObliviousStore.put_many

    def failing(store: library.ObliviousStore, items: Any, *, size: int | None = None) -> None:
        if (b"32", b"v") in items:
            raise error("no room")
        put_many(store, items, size=size)

    monkeypatch.setattr(library.ObliviousStore, "put_many", failing)
    done = oram("load", used, write(tmp_path / "f.jsonl", ((str(i), "v") for i in range(40))), "--batch", 16)
    assert (done.code, done.err) == (code, f"oram: no room; the first 32 of 40 records were loaded{more}\n")
    assert len(content(used)) == 33


def test_a_bulk_load_whose_end_is_not_known_says_so(
    oram: Oram, used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(store: library.ObliviousStore, items: Any) -> None:
        raise library.errors.BackendUnavailableError("no answer")

    monkeypatch.setattr(library.ObliviousStore, "load", failing)
    done = oram("load", used, write(tmp_path / "f.jsonl", [("a", "b")]), "--bulk")
    assert done.code == 11
    assert done.err == "oram: no answer; either nothing was loaded or everything: see keys\n"


def test_load_from_stdin_and_columns(oram: Oram, store: Path) -> None:
    rows = "who;x\n".replace(";", ",") + "a,1\nb,2\na,3\n"
    assert (
        oram(
            "load", store, "-", "--format", "csv", "--key-column", "who", "--value-column", "x", stdin=rows.encode()
        ).code
        == 0
    )
    assert content(store) == {b"a": b"3", b"b": b"2"}


def test_create_with_items(oram: Oram, key_file: Path, tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(f"key_b64,value\n{base64.b64encode(bytes([255])).decode()},one\n")
    done = oram("create", "s", "--capacity", 10, "--items", "f.csv", "--key-file", key_file)
    assert done.text == "created a store for 10 records, loaded 1 record\n"
    assert content(tmp_path / "s") == {b"\xff": b"one"}


def test_create_with_items_of_any_source(oram: Oram, key_file: Path, tmp_path: Path) -> None:
    options = ("--capacity", 10, "--key-file", key_file, "--items")
    columns = ("--format", "csv", "--key-column", "who", "--value-column", "x")
    assert oram("create", "s", *options, "-", *columns, stdin=b"who,x\na,1\n").code == 0
    (tmp_path / "items").write_text('{"key": "a", "value": "2"}\n{"key": "a", "value": "3"}\n')
    assert oram("create", "t", *options, "items", "--format", "jsonl").code == 0
    assert (content(tmp_path / "s"), content(tmp_path / "t")) == ({b"a": b"1"}, {b"a": b"3"})


@pytest.mark.parametrize(
    ("items", "options", "code", "problem"),
    [
        ("key,value\na,1\nb\n", (), 2, "line 3: 1 columns where the header has 2"),
        ("who,value\na,1\n", (), 2, "line 1: no column key (or key_b64): name it with --key-column"),
        (f"key,value\na,{'x' * 100}\n", ("--block-size", 64), 8, "line 2: key and value together may have 57 bytes in this store"),
        ("key,value\na,1\nb,2\na,3\n", ("--capacity", 1), 8, "more items than the store has capacity for"),
        ("key,value\na,1\n", ("--block-size", 7), 2, "a record needs more than 7 bytes: raise --block-size or --blocks-per-value"),
        ("key,value\na,1\n", ("--capacity", 0), 2, "capacity must be an integer from 1 to"),
    ],
)  # fmt: skip
def test_items_that_cannot_be_loaded_make_no_store(
    oram: Oram, tmp_path: Path, items: str, options: tuple[object, ...], code: int, problem: str
) -> None:
    (tmp_path / "bad.csv").write_text(items)
    with pytest.MonkeyPatch.context() as patch:
        # nothing is even begun: neither a key nor a question for a passphrase
        patch.setattr("oram.cli.credentials.new", None)
        done = oram("create", "deep/t", "--capacity", 10, "--items", "bad.csv", "--key-file", "new", *options)
    assert done.code == code
    assert done.err.startswith(f"oram: {problem}")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.csv"]


# --- keys


def test_keys(oram: Oram, store: Path) -> None:
    names = {b"plain", "ä".encode(), b"\xff\n"}
    with library.open(f"lmdb:{store}", key=KEY, durability="process") as opened:
        opened.put_many(dict.fromkeys(names, b"secret value"))
    lines = oram("keys", store, "--json").text.splitlines()
    found = [json.loads(line) for line in lines]
    assert len(found) == 3
    assert {(e["key"].encode() if "key" in e else base64.b64decode(e["key_b64"])) for e in found} == names
    assert {bytes.fromhex(line) for line in oram("keys", store, "--hex").text.splitlines()} == names
    assert {base64.b64decode(line) for line in oram("keys", store, "--base64").text.splitlines()} == names
    assert oram("delete", store, "--hex", "ff0a").code == 0
    assert sorted(oram("keys", store).out.splitlines()) == [b"plain", "ä".encode()]


def test_keys_are_one_scan(used: Path, oram: Oram, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = 0
    scan = library.ObliviousStore.scan

    def counted(store: library.ObliviousStore, visit: Callable[[bytes, bytes], None]) -> None:
        nonlocal scans
        scans += 1
        scan(store, visit)

    monkeypatch.setattr(library.ObliviousStore, "scan", counted)
    assert oram("keys", used).out == b"old\n"
    assert scans == 1
    with library.open(f"lmdb:{used}", key=KEY) as opened:
        assert opened.stats().accesses == 1
