"""``oram bench``: what it is told to measure, what it measures, and that the page says nothing else."""

from __future__ import annotations

import html
import importlib.metadata
import itertools
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import oram
from oram import kernels
from oram.backends import MemoryBackend
from oram.benchmark import GROUP, WORKLOADS, Plan, Recorder, Request, Results, counting, measure, read_trace
from oram.benchmark.counting import LAYERS
from oram.benchmark.plan import QUICK
from oram.benchmark.subject import BASELINES, Case, Subject, names
from oram.benchmark.workload import SCAN
from oram.cli import main
from oram.encrypted import EncryptedStore
from oram.errors import BackendUnavailableError, MissingKeyError, ParameterError
from oram.testing.servers import free_port, redis_server
from oram.trace import TraceBackend

SMALL: dict[str, Any] = {
    "subjects": ("path", "ring", "cuckoo", "linear", "dict", "plain-lmdb", "encrypted", "pyoram"), "backends": ("memory", "lmdb"),
    "capacities": (64, 128), "block_sizes": (128,), "batches": (1, 8), "rtts": (0.0, 1.0), "seconds": 0.02,
}  # fmt: skip


@pytest.fixture(scope="module")
def results() -> Results:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ORAM_PYORAM", raising=False)
        return measure(Plan.of(SMALL, QUICK))


# What is asked for


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_has_the_shares_that_it_names(name: str) -> None:
    workload = WORKLOADS[name]
    asked = list(islice(workload.requests(1000, 2000, 1), 20_000))
    assert asked == list(islice(workload.requests(1000, 2000, 1), 20_000))
    assert asked != list(islice(workload.requests(1000, 2000, 2), 20_000))
    kinds = Counter[str](request.kind for request in asked)
    drawn = workload.get + workload.update + workload.insert + workload.scan + 2 * workload.modify
    shares = {
        "get": workload.get + workload.modify,
        "put": workload.update + workload.insert + workload.modify,
        "scan": workload.scan,
        "delete": 0.0,
    }
    for kind, share in shares.items():
        assert kinds[kind] / len(asked) == pytest.approx(share / drawn, abs=0.02)
    assert all(0 <= request.number < 2000 for request in asked)
    assert all(request.number + SCAN <= 2000 for request in asked if request.kind == "scan")


def test_zipf_and_latest() -> None:
    popular = Counter(request.number for request in islice(WORKLOADS["C"].requests(1000, 1000, 1), 50_000))
    first, tenth = popular.most_common(10)[0][1], popular.most_common(10)[9][1]
    assert first / tenth == pytest.approx(10**0.99, rel=0.2)
    latest = [r.number for r in islice(WORKLOADS["D"].requests(1000, 2000, 1), 5_000) if r.kind == "get"]
    assert sum(number > 900 for number in latest) > len(latest) / 2


def test_traces(tmp_path: Path) -> None:
    store: dict[bytes, bytes] = {}
    recorder = Recorder(store)
    recorder[b"secret key"] = b"1"
    assert recorder[b"secret key"] == b"1"
    assert recorder.get(b"b") is None
    del recorder[b"secret key"]
    recorder.save(tmp_path / "trace")
    kinds = [("put", 0), ("get", 0), ("get", 1), ("delete", 0)]
    assert [(each.kind, each.number) for each in read_trace(tmp_path / "trace")] == kinds
    assert recorder.requests[0] == Request("put", 0)
    assert b"secret" not in (tmp_path / "trace").read_bytes()
    for bad in ("", "{", '{"op": "get"}', '{"op": "pop", "record": 1}', '{"op": "get", "record": -1}'):
        (tmp_path / "bad").write_text(bad)
        with pytest.raises(ParameterError):
            read_trace(tmp_path / "bad")


# Plans


def test_all_problems_together() -> None:
    with pytest.raises(ParameterError) as caught:
        Plan(subjects=("path", "nobody"), backends=("tape",), capacities=(3,), batches=(), rtts=(-1.0,))
    for problem in ("nobody", "tape", "capacity", "batches", "round trip"):
        assert problem in str(caught.value)


def test_a_plan_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('subjects = ["path", "dict"]\ncapacities = 256\nseconds = 1\nrtts = [0, 2.5]\n')
    told = {"subjects": ["path", "dict"], "capacities": [256], "seconds": 1.0, "rtts": [0.0, 2.5]}
    assert Plan.from_toml(path, QUICK) == Plan.of(told, QUICK)
    for bad in ("colour = 1", 'capacities = "x"', "subjects = 1", "= 3", "seconds = true"):
        path.write_text(bad)
        with pytest.raises(ParameterError):
            Plan.from_toml(path, QUICK)


