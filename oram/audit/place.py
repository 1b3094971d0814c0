"""Scratch stores with given parameters, and what the server saw of them."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import oram
from oram.audit.leaks import Leak
from oram.backends import LMDBBackend, MemoryBackend
from oram.backends.url import SERVERS
from oram.errors import ParameterError
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
from oram.testing.simulators import simulator
from oram.testing.worlds import RECORDS, Look, own_trace
from oram.trace import TraceBackend

__all__ = ["KINDS", "Scratch", "Target", "scratch"]

KINDS = ("memory", "lmdb", "redis")

#: Records of a scratch store, at most: some hundred are made and filled. Linear writes all of them in each access.
_MOST, _MOST_LINEAR = 1024, 64


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """What is audited: parameters of a store, and the kind of place that it lies in.

    capacity: records of a scratch store. stands_for: records of the store that was named, where these are fewer or more; a lower tree has as many
    levels fewer in the client's cache, so that the server has as many as it had. kind: "memory", "lmdb" or "redis". url: of the server, where it is
    "redis"; scratch stores lie there under random names, and are erased. shards: their number; a store of several is looked at in this process, as what
    its servers are told together.
    """

    scheme: str
    params: SchemeParams
    capacity: int
    block_size: int
    tree_top: int
    cipher: str
    kind: str = "memory"
    url: str | None = None
    blocks_per_value: int = 1
    stands_for: int | None = None
    shards: int = 1

    @classmethod
    def of_store(cls, where: str | os.PathLike[str], state: str | os.PathLike[str] | None = None) -> Self:
        """The parameters of a store, from its public header: no slot of it is read or written. Errors as ``oram.info``; ParameterError for Cuckoo in several
        shards, of which there is no simulator.
        """
        public = oram.info(where, state=state)
        server = where if isinstance(where, str) and where.partition(":")[0] in SERVERS else None
        return cls._of(public, "lmdb" if server is None else "redis", server)

    @classmethod
    def new(cls, kind: str, url: str | None = None, **options: Any) -> Self:
        """The parameters that a store has if it is made with these options of ``oram.create``. ParameterError as there, and for another kind."""
        if kind not in KINDS:
            raise ParameterError(f"no such kind of place: {', '.join(KINDS)}")
        with oram.create(MemoryBackend(), key=bytes(32), durability="process", **options) as store:
            return cls._of(store.info(), kind, url)

    @classmethod
    def _of(cls, public: Mapping[str, Any], kind: str, url: str | None) -> Self:
        N, B, each, shards = (
            int(public.get(name, 1)) for name in ("blocks", "block_size", "blocks_per_value", "shards")
        )
        if shards > 1 and public["scheme"] == "cuckoo":
            raise ParameterError(
                "there is no simulator of Cuckoo in several shards: audit a store of its kind with one"
            )
        records = N // each
        capacity = max(RECORDS, shards, min(records, _MOST_LINEAR if public["scheme"] == "linear" else _MOST))
        of_tree = {**public, "blocks": -(-N // shards)}
        params, tree_top = _params_of(of_tree, -(-capacity * each // shards), B)
        stands_for = None if capacity == records else records
        if shards > 1 and kind == "redis":
            kind, url = "memory", None
        return cls(
            public["scheme"], params, capacity, B, shards * tree_top, public["cipher"], kind, url, each, stands_for, shards
        )  # fmt: skip

    def options(self) -> dict[str, Any]:
        """For ``oram.create``."""
        return {
            "key": bytes(32), "capacity": self.capacity, "block_size": self.block_size, "blocks_per_value": self.blocks_per_value,
            "scheme": self.params, "tree_top": self.tree_top, "cipher": self.cipher, "durability": "process", "shards": self.shards,
        }  # fmt: skip


def _params_of(public: Mapping[str, Any], N: int, B: int) -> tuple[SchemeParams, int]:
    """Parameters, and bytes of tree top, that make a store of N blocks with this geometry, or as near to it as N allows."""
    scheme = public["scheme"]
    if scheme == "path":
        path = PathParams(Z=public["Z"], page_levels=public["h"])
        return path, _tree_top(lambda top: PathGeometry.of(N, B, path, top, IN_MEMORY), public, N)
    if scheme == "ring":
        ring = RingParams(public["Z"], public["A"], public["S"], public["metadata"], public.get("xor"))
        return ring, _tree_top(lambda top: RingGeometry.of(N, B, ring, top, IN_MEMORY), public, N)
    if scheme == "cuckoo":
        c = int(public["c"]) * N // max(N, int(public["blocks"]))  # of a smaller store, a buffer as much smaller
        known = {"c": max(8, c // 8 * 8), "eps": public["eps"] / 1000, "rebuild": public["rebuild"]}
        fields = {each.name for each in dataclasses.fields(CuckooParams)}
        return CuckooParams(
            **known, **{name: public[name] for name in ("index",) if name in public and name in fields}
        ), 0
    return LinearParams(), 0


def _tree_top(geometry: Callable[[int], PathGeometry | RingGeometry], public: Mapping[str, Any], N: int) -> int:
    """The least number of bytes for which so many levels are cached; of a tree of another height, for which so many are not."""
    wanted = max(0, int(public["T"]) + geometry(0).L - int(public["L"]))
    low, high = 0, 1 << 44
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if wanted > geometry(middle).T else (low, middle)
    if int(public["blocks"]) == N and wanted != geometry(low).T:
        raise ParameterError("no tree-top cache gives this geometry: the store was made by another version")
    return low


class Scratch:
    """Where scratch stores come from. look: how to see what the server saw. joint, remote: for ``testing.simulators``. leak: of each, for controls."""

    def __init__(self, target: Target, directory: Path, leak: Leak | None = None) -> None:
        self.target, self._directory, self._leak, self._count = target, directory, leak, 0
        self.joint, self.remote = target.kind != "redis", target.kind == "redis"
        self.look: Look = own_trace
        self._made: list[TraceBackend] = []
        self._server: Any = None
        if target.kind == "redis":
            from oram.audit.listening import Listener

            self._server = Listener(str(target.url))
            self.look = self._server.look
        self._fix_xor()

    def _fix_xor(self) -> None:
        """Ring XORs where the place can and, by the link as it is at each opening, where that pays. Here this is found out once, for all stores."""
        params = self.target.params
        if not isinstance(params, RingParams) or params.xor is not None or self.target.kind == "memory":
            return
        if self.target.kind == "lmdb":
            self.target = dataclasses.replace(self.target, params=dataclasses.replace(params, xor=False))
            return
        with oram.create(MemoryBackend(), **self.target.options()) as store:
            info = store.info()
        levels, size = int(info["L"]) + 1 - int(info["T"]), simulator(info).slot_size
        with self._server.backend() as backend:
            pays = backend.fold_pays(levels, size)
        self.target = dataclasses.replace(self.target, params=dataclasses.replace(params, xor=pays))

    def make(self) -> tuple[ObliviousStore, TraceBackend]:
        """A new store, and the trace of what its server is told."""
        self._count += 1
        options = self.target.options()
        if self.target.kind == "memory":
            trace = TraceBackend(MemoryBackend())
        elif self.target.kind == "lmdb":
            trace = TraceBackend(LMDBBackend(self._directory / f"{self._count}", sync=False))
        else:
            trace = TraceBackend(self._server.backend(self._directory / f"{self._count}"))
        self._made.append(trace)
        return (oram.create if self._leak is None else self._leak.create)(trace, **options), trace

    def erase(self) -> None:
        """Nothing stays of the stores made so far, on the server or the disk. What a server does not let go is warned of."""
        for trace in self._made:
            with suppress(Exception):  # closed before, or amid an access that was interrupted
                trace.inner.close()
        if self._server is not None:
            self._server.names.erase()
        for path in self._directory.iterdir():
            shutil.rmtree(path, ignore_errors=True)
        self._made.clear()


@contextmanager
def scratch(target: Target, leak: Leak | None = None) -> Iterator[Scratch]:
    """Scratch stores, gone when the block ends, however it ends."""
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="oram-audit-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        made = Scratch(target, directory, leak)
        stack.callback(made.erase)
        yield made
