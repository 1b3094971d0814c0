"""``oram reproduce``: what it prints and keeps, and its exit code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from unittest import mock

import pytest

from oram import cli
from oram.papers import hierarchical

pytestmark = pytest.mark.one_kernel


def test_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce"]) == 0
    told = capsys.readouterr().out
    assert re.findall(r"^(\w+)$", told, re.MULTILINE) == ["path", "ring", "cuckoo", "hierarchical"]
    assert "CCS 2013" in told


def test_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    runs = []
    for out in (tmp_path / "a", tmp_path / "b"):
        assert cli.main(["reproduce", "hierarchical", "--quick", "--seed", "3", "-o", str(out)]) == 0
        told = capsys.readouterr().out
        assert "values within their tolerance" in told
        assert "OUTSIDE" not in told
        runs.append((out / "hierarchical-cost.svg").read_bytes())
        assert runs[-1].startswith(b"<?xml")
    assert runs[0] == runs[1]
    found = json.loads((tmp_path / "a" / "results.json").read_text())
    assert found["holds"] is True
    assert found["provenance"].keys() >= {"seed", "size", "kernels", "oram", "commit", "date", "cpu", "numpy"}
    assert found["provenance"]["seed"] == 3
    rows = found["papers"]["hierarchical"]["rows"]
    assert {row["kind"] for row in rows if row["reference"] is not None} == {"derived"}
    assert all(row["source"] for row in rows if row["reference"] is not None)


def test_a_value_outside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.object(hierarchical, "constants", lambda g: (2.0 * g.L, 99.0)):
        assert cli.main(["reproduce", "hierarchical", "--quick", "--json", "-o", str(tmp_path)]) == 14
    found = json.loads(capsys.readouterr().out)
    assert found["holds"] is False
    assert any(row["holds"] is False for row in found["papers"]["hierarchical"]["rows"])


def test_without_matplotlib(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.dict("sys.modules", {"oram.papers.figures": None}):
        assert cli.main(["reproduce", "hierarchical", "--quick", "-o", str(tmp_path)]) == 0
    assert "oram[report]" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "nobody"]) == 2
    (tmp_path / "file").write_text("")
    assert cli.main(["reproduce", "hierarchical", "-o", str(tmp_path / "file")]) == 2
    told = capsys.readouterr().err
    assert "path, ring, cuckoo, hierarchical or all" in told
    assert str(tmp_path / "file") in told
