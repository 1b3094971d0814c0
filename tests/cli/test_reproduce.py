"""``oram reproduce``: what it prints and keeps, and its exit code."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from oram import cli
from oram.papers import PAPERS, Finding, Run, hierarchical

pytestmark = pytest.mark.one_kernel


def test_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce"]) == 0
    told = capsys.readouterr().out
    assert re.findall(r"^(\w+)$", told, re.MULTILINE) == ["path", "ring", "cuckoo", "hierarchical"]
    assert "CCS 2013" in told


def test_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    runs = []
    for out in (tmp_path / "a", tmp_path / "b[/b]"):
        assert cli.main(["reproduce", "hierarchical", "--quick", "--seed", "3", "-o", str(out)]) == 0
        told = capsys.readouterr().out
        assert "values within their tolerance" in told
        assert "OUTSIDE" not in told
        assert f"Kept: {out / 'results.json'}, " in told  # and no markup
        runs.append((out / "hierarchical-cost.svg").read_bytes())
        assert runs[-1].startswith(b"<?xml")
    assert runs[0] == runs[1]
    found = json.loads((tmp_path / "a" / "results.json").read_text())
    assert found["holds"] is True
    assert found["complete"] is True
    assert found["provenance"].keys() >= {
        "command",
        "seed",
        "size",
        "kernels",
        "oram",
        "commit",
        "date",
        "cpu",
        "numpy",
    }
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


def test_what_was_measured_is_kept_when_it_is_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each paper as it is done; and of an earlier run nothing passes for a result of this one."""
    pytest.importorskip("matplotlib")

    def stopped(run: Run) -> Finding:
        found = json.loads((tmp_path / "results.json").read_text())
        assert ([*found["papers"]], found["complete"], found["holds"]) == (["hierarchical"], False, None)
        raise KeyboardInterrupt

    (tmp_path / "results.json").write_text('{"complete": true}')
    papers = {"hierarchical": PAPERS["hierarchical"], "ring": dataclasses.replace(PAPERS["ring"], study=stopped)}
    with mock.patch.dict(PAPERS, papers, clear=True):
        assert cli.main(["reproduce", "all", "--quick", "-o", str(tmp_path)]) == 130
    told = capsys.readouterr()
    assert told.err == "oram: interrupted\n"
    assert "values within their tolerance" in told.out
    assert "Not complete: 1 of 2 papers." in told.out
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "hierarchical-cost.svg"}


def test_the_command_is_kept(tmp_path: Path) -> None:
    words = ["reproduce", "hierarchical", "--quick", "--json", "-o", str(tmp_path / "a b")]
    subprocess.run([sys.executable, "-m", "oram", *words], check=True, stdout=subprocess.DEVNULL)
    found = json.loads((tmp_path / "a b" / "results.json").read_text())
    assert found["provenance"]["command"] == shlex.join(["oram", *words])


def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "nobody"]) == 2
    (tmp_path / "file").write_text("")
    assert cli.main(["reproduce", "hierarchical", "-o", str(tmp_path / "file")]) == 2
    told = capsys.readouterr().err
    assert "path, ring, cuckoo, hierarchical or all" in told
    assert str(tmp_path / "file") in told
