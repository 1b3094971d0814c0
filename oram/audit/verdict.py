"""The whole audit: checks of the scratch stores, each kind of them on stores that leak on purpose for it, and what it comes to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np

import oram
from oram import kernels
from oram.audit import chance, worlds
from oram.audit.leaks import LEAKS, LIVE, Leak
from oram.audit.place import Scratch, Target, scratch
from oram.audit.running import ALPHA, Finding
from oram.audit.sides import SCHEMES
from oram.audit.worlds import BUILT_IN, QUICK, comparable, pairs_of
from oram.backends import MemoryBackend
from oram.provenance import provenance
from oram.testing.statistics import LEVEL, Result, changed_everywhere, confirmed, constant_lengths
from oram.testing.worlds import Pair
from oram.trace import Event, TraceBackend

__all__ = ["NOT_COVERED", "Check", "Control", "Outcome", "Verdict", "audit"]

_KEPT = 1 << 26  # bytes of ciphertexts that are looked at, about

Outcome = Literal["nothing found", "leak found", "inconclusive"]

NOT_COVERED = (
    "when requests come, and how many there are: both are public",
    "what the client's machine shows by itself: memory, caches, power, swap",
    "a proof: a flaw smaller than what the checks could have found, or of a kind that none of them looks for, stays unseen",
    "crashes and recovery: tests/recovery does that, for every scheme",
    "rekey, backups, verify, and a store of blocks without keys",
    "sizes beyond those of the scratch stores: leaves that no longer are uniform where a tree is higher, say",
    "the randomness of batches: statistics watch single accesses; pairs of workloads have batches too, under randomness that is given",
)
#: What the parts of an audit that were left out would have said, and what some stores have besides.
_NOT_QUICK = "pairs of workloads that the quick audit leaves out, among them scans, bulk loads and clear"
_NOT_OWN = "pairs of workloads other than the user's"
_NOT_SHARDS = (
    "the log of each shard's server: what all of them are told together is looked at",
    "the randomness of several shards: one of them is watched, and they are alike",
    "scans, bulk loads and clear of several shards",
)
_NOT_SERVERS = "scans, bulk loads and clear by the server's log, and its account of a store that is opened again, which is looked at in this process"
_NOT_CUCKOO = (
    "graph excess: hash keys that were drawn until all entries of a table fitted, or entries in a stash that are looked for as dummies, show as "
    "pairs that fit their table too often; tests/controls tests that, of the reference kernels",
    "a Cuckoo store after a bulk load: those that are watched are filled record by record",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One check. kind: "exact" (no false alarms) or "statistical". observations: what it is based on. level: its false-alarm rate.

    found: what it says is wrong, empty where nothing is. detectable: the smallest flaw that it would have found with probability 0.99.
    """

    name: str
    says: str
    kind: Literal["exact", "statistical"]
    observations: int
    level: float
    p_value: float | None
    found: str
    detectable: str


