"""Where, when and with what something was measured."""

from __future__ import annotations

import datetime as dt
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["command", "provenance"]


def provenance() -> dict[str, Any]:
    """Date (UTC), commit (None outside a clone), processor, cores, operating system, Python and numpy."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def command(otherwise: str) -> str:
    """The command line of this process, if it is one of ``oram``; ``otherwise``, what was called in Python."""
    program = Path(sys.argv[0])
    ours = program.name == "oram" or program.parent.name == "oram"
    return shlex.join(["oram", *sys.argv[1:]]) if ours else otherwise


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _commit() -> str | None:
    """Of the clone from which this runs; not of whatever repository an installed package happens to lie in."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        asked = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip()
