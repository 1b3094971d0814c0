"""The run of ``oram bench`` that is kept: the docs draw its page, and say how it was made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oram.benchmark import Results

ROOT = Path(__file__).resolve().parents[2]
KEPT = sorted((ROOT / "bench" / "results").glob("*-oram-bench.json"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_kept_run_is_whole_and_is_read_by_this_version(path: Path) -> None:
    results = Results.from_json(path.read_text())
    assert results.complete
    assert results.to_json() == path.read_text()
    assert results.provenance["command"].startswith("oram bench")
    assert results.provenance["commit"]
    assert all(row["identical"] for row in results.kinds)
    assert {row["scheme"] for row in results.access} == {"path", "ring", "cuckoo", "linear"}
    assert {row["backend"] for row in results.compared} == {"memory", "lmdb", "redis"}
    assert {"plain-redis", "plain-lmdb", "encrypted", "dict", "pyoram"} <= {row["subject"] for row in results.compared}


def test_the_docs_name_it_and_its_command() -> None:
    text = (ROOT / "docs" / "benchmarking.md").read_text()
    assert KEPT[-1].name in text
    assert json.loads(KEPT[-1].read_text())["provenance"]["command"] in text
    assert "benchmark-report.html" in text
