"""A run: which settings begin another one, how it ends, and that a sound store is quiet under every workload."""

from __future__ import annotations

import json
from typing import Any

import pytest

from oram.audit.sides import SCHEMES
from oram.audit.workload import RECORDS, WORKLOADS
from oram.dashboard import session as session_module
from oram.dashboard.session import Session, Settings, choices
from oram.errors import ParameterError


def run(session: Session, accesses: int) -> None:
    """So many accesses, in steps as the server makes them, however slow the machine is."""
    while accesses > 0 and not session.over:
        accesses -= session.step(min(40, accesses))


@pytest.mark.parametrize(
    ("scheme", "workload"),
    [*(("path", each) for each in WORKLOADS), *((each, "zipf") for each in SCHEMES if each != "path")],
)
def test_a_sound_store_is_quiet_and_the_plain_one_is_not(scheme: str, workload: str) -> None:
    """False alarms: once in a million runs, at most."""
    session = Session(Settings().changed(scheme=scheme, workload=workload))
    run(session, 600)
    assert all(finding.state == "quiet" for finding in session.oblivious.findings)
    uniform = {
        "uniform": {"same record, same slot", "same record, near slot"},
        "scan": {"each slot alike", "slot repeated"},
    }
    loud = {finding.name for finding in session.plain.findings if finding.state == "alarm"}
    assert loud
    assert (
        "same record, same slot" in loud or workload == "scan"
    )  # which comes to a record again after RECORDS accesses
    assert workload not in uniform or workload == "scan" or loud == uniform[workload]


def test_what_a_run_is_made_of_begins_another() -> None:
    session = Session()
    run(session, 100)
    first = session.oblivious
    session.change(rate=1000, paused=True)
    assert (session.accesses, session.oblivious is first) == (100, True)
    session.change(workload="zipf")
    assert (session.accesses, session.oblivious is first) == (0, False)
    assert (session.settings.rate, session.settings.paused) == (1000, True)
    frames = [session.frame()["run"]]
    session.reset()
    frames.append(session.frame()["run"])
    assert frames == [2, 3]


def test_the_same_seed_asks_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right, other = (Session(seed=seed) for seed in (1, 1, 2))
    for session in (left, right, other):
        run(session, 200)
    assert left.frame()["asked"] == right.frame()["asked"] != other.frame()["asked"]
    assert left.frame()["sides"][0] == right.frame()["sides"][0]
    assert left.frame()["sides"][1]["recent"] != right.frame()["sides"][1]["recent"]


def test_a_run_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "LIMIT", 50)
    session = Session()
    run(session, 100)
    assert (session.over, session.accesses, session.step(10)) == (True, 50, 0)
    session.reset()
    assert not session.over


def test_a_store_that_fails_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()

    def fail(request: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(session.oblivious, "_ask", fail)
    session.step(10)
    assert session.over
    assert session.frame()["failed"] == "RuntimeError"
    assert "secret" not in json.dumps(session.frame())
    session.reset()
    assert (session.step(10), session.frame()["failed"]) == (10, None)


def test_a_step_does_not_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    session, clock = Session(), iter(range(1000))
    monkeypatch.setattr(
        "oram.dashboard.session.time.monotonic", lambda: next(clock) * 0.06
    )  # seconds between two looks at the clock
    assert session.step(1000) == 2


def test_frames_hold_what_was_seen() -> None:
    session = Session(Settings().changed(workload="misses"))
    run(session, 400)
    frame = json.loads(json.dumps(session.frame()))
    assert frame["accesses"] == 400
    assert len(frame["asked"]) == 300
    assert max(frame["asked"]) >= RECORDS
    plain, tree = frame["sides"]
    assert sum(plain["touched"]) == 200  # a miss asks for nothing
    assert sum(tree["touched"]) == 400 * 2 * len(tree["rows"])  # a path of buckets, read and written
    for side in frame["sides"]:
        assert len(side["touched"]) == sum(cells for _, cells in side["rows"])
        assert len(side["recent"]) == 300


def test_settings_are_refused_together() -> None:
    with pytest.raises(ParameterError, match=r"no such scheme: path, .*; no such rate: 10, "):
        Settings().changed(scheme="x", rate=3)
    with pytest.raises(ParameterError, match="no setting 'x'"):
        Settings().changed(x=1)


def test_choices_are_settings() -> None:
    found = choices()
    for scheme in found["schemes"]:
        for workload in found["workloads"]:
            for rate in found["rates"]:
                Settings().changed(scheme=scheme, workload=workload["name"], rate=rate)
        for leak in found["leaks"][scheme]:
            assert Settings().changed(scheme=scheme, leak=leak["name"], leaking=True).leaking
