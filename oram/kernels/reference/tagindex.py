"""The directory's index: the specification of csrc/index.c."""

from __future__ import annotations

import numpy as np

from oram.types import U8


class ReferenceIndex:
    """A dict beside the tags."""

    def __init__(self, tags: U8) -> None:
        self._tags = tags
        used = np.flatnonzero(tags.any(axis=1)).tolist()
        self._map = {tags[address].tobytes(): address for address in used}

    def find(self, tag: bytes) -> int:
        """Address of the tag, -1 where there is none."""
        return self._map.get(tag, -1)

    def insert(self, tag: bytes, address: int) -> None:
        """Enter a tag that is not there, at a free address."""
        self._tags[address] = np.frombuffer(tag, np.uint8)
        self._map[tag] = address

    def remove(self, address: int) -> None:
        """Free an address."""
        del self._map[self._tags[address].tobytes()]
        self._tags[address] = 0
