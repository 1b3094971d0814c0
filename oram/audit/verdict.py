"""The whole audit: checks of the scratch stores, the same checks on stores that leak on purpose, and what it comes to."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

import oram
from oram import kernels
from oram.audit import chance, worlds
from oram.audit.leaks import LEAKS
from oram.audit.place import Scratch, Target, scratch
from oram.audit.running import ALPHA
from oram.audit.sides import SCHEMES, oblivious
from oram.audit.worlds import BUILT_IN, QUICK, pairs_of
from oram.testing.statistics import changed_everywhere, constant_lengths
from oram.testing.worlds import Pair
from oram.trace import TraceBackend

__all__ = ["NOT_COVERED", "Check", "Control", "Verdict", "audit"]

Outcome = Literal["nothing found", "leak found", "inconclusive"]

NOT_COVERED = (
    "when requests come, and how many there are: both are public",
    "what the client's machine shows by itself: memory, caches, power, swap",
    "a proof: a flaw smaller than what the checks could have found, or of a kind that none of them looks for, stays unseen",
    "crashes and recovery: tests/recovery does that, for every scheme",
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
    progress: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """Audit scratch stores with the parameters of ``target``.

    workloads: of the user, as ``named_workload`` takes them, compared pairwise; the built-in pairs without. accesses: of each run that the
    statistical checks watch. runs: whole runs that a classifier is to tell apart. quick: a few pairs, and a tenth of all that.

    Raises what making a store at the place raises, and ParameterError for workloads that are none. Cost: scratch stores; about a minute, quick
    some seconds. Leaks: that an audit took place, and the workloads, to the server named.
    """
    if quick:
        accesses, runs = max(600, accesses // 5), max(80, runs // 2)
    pairs = pairs_of(workloads) if workloads else [pair for pair in BUILT_IN if not quick or pair.name in QUICK]
    checks: list[Check] = []
    with scratch(target) as place:
        checks += _worlds(place, pairs, seed, progress)
        progress("ciphertexts")
        checks += _ciphertexts(place, 40 if quick else 200)
    progress("randomness")
    checks += _chance(target, accesses, seed, progress)
    progress("whole runs")
    apart = chance.told_apart(target, runs, seed)
    if not apart.passed:  # once more, independently: only both together count
        second = chance.told_apart(target, runs, seed + 1)
        apart = second if second.passed else apart
    checks.append(
        Check(
            "whole runs told apart", "a classifier tells runs of a hot key from runs of a scan no better than a coin", "statistical", runs - runs // 2,
            apart.level, apart.p_value, "" if apart.passed else f"it was right in {apart.statistic:.0%} of runs", _classified(runs - runs // 2),
        )
    )  # fmt: skip
    controls = _controls(target, accesses, seed, progress)
    missed = [control.leak for control in controls if not control.found_by]
    found = [check for check in checks if check.found]
    outcome: Outcome = (
        "leak found"
        if found
        else "inconclusive"
        if missed or any(not c.observations for c in checks)
        else "nothing found"
    )
    return Verdict(
        outcome,
        _summary(outcome, checks, controls, missed),
        _told(target),
        _provenance(seed),
        ALPHA,
        tuple(checks),
        tuple(controls),
    )


def _worlds(place: Scratch, pairs: Sequence[Pair], seed: int, progress: Callable[[str], None]) -> list[Check]:
    found = []
    progress("two worlds")
    for compared in worlds.compare(place, pairs, seed):
        progress(compared.name)
        found.append(
            Check(
                compared.name, "both workloads show exactly what the simulator says, and the same", "exact", compared.events, 0.0, None,
                compared.trouble, "any single difference" if compared.events else "",
            )
        )  # fmt: skip
    return found


def _ciphertexts(place: Scratch, accesses: int) -> list[Check]:
    """What is written: one length a region, and nothing of the old ciphertext left."""
    with scratch(dataclasses.replace(place.target, kind="memory")) as memory:
        store, trace = memory.make()
        kept = TraceBackend(trace.inner, keep_data=True)
        store.close()
        kept.clear()
        options = place.target.options()
        with oram.open(kept, key=options["key"], durability="process") as store:
            kept.clear()
            for i in range(accesses):
                store.put(b"%d" % (i % 7), b"v" * (i % 3))
                store.get(b"%d" % (i % 9))
            events = list(kept.events)
    tests = {
        "lengths of ciphertexts": (constant_lengths, "all slots of a region have one length, whatever is in them"),
        "new ciphertexts": (changed_everywhere, "no block of sixteen bytes of a slot outlives its being written anew"),
    }
    found = []
    for name, (test, says) in tests.items():
        result = test(events)
        trouble = "" if result.passed else f"{result.statistic:g} exceptions"
        found.append(Check(name, says, "exact", len(events), 0.0, None, trouble, "any single difference"))
    return found


def _chance(target: Target, accesses: int, seed: int, progress: Callable[[str], None]) -> list[Check]:
    found = []
    names = ("uniform", "hot key", "zipf", "misses")
    for workload in names:
        progress(f"randomness, {workload}")
        watched = chance.watch(target, workload, accesses, seed)
        side = oblivious(target.scheme, None, chance.visible(target))
        for finding in watched.findings:
            trouble = "" if finding.alarm is None else f"alarm at {finding.alarm:,} observations"
            if finding.alarm is not None and finding.level:  # once more, independently: only both together count
                again = chance.watch(target, workload, accesses, seed + 1)
                trouble = trouble if any(other.name == finding.name for other in again.alarms) else ""
            if finding.p_value is None and not finding.seen:
                continue
            exact = finding.level == 0.0
            found.append(
                Check(
                    f"{finding.name} ({workload})", finding.null, "exact" if exact else "statistical", finding.seen,
                    ALPHA if finding.level is None else finding.level, None if exact else finding.p_value, trouble,
                    chance.detectable(finding, side.sights.places),
                )
            )  # fmt: skip
    return found


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


def _classified(tested: int) -> str:
    """The least accuracy that is found with probability 0.99."""
    from scipy import stats as scipy_stats

    from oram.testing.statistics import LEVEL

    least = int(scipy_stats.binom.isf(LEVEL, tested, 0.5)) + 1
    shares = np.linspace(0.5, 1, 501)
    enough = [share for share in shares if scipy_stats.binom.sf(least - 1, tested, share) >= chance.POWER]
    return f"a classifier that is right in {enough[0]:.0%} of runs" if enough else ""


def _summary(outcome: Outcome, checks: Sequence[Check], controls: Sequence[Control], missed: Sequence[str]) -> str:
    if outcome == "leak found":
        names = ", ".join(check.name for check in checks if check.found)
        return f"What the server saw depended on what was asked: {names}."
    events = sum(check.observations for check in checks)
    if outcome == "inconclusive":
        return f"No check found anything, but too little was seen to say so: {', '.join(missed) or 'some workloads showed nothing'}."
    return (
        f"{len(checks)} checks of {events:,} observations found nothing, and the same checks found each of {len(controls)} stores that leak on purpose. "
        "This is evidence and not a proof."
    )


def _told(target: Target) -> dict[str, Any]:
    told = dataclasses.asdict(target)
    told["params"] = {name: value for name, value in told["params"].items() if value is not None}
    told["watched"] = str(chance.visible(target) or SCHEMES[target.scheme])
    return told


def _provenance(seed: int) -> dict[str, Any]:
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "oram": oram.__version__, "kernels": kernels.active().name, "seed": seed,
    }  # fmt: skip
