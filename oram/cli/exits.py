"""From errors to exit codes and one line each. The codes are listed in the docstring of ``oram.cli``."""

from __future__ import annotations

import os

from oram import errors
from oram.cli.signals import EndedError

__all__ = ["CLOSED", "CODES", "INTERRUPTED", "InputError", "StoppedError", "explain", "one_line"]

USAGE, PLACE, KEY, INTEGRITY, LOCKED, BACKEND, SIZE, BACKUP, OTHER = range(2, 11)
UNAVAILABLE, ACCESS, TOOK_EFFECT, OUTSIDE, LEAK, INCONCLUSIVE = range(11, 17)
INTERRUPTED = 130
CLOSED = 141  # as if SIGPIPE had ended the program


class InputError(Exception):
    """What the user gave cannot be used. The message holds no key, value or passphrase."""


class StoppedError(Exception):
    """Interrupted, with something to say about what was done."""


#: The first class that fits decides.
CODES: tuple[tuple[type[BaseException], int], ...] = (
    (errors.MissingKeyError, 1),
    (InputError, USAGE),
    (errors.ParameterError, USAGE),
    (errors.KeyTypeError, USAGE),
    (errors.AddressError, USAGE),
    (errors.BlockSizeError, USAGE),
    (errors.StoreNotFoundError, PLACE),
    (errors.StoreExistsError, PLACE),
    (errors.StateMissingError, PLACE),
    (errors.WrongKeyError, KEY),
    (errors.IntegrityError, INTEGRITY),
    (errors.StoreLockedError, LOCKED),
    (errors.FencedError, LOCKED),
    (errors.BackendUnavailableError, UNAVAILABLE),
    (errors.BackendAccessError, ACCESS),
    (errors.TookEffectError, TOOK_EFFECT),
    (errors.BackendError, BACKEND),
    (errors.CapacityError, SIZE),
    (errors.KeyTooLargeError, SIZE),
    (errors.ValueTooLargeError, SIZE),
    (errors.BackupError, BACKUP),
    (errors.UncleanShutdownError, BACKUP),
    (errors.CipherUnavailableError, USAGE),
    (errors.OramError, OTHER),
    (BrokenPipeError, CLOSED),
    (OSError, BACKEND),
    (MemoryError, BACKEND),
    (KeyboardInterrupt, INTERRUPTED),
    (StoppedError, INTERRUPTED),
)

#: What can be done, where the library's message does not say it.
HINTS: tuple[tuple[type[BaseException], str], ...] = (
    (errors.UncleanShutdownError, "restore a backup"),
    (errors.BackendAccessError, "see ORAM_REDIS_USERNAME, ORAM_REDIS_PASSWORD and the server's rules for the user"),
)

#: Commands whose arguments are keys and values, which a message about a wrong command line must not repeat.
SECRET_ARGUMENTS = frozenset({"put", "get", "delete"})


def one_line(text: str) -> str:
    """The text without line breaks; what a terminal would obey is spelled out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def explain(error: BaseException) -> tuple[int, str]:
    """Exit code and message of anything a command raised."""
    if _is_click(error, "ClickException"):
        return USAGE, one_line(_usage(error))
    if _is_click(error, "Abort"):
        return INTERRUPTED, "interrupted"
    if isinstance(error, EndedError):
        return error.code, str(error)
    for kind, code in CODES:
        if isinstance(error, kind):
            return code, one_line(_message(error))
    # The text of an error nobody foresaw may quote what it was about.
    return OTHER, f"internal error: {type(error).__name__}; ORAM_TRACEBACK=1 shows where"


def _message(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, BrokenPipeError):
        return "the output was closed before the end"
    if isinstance(error, OSError):
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return f"{where}{error.strerror or type(error).__name__}"
    hints = (hint for kind, hint in HINTS if isinstance(error, kind) and hint not in str(error))
    return ": ".join([str(error), *hints])


def _is_click(error: BaseException, name: str) -> bool:
    """Whether it is an error of the command-line parser: typer has click's classes under names of its own, by version."""
    return any(
        kind.__name__ == name and kind.__module__.partition(".")[0] in ("click", "typer")
        for kind in type(error).__mro__
    )


def _usage(error: BaseException) -> str:
    context = getattr(error, "ctx", None)
    command = getattr(context, "info_name", None)
    more = f" (see {context.command_path} --help)" if context is not None else ""
    text = str(error.format_message())  # type: ignore[attr-defined]
    if "extra argument" in text:
        return "too many arguments: quote those with spaces" + more
    if command in SECRET_ARGUMENTS and _is_click(error, "NoSuchOption"):
        return "no such option: write -- before keys and values that start with a hyphen" + more
    return text.rstrip(".") + more
