"""kill -9 at random instants: nothing that was acknowledged is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = 200


@pytest.mark.parametrize("apart", [False, True], ids=["joint", "apart"])
@pytest.mark.parametrize("durability", ["sync", "process"])
def test_nothing_acknowledged_is_lost(tmp_path: Path, durability: str, apart: bool) -> None:
    state = str(tmp_path / "state") if apart else "-"
    program = Path(__file__).with_name("killing.py")
    ran = subprocess.run(
        [sys.executable, program, tmp_path / "store", state, durability, str(KILLS), "20", "1"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    result = json.loads(ran.stdout.splitlines()[-1])
    assert result["lives"] > KILLS // 4  # on a slow disk time may run out before all kills
    assert result["done"] > 0
