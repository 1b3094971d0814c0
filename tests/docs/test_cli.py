"""docs/cli.md has the commands and the exit codes of the command line."""

from __future__ import annotations

import re
from pathlib import Path

from typer.main import get_command

from oram import cli
from oram.cli.app import app

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text()


def test_the_exit_codes() -> None:
    documented = dict(re.findall(r"^\| (\d+) \| (.+) \|$", PAGE, re.MULTILINE))
    assert documented == dict(re.findall(r"^    (\d+) +(\S.*)$", cli.__doc__ or "", re.MULTILINE))
    assert len(documented) > 10


def test_the_commands() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    section = PAGE.split("## Commands")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `([\w-]+)", section, re.MULTILINE)) == {n for n, c in commands.items() if not c.hidden}


def test_the_options() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    known = {opt for c in commands.values() for p in c.params for opt in (*p.opts, *p.secondary_opts)} | {"--help"}
    assert set(re.findall(r"(--[a-z][a-z0-9-]+)", PAGE)) <= known
