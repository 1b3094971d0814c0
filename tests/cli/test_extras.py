"""What runs without any of the extras, and what the rest says then. In a process of its own, in which their packages cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: Packages that come with an extra, or with the tools of the tests.
BLOCKED = ("scipy", "matplotlib", "redis", "hiredis", "starlette", "uvicorn", "sse_starlette", "hypothesis", "pytest")
BLOCK = f"import sys\nfor name in {BLOCKED!r}: sys.modules[name] = None\nfrom oram.cli import main\nsys.exit(main(sys.argv[1:]))"

pytestmark = pytest.mark.one_kernel

SMALL = "--subjects path,dict --backends memory --capacities 64 --batches 1 --rtts 0 --seconds 0.02"
RUNS = {
    "demo": "demo --fast --accesses 100 --output page.html",
    "bench": f"bench --quick {SMALL} -o out",
    "bench, a place that is not here": f"bench --quick {SMALL.replace('memory', 'memory,redis')} -o out",
    "reproduce": "reproduce hierarchical --quick -o out",
    "doctor": "doctor",
    "help": "--help",
}


def run(words: str, where: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK, *words.split()], cwd=where, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("what", RUNS)
def test_runs_without_extras(what: str, tmp_path: Path) -> None:
    done = run(RUNS[what], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("command", "extra"), [("audit --scheme path", "audit"), ("watch", "dashboard")])
def test_says_which_extra_is_missing(command: str, extra: str, tmp_path: Path) -> None:
    done = run(command, tmp_path)
    assert done.returncode == 2
    assert f"oram[{extra}]" in done.stderr


def test_the_page_of_a_benchmark_says_so_too(tmp_path: Path) -> None:
    assert "oram[report]" in run(RUNS["bench"], tmp_path).stdout
