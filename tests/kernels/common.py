"""The two kernel sets that are compared, and their keys."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from oram import kernels
from oram.errors import ParameterError
from oram.kernels.base import KernelSet

try:
    NATIVE: KernelSet | None = kernels.load("native")
except ParameterError:
    NATIVE = None
REFERENCE = kernels.load("reference")
CIPHERS = st.sampled_from(["aes-256-gcm", "aegis-256"])

needs_native = pytest.mark.skipif(NATIVE is None, reason="the native kernels are not built here")


def key_of(generation: int) -> bytes:
    return generation.to_bytes(32, "big")
