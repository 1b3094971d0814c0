"""A progress bar on stderr, where that is a terminal; otherwise nothing at all."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Meter", "meter"]


class Meter:
    """Takes note of how far things are. Without a bar it does nothing."""

    def __init__(self, bar: Any = None) -> None:
        self._bar = bar
        self._task = None if bar is None else bar.add_task("", total=None)

    def stage(self, label: str, total: int | None) -> None:
        """Begin something of so many steps, None where that is not known."""
        if self._bar is not None:
            self._bar.reset(self._task, description=label, total=total)

    def at(self, done: int) -> None:
        """So many of them are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def lines(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """The same lines; a step is a byte of them."""
        if self._bar is None:
            yield from lines
            return
        done = shown = 0
        for line in lines:
            yield line
            done += len(line)
            if done - shown >= 1 << 16:
                self.at(done)
                shown = done
        self.stage("writing every slot", None)


@contextmanager
def meter(label: str, total: int | None = None) -> Iterator[Meter]:
    """A bar while the block runs."""
    if not sys.stderr.isatty():
        yield Meter()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        found = Meter(bar)
        found.stage(label, total)
        yield found
