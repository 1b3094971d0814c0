"""Code blocks of Markdown pages: which there are, which of them run, and how those for a shell do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN = ("python", "sh", "console")
TEXT = ("text",)  # a configuration or a diagram, nothing that could run
_DIRECTIVE = re.compile(
    r"\{(?!code|sourcecode|literalinclude)[\w:-]+\}.*"
)  # Sphinx's own, which the build of the site judges; but code is code
_FENCE = re.compile(
    r"(?P<before>[^\n]*)\n(?:[ \t]*\n)?^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})(?P<kind>[^\n]*)\n(?P<code>.*?)^[ \t]*(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
#: An indented block that somebody would type: it has to be a fenced one, which runs or says why not.
_TYPED = re.compile(r"^(?:    |\t)+(?:\$ )?(?:pip|oram|python3?|make|sudo|apt-get|pytest|export) ", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block. line: of its first statement. why: the reason for which it does not run."""

    line: int
    kind: str
    code: str
    why: str | None


def pages() -> list[Path]:
    """README.md, if there is one, and all of docs/."""
    found = [path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts]
    readme = ROOT / "README.md"
    return [readme, *found] if readme.exists() else found


def fenced(path: Path) -> list[Block]:
    """Every fenced block."""
    text = "\n" + path.read_text()
    found = []
    for match in _FENCE.finditer(text):
        reason = _NOT_RUN.search(match["before"])
        line = text.count("\n", 0, match.start("code"))
        found.append(Block(line, match["kind"].strip(), match["code"], reason and reason[1]))
    return found


def running(path: Path) -> list[Block]:
    """The blocks that are to run: all for Python and for a shell but those behind ``<!-- not run: reason -->``."""
    return [block for block in fenced(path) if block.kind in RUN and block.why is None]


def blocks(path: Path) -> list[tuple[int, str]]:
    """(line of the first statement, code) of each Python block that is to run."""
    return [(block.line, block.code) for block in running(path) if block.kind == "python"]


def unclear(path: Path) -> list[str]:
    """What neither runs nor says why not."""
    found = [
        f"line {block.line}: a block of kind {block.kind!r}"
        for block in fenced(path)
        if block.kind not in (*RUN, *TEXT) and not _DIRECTIVE.fullmatch(block.kind)
    ]
    outside = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), "\n" + path.read_text())
    found += [f"line {outside.count(chr(10), 0, m.start())}: an indented command" for m in _TYPED.finditer(outside)]
    marks = len(_NOT_RUN.findall(path.read_text()))
    if marks != sum(block.why is not None for block in fenced(path)):
        found.append("a mark that stands before no block")
    return found


def shell(block: Block, where: Path) -> None:
    """Run a block in a directory. What a ``console`` block shows below its commands has to be what they write; ``...`` is any text."""
    if block.kind == "sh":
        _bash(block.code, where)
        return
    steps: list[tuple[str, str]] = []
    for line in block.code.splitlines(keepends=True):
        if line.startswith("$ "):
            steps.append((line[2:], ""))
        else:
            steps[-1] = (steps[-1][0], steps[-1][1] + line)
    for command, expected in steps:
        written = _bash(command, where)
        pattern = ".*?".join(re.escape(part) for part in expected.split("..."))
        assert re.fullmatch(pattern, written, re.DOTALL), f"{command}wrote\n{written}and not\n{expected}"


def _bash(script: str, where: Path) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORAM_") or name == "ORAM_KERNELS"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**kept, "PATH": path, "HOME": str(where), "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=where, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{script}ended with {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout
