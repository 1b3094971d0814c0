"""What these tests run on."""

from __future__ import annotations

import os

import pytest


@pytest.mark.skipif("ORAM_SANITIZED" not in os.environ, reason="set by `make sanitize`")
def test_the_sanitized_build_is_what_runs() -> None:
    from oram.kernels import _native

    assert "sanitized" in str(_native.__file__)
