"""Builds ``oram.kernels._native`` from csrc/ through cffi (API mode, limited API)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    "csrc/binned.c",
    "csrc/cipher.c",
    "csrc/coins.c",
    "csrc/cuckoo.c",
    "csrc/index.c",
    "csrc/linear.c",
    "csrc/path.c",
    "csrc/ring.c",
    "csrc/simulate.c",
]


def declarations(header: str) -> str:
    """The header without what cffi does not read: directives other than plain constants."""
    lines = [
        line
        for line in header.splitlines()
        if not line.startswith("#") or re.match(r"#define ORAM_\w+ \(?-?\w+\)?", line)
    ]
    text = re.sub(r"/\*.*?\*/", "", "\n".join(lines), flags=re.DOTALL)
    return re.sub(r"#define (ORAM_\w+) .*", r"#define \1 ...", text)


ffi = FFI()
ffi.cdef(declarations((ROOT / "csrc" / "oram.h").read_text()))
ffi.set_source(
    "oram.kernels._native",
    '#include "oram.h"',
    sources=SOURCES,
    include_dirs=["csrc"],
    depends=["csrc/oram.h", "csrc/bytes.h", "csrc/pool.h", "csrc/batch.h", "csrc/coins.h", "csrc/hierarchy.h"],
    libraries=["crypto"],
    extra_compile_args=["-O3", "-std=c11", "-fvisibility=hidden", *os.environ.get("ORAM_CFLAGS", "").split()],
    extra_link_args=os.environ.get("ORAM_LDFLAGS", "").split(),
    py_limited_api=True,
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
