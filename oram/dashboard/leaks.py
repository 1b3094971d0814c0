from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest import mock

import oram
from oram.kernels.base import Op
from oram.schemes.path import PathORAM


@dataclass(frozen=True)
class Leak:
    name: str
    says: str
    schemes: tuple[str, ...]
    part: Any

    def applies_to(self, scheme):
        return scheme in self.schemes

    def create(self, where, **options):
        with mock.patch("oram.assembly.PathORAM", self.part):
            return oram.create(where, **options)


class NoRemap(PathORAM):
    def access(self, requests):
        for r in range(requests.m):
            if requests.ops[r] == Op.READ:
                requests.draws[r] = self.state.position[requests.addresses[r]]
        return super().access(requests)


LEAKS = [Leak("no remap on read", "only puts move a block", ("path",), NoRemap)]
