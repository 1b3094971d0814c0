"""The whole audit: checks of the scratch stores, the same checks on stores that leak on purpose, and what it comes to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

import oram
from oram import kernels
from oram.audit import chance, worlds
from oram.audit.leaks import LEAKS, Leak
from oram.audit.place import Scratch, Target, scratch
from oram.audit.running import ALPHA
from oram.audit.sides import SCHEMES
from oram.audit.worlds import BUILT_IN, QUICK, pairs_of
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
)


_OF_SHARDS = (
    "the log of each shard's server: what all of them are told together is looked at",
    "the randomness of several shards: one of them is watched, and they are alike",
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
    """A store that leaks on purpose, under the same checks. found_by: those that raised an alarm, after ``accesses``."""

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
        checks += _worlds(place, pairs, seed, progress)
    progress("ciphertexts")
    checks += _ciphertexts(target, 40 if quick else 200)
    checks += _chance(target, accesses, seed, leak, progress)
    progress("whole runs")
    checks.append(_whole_runs(target, runs, seed, leak))
    controls = _controls(target, accesses, seed, progress)
    missed = [control.leak for control in controls if not control.found_by]
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
        NOT_COVERED + (_OF_SHARDS if target.shards > 1 else ()),
    )


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


def _ciphertexts(target: Target, accesses: int) -> list[Check]:
    """What is written, with the parameters and the cipher of the target: one length a region, nothing of the old ciphertext left, and nothing twice."""
    kept = TraceBackend(MemoryBackend(), keep_data=True)
    with oram.create(kept, **target.options()) as store:
        kept.clear()
        store.put(b"0", b"v")
        accesses = max(2, min(accesses, _KEPT // max(1, 2 * kept.bytes_written)))
        for i in range(accesses):
            store.put(b"%d" % (i % 7), b"v" * (i % 3))
            store.get(b"%d" % (i % 9))
    tests = {
        "lengths of ciphertexts": (constant_lengths, "all slots of a region have one length, whatever is in them"),
        "new ciphertexts": (changed_everywhere, "no block of sixteen bytes of a slot outlives its being written anew"),
        "nonces": (
            _nothing_twice,
            "no sixteen bytes are written twice, anywhere: with a nonce used again, empty blocks would be alike",
        ),
    }
    found = []
    for name, (test, says) in tests.items():
        result = test(kept.events)
        trouble = "" if result.passed else f"{result.statistic:g} exceptions"
        found.append(Check(name, says, "exact", len(kept.events), 0.0, None, trouble, "any single difference"))
    return found


def _nothing_twice(events: Sequence[Event]) -> Result:
    """Two blocks of independent ciphertext are equal with probability 2^-128."""
    whole = [
        np.ascontiguousarray(event.data[:, : event.data.shape[1] // 16 * 16]).reshape(-1, 16)
        for event in events
        if event.op == "write" and event.data is not None and event.region.startswith(("slots.", "meta."))
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
                    f"{finding.name} ({workload})", finding.null, "exact" if exact else "statistical", finding.seen,
                    finding.level or 0.0, None if exact else finding.p_value, trouble, chance.detectable(finding, watched.sights),
                )
            )  # fmt: skip
        if target.scheme != "linear":  # which shows nothing that could depend on anything
            found.append(_on_input(target, watched, seed, leak))
    return found


def _on_input(target: Target, watched: chance.Watched, seed: int, leak: Leak | None) -> Check:
    n = len(watched.shown)

    def test(which: int) -> Result:
        run = watched if which == 0 else chance.watch(target, watched.workload, watched.accesses, seed + 2, leak)
        return chance.on_input(run, seed)

    says = "what shows is as for any other request, whether the hot key, another record, one that is not there or a put was asked for (permutations)"
    name = f"dependence on the request ({watched.workload})"
    try:
        result = confirmed(test)
    except ValueError:
        return Check(name, says, "statistical", n, LEVEL, None, "", "")
    trouble = "" if result.passed else "what showed depends on what was asked for"
    detectable = chance.conditioned(n, watched.sights.places, len(set(watched.labels)))
    return Check(name, says, "statistical", n, result.level, result.p_value, trouble, detectable)


def _whole_runs(target: Target, runs: int, seed: int, leak: Leak | None) -> Check:
    tested = runs - runs // 2
    apart = confirmed(lambda which: chance.told_apart(target, runs, seed + which, leak))
    says = "a classifier tells runs of a hot key from runs of a scan no better than a coin does"
    trouble = "" if apart.passed else f"it was right in {apart.statistic:.0%} of runs"
    return Check(
        "whole runs told apart", says, "statistical", tested, apart.level, apart.p_value, trouble, chance.classified(tested)
    )  # fmt: skip


def _controls(target: Target, accesses: int, seed: int, progress: Callable[[str], None]) -> list[Control]:
    found = []
    for leak in LEAKS:
        if not leak.applies_to(target.scheme):
            continue
        progress(f"a store that leaks: {leak.name}")
        workload = leak.workload or "uniform"
        watched = chance.watch(target, workload, accesses, seed, leak, lambda side: side.alarm)
        found.append(
            Control(leak.name, leak.says, workload, watched.accesses, tuple(each.name for each in watched.alarms))
        )
    return found


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
        f"{len(checks)} checks found nothing, and the same checks of randomness and traces found each of {len(controls)} stores that leak on purpose. "
        "This is evidence and not a proof."
    )


def _told(target: Target) -> dict[str, Any]:
    told = dataclasses.asdict(target)
    told["params"] = {name: value for name, value in told["params"].items() if value is not None}
    told["watched"] = str(chance.visible(target) or SCHEMES[target.scheme])
    return told
