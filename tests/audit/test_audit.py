"""``oram audit``: sound stores pass, each leak is found, and the user's own store is not touched."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import redis as redis_py
from scipy import stats as scipy_stats

import oram
from oram.audit import LEAKS, Target, audit, chance, named_workload, sights, worlds
from oram.audit import verdict as verdict_module
from oram.audit.chance import told_apart
from oram.audit.leaks import LIVE
from oram.audit.page import page
from oram.audit.place import scratch
from oram.audit.running import Finding, battery, chosen_for
from oram.audit.verdict import _nothing_twice
from oram.audit.worlds import compare, pairs_of
from oram.backends import MemoryBackend
from oram.cli import main
from oram.engine import Engine
from oram.errors import ParameterError
from oram.params import SchemeParams
from oram.testing.randomness import Coins, pinned
from oram.testing.servers import Server, redis_server
from oram.testing.statistics import LEVEL, PERMUTATIONS, Result
from oram.testing.worlds import PAIRS, OddWorldError, Pair
from oram.trace import TraceBackend

pytestmark = pytest.mark.filterwarnings("ignore::oram.errors.BackendWarning")

PARAMS: dict[str, SchemeParams] = {
    "path": oram.PathParams(),
    "ring": oram.RingParams(Z=4, A=3, S=6),
    "cuckoo": oram.CuckooParams(),
    "cuckoo, no index": oram.CuckooParams(index="none"),
    "linear": oram.LinearParams(),
}


def target(scheme: str, **other: object) -> Target:
    made = Target(PARAMS[scheme].name, PARAMS[scheme], 100, 64, 0, "aes-256-gcm")
    return dataclasses.replace(made, **other)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("server"), {"appendonly": "no"}) as server:
        yield server


@pytest.mark.parametrize("scheme", PARAMS)
def test_sound_stores_pass_and_each_leak_is_found(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole for Path; of the others one pair and no whole runs, which have tests of their own."""
    if scheme != "path":
        monkeypatch.setattr(verdict_module, "QUICK", worlds.QUICK[:1])
        apart = {True: Result("classifier", 1.0, 1e-10, LEVEL), False: Result("classifier", 0.5, 0.5, LEVEL)}
        monkeypatch.setattr(chance, "told_apart", lambda *given: apart[given[3] is not None])
    verdict = audit(target(scheme), quick=True)
    assert verdict.outcome == "nothing found", verdict.summary
    assert {control.leak for control in verdict.controls} == {
        leak.name for leak in LEAKS if leak.applies_to(PARAMS[scheme].name)
    }
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


@pytest.mark.parametrize("block_size", [16, 32, 34, 35])
@pytest.mark.parametrize("scheme", PARAMS)
def test_a_sound_store_of_small_blocks_passes(scheme: str, block_size: int) -> None:
    """Values are as large as the store can hold, where that is less than the workloads want."""
    pair = next(pair for pair in PAIRS if pair.name == "values: small / large")
    with scratch(target(scheme, block_size=block_size)) as place:
        (found,) = compare(place, [pair], 1)
    assert (found.trouble, found.events > 50) == ("", True)


def test_what_a_workload_of_the_audit_raises_is_no_leak() -> None:
    """Only what no simulator says, or what depends on randomness, is."""

    def work(store: oram.ObliviousStore) -> None:
        store[b"k"] = b"x" * 1000

    def odd(store: oram.ObliviousStore) -> None:
        raise OddWorldError("looked for twice")

    with scratch(target("path")) as place:
        with pytest.raises(oram.errors.ValueTooLargeError):
            list(compare(place, [Pair("too large", work, work)], 1))
        (found,) = compare(place, [Pair("odd", odd, odd)], 1)
    assert found.trouble == "looked for twice"


def test_a_command_that_a_server_should_not_have_heard_is_a_leak(server: Server) -> None:
    def work(store: oram.ObliviousStore) -> None:
        store[b"k"] = b"v"
        name = store._engine.backend.inner.options.name  # type: ignore[attr-defined]
        with redis_py.Redis(port=server.port) as client:
            client.append(f"{{{name}}}:1:0", b"x")

    with scratch(target("path", kind="redis", url=server.url("mine"))) as place:
        (found,) = compare(place, [Pair("odd", work, work)], 1)
    assert "another client named the store's keys" in found.trouble


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


