"""``oram audit``: what it is told, and what it says of it. ``tests/audit`` is about the audit itself."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import oram as library
from oram.audit import Verdict, verdict
from oram.audit.verdict import Check
from oram.cli import progress

Oram = Callable[..., Any]
pytestmark = pytest.mark.one_kernel

WORKLOADS = """def few(store):
    for i in range(20):
        store.get(b"%d" % (i % 2))

def more(store):
    for i in range(21):
        store.put(b"%d" % i, b"v")
"""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been audited: the audit itself finds nothing, at once."""
    targets = list[Any]()

    def audit(target: Any, *_: object, **__: object) -> Verdict:
        targets.append(target)
        return Verdict("nothing found", "Nothing.", {}, {}, 1e-6, (), ())

    monkeypatch.setattr("oram.audit.audit", audit)
    return targets


def test_it_is_said_what_to_audit(oram: Oram, told: list[Any], tmp_path: Path) -> None:
    """An empty variable in a script is no store with other parameters."""
    for words in ((), ("--quick",), ("--backend", "lmdb"), ("--capacity", 100, "--cipher", "aes-256-gcm")):
        done = oram("audit", *words)
        assert done.code == 2
        assert "the URL of a store, or --scheme" in done.err
    assert oram("audit", "").code == 2
    assert oram("audit", "", "--scheme", "path").code == 2
    assert oram("audit", "--scheme", "").code == 2
    done = oram("audit", "--scheme", "path", "--state", tmp_path)
    assert (done.code, done.err) == (2, "oram: --state: only with the URL of a store\n")
    assert told == []


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--scheme", "path"), "--scheme"),
        (("--capacity", 1000), "--capacity"),
        (("--block-size", 128, "--cipher", "aes-256-gcm"), "--block-size, --cipher"),
        (("--backend", "memory", "--shards", 1, "--index", "client"), "--index, --shards, --backend"),
    ],
)
def test_what_a_store_says_itself_is_refused(
    oram: Oram, store: Path, told: list[Any], flags: tuple[object, ...], named: str
) -> None:
    done = oram("audit", store, *flags)
    assert done.code == 2
    assert done.err.startswith(f"oram: {named}: not together with a URL")
    assert told == []
    assert oram("audit", store).code == 0
    assert told[0].stands_for is None


def test_parameters(oram: Oram, told: list[Any]) -> None:
    assert oram("audit", "--scheme", "ring", "--capacity", 300, "--shards", 3, "--block-size", 96).code == 0
    assert (told[0].scheme, told[0].shards, told[0].capacity, told[0].block_size) == ("ring", 3, 300, 96)
    for index in ("client", "none"):
        assert oram("audit", "--scheme", "cuckoo", "--capacity", 300, "--index", index).code == 0
        assert told[-1].params.index == index
    for words in (
        ("path", "--index", "none"),
        ("cuckoo", "--index", "x"),
        ("cuckoo", "--shards", 2),
        ("path", "--shards", 0),
    ):
        assert oram("audit", "--scheme", *words).code == 2
    assert len(told) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("path",), "Path ORAM (Z=4, page_levels=2), scratch stores of 1,000 records, each a block of 128 bytes, aes-256-gcm, in memory"),
        (("linear", "--backend", "lmdb"), "Linear ORAM, scratch stores of 64 records in place of 1,000, each"),
        (("linear", "--backend", "lmdb"), "aes-256-gcm, in LMDB on this disk"),
        (("ring", "--capacity", "90", "--shards", "2"), "metadata=client) in 2 shards, scratch stores of 90 records"),
    ],
)  # fmt: skip
def test_what_was_audited_stands_at_the_top_and_at_the_end(
    oram: Oram, told: list[Any], words: tuple[str, ...], said: str
) -> None:
    done = oram("audit", "--scheme", *words)
    lines = done.text.splitlines()
    assert lines[0].startswith("Auditing: ")
    assert said in lines[0]
    assert lines[-2] == lines[0].replace("Auditing", "Audited")
    assert lines[-1] == "NOTHING FOUND. Nothing."
    assert len(told) == 1


def test_records_of_several_blocks(oram: Oram, told: list[Any], tmp_path: Path) -> None:
    library.create(tmp_path / "large", key=bytes(32), capacity=2000, block_size=64, blocks_per_value=3).close()
    assert "1,024 records in place of 2,000, each 3 blocks of 64 bytes" in oram("audit", tmp_path / "large").text
    assert len(told) == 1


def test_the_last_line_says_what_else_it_may_be(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a path that looks like rich's markup is one, in the table too."""
    from oram.cli import main

    monkeypatch.setattr(verdict, "_chance", lambda *_: [])
    monkeypatch.setattr(verdict, "_whole_runs", lambda *_: Check("x", "x", "exact", 1, 0.0, None, "", "y"))
    monkeypatch.setattr(verdict, "_controls", lambda *_: [])
    odd = Path("x[/b]")
    odd.mkdir(parents=True)
    (odd / "mine.py").write_text(WORKLOADS)
    mine = [word for name in ("few", "more") for word in ("--workload", f"{odd}/mine.py:{name}")]
    assert main(["audit", "--scheme", "linear", "--capacity", "40", *mine]) == 15
    out = capfd.readouterr().out
    last = out.splitlines()[-1]
    assert last.startswith("LEAK FOUND. ")
    assert "x[/b]/mine.py:few" in last
    assert "unless they ask for different numbers" in last
    assert "x[/b]/mine.py:few" in out.partition("Not covered")[0]


def test_a_name_is_no_markup_in_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    shown.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(progress.sys, "stderr", shown)  # type: ignore[attr-defined]
    with progress.meter("x") as bar:
        bar.stage("/x[/b]/mine.py:few", None)
        bar._bar.refresh()
    assert "/x[/b]/mine.py:few" in shown.getvalue()
