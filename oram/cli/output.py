"""Where results go: a directory, files in it, and tables on stdout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oram.cli.exits import InputError, one_line

__all__ = ["console", "directory", "plain", "say", "write"]

_WIDTH = 170  # of a table, where the output is no terminal


def console() -> Any:
    """Rich's, imported where something is shown: the command line knows commands that never do."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=_WIDTH)


def plain(*texts: str) -> list[Any]:
    """Cells of a table that say what the texts say: of a str rich takes ``[bold]`` for markup, and a path may have that in it."""
    from rich.text import Text

    return [Text(text) for text in texts]


def say(out: Any, text: str) -> None:
    """One line on a console, as it is, however long: whoever searches a log finds it whole."""
    out.print(*plain(one_line(text)), soft_wrap=True)


def directory(path: Path) -> None:
    """Make it, before the work whose results it is to keep."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {path}: {error.strerror}") from None


def write(path: Path, content: str | bytes) -> None:
    """All of it or nothing, in place of what was there."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
