"""A run: two stores under one workload, driven step by step in one thread, and the frames that a viewer gets."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from oram.audit.leaks import LIVE, Leak
from oram.audit.running import ALPHA, Finding
from oram.audit.sides import RECENT, SCHEMES, Side, oblivious, plain
from oram.audit.workload import RECORDS, WORKLOADS
from oram.errors import ParameterError
from oram.params import refuse

__all__ = ["LIMIT", "RATES", "Session", "Settings", "choices"]

#: Accesses of a run, after which it ends by itself.
LIMIT = 200_000
#: Accesses a second that can be asked for.
RATES = (10, 50, 200, 1000)

_SHARE = 0.15  # seconds that a step takes at most, so that a switch is never far away


@dataclass(frozen=True, slots=True)
class Settings:
    """What the switches of the page say. leak: the name of the one that is chosen, if there is one; leaking: whether it is on."""

    scheme: str = "path"
    workload: str = "hot key"
    rate: int = 200
    leak: str | None = None
    leaking: bool = False
    paused: bool = False

    def changed(self, /, **new: Any) -> Settings:
        """The same with some changes. ParameterError if they make no sense; a leak that another scheme has is replaced by the first of this one."""
        names = {field.name for field in dataclasses.fields(self)}
        if unknown := set(new) - names:
            raise ParameterError(f"there is no setting {min(unknown)!r:.40}")
        settings = dataclasses.replace(self, **new)
        refuse(settings._problems())
        own = [leak.name for leak in leaks_of(settings.scheme)]
        if "leak" not in new and settings.leak not in own:
            leaking = settings.leaking and "leaking" in new
            settings = dataclasses.replace(settings, leak=own[0] if own else None, leaking=leaking)
        refuse([] if settings.leak in (*own, None) else [f"no such leak of this scheme: {', '.join(own)}"])
        refuse(["no leak is chosen"] if settings.leaking and settings.leak is None else [])
        return settings

    def _problems(self) -> list[str]:
        scheme: object = self.scheme  # of what a viewer sent nothing is known
        workload: object = self.workload
        rate: object = self.rate
        switches: list[object] = [self.leaking, self.paused]
        found = [] if isinstance(scheme, str) and scheme in SCHEMES else [f"no such scheme: {', '.join(SCHEMES)}"]
        found += (
            [] if isinstance(workload, str) and workload in WORKLOADS else [f"no such workload: {', '.join(WORKLOADS)}"]
        )
        found += [] if type(rate) is int and rate in RATES else [f"no such rate: {', '.join(map(str, RATES))}"]
        found += [] if all(isinstance(each, bool) for each in switches) else ["leaking and paused are true or false"]
        return found

    def same_run(self, other: Settings) -> bool:
        """Whether a run goes on under the other settings."""
        return dataclasses.replace(self, rate=other.rate, paused=other.paused) == other


def leaks_of(scheme: str) -> list[Leak]:
    """Those that can be turned on in a store of this scheme and be seen by these tests."""
    return [leak for leak in LIVE if leak.applies_to(scheme)]


def choices() -> dict[str, Any]:
    """What the switches can be set to."""
    return {
        "schemes": list(SCHEMES),
        "workloads": [{"name": each.name, "says": each.says} for each in WORKLOADS.values()],
        "rates": list(RATES),
        "leaks": {
            scheme: [{"name": leak.name, "says": leak.says, "workload": leak.workload} for leak in leaks_of(scheme)]
            for scheme in SCHEMES
        },
    }


class Session:
    """The stores of the present run. All of it is for one thread."""

    def __init__(self, settings: Settings | None = None, seed: int = 1) -> None:
        self.settings = settings or Settings().changed()
        self._seed, self._run = seed, 0
        self._start()

    def _start(self) -> None:
        chosen = self.settings
        leak = next((leak for leak in leaks_of(chosen.scheme) if leak.name == chosen.leak), None)
        self._run += 1
        self._requests = WORKLOADS[chosen.workload].requests(self._seed)
        self._asked: deque[int] = deque(maxlen=RECENT)
        self._failed: str | None = None
        self.plain: Side = plain()
        self.oblivious: Side = oblivious(chosen.scheme, leak if chosen.leaking else None)

    @property
    def accesses(self) -> int:
        """Of this run."""
        return self.oblivious.accesses

    @property
    def over(self) -> bool:
        """Whether nothing more will come of this run."""
        return self._failed is not None or self.accesses >= LIMIT

    def change(self, /, **new: Any) -> None:
        """Set switches. ParameterError, and then nothing has changed. What a run is made of begins another one."""
        before, self.settings = self.settings, self.settings.changed(**new)
        if not before.same_run(self.settings):
            self._start()

    def reset(self) -> None:
        """Begin another run, with new stores, keys and randomness."""
        self._start()

    def step(self, accesses: int) -> int:
        """Make so many accesses to both stores, or fewer if they take long. How many were made."""
        until = time.monotonic() + _SHARE
        made = 0
        while made < accesses and not self.over and time.monotonic() < until:
            self._access()
            made += 1
        self.plain.look()
        self.oblivious.look()
        return made

    def _access(self) -> None:
        request = next(self._requests)
        self._asked.append(request.record)
        try:
            self.plain.ask(request)
            self.oblivious.ask(request)
        except (
            Exception
        ) as error:  # of a store that is broken on purpose, anything: the page says so, and a reset begins anew
            self._failed = type(error).__name__

    def frame(self) -> dict[str, Any]:
        """All that the page shows now, as JSON has it."""
        return {
            "run": self._run,
            "settings": dataclasses.asdict(self.settings),
            "accesses": self.accesses,
            "limit": LIMIT,
            "over": self.over,
            "failed": self._failed,
            "alpha": ALPHA,
            "records": RECORDS,
            "asked": list(self._asked),
            "sides": [_side(self.plain), _side(self.oblivious)],
        }


def _side(side: Side) -> dict[str, Any]:
    return {
        "title": side.title,
        "place": side.sights.place,
        "places": side.sights.places,
        "rows": [[row.label, row.cells] for row in side.sights.rows],
        "together": len({row.label for row in side.sights.rows}) == 1,
        "touched": side.touched.tolist(),
        "latest": side.latest,
        "recent": list(side.recent),
        "alarm": side.alarm,
        "tests": [_finding(finding) for finding in side.findings],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {**dataclasses.asdict(finding), "state": finding.state}
