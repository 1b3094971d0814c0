"""The command line: ``oram`` and ``python -m oram``.

Exit codes, which scripts may rely on:

    0    ok
    1    the key is not in the store
    2    usage, bad parameters or bad input, or a cipher that is not installed
    3    no store there, one is there already, or its client state is missing
    4    wrong key or passphrase
    5    integrity: stored data was changed, rolled back or is stale
    6    the store is in use by another handle or client, or one took it over
    7    no space, or the backend or a file failed
    8    the store is full, or a key or value too large
    9    a backup was opened as a store, or the store was not closed
    10   anything else
    11   the server cannot be reached, or does not answer
    12   the server refuses the user or the password, or does not permit the user this
    13   it took effect, and something behind it failed: the next command finds it done (after rekey: with the new key)
    14   a figure that was measured again lies outside its tolerance
    15   an audit found a leak
    16   an audit saw too little to say anything
    129  the terminal went away (SIGHUP)
    130  interrupted
    141  whoever read the output went away; no message
    143  ended by SIGTERM

An error is one line on stderr, ``oram: <message>``, and a warning another one, ``oram: warning: <message>``. They contain no key, value,
passphrase or password.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; ``args`` are those of the process by default. Returns the exit code."""
    from oram.cli.app import run  # not at the top: whoever imports this package pays for nothing

    return run(args)
