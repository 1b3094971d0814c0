"""``oram audit``: sound stores pass, each leak is found, and the user's own store is not touched."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import redis as redis_py

import oram
from oram.audit import LEAKS, Target, audit, named_workload
from oram.audit.chance import detectable, told_apart
from oram.audit.page import page
from oram.audit.place import scratch
from oram.audit.running import Finding
from oram.audit.worlds import compare, pairs_of
from oram.cli import main
from oram.errors import ParameterError
from oram.params import SCHEMES, SchemeParams
from oram.testing.servers import Server, redis_server
from oram.testing.worlds import PAIRS

pytestmark = pytest.mark.filterwarnings("ignore::oram.errors.BackendWarning")

PARAMS: dict[str, SchemeParams] = {
    "path": oram.PathParams(),
    "ring": oram.RingParams(Z=4, A=3, S=6),
    "cuckoo": oram.CuckooParams(),
    "linear": oram.LinearParams(),
}


def target(scheme: str, **other: object) -> Target:
    made = Target(scheme, PARAMS[scheme], 100, 64, 0, "aes-256-gcm")
    return dataclasses.replace(made, **other)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("server"), {"appendonly": "no"}) as server:
        yield server


@pytest.mark.parametrize("scheme", SCHEMES)
def test_sound_stores_pass_and_each_leak_is_found(scheme: str) -> None:
    verdict = audit(target(scheme), quick=True)
    assert verdict.outcome == "nothing found", verdict.summary
    assert {control.leak for control in verdict.controls} == {leak.name for leak in LEAKS if leak.applies_to(scheme)}
    assert all(control.found_by for control in verdict.controls)
    assert all(check.observations and not check.found for check in verdict.checks)
    assert "not a proof" in verdict.summary
    text = page(verdict)
    for check in verdict.checks:
        assert f"{check.observations:,}" in text
    assert re.findall(r'(?:src|href)="', text) == []
    assert "<script" not in text
    assert json.loads(verdict.to_json())["outcome"] == "nothing found"


@pytest.mark.parametrize("kind", ["lmdb", "redis"])
@pytest.mark.parametrize("scheme", ["path", "ring"])
def test_on_every_kind_of_place(scheme: str, kind: str, server: Server) -> None:
    told = target(scheme, kind=kind, url=server.url("mine") if kind == "redis" else None)
    with scratch(told) as place:
        found = list(compare(place, PAIRS[:2], 1))
    assert [each.trouble for each in found] == ["", ""]
    assert all(each.events > 50 for each in found)
    with redis_py.Redis(port=server.port) as client:
        assert client.keys("*") == []


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_a_store_that_answers_misses_itself_is_found_by_the_pairs(kind: str, server: Server) -> None:
    pair = next(pair for pair in PAIRS if pair.name == "gets: hits / misses")
    ask = oram.ObliviousStore.__getitem__
    told = target("path", kind=kind, url=server.url("mine") if kind == "redis" else None)
    with (
        mock.patch.object(oram.ObliviousStore, "__getitem__", lambda s, key: ask(s, key) if key in s else None),
        scratch(told) as place,
    ):
        (found,) = compare(place, [pair], 1)
    assert found.trouble


def test_other_traffic_on_the_server_is_not_looked_at(server: Server) -> None:
    with (
        redis_py.Redis(port=server.port) as client,
        scratch(target("path", kind="redis", url=server.url("mine"))) as place,
    ):
        store, trace = place.make()
        with place.look(trace) as events:
            store[b"k"] = b"v"
            client.set("foreign", "x")
            client.get("foreign")
            store.get(b"k")
        store.close()
        assert len(events) >= 4
        client.delete("foreign")


def test_runs_are_told_apart_where_hits_are_free() -> None:
    leak = next(leak for leak in LEAKS if leak.name == "a known block is free")
    assert not told_apart(target("ring"), 80, 1, leak).passed
    assert told_apart(target("ring"), 80, 1).passed


def test_too_few_observations_are_inconclusive() -> None:
    verdict = audit(target("path"), accesses=10, runs=4)
    assert verdict.outcome == "inconclusive"
    assert verdict.summary.startswith("No check found anything, but too little")


def test_what_a_test_can_find() -> None:
    def finding(seen: int, name: str = "each leaf alike") -> Finding:
        return Finding(name, "", False, seen, 0.0, 0.5, 1e-8, None)

    sizes = [float(re.findall(r"by (\d+)%", detectable(finding(n), 256))[0]) for n in (1000, 10_000, 100_000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[-1]
    repeats = [
        float(re.findall(r"in ([\d.]+)% of", detectable(finding(n, "leaf repeated"), 256))[0]) for n in (500, 50_000)
    ]
    assert repeats[0] > repeats[1] > 100 / 256
    assert detectable(dataclasses.replace(finding(10), level=0.0), 256) == "any single difference"


# The user's own


def test_a_store_is_asked_for_its_parameters_and_for_nothing_else(tmp_path: Path) -> None:
    where = f"lmdb:{tmp_path / 'store'}"
    options = {"key": bytes(32), "capacity": 3000, "block_size": 200}
    for scheme in (oram.PathParams(Z=5), oram.RingParams(Z=8), oram.CuckooParams(eps=0.25), "linear"):
        with oram.create(where, scheme=scheme, tree_top=20_000, **options) as store:  # type: ignore[arg-type]
            store[b"k"] = b"v"
            public = store.info()
        before = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir() if "lock" not in path.name}
        made = Target.of_store(where)
        after = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir() if "lock" not in path.name}
        assert before == after
        with scratch(made) as place:
            like, _ = place.make()
            same = {name: value for name, value in like.info().items() if name not in ("store", "kdf")}
            like.close()
        assert same == {name: value for name, value in public.items() if name not in ("store", "kdf")}
        for path in (tmp_path / "store").iterdir():
            path.unlink()


WORKLOADS = """
def few(store):
    for i in range(20):
        store.get(b"%d" % (i % 2))

def many(store):
    for i in range(20):
        store.put(b"%d" % i, b"v")

def more(store):
    for i in range(21):
        store.put(b"%d" % i, b"v")

number = 1
"""


def test_workloads_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(WORKLOADS)
    with scratch(target("path")) as place:
        (same,) = compare(place, pairs_of([f"{path}:few", f"{path}:many"]), 1)
        (other,) = compare(place, pairs_of([f"{path}:few", f"{path}:more"]), 1)
    assert same.trouble == ""
    assert other.trouble
    for name in ("few", f"{path}:none", f"{path}:number", "no.such.module:few", f"{tmp_path}/none.py:few"):
        with pytest.raises(ParameterError):
            named_workload(name)
    with pytest.raises(ParameterError, match="two or more"):
        pairs_of([f"{path}:few"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(WORKLOADS)
    told = ["--scheme", "linear", "--capacity", "40", "--quick"]
    mine = ["--workload", f"{path}:few", "--workload", f"{path}:many"]
    assert main(["audit", *told, *mine, "--json", str(tmp_path / "v.json"), "--html", str(tmp_path / "v.html")]) == 0
    assert "NOTHING FOUND" in capsys.readouterr().out
    assert json.loads((tmp_path / "v.json").read_text())["target"]["capacity"] == 40
    assert "Nothing found" in (tmp_path / "v.html").read_text()
    assert main(["audit", *told, "--workload", f"{path}:few", "--workload", f"{path}:more"]) == 15
    assert main(["audit", "--scheme", "round"]) == 2
    assert main(["audit", "--backend", "tape"]) == 2
    assert main(["audit", str(tmp_path / "none")]) == 3