BLIND: dict[str, tuple[object, str, object, set[tuple[str, str]]]] = {
    "pairs": (worlds, "_differ", lambda *_: "", {("a miss is free", "gets: hits / misses"), ("a get journals less", "gets / puts")}),
    "opened again": (worlds, "opened_again", lambda *_: worlds.Compared("opened again", 1, ""), {("a miss is free", "opened again")}),
    "ciphertexts": (verdict_module, "_ciphertexts", lambda *_: [], {("a ciphertext is kept", "puts and gets"), ("two ciphertexts alike", "puts and gets")}),
    "new stores": (verdict_module, "_new_stores", lambda *_: [], {("begins in order", "each record once"), ("begins as any other", "each record once")}),
    "whole runs": (chance, "told_apart", lambda *_: Result("", 0.5, 0.5, LEVEL), {("the same again is free", "hot key, scan")}),
    "requests": (chance, "on_input", lambda *_: Result("", 0.0, 1.0, LEVEL), {("halves", "hot key")}),
}  # fmt: skip


@pytest.mark.parametrize("kind", BLIND)
def test_a_kind_of_check_that_finds_nothing_is_noticed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the other kinds find, of stores that leak for it."""
    where, name, blind, missed = BLIND[kind]
    monkeypatch.setattr(where, name, blind)
    monkeypatch.setattr(
        verdict_module,
        "LEAKS",
        [
            leak
            for leak in LEAKS
            if leak not in LIVE or leak.name in ("a miss is free", "a get journals less", "halves")
        ],
    )
    with pinned(Coins(3)):
        controls = verdict_module._controls(target("path"), 1200, 60, 1, lambda _: None)
    assert {(control.leak, control.workload) for control in controls if not control.found_by} == missed


def test_a_scan_that_is_free_in_an_empty_store_is_found() -> None:
    pair = next(pair for pair in worlds.BUILT_IN if pair.name == "scans: full / empty")
    whole = Engine.scan

    def free(engine: Engine) -> Any:
        return iter(()) if engine.directory is not None and not len(engine.directory) else whole(engine)

    with scratch(target("path")) as place:
        (sound,) = compare(place, [pair], 1)
        with mock.patch.object(Engine, "scan", free):
            (odd,) = compare(place, [pair], 1)
    assert (sound.trouble, odd.trouble) == ("", "the server saw two different things of the two workloads")


def test_new_stores_are_alike_as_often_as_by_chance() -> None:
    """P-values of sound stores, of which one is below the bound in one run of 100,000; those of the controls are tested where all of these are."""
    begun = [chance.begin(target("path")) for _ in range(6)]
    orders = [chance.in_order(each).p_value for each in begun]
    alike = [chance.alike(a, b).p_value for a, b in pairwise(begun)]
    assert min(orders + alike) > 1e-6


def test_runs_are_told_apart_where_hits_are_free() -> None:
    leak = next(leak for leak in LEAKS if leak.name == "a known block is free")
    assert not told_apart(target("ring"), 80, 1, leak).passed
    assert told_apart(target("ring"), 80, 1).passed


def test_too_few_observations_are_inconclusive() -> None:
    verdict = audit(target("path"), accesses=10, runs=4)
    assert verdict.outcome == "inconclusive"
    assert verdict.summary.startswith("No check found anything, but that says little")


def test_the_journal_is_watched_on_a_server_too(server: Server) -> None:
    """Two journals that nobody looked at would be alike."""
    leak = next(leak for leak in LEAKS if leak.name == "a get journals less")
    pair = next(pair for pair in PAIRS if pair.name == "gets / puts")
    with scratch(target("path", kind="redis", url=server.url("mine")), leak) as place:
        (found,) = compare(place, [pair], 1)
    assert "journal" in found.trouble


def test_a_nonce_used_again_is_found() -> None:
    trace = TraceBackend(MemoryBackend(), keep_data=True)
    with oram.create(trace, **target("path").options()) as store:
        store.put(b"a", b"b")
    written = next(event for event in trace.events if event.op == "write" and event.region.startswith("slots."))
    assert _nothing_twice([written]).passed
    assert not _nothing_twice([written, written]).passed


def test_what_depends_on_the_request_is_found() -> None:
    """The hot key lives in one half of the tree."""
    leak = next(leak for leak in LEAKS if leak.name == "halves")
    with pinned(Coins(5)):
        leaking = chance.watch(target("path"), "hot key", 600, 1, leak)
        sound = chance.watch(target("path"), "hot key", 600, 1)
    assert not chance.on_input(leaking, 1).passed
    assert chance.on_input(sound, 1).passed


# What would have been found, by simulation


def test_power_of_the_binomial() -> None:
    n, level, draw = 1000, 1e-8, np.random.default_rng(1)
    share = chance.repeated(n, level, 1 / 256)
    p = scipy_stats.binom.sf(draw.binomial(n, share, 4000) - 1, n, 1 / 256)
    assert np.mean(p <= level) == pytest.approx(chance.POWER**0.5, abs=0.005)


def test_power_of_chi_square() -> None:
    n, level, k, draw = 5000, 1e-8, 64, np.random.default_rng(2)
    weights = 1 + chance.uneven(n, level, k - 1) * np.where(np.arange(k) % 2, 1, -1)
    seen = draw.multinomial(n, weights / k, 4000)
    p = scipy_stats.chi2.sf(((seen - n / k) ** 2 / (n / k)).sum(axis=1), k - 1)
    assert np.mean(p <= level) == pytest.approx(chance.POWER**0.5, abs=0.01)


def test_power_of_a_permutation_test() -> None:
    """An alarm is a statistic above that of all permutations, which is a higher bar than the quantile at the level is on average."""
    n, df, draw = 5000, 30, np.random.default_rng(4)
    flaw = chance.uneven_permuted(n, df)
    seen = draw.noncentral_chisquare(df, n * flaw**2, 4000)
    found = draw.random(4000) < scipy_stats.chi2.cdf(seen, df) ** PERMUTATIONS  # no one of so many is as large
    assert np.mean(found) == pytest.approx(chance.POWER**0.5, abs=0.005)
    assert flaw > chance.uneven(n, LEVEL**0.5, df)


def test_power_of_choices_for_kinds() -> None:
    n, level, kinds, draw = 3000, 1e-9, 9, np.random.default_rng(5)
    flaw = chance.uneven(n, level, 3 * kinds)
    shares = np.where(np.arange(4) % 2, 1 - flaw, 1 + flaw) / 4
    p = []
    for _ in range(400):
        quarter = draw.choice(4, n, p=shares)
        p.append(
            chosen_for(draw.integers(0, kinds, n), quarter * 25 + draw.integers(0, 25, n), np.full(n, 100)).p_value
        )
    assert np.mean(np.array(p) <= level) == pytest.approx(chance.POWER**0.5, abs=0.02)


def test_power_is_that_of_the_last_look() -> None:
    """Of whole runs, with all their looks: where slots come again as often as is said, they are found as often as is said, or more."""
    draw, places, name = random.Random(6), 256, "same record, same slot"

    def run(again: float) -> Finding:
        test = next(each for each in battery(sights.PlainSights(places)) if each.finding.name == name)
        last: dict[int, int] = {}
        for i in range(1180):
            record = draw.randrange(64)
            stays = record in last and draw.random() < again
            last[record] = last[record] if stays else draw.randrange(places)
            test.see(sights.Sight((last[record],)), record)
            if i % 25 == 0:
                test.look()
        test.look(last=True)
        return test.finding

    sound = run(0)
    assert (sound.alarm, sound.looked) == (None, sound.seen)
    smallest = chance.repeated(sound.looked, sound.level or 0.0, 1 / places)
    assert f"{smallest:.2%}" in chance.detectable(sound, sights.PlainSights(places))
    found = sum(run((smallest - 1 / places) / (1 - 1 / places)).alarm is not None for _ in range(80))
    assert found >= 77  # of 79.6


def test_power_of_kolmogorov_smirnov_is_a_bound() -> None:
    n, level, draw = 2000, 1e-8, np.random.default_rng(3)
    low = draw.random((300, n)) < 0.5 + chance.off(n, level)  # so many more below one half
    seen = draw.random((300, n)) / 2 + np.where(low, 0, 0.5)
    p = [scipy_stats.kstest(row, "uniform").pvalue for row in seen]
    assert np.mean(np.array(p) <= level) >= chance.POWER**0.5 - 0.01


@pytest.mark.parametrize("scheme", ["path", "ring", "cuckoo", "cuckoo, no index"])
def test_each_test_has_its_own_null(scheme: str) -> None:
    with pinned(Coins(1)):
        watched = chance.watch(target(scheme), "uniform", 600, 1)
    said = {each.name: chance.detectable(each, watched.sights) for each in watched.findings}
    assert all(said.values())
    if scheme != "path":
        assert "ranks" in said["slot of a bucket" if scheme == "ring" else "cell repeated"]
    before = dataclasses.replace(watched.findings[0], level=None)
    assert chance.detectable(before, watched.sights) == ""
    assert chance.detectable(dataclasses.replace(before, level=0.0), watched.sights) == "any single difference"


# The user's own


def test_a_store_is_asked_for_its_parameters_and_for_nothing_else(tmp_path: Path) -> None:
    where = f"lmdb:{tmp_path / 'store'}"
    options = {"key": bytes(32), "block_size": 200}
    for scheme in (oram.PathParams(Z=5), oram.RingParams(Z=8), oram.CuckooParams(eps=0.25), "linear"):
        capacity = 60 if scheme == "linear" else 900
        with oram.create(where, scheme=scheme, capacity=capacity, tree_top=20_000, **options) as store:  # type: ignore[arg-type]
            store[b"k"] = b"v"
            public = store.info()
        before = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir() if "lock" not in path.name}
        made = Target.of_store(where)
        after = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir() if "lock" not in path.name}
        assert before == after
        with scratch(made) as place:
            like, _ = place.make()
            same = {
                name: value for name, value in like.info().items() if name not in ("store", "kdf", "xor")
            }  # a choice of the place
            like.close()
        assert same == {name: value for name, value in public.items() if name not in ("store", "kdf")}
        for path in (tmp_path / "store").iterdir():
            path.unlink()


@pytest.mark.parametrize("scheme", [oram.PathParams(Z=5, page_levels=2), oram.RingParams(4, 3, 6), "linear"])
def test_stores_of_several_shards(scheme: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"key": bytes(32), "capacity": 60, "block_size": 96, "tree_top": 3000, "shards": 3}
    with oram.create(tmp_path / "store", scheme=scheme, **options) as store:
        public = store.info()
    made = Target.of_store(tmp_path / "store")
    assert made.shards == 3
    batches = next(pair for pair in PAIRS if pair.name == "batches: duplicates / distinct")
    with scratch(made) as place:
        like, _ = place.make()
        same = {name: value for name, value in like.info().items() if name not in ("store", "kdf", "xor")}
        like.close()
        (found,) = compare(place, [batches], 1)
    assert same == {name: value for name, value in public.items() if name not in ("store", "kdf", "xor")}
    assert (found.trouble, found.events > 50) == ("", True)
    with scratch(made, next(leak for leak in LEAKS if leak.name == "a miss is free")) as place:
        (odd,) = compare(place, [pair for pair in PAIRS if pair.name == "gets: hits / misses"], 1)
    assert odd.trouble
    said = dataclasses.replace(made, kind="redis", url="redis://127.0.0.1")
    assert Target._of(public, "redis", said.url) == dataclasses.replace(made, kind="memory")


def test_shards_of_cuckoo_have_no_simulator(tmp_path: Path) -> None:
    oram.create(tmp_path / "store", key=bytes(32), scheme="cuckoo", capacity=60, block_size=96, shards=2).close()
    with pytest.raises(ParameterError, match="one"):
        Target.of_store(tmp_path / "store")


WORKLOADS = """import os
def few(store):
    for i in range(20):
        store.get(b"%d" % (i % 2))

