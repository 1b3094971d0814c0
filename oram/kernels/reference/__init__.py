"""The reference kernels: the specification of the native ones, and the fallback where no compiler is at hand.

Given the same requests, draws and keys they leave the same bytes behind, in client arrays and in slots.
"""

from __future__ import annotations

from oram.kernels.reference.binnedoram import ReferenceBinned
from oram.kernels.reference.cipher import ReferenceKeys
from oram.kernels.reference.cuckoooram import ReferenceCuckoo
from oram.kernels.reference.linearoram import ReferenceLinear
from oram.kernels.reference.pathoram import ReferencePath
from oram.kernels.reference.ringoram import ReferenceRing
from oram.kernels.reference.simulation import ReferencePathSimulation, ReferenceRingSimulation, cuckoo_simulation
from oram.kernels.reference.tagindex import ReferenceIndex

__all__ = [
    "ReferenceBinned",
    "ReferenceCuckoo",
    "ReferenceIndex",
    "ReferenceKeys",
    "ReferenceLinear",
    "ReferencePath",
    "ReferenceRing",
    "binned",
    "cuckoo",
    "cuckoo_simulation",
    "index",
    "keys",
    "linear",
    "name",
    "path",
    "path_simulation",
    "ring",
    "ring_simulation",
]

name = "reference"
keys = ReferenceKeys
path = ReferencePath
ring = ReferenceRing
cuckoo = ReferenceCuckoo
binned = ReferenceBinned
linear = ReferenceLinear
index = ReferenceIndex
path_simulation = ReferencePathSimulation
ring_simulation = ReferenceRingSimulation
