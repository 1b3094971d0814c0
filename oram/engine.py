"""The protocol of an access, and recovery: the four steps, once, for every scheme and backend.

    1 intent   the batch's addresses and draws, which determine every slot it will read: durable before the first read
    2 read
    3 commit   what changed in the client state, and the next pieces of the running checkpoint: durable
    4 write    then the caller gets its answer

Where the state file lives in the backend's own environment, 3 and 4 are one transaction. Where a round trip is dear (REMOTE), step 4 rides
with step 2 of the next access: what is not written yet lies in the journal with its commit, so the answer need not wait for it. It stays there
until the server cannot lose it any more, and where a failover did lose it, it is written again before anything else. What the server sees
after a crash is a function of the log: the very same slots again, whatever is asked next (Obladi's rule).
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

import numpy as np

from oram.backends.base import Backend, BufferBackend, Capability, RegionShape, Slots, SlotWrite
from oram.directory import Directory
from oram.errors import (
    BackendUnavailableError,
    ForkedStoreError,
    IntegrityError,
    PoisonedError,
    RollbackError,
    StaleStateError,
    StoreClosedError,
)
from oram.journal import ENTRY_OVERHEAD, Intent, Journal, Record
from oram.kernels.base import COUNTER_BITS, Keys, Requests, TamperedError
from oram.schemes.base import Access, Outcome, Scheme
from oram.state import Pieces, piece_size
from oram.types import I64, U8

_NUMBER = re.compile(r"[0-9]{1,9}")  # of an incarnation; a server can call a region anything
CLOCK_SIZE = 64  # bytes of a slot of the clock
KEPT = 64  # write-backs that are journaled because a failover could take them back, at most
_LOST = "the connection broke in the middle of a load, and a part of it is lost"
_OLDER = "the server's part of the store is older than the client state"
GENERATION_BLOCKS = 1 << 38  # AES blocks under one key: advantage below 2^-50 by draft-irtf-cfrg-aead-limits


def _clock_of(shard: int) -> bytes:
    """What a slot of the clock is sealed as: servers that changed places must not pass for each other."""
    return b"clock%d" % shard if shard else b"clock"


class Durability(StrEnum):
    """What an acknowledged write survives."""

    SYNC = "sync"  #: power loss
    PROCESS = "process"  #: the death of the process
    NONE = "none"  #: nothing but an orderly close


class Engine:
    """One open store: a scheme over a backend, with its journal."""

    def __init__(
        self,
        backend: Backend,
        journal: Journal,
        keys: Keys,
        scheme: Scheme,
        directory: Directory | None,
        durability: Durability,
        clock: str,
        unit: int,
    ) -> None:
        self.backend, self.journal, self.scheme, self.directory = backend, journal, scheme, directory
        self.sequence = journal.meta.sequence
        self._keys, self._clock, self._unit = keys, clock, unit  # unit: requests of the usual batch
        self._clocks = np.arange(scheme.shards)
        self._whole = keys.whole and scheme.whole  # an access in place is one call
        self._logged, self._synced = durability is not Durability.NONE, durability is Durability.SYNC
        self._marked = False  # without a log: the file knows that it is behind
        self._ahead = False  # without a log: it is
        self._joint = journal.file.shared is backend
        self._deferred = not self._joint and Capability.REMOTE in backend.capabilities
        self._pending: Sequence[SlotWrite] = ()  # the write-back of the last access, where it is deferred
        self._exposed = False  # it was written, and may not have been made durable
        self._reached: int | None = None  # the last access whose write-back the server was given, once that is known
        self._mending = threading.RLock()  # which one repair in the middle of another takes again
        self.regions = {**scheme.regions(), clock: RegionShape(scheme.shards, CLOCK_SIZE)}
        self._building = False  # a new incarnation, of which the journal says nothing yet
        self._witness: dict[
            int, SlotWrite
        ] = {}  # where no journal tells: part of the backend -> the last slot that it was given
        self._buffer: Callable[[str], Slots] | None = None
        if not self._logged and isinstance(backend, BufferBackend) and Capability.BUFFER in backend.capabilities:
            views = {region: backend.buffer(region) for region in scheme.regions()}
            self._buffer = views.__getitem__
        largest = max(shape.slot_size for shape in scheme.regions().values())
        blocks = GENERATION_BLOCKS // (largest // 16 + 4)
        self._limit = min(max(blocks - scheme.max_pages, blocks // 2), (1 << COUNTER_BITS) - scheme.max_pages)
        self.watch()
        self._pid = os.getpid()
        self._trouble: type[PoisonedError | StoreClosedError] | None = None
        self._lay_out()

    def _lay_out(self) -> None:
        arrays = self.scheme.arrays()
        self.growth = len(arrays[-1])
        tags = [] if self.directory is None else [self.directory.tags]
        self._record_size = self.scheme.record_size(self.scheme.requests(self._unit)) + Directory.NOTE * len(tags)
        self.pieces = Pieces([*tags, *arrays], piece_size(self._record_size, ENTRY_OVERHEAD))

    # --- the life of the handle

    def check(self) -> None:
        """Raise unless the handle can be used here and now."""
        if self._trouble is not None:
            if self._trouble is PoisonedError:
                raise PoisonedError("an earlier access found changed data; this store refuses further work")
            raise StoreClosedError(
                "the store is closed, or failed in the middle of an access: close it, then open it again"
            )
        if self.forked:
            raise ForkedStoreError("this store was opened before a fork; open it in one process only")

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that opened the store."""
        return os.getpid() != self._pid

    def fail(self, error: BaseException) -> BaseException:
        """Put the handle out of use after a failure in the middle; returns what to raise."""
        if isinstance(error, TamperedError | IntegrityError):
            self._trouble = PoisonedError
            return (
                error
                if isinstance(error, IntegrityError)
                else IntegrityError("stored data was changed, swapped, withheld or is stale")
            )
        self._trouble = StoreClosedError
        return error

    def start(self, generation: int | None = None) -> None:
        """Begin a generation, a new one by default: nothing is sealed before its salt is durable."""
        self._keys.start(self.journal.new_generation() if generation is None else generation)

    def retire(self) -> None:
        """No further use."""
        self._trouble = self._trouble or StoreClosedError

    def watch(self) -> None:
        """Be the one that new connections are held against."""
        if self._deferred:
            self.backend.on_reconnect(self._repair)

    def build(self) -> None:
        """What is put from now on is a new incarnation, until it is whole."""
        self._building = True
        self._check_regions()  # a failover may have taken back one that was declared ahead of the others

    def put(self, write: SlotWrite) -> None:
        """Write at once, what no journal has."""
        self.backend.write_all([write])
        self._given([write])

    def whole(self) -> None:
        """All of a new incarnation is at the server."""
        self._reached, self._building = self.sequence, False

    # --- the access

    def access(self, requests: Requests, note: bytes = b"") -> None:
        """Run a batch whose ops, addresses and data are filled in. The answer is in ``requests.out``.

        note: what changes in the directory with it; its length must not depend on secrets.
        """
        self.check()
        requests.toss(os.urandom(requests.coins))
        self._renew()
        if self._logged:
            self._logged_access(self.sequence + 1, requests, note)
            return
        if not self._marked:
            self._ahead = True
            self.journal.mark(dirty=True)
            self.journal.file.sync()
            self._marked = True
        before, begun = self.scheme.turn, False
        try:
            if self._buffer is not None:
                self.scheme.access_in_place(requests, self._buffer)
            else:
                self._write(self._drive(self.scheme.access(requests)).writes)
            begun = True
            self._note(note)
        except KeyboardInterrupt:
            if self._buffer is None or not self._whole or begun:
                self._trouble = StoreClosedError
            elif self.scheme.turn != before:  # the one call was made, and must not be half an access
                self._trouble = StoreClosedError
                self._note(note)
                self._trouble = None
                self.sequence += 1
            raise
        except BaseException as error:
            raise self.fail(error) from None
        self.sequence += 1

    def _logged_access(self, sequence: int, requests: Requests, note: bytes, *, known: bool = False) -> None:
        """The four steps. known: the directory has the note already, by replay."""
        journal = self.journal
        if self.backend.at_risk >= KEPT:
            self.backend.replicate()
        # half as many pieces as usual records would fit into this one: so the records stay below twice the state
        size = self.scheme.record_size(requests) + len(note)
        taken = journal.take(self.pieces, -(-size // (2 * self._record_size)))
        journal.log_intent(sequence, requests, len(note))  # where this fails, nothing has happened
        if self._synced:
            journal.file.sync()  # free where a commit has done it
        try:
            outcome = self._drive(self.scheme.access(requests))
            writes = [*outcome.writes, self.tick(sequence)]
            record = Record(sequence, outcome.record, note)
            torn = self._deferred or (not self._joint and Capability.ATOMIC not in self.backend.capabilities)
            self._secure()  # its journaled copy is about to go
            journal.log_commit(
                record,
                taken,
                self.pieces,
                writes=writes if self._joint else (),
                write_back=writes if torn else (),
                safe=self._safe,
            )
            if self._synced:
                journal.file.sync()
            if not self._joint:
                self._write(writes)
                if self._synced and not self._deferred:
                    self.backend.sync()
            if not self._deferred:
                self._reached = sequence
            self.sequence = sequence
            if not known:
                self._note(note)
            if outcome.grown:
                self.checkpoint()
                self.settle()
        except BaseException as error:
            raise self.fail(error) from error.__cause__

    def _note(self, note: bytes) -> None:
        if self.directory is not None:
            self.directory.apply(note)

    def _drive(self, access: Access) -> Outcome:
        try:
            read = next(access)
            while True:
                slots = self.backend.exchange(self._pending, read)
                self._delivered()
                read = access.send(slots)
        except StopIteration as stop:
            outcome: Outcome = stop.value
            return outcome

    def _write(self, writes: Sequence[SlotWrite]) -> None:
        if self._deferred:
            self._pending = writes
        else:
            self.backend.write_all(writes)

    def _delivered(self) -> None:
        if self._pending:
            self._exposed = self._synced and Capability.DURABLE in self.backend.capabilities
            self._reached = self.sequence
            self._given(self._pending)
        self._pending = ()

    def _given(self, writes: Sequence[SlotWrite]) -> None:
        if self._building or not self._logged:
            last = {part: self._last_slot(writes, part) for part in range(self.backend.parts)}
            self._witness |= {part: slot for part, slot in last.items() if slot is not None}

    def _secure(self) -> None:
        """Make a delivered write-back durable, where that is promised, before its copy in the journal goes."""
        if self._exposed:
            self.backend.sync()
            self._exposed = False

    @property
    def _safe(self) -> int:
        """The last access whose write-back the server has, and cannot lose."""
        return max(0, (self._reached or 0) - self.backend.at_risk)

    def deliver(self) -> None:
        """Write back what is still to be written."""
        if self._pending:
            self.backend.write_all(self._pending)
            self._delivered()

    def tick(self, sequence: int) -> SlotWrite:
        """The clock's slots for this access, one for each shard."""
        sealed = [
            self.journal.keyring.seal(_clock_of(j), sequence.to_bytes(8, "little")) for j in range(self._clocks.size)
        ]
        data = b"".join(each.ljust(CLOCK_SIZE, b"\0") for each in sealed)
        return SlotWrite(self._clock, self._clocks, np.frombuffer(data, np.uint8).reshape(-1, CLOCK_SIZE))

    def _renew(self) -> None:
        """A generation also ends before its key has sealed too much."""
        if self._keys.counter >= self._limit or self.journal.keyring.blocks >= GENERATION_BLOCKS:
            self.start()

    # --- recovery

    def recover(self) -> None:
        """Load the client state, and finish the access that a crash interrupted, before anything else is asked.

        RollbackError or StaleStateError if client state and server do not belong together.
        """
        records = self.journal.load(self.pieces)
        intent = self.journal.intent()
        landed = self._landed(intent)
        if self._synced and not self._joint:
            self.backend.sync()  # a write that landed before the crash, or just now, may still be in some cache
        if self.directory is not None:
            self.directory.replay([record.note for record in records])
        self.scheme.replay(record.scheme for record in (records if landed else records[:-1]))
        self._lay_out()
        self.start()
        if (
            self._deferred and landed
        ):  # an older state, put back, must not pass for this session's: it has no key for this
            self.put(self.tick(self.sequence))
        if not landed:
            last = records[-1]
            self._logged_access(last.sequence, self.scheme.redo(last.scheme), last.note, known=True)
        elif intent is not None and intent.sequence == self.sequence + 1:
            requests = self.scheme.requests(len(intent.ops))
            intent.fill(requests)
            self._logged_access(intent.sequence, requests, Directory.no_notes(intent.note_size // Directory.NOTE))
        if self.growth != self.journal.meta.growth:
            self.checkpoint()
            self.settle()

    def _landed(self, intent: Intent | None) -> bool:
        """Whether the server has the last committed write, perhaps from the journal just now. Of several shards each has a clock of its own."""
        clocks = self._server_clocks(self._clocks)
        server = self._reached = min(clocks)
        begun = intent is not None and intent.sequence == self.sequence and not self._joint and self.journal.committed
        places = self.journal.write_backs()
        # what only some shards have got can be written again, and not be done again: the others' old slots are gone
        if max(clocks) == self.sequence - 1 == server and self.sequence not in places and begun:
            return False
        # also the one that the clock tells of: where the backend is not ATOMIC, the clock may be all that there is of it
        lost = self._journaled(range(server + (server not in places), self.sequence + 1))
        self._write_again(lost)
        self._reached = self.sequence
        return True

    def _write_again(self, places: dict[int, int], shard: int | None = None) -> None:
        """Journaled write-backs, in the order of their accesses; of one shard what is its own of them."""
        for sequence in sorted(places):
            writes = self.journal.write_back(places[sequence])
            self.backend.write_all(writes if shard is None else [self._own(write, shard) for write in writes])

    def _own(self, write: SlotWrite, shard: int) -> SlotWrite:
        """A shard's part of a write."""
        stripe = self.backend.regions()[write.region].slots // self._clocks.size
        rows = np.flatnonzero(write.indices // stripe == shard)
        return SlotWrite(write.region, write.indices[rows], write.data[rows])

    def _repair(self, part: int) -> None:
        """On a new connection: the server may have come back with less than it had, after a failover. What it lost is written again.

        part: of the backend, where each shard is on one of its own; then only this shard is asked, and given what it lost.
        RollbackError where the journal has not kept all of it: no older position is ever used again. Nothing of this depends on what is asked: the
        server sees the clock read, and the very writes that it had seen. It comes before anything else is written, whose clock would hide a gap.
        Where there is no journal, of a load or with durability "none", the server sees the last slot read that it was given, and nothing is repaired.
        """
        if self._trouble is not None:
            return
        try:
            with self._mending:  # several shards may connect anew at the same time
                self._check_regions()
                if self._building or not self._logged:
                    self._check_witness(part)
                elif self._reached is not None:
                    shard = part if self.backend.parts > 1 else None
                    clocks = self._server_clocks(self._clocks if shard is None else self._clocks[part : part + 1])
                    # also the one that is still to be written: a part of the interrupted call may have written it, and will not again
                    lost = range(min(clocks) + 1, self.sequence + 1)
                    if lost:
                        self._write_again(self._journaled(lost), shard)
        except BackendUnavailableError:
            raise  # the backend calls again before anything else, and the repair begins anew
        except BaseException as error:  # a repair that is half done must not be taken for a whole one
            raise self.fail(error) from error.__cause__

    def _check_regions(self) -> None:
        there = self.backend.regions()
        if any(there.get(region) != shape for region, shape in self.regions.items()):
            if self._building:
                raise self.fail(BackendUnavailableError(_LOST))
            raise RollbackError("the server came back without regions that the store had")

    def _check_witness(self, part: int) -> None:
        """Raise unless the server has the last slot that it was given, and so all before it: what a failover takes back is the end of what was written.

        The call that was interrupted may have put another over it.
        """
        latest = [slot for slot in (self._witness.get(part), self._last_slot(self._pending, part)) if slot is not None]
        for slot in latest:
            there = self.backend.read(slot.region, slot.indices)
            if there.present[0] and np.array_equal(there.data, slot.data):
                return
        if part not in self._witness:
            return
        if self._building:
            raise self.fail(BackendUnavailableError(_LOST))
        raise RollbackError(_OLDER)

    def _last_slot(self, writes: Sequence[SlotWrite], part: int) -> SlotWrite | None:
        """A copy of the slot that this part of the backend is given last, if any is."""
        for write in reversed(writes):
            own = write if self.backend.parts == 1 else self._own(write, part)
            if own.indices.size:
                return SlotWrite(own.region, own.indices[-1:].copy(), own.data[-1:].copy())
        return None

    def _journaled(self, sequences: range) -> dict[int, int]:
        """Where the write-backs of these accesses are; RollbackError where one is not there any more."""
        places = self.journal.write_backs()
        if not all(sequence in places for sequence in sequences):
            raise RollbackError(_OLDER)
        return {sequence: places[sequence] for sequence in sequences}

    def _server_clocks(self, shards: I64) -> list[int]:
        """The last access whose write the server has, as each of these shards has it. StaleStateError where this client has not made it."""
        slots = self.backend.read(self._clock, shards)
        if not slots.present.all():
            if self._replaced():
                raise StaleStateError("the client state is older than the server's part of the store")
            raise RollbackError(_OLDER)
        try:
            plain = [
                self.journal.keyring.open(_clock_of(j), row.tobytes()[: 12 + 8 + 16])
                for j, row in zip(shards.tolist(), slots.data, strict=True)
            ]
        except StaleStateError:
            raise
        except IntegrityError:
            raise IntegrityError("stored data was changed, swapped, withheld or is stale") from None
        clocks = [int.from_bytes(each, "little") for each in plain]
        if max(clocks) > self.sequence:
            raise StaleStateError("the client state is older than the server's part of the store")
        return clocks

    def _replaced(self) -> bool:
        """Whether the server has a later incarnation of the store."""
        kind, mine = self._clock.split(".")
        clocks = [region.partition(".")[2] for region in self.backend.regions() if region.startswith(kind + ".")]
        return any(_NUMBER.fullmatch(number) and int(number) > int(mine) for number in clocks)

    # --- checkpoints and scans

    def checkpoint(
        self,
        *,
        puts: Sequence[tuple[bytes, bytes]] = (),
        deletes: Sequence[bytes] = (),
        writes: Sequence[SlotWrite] = (),
    ) -> None:
        """All of the client state at once, and what else belongs into the same transaction."""
        self.deliver()  # its journaled copy goes
        self._secure()
        self._lay_out()  # a bulk load, or an access that found the pool full, may have made new arrays
        self.journal.checkpoint(
            self.pieces, self.sequence, self.growth, puts=puts, deletes=deletes, writes=writes, safe=self._safe
        )

    def flush(self) -> None:
        """Make everything acknowledged so far survive power loss, and the server's part up to date."""
        self.deliver()
        if self._ahead:
            self._marked = (
                False  # before the file says the same: an access in between, or after an interrupt, marks it again
            )
            self.put(self.tick(self.sequence))
            self.backend.sync()
            self.checkpoint()
            self._ahead = False
        self.backend.sync()
        self.backend.replicate()
        self._exposed = False
        self.journal.file.sync()

    def settle(self) -> None:
        """Make it survive what ``durability`` says."""
        if self._synced:
            self.journal.file.sync()
            self.backend.sync()

    def close(self) -> None:
        """Leave the store so that it can be opened again."""
        try:
            if self._trouble is None:
                if self._logged:
                    self.deliver()
                else:
                    self.flush()
        finally:
            self.retire()

    def scan(self) -> Iterator[tuple[I64, U8]]:
        """Every live block. The caller runs it to its end."""
        self.check()
        try:
            self.deliver()
            yield from self.scheme.scan(lambda read: self.backend.read(read.region, read.indices))
        except GeneratorExit:
            raise
        except BaseException as error:
            raise self.fail(error) from None
