"""docs/watch.md has the tests and leaks that ``oram watch`` has, and its pictures are small."""

from __future__ import annotations

import re
from pathlib import Path

from oram.audit import sights
from oram.audit.leaks import LIVE
from oram.audit.running import battery
from oram.audit.sides import SCHEMES, oblivious
from oram.dashboard.session import LIMIT, RATES, Settings

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "watch.md").read_text()
OF_RING = ("slot of a bucket", "slots fetched", "slot for a record")  # the others are those of leaves, of slots


def rows(section: str) -> list[list[str]]:
    """The cells of the table in a section, without its head."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"][2:]


def test_the_tests() -> None:
    there = {finding.name for scheme in SCHEMES for finding in oblivious(scheme, None).findings}
    there |= {each.finding.name for each in battery(sights.PlainSights(64))} - {"order of accesses"}
    documented = {name.removesuffix(" †") for name, *_ in rows("Tests")}
    documented |= {"each leaf alike"} if "each leaf (slot) alike" in documented else set()
    documented -= {"each leaf (slot) alike"}
    assert documented == {name for name in there if "slot" not in name or name in OF_RING}


def test_the_leaks() -> None:
    documented = {name.partition(":")[0]: cells for name, *cells in rows("Leaks")}
    assert list(documented) == [leak.name for leak in LIVE]
    for leak in LIVE:
        of, _, shows = documented[leak.name]
        assert [scheme for scheme in SCHEMES if scheme in of.lower()] == [*leak.schemes] or of == "all"
        assert (of == "all") == (set(leak.schemes) == set(SCHEMES))
        assert shows.removesuffix(" workloads") == (leak.workload or "all")


def test_the_numbers() -> None:
    assert f"{LIMIT:,} accesses" in PAGE
    assert "within 2,000 accesses: ten seconds at the rate that the page begins with" in PAGE
    assert Settings().rate == 200
    assert Settings().rate in RATES


def test_the_pictures() -> None:
    shown = re.findall(r"!\[.+\]\((.+)\)", PAGE)
    assert shown == ["watch-sound.png", "watch-leaking.png"]
    for name in shown:
        assert (DOCS / name).stat().st_size < 200_000
