"""The hot loops, twice: ``reference`` in Python and ``native`` in C. ``ORAM_KERNELS=reference|native`` chooses."""

from __future__ import annotations

import os
from functools import cache
from typing import cast

from oram.errors import ParameterError
from oram.kernels.base import CIPHERS, EMPTY, KernelSet, Op

__all__ = ["CIPHERS", "EMPTY", "KernelSet", "Op", "active", "load", "serving"]


@cache
def load(name: str) -> KernelSet:
    """The kernel set of this name. ParameterError if it is unknown or was not built."""
    if name == "reference":
        from oram.kernels import reference

        return cast(KernelSet, reference)
    if name == "native":
        try:
            from oram.kernels import native
        except (ImportError, AttributeError) as error:  # not built, or built from older sources
            raise ParameterError("the native kernels are not built here; run `oram doctor`") from error
        return cast(KernelSet, native)
    raise ParameterError("ORAM_KERNELS must be 'native' or 'reference'")


def active() -> KernelSet:
    """What ``ORAM_KERNELS`` asks for, or native where it was built, else reference."""
    chosen = os.environ.get("ORAM_KERNELS")
    if chosen:
        return load(chosen)
    try:
        return load("native")
    except ParameterError:
        return load("reference")


def serving(scheme: str) -> KernelSet:
    """What is active, or reference where that has no kernel for this scheme."""
    chosen = active()
    return chosen if hasattr(chosen, scheme) else load("reference")
