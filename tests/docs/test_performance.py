"""docs/performance.md says what its result file says, row by row, and names only groups that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import performance

pytestmark = pytest.mark.one_kernel

ROOT = Path(__file__).resolve().parents[2]
PAGE = performance.PAGE.read_text()


def test_each_figure_is_that_of_its_result_file() -> None:
    found = list(performance.rows(PAGE))
    assert len(found) == len(re.findall(r"^\| `", PAGE, re.MULTILINE)) > 70
    for name, row, figures in found:
        assert figures == performance.told(performance.kept(name)[row]), row
    assert performance.rewritten(PAGE) == PAGE


#: Row of the result file, which of its figures, and how docs/choosing.md says it.
SAID = [
    ("read_many(64), memory, N=262144, B=64, aes-256-gcm, Ring 32,46,60", "ratio", "{:.2f} of Path's rate"),
    ("read_many(64), memory, N=262144, B=64, aegis-256, Ring 32,46,60", "ratio", "{:.2f} (AEGIS-256)"),
    ("read_many(64), memory, N=65536, B=4096, aes-256-gcm, Ring 32,46,60", "ratio", "{:.2f} times Path's rate"),
    ("read, memory, N=65536, B=4096, aes-256-gcm, Ring 32,46,60", "ratio", "{:.2f} in single reads"),
    ("blocks moved, all, Ring 32,46,60, N=1048576", "measured", "{:.0f} blocks an access"),
    ("blocks moved, all, Ring 32,46,60, N=1048576, XOR", "measured", "{:.0f} with XOR"),
    ("get over 10 ms, B=4096: path", "measured", "Path {:.1f}, Ring"),
    ("get over 10 ms, B=4096: ring", "measured", "Ring {:.1f}, Cuckoo"),
    ("get over 10 ms, B=4096: cuckoo", "measured", "Cuckoo {:.1f} ms"),
    ("get over 50 ms, B=4096: path", "measured", "over 50 ms: {:.1f}"),
    ("get over 50 ms, B=4096: ring", "measured", ", {:.1f}, "),
    ("get over 50 ms, B=4096: cuckoo", "measured", ", {:.1f} |"),
    ("batches of 500 x 160 B, N=1,048,576: path, page_levels=2, aes-256-gcm, 'process'", "measured", "{:,.0f} accesses"),
    ("batches of 500 x 160 B, N=1,048,576: path, aes-256-gcm, 'process'", "measured", "default pages {:,.0f}"),
    ("batches of 500 x 160 B, N=1,048,576: ring, aes-256-gcm, 'process'", "measured", "Ring {:,.0f}"),
    ("read at 10 ms, B=4096, ring, metadata at the server", "measured", "{:.1f} ms over 10 ms"),
    ("read at 10 ms, B=4096, ring", "measured", "in place of {:.1f}"),
    ('LMDB put, "sync", N=65536, B=64', "measured", "takes {:.0f} us alone"),
    ("blocks.read, N=2^16, B=1024, aes-256-gcm, defaults, against PyORAM", "measured", "{:,.0f} reads a second"),
    ("blocks.read, N=2^16, B=1024, aes-256-gcm, tree-top cache off, against PyORAM", "measured", "{:,.0f} without"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "figure", "words"), SAID, ids=[words for _, _, words in SAID])
def test_what_choosing_says(row: str, figure: str, words: str) -> None:
    page = (ROOT / "docs" / "choosing.md").read_text()
    (file,) = (name for name, each, _ in performance.rows(PAGE) if each == row)
    assert file in page
    assert words.format(performance.kept(file)[row][figure]) in page


def test_the_groups_are_there() -> None:
    source = "".join(path.read_text() for path in (ROOT / "bench").glob("*.py"))
    groups = re.search(r"BARS = \{\*\*", source)
    if groups is None:
        pytest.fail("bench has no groups of bars")
    for command in re.findall(r"python -m bench ([a-z -]+)`", PAGE):
        for group in command.split():
            assert group.startswith("--") or group == "performance" or f'"{group}": ' in source, group
