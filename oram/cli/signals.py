"""Signals that end a program, as exceptions: whatever cleans up after Ctrl-C does so after them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["EndedError", "ending"]

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)

#: Seconds in which another signal says nothing new: when a terminal goes away, both the kernel and the shell say so, and what the first one
#: made go on is the cleaning up.
_ONCE = 5.0


class EndedError(BaseException):
    """A signal asks for the end. No ``Exception``, so that nobody takes it for a failure of his own; and no KeyboardInterrupt, which the parser of the
    command line makes something else of.
    """

    def __init__(self, number: int) -> None:
        self.number = signal.Signals(number)
        super().__init__(f"ended by {self.number.name}")

    @property
    def code(self) -> int:
        """The exit code, as a shell has it of a program that a signal ended."""
        return 128 + self.number


@contextmanager
def ending() -> Iterator[None]:
    """SIGTERM and SIGHUP raise EndedError in the block, unless they are ignored (``nohup``), and do what they did before after it.

    After a signal, EndedError leaves the block whatever came in between: a terminal that is gone fails the next line of a progress bar, and a user's
    code may catch all there is. In threads other than the main one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    last = 0.0

    def end(number: int, _frame: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if came and now - last < _ONCE:
            return
        came.append(number)
        last = now
        raise EndedError(number)

    found = {number: signal.getsignal(number) for number in _SIGNALS}
    before = {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, end)
        yield
    except EndedError:
        raise
    except BaseException as error:
        if came:
            raise EndedError(came[0]) from error
        raise
    else:
        if came:  # and somebody took it for something else
            raise EndedError(came[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
