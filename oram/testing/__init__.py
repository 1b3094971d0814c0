"""What tests of this package, and of backends written elsewhere, are made of. Needs pytest and hypothesis; simulators and statistics do not."""

from contextlib import suppress

with suppress(ImportError):
    import pytest

    # Before anything imports it, so that a failing contract shows the values it compared.
    pytest.register_assert_rewrite("oram.testing.conformance")