@dataclasses.dataclass(frozen=True, slots=True)
class Control:
    """A store that leaks on purpose, under checks of one kind that have to find it. found_by: those that did, after ``accesses``."""

    leak: str
    says: str
    workload: str
    accesses: int
    found_by: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What an audit came to. alpha: probability that a sound store is accused."""

    outcome: Outcome
    summary: str
    target: dict[str, Any]
    provenance: dict[str, Any]
    alpha: float
    checks: tuple[Check, ...]
    controls: tuple[Control, ...]
    not_covered: tuple[str, ...] = NOT_COVERED

    def to_json(self) -> str:
        """All of it."""
        return json.dumps(dataclasses.asdict(self), indent=1, default=str)


def audit(
    target: Target,
    workloads: Sequence[str] = (),
    *,
    accesses: int = 6000,
    runs: int = 120,
    quick: bool = False,
    seed: int = 1,
    leak: Leak | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """Audit scratch stores with the parameters of ``target``.

    workloads: of the user, as ``named_workload`` takes them, compared pairwise; the built-in pairs without. accesses: of each run that the
    statistical checks watch. runs: whole runs that a classifier is to tell apart. quick: a few pairs, and a fifth of the accesses. leak:
    audit stores that are broken like this, to see what that looks like.

    Raises what making a store at the place raises, and ParameterError for workloads that are none. Cost: scratch stores; about a minute, quick
    some seconds. Leaks: that an audit took place, and the workloads, to the server named.
    """
    if quick:
        accesses, runs = accesses // 5, runs // 2
    pairs = pairs_of(workloads) if workloads else [pair for pair in BUILT_IN if not quick or pair.name in QUICK]
    checks: list[Check] = []
    with scratch(target, leak) as place:
        checks += _worlds(place, [pair for pair in pairs if comparable(pair, target)], seed, progress)
    if leak is None or leak.reopens:
        progress("opened again")
        checks.append(_opened_again(target, seed, leak))
    progress("ciphertexts")
    checks += _ciphertexts(target, 40 if quick else 200, leak)
    progress("new stores")
    checks += _new_stores(target, leak)
    checks += _chance(target, accesses, seed, leak, progress)
    progress("whole runs")
    checks.append(_whole_runs(target, runs, seed, leak))
    controls = _controls(target, accesses, runs, seed, progress)
    missed = [f"{control.leak}: {control.workload}" for control in controls if not control.found_by]
    unseen = [check.name for check in checks if not check.detectable]
    outcome: Outcome = "nothing found"
    if any(check.found for check in checks):
        outcome = "leak found"
    elif missed or unseen:
        outcome = "inconclusive"
    return Verdict(
        outcome,
        _summary(outcome, checks, controls, missed, unseen),
        _told(target),
        provenance() | {"oram": oram.__version__, "kernels": kernels.active().name, "seed": seed},
        ALPHA,
        tuple(checks),
        tuple(controls),
        (*NOT_COVERED, *_besides(target, quick=quick, own=bool(workloads))),
    )


def _besides(target: Target, *, quick: bool, own: bool) -> list[str]:
    """What of this audit is not covered besides."""
    return [
        *([_NOT_OWN] if own else [_NOT_QUICK] if quick else []),
        *(_NOT_SHARDS if target.shards > 1 else ()),
        *([_NOT_SERVERS] if target.kind == "redis" else []),
        *(_NOT_CUCKOO if target.scheme == "cuckoo" else ()),
    ]


def _worlds(place: Scratch, pairs: Sequence[Pair], seed: int, progress: Callable[[str], None]) -> list[Check]:
    found = []
    progress("two worlds")
    for compared in worlds.compare(place, pairs, seed):
        progress(compared.name)
        found.append(
            Check(
                compared.name, "both workloads show exactly what the simulator says, and the same", "exact", compared.events, 0.0, None,
                compared.trouble, "any single difference" if compared.events or compared.trouble else "",
            )
        )  # fmt: skip
    return found


def _opened_again(target: Target, seed: int, leak: Leak | None) -> Check:
    found = worlds.opened_again(target, seed, leak)
    says = "closing a store, opening it again, and what it is asked for before and after show exactly what the simulator says (in this process)"
    return Check(
        found.name, says, "exact", found.events, 0.0, None, found.trouble,
        "any single difference" if found.events or found.trouble else "",
    )  # fmt: skip


def _ciphertexts(target: Target, accesses: int, leak: Leak | None) -> list[Check]:
    """What is written, with the parameters and the cipher of the target: one length a region, nothing of the old ciphertext left, and nothing twice."""
    kept = TraceBackend(MemoryBackend(), keep_data=True)
    with (oram.create if leak is None else leak.create)(kept, **target.options()) as store:
        kept.clear()
        for i in range(_LONGEST):
            store.put(b"%d" % (i % 7), b"v" * (i % 3))
            store.get(b"%d" % (i % 9))
            full = kept.bytes_written > _KEPT // 2
            if i and (full or (i >= accesses and i % _STEP == 0 and _written_anew(kept.events) >= _ANEW)):
                break
    tests = {
        "lengths of ciphertexts": (constant_lengths, "all slots of a region have one length, whatever is in them"),
        "new ciphertexts": (changed_everywhere, "no block of sixteen bytes of a slot outlives its being written anew"),
        "nonces": (
            _nothing_twice,
            "no sixteen bytes are written twice, anywhere: with a nonce used again, empty blocks would be alike",
        ),
    }
    found, anew = [], _written_anew(kept.events)
    for name, (test, says) in tests.items():
        result = test(kept.events)
        trouble = "" if result.passed else f"{result.statistic:g} exceptions"
        found.append(Check(name, says, "exact", anew, 0.0, None, trouble, "any single difference" if anew else ""))
    return found


#: Puts and gets until so many slots were written anew, at most so many; looked at after so many.
_ANEW, _LONGEST, _STEP = 100, 4000, 10
_SEALED = ("slots.", "meta.")  # regions whose slots have a nonce each


def _written_anew(events: Sequence[Event]) -> int:
    """How many slots were written that had been written before."""
    written = [
        (event.region, slot)
        for event in events
        if event.op == "write" and event.region.startswith(_SEALED)
        for slot in event.indices
    ]
    return len(written) - len(set(written))


def _nothing_twice(events: Sequence[Event]) -> Result:
    """Two blocks of independent ciphertext are equal with probability 2^-128."""
    whole = [
        np.ascontiguousarray(event.data[:, : event.data.shape[1] // 16 * 16]).reshape(-1, 16)
        for event in events
        if event.op == "write" and event.data is not None and event.region.startswith(_SEALED)
    ]
    blocks = np.concatenate(whole).view("V16").ravel() if whole else np.empty(0, "V16")
    twice = blocks.size - len(set(blocks.tolist()))
    return Result("nothing twice", twice, float(twice == 0), 0.0)


def _chance(
    target: Target, accesses: int, seed: int, leak: Leak | None, progress: Callable[[str], None]
) -> list[Check]:
    """What is random, under one workload after the other. Who is accused is accused by two independent runs."""
    found = []
    for workload in ("uniform", "hot key", "zipf", "misses"):
        progress(f"randomness, {workload}")
        watched = chance.watch(target, workload, accesses, seed, leak)
        again: chance.Watched | None = None
        if any(finding.level for finding in watched.alarms):
            again = chance.watch(target, workload, accesses, seed + 1, leak)
        for finding in watched.findings:
            exact = finding.level == 0.0
            confirmed = exact or (again is not None and any(finding.name == other.name for other in again.alarms))
            trouble = f"alarm at {finding.alarm:,} observations" if finding.alarm is not None and confirmed else ""
            found.append(
                Check(
                    f"{finding.name} ({workload})", finding.null, "exact" if exact else "statistical", finding.looked or finding.seen,
                    finding.level or 0.0, None if exact else finding.p_value, trouble, chance.detectable(finding, watched.sights),
                )
            )  # fmt: skip
        if target.scheme != "linear":  # which shows nothing that could depend on anything
            found.append(_on_input(target, watched, seed, leak))
        if watched.choices:
            found.append(_slots_on_input(target, watched, seed, leak))
    return found


def _on_input(target: Target, watched: chance.Watched, seed: int, leak: Leak | None) -> Check:
    says = "what shows is as for any other request, whether the hot key, another record, one that is not there or a put was asked for (permutations)"
    return _depends(
        target, watched, seed + 2, leak, "dependence on the request", says, "what showed depends on what was asked for", len(watched.shown),
        lambda run: chance.on_input(run, seed), lambda run: chance.conditioned(len(run.shown), run.sights.places, len(set(run.labels))),
    )  # fmt: skip


def _slots_on_input(target: Target, watched: chance.Watched, seed: int, leak: Leak | None) -> Check:
    says = "which slot of a bucket is read is as for any other request, whatever kind of request it was (chi-squares, by level)"
    return _depends(
        target, watched, seed + 3, leak, "slots and the request", says, "which slots were read depended on what was asked for", len(watched.choices),
        chance.slots_on_input, chance.slots_conditioned,
    )  # fmt: skip


def _depends(
    target: Target, watched: chance.Watched, seed: int, leak: Leak | None, name: str, says: str, accuses: str, n: int,
    test: Callable[[chance.Watched], Result], power: Callable[[chance.Watched], str],
) -> Check:  # fmt: skip
    """A test of a run, which is made again if it raises an alarm. seed: of that other run."""
    name = f"{name} ({watched.workload})"

    def tested(which: int) -> Result:
        return test(watched if which == 0 else chance.watch(target, watched.workload, watched.accesses, seed, leak))

    try:
        result = confirmed(tested)
    except ValueError:
        return Check(name, says, "statistical", n, LEVEL, None, "", "")
    return Check(
        name, says, "statistical", n, result.level, result.p_value, "" if result.passed else accuses, power(watched)
    )


def _new_stores(target: Target, leak: Leak | None, only: Sequence[str] = ()) -> list[Check]:
    """What a store begins with, or some checks of it. Linear begins with nothing, and a hierarchy with hash functions, which have no order."""
    stores: dict[int, chance.Begun] = {}

    def store(number: int) -> chance.Begun:
        if number not in stores:
            stores[number] = chance.begin(target, leak)
        return stores[number]

    def alike() -> Check:
        found = confirmed(lambda which: chance.alike(store(2 * which), store(2 * which + 1)))
        says = "two new stores under one key, with the same records, show the same only as often as by chance (exact binomials)"
        trouble = "" if found.passed else "two new stores showed the same"
        power = chance.alike_in(store(0), store(1))
        return Check(_ALIKE, says, "statistical", len(store(0).shown), found.level, found.p_value, trouble, power)

    def in_order() -> Check:
        found = confirmed(lambda which: chance.in_order(store(2 * which)))
        says = "after a bulk load, the first leaves of records are uniform, and say nothing of their order (chi-squares, exact binomial)"
        trouble, n = "" if found.passed else "the first leaves follow an order", chance.RECORDS
        power = chance.ordered(n, store(0).places)
        return Check(_IN_ORDER, says, "statistical", n, found.level, found.p_value, trouble, power)

    checks = {"linear": {}, "cuckoo": {_ALIKE: alike}}.get(target.scheme, {_ALIKE: alike, _IN_ORDER: in_order})
    return [check() for name, check in checks.items() if name in (only or checks)]


_ALIKE, _IN_ORDER = "new stores alike", "new stores in order"


def _whole_runs(target: Target, runs: int, seed: int, leak: Leak | None) -> Check:
    tested = runs - runs // 2
    apart = confirmed(lambda which: chance.told_apart(target, runs, seed + which, leak))
    says = "a classifier tells runs of a hot key from runs of a scan no better than a coin does"
    trouble = "" if apart.passed else f"it was right in {apart.statistic:.0%} of runs"
    return Check(
        "whole runs told apart", says, "statistical", tested, apart.level, apart.p_value, trouble, chance.classified(tested)
    )  # fmt: skip


def _controls(target: Target, accesses: int, runs: int, seed: int, progress: Callable[[str], None]) -> list[Control]:
    """Each kind of check, on stores that it has to find."""
    known = {leak.name: leak for leak in LEAKS if leak.applies_to(target.scheme)}
    found = []

    def add(name: str, workload: str, made: int, checks: Iterable[Check]) -> None:
        found.append(
            Control(name, known[name].says, workload, made, tuple(check.name for check in checks if check.found))
        )

    for name, leak in known.items():
        progress(f"a store that leaks: {name}")
        if leak in LIVE or leak.opened:
            found.append(_watched(target, accesses, seed, leak))
        elif name in _OF_CIPHERTEXTS:
            add(name, "puts and gets", _FEW, _ciphertexts(target, _FEW, leak))
        elif name in _OF_NEW:
            add(name, "each record once", chance.RECORDS, _new_stores(target, leak, _OF_NEW[name]))
    progress("stores that leak: pairs")
    for name, of_pair in _OF_PAIRS.items():
        pairs = [pair for pair in BUILT_IN if pair.name == of_pair]
        with scratch(target, known[name]) as place:
            add(name, of_pair, 2 * _FEW, _worlds(place, pairs, seed, lambda _: None))
    progress("stores that leak: opened again")
    add("a miss is free", "opened again", 4 * _FEW, [_opened_again(target, seed, known["a miss is free"])])
    progress("stores that leak: whole runs")
    few = min(runs, 60)
    add(_OF_RUNS, "hot key, scan", 64 * few, [_whole_runs(target, few, seed, known[_OF_RUNS])])
    for name in _OF_REQUESTS:
        if name in known:
            progress("stores that leak: dependence on the request")
            watched = chance.watch(target, "hot key", min(accesses, _ENOUGH), seed, known[name])
            depends = _slots_on_input if watched.choices and name != "halves" else _on_input
            add(name, "hot key", watched.accesses, [depends(target, watched, seed, known[name])])
    return found


#: Leaks that are for checks other than those of ``running``. Of pairs: with the one that has to find it.
_OF_CIPHERTEXTS = ("a ciphertext is kept", "two ciphertexts alike")
_OF_NEW = {"begins in order": [_IN_ORDER], "begins as any other": [_ALIKE], "hashes as any other": [_ALIKE]}
_OF_PAIRS = {"a miss is free": "gets: hits / misses", "a get journals less": "gets / puts"}
_OF_REQUESTS = ("halves", "coins thrown once")
_OF_RUNS = "the same again is free"
_FEW, _ENOUGH = 70, 1500  # accesses


def _watched(target: Target, accesses: int, seed: int, leak: Leak) -> Control:
    """A store that tests of ``running`` have to find; twice the accesses that these have, so that one does not go unnoticed by bad luck."""
    workload = leak.workload or "uniform"

    def alarms(findings: Iterable[Finding]) -> list[str]:
        return [each.name for each in findings if each.alarm is not None and leak.test in ("", each.name)]

    watched = chance.watch(
        target, workload, 2 * accesses, seed, leak, lambda side: bool(alarms(side.findings)), _OPENED_AT
    )
    return Control(leak.name, leak.says, workload, watched.accesses, tuple(alarms(watched.findings)))


_OPENED_AT = 200  # accesses of a control


def _summary(
    outcome: Outcome, checks: Sequence[Check], controls: Sequence[Control], missed: Sequence[str], unseen: Sequence[str]
) -> str:
    if outcome == "leak found":
        names = ", ".join(check.name for check in checks if check.found)
        return f"What the server saw depended on what was asked. Found by: {names}."
    if outcome == "inconclusive":
        reasons = (
            [
                f"too little was seen for {len(unseen)} of {len(checks)} checks ({', '.join(unseen[:3])}{', ...' if len(unseen) > 3 else ''})"
            ]
            if unseen
            else []
        )
        reasons += [f"stores that leak on purpose went unnoticed ({', '.join(missed)})"] if missed else []
        return f"No check found anything, but that says little: {'; '.join(reasons)}. Take more accesses."
    return (
        f"{len(checks)} checks found nothing, and each kind of them found the stores that leak on purpose for it, {len(controls)} in all. "
        "This is evidence and not a proof."
    )


def _told(target: Target) -> dict[str, Any]:
    told = dataclasses.asdict(target)
    told["params"] = {name: value for name, value in told["params"].items() if value is not None}
    told["watched"] = str(chance.visible(target) or SCHEMES[target.scheme])
    return told
