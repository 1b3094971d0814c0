"""The wheel: with the kernels, or without them and then under a name that says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import oram
from oram import kernels
from oram.errors import ParameterError

ROOT = Path(__file__).resolve().parents[2]
NAME = f"oram-{oram.__version__}"
PAGE = {f"oram/dashboard/page/{name}" for name in ("index.html", "watch.css", "watch.js")}
PURE = f"{NAME}-py3-none-any.whl"
pytestmark = pytest.mark.one_kernel


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in ("csrc", "oram"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def build(source: Path, **environment: str) -> tuple[zipfile.ZipFile, str]:
    """The wheel, and what was said about the kernels."""
    shutil.rmtree(source / "dist", ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "bdist_wheel"],
        cwd=source, env={**os.environ, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (wheel,) = (source / "dist").iterdir()
    return zipfile.ZipFile(wheel), "".join(line for line in done.stderr.splitlines() if line.startswith("oram:"))


def kernels_in(wheel: zipfile.ZipFile) -> list[str]:
    return [name for name in wheel.namelist() if name.endswith(".so")]


def test_a_wheel_without_kernels(source: Path) -> None:
    wheel, said = build(source, CC="/bin/false")
    assert Path(str(wheel.filename)).name == PURE
    assert kernels_in(wheel) == []
    assert {"oram/py.typed", "oram/cli/app.py", *PAGE, f"{NAME}.dist-info/WHEEL"} <= set(wheel.namelist())
    assert b"Root-Is-Purelib: true" in wheel.read(f"{NAME}.dist-info/WHEEL")
    assert "native kernels were NOT built" in said
    assert len(said) < 300
    assert "/bin/false" not in said


def test_a_wheel_with_kernels(source: Path) -> None:
    try:
        kernels.load("native")
    except ParameterError:
        pytest.skip("the kernels cannot be built here")
    wheel, said = build(source, ORAM_CFLAGS="-O0")
    assert Path(str(wheel.filename)).name.startswith(f"{NAME}-cp311-abi3-")
    assert kernels_in(wheel) == ["oram/kernels/_native.abi3.so"]
    assert said == ""
    # what was built before does not get into a later wheel without kernels
    for file in (source / "csrc").iterdir():
        os.utime(file, (4e9, 4e9))
    wheel, said = build(source, CC="/bin/false")
    assert Path(str(wheel.filename)).name == PURE
    assert kernels_in(wheel) == []
