"""Names for integers and arrays that mean different things."""

from __future__ import annotations

from typing import NewType, TypeAlias

import numpy as np
import numpy.typing as npt

Address = NewType("Address", int)  # of a block: 0 <= address < capacity
Leaf = NewType("Leaf", int)  # of a tree: 0 <= leaf < 2^L
Level = NewType("Level", int)  # root 0, leaves L
Bucket = NewType("Bucket", int)  # in level order: root 0, children of b are 2b+1 and 2b+2
Generation = NewType("Generation", int)  # of sealing keys: one an open, from 1

U8: TypeAlias = npt.NDArray[np.uint8]
U16: TypeAlias = npt.NDArray[np.uint16]
U32: TypeAlias = npt.NDArray[np.uint32]
I32: TypeAlias = npt.NDArray[np.int32]
I64: TypeAlias = npt.NDArray[np.int64]
U64: TypeAlias = npt.NDArray[np.uint64]
F64: TypeAlias = npt.NDArray[np.float64]
