"""Where a store lives: a backend, and the file of its client state beside it or elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from oram.backends import Backend, RegionShape, SlotWrite, StateFile, open_url
from oram.backends.url import SERVERS
from oram.errors import ParameterError, StateMissingError, StoreExistsError, StoreNotFoundError
from oram.journal import HEADER

HEADER_REGION = "header"
REGIONS = ("slots", "meta", "clock")  # kinds of region that an incarnation has
HEADER_SHAPE = RegionShape(1, 4096)
COPY_BYTES = 8 << 20
_STATE = "this backend keeps no client state: give state=PATH"
_FIRST = np.zeros(1, np.int64)


class Site:
    """One store's place, held exclusively from construction to ``release``."""

    def __init__(
        self, where: str | os.PathLike[str] | Backend, state: str | os.PathLike[str] | None, *, sync: bool, create: bool
    ) -> None:
        self.owned = not isinstance(where, Backend)
        if isinstance(where, Backend):
            self.backend = where
        else:
            url = where if isinstance(where, str) else f"lmdb:{os.fspath(where)}"
            if state is None and url.partition(":")[0] in SERVERS:  # before anybody is asked
                raise ParameterError(_STATE)
            self.backend = open_url(url, sync=sync, create=create)
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
                if self.server_header() is None:
                    raise
                raise StateMissingError("the server's part of the store is there, its client state is not") from None
        file = self.backend.state_file()
        if file is None:
            raise ParameterError(_STATE)
        return file

    def server_header(self) -> bytes | None:
        """The server's copy of the header."""
        if HEADER_REGION not in self.backend.regions():
            return None
        slot = self.backend.read(HEADER_REGION, _FIRST)
        return slot.data[0].tobytes() if slot.present[0] else None

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

    def copy_to(self, path: Path, puts: list[tuple[bytes, bytes]]) -> None:
        """Copy slots and client state to a new LMDB directory, with ``puts`` in place of the entries of that name."""
        target = Site(f"lmdb:{path}", None, sync=True, create=True)
        try:
            if target.file.get(HEADER) is not None:
                raise StoreExistsError("there is a store at this place already")
            for region, shape in self.backend.regions().items():
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