def many(store):
    for i in range(20):
        store.put(b"%d" % i, b"v")

def more(store):
    for i in range(21):
        store.put(b"%d" % i, b"v")

def chancy(store):
    for i in range(9):
        store.get_many([b"a"] * (1 + os.urandom(1)[0]))

def broken(store):
    raise KeyError("secret")

def leaving(store):
    exit(0)

number = 1
"""

#: What a store that skips accesses looks like too: so it is an alarm, and the message says what else it may be.
ODD = {("few", "more"): "unless they ask for different numbers", ("chancy", "chancy"): "must not depend on randomness"}


def test_workloads_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(WORKLOADS)
    with scratch(target("path")) as place:
        (same,) = compare(place, pairs_of([f"{path}:few", f"{path}:many"]), 1)
        for names, trouble in ODD.items():
            (odd,) = compare(place, pairs_of([f"{path}:{name}" for name in names]), 1)
            assert trouble in odd.trouble
        for name, error in (("broken", "KeyError"), ("leaving", "SystemExit")):
            with pytest.raises(ParameterError, match=rf"the workload failed: {error}$"):
                list(compare(place, pairs_of([f"{path}:{name}", f"{path}:few"]), 1))
    assert same.trouble == ""
    for name in ("few", f"{path}:none", f"{path}:number", "no.such.module:few", f"{tmp_path}/none.py:few"):
        with pytest.raises(ParameterError):
            named_workload(name)
    with pytest.raises(ParameterError, match="two or more"):
        pairs_of([f"{path}:few"])
    (tmp_path / "leaving.py").write_text("exit(0)")
    with pytest.raises(ParameterError, match="SystemExit"):
        named_workload(f"{tmp_path / 'leaving.py'}:few")


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
    assert main(["audit", "--scheme", "path", "--backend", "tape"]) == 2
    assert main(["audit", "--scheme", "path", "--leak", "nothing"]) == 2
    capsys.readouterr()
    assert main(["audit", *told, *mine, "--leak", "its page first"]) == 15
    assert "LEAK FOUND" in capsys.readouterr().out
    assert main(["audit", "--scheme", "path", "--leak", "its page first"]) == 2
    assert "ring" not in capsys.readouterr().err
    few = ["--scheme", "path", "--capacity", "40", *mine, "--accesses", "30"]
    assert main(["audit", *few]) == 16
    assert "too little was seen" in capsys.readouterr().out
    assert main(["audit", *few[:-1], "0"]) == 2
    assert main(["audit", str(tmp_path / "none")]) == 3


def test_a_large_store_has_small_scratch_stores(tmp_path: Path) -> None:
    """As low a tree, and as many levels of it at the server as can be."""
    options = {"key": bytes(32), "capacity": 3000, "block_size": 256, "blocks_per_value": 2, "tree_top": 20_000}
    oram.create(tmp_path / "store", scheme=oram.RingParams(4, 3, 6), **options).close()  # type: ignore[arg-type]
    made = Target.of_store(tmp_path / "store")
    assert (made.blocks_per_value, made.capacity, made.stands_for) == (2, 1024, 3000)
    with scratch(made) as place:
        info = place.make()[0].info()
    assert [info[name] for name in ("Z", "A", "S", "blocks_per_value")] == [4, 3, 6, 2]


def test_redis_is_not_needed_for_other_places() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('redis', 'pytest', 'hypothesis')))\n"
        "from oram.audit import Target, place, worlds\n"
        "t = Target.new('memory', scheme='path', capacity=64, block_size=128)\n"
        "with place.scratch(t) as p: assert not any(c.trouble for c in worlds.compare(p, worlds.BUILT_IN[:1], 1))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
