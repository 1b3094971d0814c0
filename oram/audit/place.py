"""Scratch stores with given parameters, and what the server saw of them."""

from __future__ import annotations

import dataclasses
import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import oram
from oram.backends import LMDBBackend, MemoryBackend
from oram.backends.url import SERVERS
from oram.errors import BackendWarning, ParameterError
from oram.params import (
    IN_MEMORY,
    CuckooParams,
    LinearParams,
    PathGeometry,
    PathParams,
    RingGeometry,
    RingParams,
    SchemeParams,
)
from oram.store import ObliviousStore
from oram.testing.worlds import Look, own_trace
from oram.trace import TraceBackend

__all__ = ["KINDS", "Scratch", "Target", "scratch"]

KINDS = ("memory", "lmdb", "redis")


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """What is audited: parameters of a store, and the kind of place that it lies in.

    kind: "memory", "lmdb" or "redis". url: of the server, where it is "redis"; scratch stores lie there under random names, and are erased.
    """

    scheme: str
    params: SchemeParams
    capacity: int
    block_size: int
    tree_top: int
    cipher: str
    kind: str = "memory"
    url: str | None = None

    @classmethod
    def of_store(cls, where: str, state: str | os.PathLike[str] | None = None) -> Self:
        """The parameters of a store, from its public header: no slot of it is read or written. Errors as ``oram.info``; ParameterError for several shards."""
        public = oram.info(where, state=state)
        if public.get("shards", 1) != 1:
            raise ParameterError(
                "a store of several shards: audit one of its kind with shards=1, and see docs/evidence.md"
            )
        N, B = int(public["blocks"]), int(public["block_size"])
        params, tree_top = _params_of(public, N, B)
        kind = "redis" if where.partition(":")[0] in SERVERS else "lmdb"
        return cls(public["scheme"], params, N, B, tree_top, public["cipher"], kind, where if kind == "redis" else None)

    def options(self) -> dict[str, Any]:
        """For ``oram.create``."""
        return {
            "key": bytes(32), "capacity": self.capacity, "block_size": self.block_size, "scheme": self.params, "tree_top": self.tree_top,
            "cipher": self.cipher, "durability": "process",
        }  # fmt: skip


def _params_of(public: dict[str, Any], N: int, B: int) -> tuple[SchemeParams, int]:
    """Parameters, and bytes of tree top, that make a store of this geometry."""
    scheme = public["scheme"]
    if scheme == "path":
        path = PathParams(Z=public["Z"], page_levels=public["h"])
        return path, _tree_top(lambda top: PathGeometry.of(N, B, path, top, IN_MEMORY).T, public["T"])
    if scheme == "ring":
        ring = RingParams(public["Z"], public["A"], public["S"], public["metadata"], public.get("xor"))
        return ring, _tree_top(lambda top: RingGeometry.of(N, B, ring, top, IN_MEMORY).T, public["T"])
    if scheme == "cuckoo":
        known = {"c": public["c"], "eps": public["eps"] / 1000, "rebuild": public["rebuild"]}
        fields = {each.name for each in dataclasses.fields(CuckooParams)}
        return CuckooParams(
            **known, **{name: public[name] for name in ("index",) if name in public and name in fields}
        ), 0
    return LinearParams(), 0


def _tree_top(levels: Any, wanted: int) -> int:
    """The least number of bytes for which so many levels are cached."""
    low, high = 0, 1 << 44
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if levels(middle) < wanted else (low, middle)
    if levels(low) != wanted:
        raise ParameterError("no tree-top cache gives this geometry: the store was made by another version")
    return low


class Scratch:
    """Where scratch stores come from. look: how to see what the server saw. joint, remote, xor: for ``testing.simulators``, xor as the latest store has it."""

    def __init__(self, target: Target, directory: Path) -> None:
        self.target, self._directory, self._count = target, directory, 0
        self.joint, self.remote = target.kind != "redis", target.kind == "redis"
        self.xor = False
        self.look: Look = own_trace
        self._names: list[str] = []
        self._server: Any = None
        if target.kind == "redis":
            from oram.audit.listening import Listener

            self._server = Listener(str(target.url))
            self.look = self._server.look

    def make(self) -> tuple[ObliviousStore, TraceBackend]:
        """A new store, and the trace of what its server is told."""
        self._count += 1
        options = self.target.options()
        if self.target.kind == "memory":
            trace = TraceBackend(MemoryBackend())
        elif self.target.kind == "lmdb":
            trace = TraceBackend(LMDBBackend(self._directory / f"{self._count}", sync=False))
        else:
            name = f"oram-audit-{secrets.token_hex(8)}"
            self._names.append(name)
            with warnings.catch_warnings(action="ignore", category=BackendWarning):
                trace = TraceBackend(self._server.backend(name))
            options["state"] = self._directory / f"{self._count}"
        store = oram.create(trace, **options)
        self.xor = bool(getattr(store._engine.scheme, "xor", False))
        return store, trace

    def erase(self) -> None:
        """Nothing stays on the server."""
        for name in self._names:
            with suppress(Exception), warnings.catch_warnings(action="ignore", category=BackendWarning):
                backend = self._server.backend(name)
                backend.erase()
                backend.close()
        self._names.clear()


@contextmanager
def scratch(target: Target) -> Iterator[Scratch]:
    """Scratch stores, gone when the block ends, however it ends."""
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="oram-audit-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        made = Scratch(target, directory)
        stack.callback(made.erase)
        yield made