# What is measured


def test_each_combination_is_there(results: Results) -> None:
    assert results.complete
    for row in results.compared:
        told = [row[p] for p in ("p50", "p99", "p999") if row[p] is not None]
        assert told == sorted(told)
        assert all(each <= row["max"] for each in told)
        assert row["p50"] is not None
        assert (row["p99"] is None) == (row["calls"] < 500)
        assert (row["p999"] is None) == (row["calls"] < 5000)
        assert row["a_second_least"] <= row["a_second"] * 1.0001
        shares, times = zip(*row["slower"], strict=True)
        assert (shares[0], times[-1]) == (1, pytest.approx(row["max"]))
        assert list(shares) == sorted(set(shares), reverse=True)
        assert list(times) == sorted(times)
    memory = {row["subject"] for row in results.compared if row["backend"] == "memory" and not row["rtt"]}
    assert memory == {"path", "ring", "cuckoo", "linear", "dict", "encrypted"}
    disk = {row["subject"] for row in results.compared if row["backend"] == "lmdb"}
    assert disk == {*memory, "plain-lmdb"} - {"dict"}
    far = [row for row in results.compared if row["rtt"]]
    assert far
    assert all(row["p50"] >= 1 for row in far)
    skipped = {row["what"]: row["why"] for row in results.skipped}
    assert "pip install pyoram==0.2.1" in skipped["pyoram"]
    assert {*skipped} == {
        "pyoram",
        *(f"{name}, a round trip added" for name in ("dict", "pyoram")),
        "lmdb, 1 ms of round trip added",
    }


def test_an_access_is_counted(results: Results) -> None:
    for row in results.access:
        assert row["round_trips"] == pytest.approx(1, abs=0.02), row["scheme"]
        if row["scheme"] == "linear":
            assert row["blowup"] == pytest.approx(2 * row["N"], rel=0.3)
            assert row["server_blowup"] == pytest.approx(1, abs=0.2)


def test_ring_is_counted_over_whole_rounds(tmp_path: Path) -> None:
    """As often as it evicts, and with the early reshuffles of an old tree: what oram reproduce counts."""
    count = itertools.count()
    row = counting.blowup("ring", 256, 4096, lambda: tmp_path / f"{next(count)}")
    A = int(oram.create("memory:", key=bytes(32), capacity=256, block_size=4096, scheme="ring").info()["A"])
    assert row["accesses"] % A == 0
    long = Plan.of({"capacities": (256,)}, QUICK)
    assert long.capacities == (256,)
    assert 5 < row["blowup"] < 60


def test_no_kind_of_request_differs(results: Results) -> None:
    """The page says that the server saw the very same of each kind."""
    for scheme in ("path", "ring", "cuckoo", "linear"):
        rows = [row for row in results.kinds if row["scheme"] == scheme]
        assert len(rows) == len(counting.KINDS)
        assert all(row["identical"] for row in rows)
        assert len({(row["bytes_down"], row["bytes_up"], row["round_trips"]) for row in rows}) == 1


