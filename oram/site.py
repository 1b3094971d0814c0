"""Where a store lives: a backend, and the file of its client state beside it or elsewhere."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from oram.backends import Backend, RegionShape, ShardedBackend, SlotWrite, StateFile, open_each, open_shards, open_url
from oram.backends.url import SERVERS
from oram.errors import (
    IntegrityError,
    ParameterError,
    StateMissingError,
    StoreExistsError,
    StoreLockedError,
    StoreNotFoundError,
)
from oram.journal import HEADER
from oram.keys import Header
from oram.params import check_shards

HEADER_REGION = "header"
REGIONS = ("slots", "meta", "clock")  # kinds of region that an incarnation has
HEADER_SHAPE = RegionShape(1, 4096)
COPY_BYTES = 8 << 20
_STATE = "this backend keeps no client state: give state=PATH"
_FIRST = np.zeros(1, np.int64)


Place: TypeAlias = str | os.PathLike[str] | Backend
Where: TypeAlias = Place | Sequence[Place]


def parts_of(where: Where) -> list[Place]:
    """The places of the shards, where they are told one by one, or the one place."""
    return list(where) if isinstance(where, list | tuple) else [where]  # type: ignore[list-item]


def _url(place: str | os.PathLike[str]) -> str:
    return place if isinstance(place, str) else f"lmdb:{os.fspath(place)}"


def _shards_in(state: str | os.PathLike[str], *, sync: bool) -> int:
    """How many shards the header beside this client state names. Nobody has authenticated it: it says where to look, and no more."""
    from oram.backends.lmdb import LMDBStateFile

    try:
        file = LMDBStateFile.at(Path(state), sync=sync, create=False)
    except (StoreNotFoundError, StoreLockedError):  # what the server says comes first
        return 1
    try:
        blob = file.get(HEADER)
    finally:
        file.close()
    public = {} if blob is None else Header.peek(blob).public
    shards, blocks = public.get("shards", 1), public.get("blocks", 1)
    if not isinstance(blocks, int) or check_shards(shards, blocks):
        raise IntegrityError("the header is damaged")
    return int(shards)


def _header_in(backend: Backend) -> bytes | None:
    shape = backend.regions().get(HEADER_REGION)
    if shape is None:
        return None
    if shape != HEADER_SHAPE:  # before as much memory is taken as a server says
        raise IntegrityError("the header is damaged")
    slot = backend.read(HEADER_REGION, _FIRST)
    return slot.data[0].tobytes() if slot.present[0] else None


class Site:
    """One store's place, held exclusively from construction to ``release``.

    where: a place, or a list of one a shard. shards: that a new store has; None: what the client state of the store says. A server's URL leads
    to so many names.
    """

    def __init__(
        self, where: Where, state: str | os.PathLike[str] | None, *, sync: bool, create: bool, shards: int | None = None
    ) -> None:
        places = parts_of(where)
        urls = [_url(place) for place in places if not isinstance(place, Backend)]
        backends = [place for place in places if isinstance(place, Backend)]
        if not places or (urls and backends):
            raise ParameterError("a list of places is one URL a shard, or one backend a shard")
        if state is None and (len(places) > 1 or any(url.partition(":")[0] in SERVERS for url in urls)):
            raise ParameterError(_STATE)  # before anybody is asked
        self.owned = not backends
        self._server: str | None = None  # whose URL leads to one store, or to so many shards
        if len(places) > 1:
            self.backend: Backend = open_each(urls, sync=sync, create=create) if urls else ShardedBackend(backends)
        elif backends:
            self.backend = backends[0]
        else:
            (url,), named = urls, 1
            if url.partition(":")[0] in SERVERS and state is not None:
                self._server = url
                named = shards or _shards_in(state, sync=sync)
            self.backend = open_shards(url, named) if named > 1 else open_url(url, sync=sync, create=create)
        try:
            self.backend.acquire()
        except BaseException:
            if self.owned:
                self.backend.close()
            raise
        try:
            self.file = self._file(state, sync=sync, create=create)
        except BaseException:
            self._let_go()
            raise

    def _file(self, state: str | os.PathLike[str] | None, *, sync: bool, create: bool) -> StateFile:
        if state is not None:
            from oram.backends.lmdb import LMDBStateFile

            try:
                return LMDBStateFile.at(Path(state), sync=sync, create=create)
            except StoreNotFoundError:
                if self.server_header() is None and not self._has_shards():
                    raise
                raise StateMissingError("the server's part of the store is there, its client state is not") from None
        file = self.backend.state_file()
        if file is None:
            raise ParameterError(_STATE)
        return file

    def server_header(self) -> bytes | None:
        """The server's copy of the header; of several shards, the first one's."""
        return _header_in(self.backend)

    def _has_shards(self) -> bool:
        """Whether the server has a store of several shards, where the client state does not say how many."""
        if self._server is None:
            return False
        with open_shards(self._server, 1) as first:
            return _header_in(first) is not None

    def header(self) -> bytes:
        """The header. StoreNotFoundError, or StateMissingError if only the server's part is there."""
        blob = self.file.get(HEADER)
        if blob is not None:
            return blob
        if self.server_header() is not None:
            raise StateMissingError(
                "the server's part of the store is there, its client state is not (was it created with state=PATH?)"
            )
        raise StoreNotFoundError("there is no store at this place")

    def header_write(self, blob: bytes) -> SlotWrite:
        """The write of the server's copy."""
        return SlotWrite(
            HEADER_REGION, _FIRST, np.frombuffer(blob.ljust(HEADER_SHAPE.slot_size, b"\0"), np.uint8).reshape(1, -1)
        )

    def drop_all_but(self, incarnation: int) -> None:
        """Forget the regions of incarnations that are gone, or were never finished."""
        for region in list(self.backend.regions()):
            kind, dot, number = region.partition(".")
            if dot and kind in REGIONS and number != str(incarnation):
                self.backend.drop(region)

    def copy_to(self, path: Path, regions: Collection[str], puts: list[tuple[bytes, bytes]]) -> None:
        """Copy the slots of these regions, the header's, and the client state to a new LMDB directory, with ``puts`` in place of the entries of that name."""
        target = Site(f"lmdb:{path}", None, sync=True, create=True)
        try:
            if target.file.get(HEADER) is not None:
                raise StoreExistsError("there is a store at this place already")
            for region, shape in self.backend.regions().items():
                if region not in regions and region != HEADER_REGION:  # a server can declare any
                    continue
                target.backend.allocate(region, shape)
                step = max(1, COPY_BYTES // shape.slot_size)
                for first in range(0, shape.slots, step):
                    indices = np.arange(first, min(first + step, shape.slots))
                    slots = self.backend.read(region, indices)
                    there = np.flatnonzero(slots.present)
                    target.backend.write_all([SlotWrite(region, indices[there], slots.data[there])])
            target.file.commit([*self.file.scan(b""), *puts])
        finally:
            target.release()

    def _let_go(self) -> None:
        self.backend.release()
        if self.owned:
            self.backend.close()

    def release(self) -> None:
        """Give the place back."""
        if self.file.shared is not self.backend:
            self.file.close()
        self._let_go()
