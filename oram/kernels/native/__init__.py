"""The native kernels: csrc/ through cffi. Nothing outside this package imports cffi's output."""

from __future__ import annotations

from oram.kernels.native.binnedoram import NativeBinned
from oram.kernels.native.cipher import NativeKeys, floor
from oram.kernels.native.cuckoooram import NativeCuckoo
from oram.kernels.native.linearoram import NativeLinear
from oram.kernels.native.pathoram import NativePath
from oram.kernels.native.ringoram import NativeRing
from oram.kernels.native.simulation import NativePathSimulation, NativeRingSimulation, cuckoo_simulation
from oram.kernels.native.tagindex import NativeIndex

__all__ = [
    "binned", "cuckoo", "cuckoo_simulation", "floor", "index", "keys", "linear", "name", "path", "path_simulation", "ring",
    "ring_simulation",
]  # fmt: skip

name = "native"
keys = NativeKeys
path = NativePath
ring = NativeRing
cuckoo = NativeCuckoo
binned = NativeBinned
linear = NativeLinear
index = NativeIndex
path_simulation = NativePathSimulation
ring_simulation = NativeRingSimulation