@pytest.mark.parametrize("scheme", ["path", "ring"])
def test_a_kind_that_differs_is_told(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A get of what is not there makes no access."""
    ask = oram.ObliviousStore.get
    monkeypatch.setattr(oram.ObliviousStore, "get", lambda store, key: ask(store, key) if key in store else None)
    count = itertools.count()

    def scratch() -> Path:
        return tmp_path / f"{next(count)}"

    found = {row["kind"]: row["identical"] for row in counting.kinds(scheme, 64, 64, scratch, 10)}
    assert [kind for kind, identical in found.items() if not identical] == ["get, a miss"]


def test_what_was_measured_is_kept_when_it_is_interrupted() -> None:
    kept: list[int] = []

    def progress(what: str, steps: int, done: int) -> None:
        if "batch=8" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(
            Plan.of({**SMALL, "subjects": ("dict",), "backends": ("memory",)}, QUICK),
            keep=lambda found: kept.append(len(found.compared)),
            progress=progress,
        )
    assert kept[-1] == 2


def test_nothing_is_kept_before_there_is_something() -> None:
    """An earlier run's results are not replaced by none."""

    def progress(what: str, steps: int, done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(Plan.of(SMALL, QUICK), keep=lambda _: pytest.fail("nothing was measured"), progress=progress)


class _Own:
    """What a package of somebody else's brings."""

    def __init__(self, case: Case) -> None:
        self.records: dict[bytes, bytes] = {}

    def load(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        self.records.update(items)

    def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        return [self.records.get(key) for key in keys]

    def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        self.records.update(items)

    def delete_many(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self.records.pop(key, None)

    def client_bytes(self) -> int:
        return 7

    def close(self) -> None:
        self.records.clear()


class _Silent(_Own):
    def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        return [None for _ in keys]


class _Breaks(_Own):
    asked = 0

    def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        self.asked += 1
        if self.asked > 6:
            raise KeyError("mine")
        return super().get_many(keys)


def _raises() -> Subject:
    raise RuntimeError("of mine")


BROUGHT: dict[str, Any] = {
    "own": lambda: Subject("own", "an example", ("memory",), _Own),
    "silent": lambda: Subject("silent", "an example", ("memory",), _Silent),
    "breaks": lambda: Subject("breaks", "an example", ("memory",), _Breaks),
    "raises": _raises,
    "none": lambda: None,
}


class _Entry:
    def __init__(self, name: str) -> None:
        self.name, self.value = name, f"mine:{name}"

    def load(self) -> Any:
        if self.name == "missing":
            raise ModuleNotFoundError("No module named 'mine'")
        return BROUGHT[self.name]


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(*, group: str, name: str | None = None) -> list[_Entry]:
        found = [_Entry(each) for each in (*BROUGHT, "missing")] if group == GROUP else []
        return [entry for entry in found if name in (None, entry.name)]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)


OF_OTHERS: dict[str, Any] = {
    **SMALL,
    "backends": ["memory"],
    "capacities": [64],
    "workloads": ["F"],
    "rtts": [0],
    "batches": [1],
}


def test_a_subject_of_somebody_else(brought: None) -> None:
    assert "own" in names()
    rows = measure(Plan.of({**OF_OTHERS, "subjects": ["own"]}, QUICK)).compared
    assert {(row["subject"], row["client_bytes"]) for row in rows} == {("own", 7)}


def test_subjects_of_others_that_fail_are_left_out_and_the_rest_goes_on(brought: None) -> None:
    found = measure(
        Plan.of({**OF_OTHERS, "subjects": ["dict", "silent", "breaks", "raises", "none", "missing", "own"]}, QUICK)
    )
    assert {row["subject"] for row in found.compared} == {"dict", "own"}
    why = {row["what"].partition(",")[0]: row["why"] for row in found.skipped}
    for name, words in {
        "silent": "what was put",
        "breaks": "KeyError",
        "raises": "of mine",
        "none": "Subject",
        "missing": "No module",
    }.items():
        assert words in why[name]
    assert {*found.subjects} == {"dict", "silent", "breaks", "own"}


def test_one_can_be_written_as_the_page_says() -> None:
    """From the public package alone, which may be half imported when it is loaded."""
    code = "import oram.benchmark; from oram.benchmark import Subject, Plan; Plan(); print(Subject)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# What is wrong is told before anything is measured


def test_traces_are_read_first(tmp_path: Path) -> None:
    for text, trouble in (
        ("", "no requests"),
        ("{", "line 1"),
        ("".join(f'{{"op": "put", "record": {i}}}\n' for i in range(500)), "more records than a capacity of 64"),
    ):
        (tmp_path / "trace").write_text(text)
        with pytest.raises(ParameterError, match=trouble):
            Plan.of({"workloads": str(tmp_path / "trace"), "capacities": [1024, 64]}, QUICK)
    (tmp_path / "trace").write_text('{"op": "put", "record": 63}\n{"op": "get", "record": 9999}\n')
    Plan.of({"workloads": str(tmp_path / "trace"), "capacities": [64]}, QUICK)
    with pytest.raises(ParameterError, match="seed"):
        Plan(seed=-1)


def test_pyoram_that_does_not_start_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for python in ("/nonexistent", "/bin/false", sys.executable):
        monkeypatch.setenv("ORAM_PYORAM", python)
        found = measure(Plan.of({**OF_OTHERS, "subjects": ["dict", "pyoram"]}, QUICK))
        assert {row["subject"] for row in found.compared} == {"dict"}
        assert python in next(row["why"] for row in found.skipped if row["what"] == "pyoram")


# A baseline that hides less is as fast as it can be


def test_the_encrypted_store_moves_a_batch_at_once() -> None:
    trace = TraceBackend(MemoryBackend())
    store = EncryptedStore(trace, 64)
    store.load([(b"%d" % i, b"v%d" % i) for i in range(20)])
    trace.clear()
    assert store.get_many([b"3", b"none", b"4", b"3"]) == [b"v3", None, b"v4", b"v3"]
    store.put_many([(b"1", b"a"), (b"2", b"b"), (b"1", b"c")])
    assert trace.round_trips == 2
    assert [store.get(b"1"), store.get(b"2")] == [b"c", b"b"]
    with pytest.raises(MissingKeyError):
        store.put_many([(b"1", b"lost"), (b"none", b"x")])
    assert store.get(b"1") == b"c"
    assert store.get_many([]) == []
    store.put_many([])


# A server that somebody has


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("redis")
    with redis_server(tmp_path_factory.mktemp("server")) as running:
        yield running


def keys_at(url: str) -> set[bytes]:
    import redis

    with redis.Redis.from_url(url.partition("?")[0]) as client:
        return set(client.keys())


ON_SERVER: dict[str, Any] = {
    **SMALL, "subjects": ("path", "cuckoo", "plain-redis", "encrypted"), "capacities": (64,), "rtts": (0.0, 2.0),
}  # fmt: skip


def test_on_a_server_that_is_named_nothing_stays(server: Any) -> None:
    import redis

    url = server.url("mine", db=1)
    with redis.Redis.from_url(url.partition("?")[0]) as client:
        client.mset({"mine": "1", "{mine}:header": "2"})
    results = measure(Plan.of({**ON_SERVER, "backends": (url,)}, QUICK))
    assert keys_at(url) == {b"mine", b"{mine}:header"}
    assert {row["subject"] for row in results.compared} == {"path", "cuckoo", "plain-redis", "encrypted"}
    assert {row["backend"] for row in results.compared} == {url}
    assert all(row["p50"] >= 2 for row in results.compared if row["rtt"])
    assert not results.skipped
    assert re.match(r"(redis|valkey) \d", results.provenance[f"server, {url}"])


def test_nothing_stays_when_it_is_interrupted(server: Any) -> None:
    url, seen = server.url("mine", db=2), list[set[bytes]]()

    def progress(what: str, steps: int, done: int) -> None:
        if "batch=8" in what:
            raise KeyboardInterrupt

    def interrupts(_: Case) -> Any:
        """While others have stores on the server."""
        seen.append(keys_at(url))
        raise KeyboardInterrupt

    plan = Plan.of({**ON_SERVER, "subjects": ("path",), "backends": (url,)}, QUICK)
    with pytest.raises(KeyboardInterrupt):
        measure(plan, progress=progress)
    assert keys_at(url) == set()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(BASELINES, "plain-redis", Subject("plain-redis", "", ("redis",), interrupts))
        measure(Plan.of({"subjects": ("path", "plain-redis")}, plan))
    assert seen[0]
    assert keys_at(url) == set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_nothing_either(number: signal.Signals, server: Any, tmp_path: Path) -> None:
    url = server.url("mine", db=3)
    words = [
        "bench",
        "--quick",
        "--subjects",
        "path,plain-redis",
        "--backends",
        url,
        "--capacities",
        "64",
        "-o",
        str(tmp_path / "out"),
    ]
    code = f"import sys, tempfile; tempfile.tempdir = {str(tmp_path)!r}; from oram.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not keys_at(url):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert keys_at(url) == set()
    assert {path.name for path in tmp_path.iterdir()} <= {"out"}


def test_what_cannot_be_put_before_a_server_is_skipped_and_said(tmp_path: Path) -> None:
    pytest.importorskip("redis")
    with redis_server(tmp_path / "s", unix=True) as running:
        results = measure(Plan.of({**ON_SERVER, "subjects": ("path",), "backends": (running.url(),)}, QUICK))
    assert {row["rtt"] for row in results.compared} == {0.0}
    assert ["a round trip is added" in row["why"] for row in results.skipped] == [True]


def test_a_server_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    pytest.importorskip("redis")
    url = f"redis://127.0.0.1:{free_port()}/0"
    told: list[str] = []
    with pytest.raises(BackendUnavailableError):
        measure(Plan.of({**ON_SERVER, "backends": (url,)}, QUICK), progress=lambda what, *_: told.append(what))
    assert not told
    for bad in ("redis://user:secret@host/0", "redis://host/x", "tape"):
        with pytest.raises(ParameterError) as caught:
            Plan(backends=(bad,))
        assert "secret" not in str(caught.value)


# All combinations


def test_all_combinations(results: Results) -> None:
    told = {
        "subjects": ("dict",),
        "backends": ("memory",),
        "capacities": (64, 128),
        "batches": (1, 8, 16),
        "rtts": (0.0,),
    }
    for product, rows in (
        (False, {(128, 1), (64, 1), (128, 8), (128, 16)}),
        (True, {(n, m) for n in (64, 128) for m in (1, 8, 16)}),
    ):
        found = measure(Plan.of({**told, "seconds": 0.01, "product": product}, QUICK)).compared
        assert len(found) == len(rows)
        assert {(row["N"], row["batch"]) for row in found} == rows


# Layers of safety


def test_each_layer_has_a_row_of_its_own(results: Results) -> None:
    names = [row["layer"] for row in results.layers]
    sealed = {"sealed", "fresh"} if kernels.active().name == "native" else set()
    assert names == [name for name in LAYERS if name in sealed or name not in ("sealed", "fresh")]
    for row in results.layers:
        assert 0 < row["lower_quartile"] <= row["microseconds"] <= row["upper_quartile"]


# The page


def test_the_page_holds_what_the_results_do_and_nothing_from_elsewhere(results: Results) -> None:
    pytest.importorskip("matplotlib")
    from oram.benchmark.figures import draw, number
    from oram.benchmark.report import page

    text = page(results)
    outside = re.findall(r'(?:src|href)="([^"#][^"]*)"|url\(([^#)][^)]*)\)', text)
    assert outside == []
    assert "<script" not in text.replace('<script type="application/json" id="results">', "")
    inside = text.partition('id="results">')[2].partition("</script>")[0].replace("<\\/", "</")
    assert Results.from_json(inside) == Results.from_json(results.to_json())

    def numbers(value: Any) -> set[str]:
        if isinstance(value, dict):
            return {found for each in value.values() for found in numbers(each)}
        if isinstance(value, list):
            return {found for each in value for found in numbers(each)}
        return {number(value)} if isinstance(value, int | float) else {str(value)}

    known = numbers(json.loads(results.to_json()))
    known |= {number(row["bytes_down"] + row["bytes_up"]) for row in results.access}
    known |= {number(r) for row in results.stash for r in range(len(row["tail"]))} | {""}
    figures = draw(results)
    assert len(figures) >= 10
    for drawn in figures:
        for row in drawn.table[1:]:
            assert set(row[1:]) <= known, drawn.title
            assert all(html.escape(cell) in text for cell in row)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out, kept = str(tmp_path / "out"), tmp_path / "out" / "results.json"
    told = {"subjects": "path,dict", "backends": "memory", "capacities": 64, "batches": 1, "rtts": 0, "seconds": 0.02}
    few = [f"--{name}={value}" for name, value in told.items()]
    assert main(["bench", "--quick", *few, "-o", out]) == 0
    assert "path" in capsys.readouterr().out
    assert Results.from_json(kept.read_text()).plan["subjects"] == ["path", "dict"]
    before = (tmp_path / "out" / "report.html").read_text()
    assert main(["bench", "--report", str(kept), "-o", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "report.html").read_text() == before
    assert main(["bench", "--report", str(tmp_path / "nothing"), "-o", out]) == 2
    (tmp_path / "other.json").write_text("[]")
    assert main(["bench", "--report", str(tmp_path / "other.json"), "-o", out]) == 2
    assert main(["bench", "--subjects", "nobody", "-o", out]) == 2
    assert main(["bench", "--batches", "many", "-o", out]) == 2
    assert main(["bench", "--backends", "memory,tape", "-o", out]) == 2
    (tmp_path / "shape.json").write_text('{"provenance": {}, "plan": {}}')
    assert main(["bench", "--report", str(tmp_path / "shape.json"), "-o", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "out" / "report.html").read_text() == before
    capsys.readouterr()
    assert main(["bench", "--report", str(kept)]) == 0
    assert str(tmp_path / "out" / "report.html") in capsys.readouterr().out
    odd = tmp_path / "bw[" / "b]"
    odd.mkdir(parents=True)
    (odd / "m.jsonl").write_text('{"op": "get", "record": 1}\n')
    assert main(["bench", "--quick", *few, "--workloads", f"{odd}/m.jsonl", "-o", out]) == 0
    capsys.readouterr()
    assert main(["bench", "--quick", *few, "--subjects", "dict", "--backends", "lmdb", "-o", out]) == 2
    said = capsys.readouterr()
    assert "it runs on memory only" in said.out
    assert "nothing could be compared" in said.err


def test_places_are_separated_by_commas_and_so_are_nodes() -> None:
    from oram.cli.bench import _places

    told = "memory, redis://a:1,b:2/0?name=x,lmdb,unix:///s,redis"
    assert _places(told) == ("memory", "redis://a:1,b:2/0?name=x", "lmdb", "unix:///s", "redis")
    assert _places("redis://a,redis") == ("redis://a", "redis")
