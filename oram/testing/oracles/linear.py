"""What a Linear store holds."""

from __future__ import annotations

import numpy as np

from oram.schemes.linear import LinearORAM
from oram.store import ObliviousStore
from oram.testing.model import stored
from oram.testing.oracles.base import Contents, Opener

__all__ = ["check_linear"]


def check_linear(store: ObliviousStore, scheme: LinearORAM) -> Contents:
    """``check`` for Linear."""
    contents, opener = Contents(), Opener(store)
    base, B = int(scheme.arrays()[0][0]), scheme.block_size
    slots = next(iter(scheme.regions().values())).slots
    if base:
        pages = stored(store, scheme.region, np.arange(slots))
        for slot in range(slots):
            sealed = pages.data[slot].tobytes()
            plain = opener.open(slot, base + slot, sealed)
            contents.references[slot] = base + slot, sealed
            for i in range(len(plain) // B):
                contents.blocks[len(contents.blocks)] = plain[i * B : (i + 1) * B]
    contents.server = set(contents.blocks)
    return contents
