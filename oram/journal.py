"""The journal of the client state: generations, pieces, intents and commit records in a StateFile, all sealed.

Keys of the file (big-endian integers, ``inc`` = incarnation):

    header                      keys.Header
    meta                        incarnation in clear, then Meta sealed
    g inc generation            salt of a generation, in clear: without the secret it says nothing
    p inc piece                 an entry of the ring, sealed: a piece of the client state (state.py), and the record of the
                                commit that wrote it
    i inc                       the latest intent
    w inc place                 a write-back, where it is journaled: the latest, and those before it that the server may yet lose

The ring. A commit rewrites the next piece, or the next few, as they were before its access, and puts its record with the last
of them. A record is needed until every piece was taken after it, which is exactly when its turn comes to be overwritten: so the ring
is the whole journal, nothing is ever trimmed, and one entry is all that a small access adds to its transaction. Each entry names
the tag of the one before it, and meta that of the last: so an entry of a commit that never took effect, which the disk may still hold,
does not fit.

docs/formats.md has the layouts.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from oram.backends.base import SlotWrite, StateFile
from oram.errors import IntegrityError
from oram.kernels.base import Op, Requests
from oram.keys import OVERHEAD, Keyring
from oram.state import Pieces

HEADER = b"header"
META = b"meta"
_META = struct.Struct("<QQQQ16sI32s???")
_INTENT = struct.Struct("<QII")
_ENTRY = struct.Struct("<Q16sIII")  # sequence (0 = no record), tag of the entry before, bytes of piece, record and note
ENTRY_OVERHEAD = _ENTRY.size + OVERHEAD
_WRITE = struct.Struct("<HQQ")


@dataclass(frozen=True, slots=True)
class Meta:
    """The root of the client state: from it follows which version of every other entry is the right one."""

    layout: int = 0  # a random number for each full checkpoint
    cursor: int = 0  # pieces written since
    sequence: int = 0  # accesses committed
    growth: int = 0  # rows of the growing arrays
    newest: bytes = bytes(16)  # tag of the entry written last
    generations: int = 0  # those that this meta knows
    salts: bytes = bytes(32)  # digest of their salts
    sparse: bool = False  # pieces not written since creation are absent, and as a new store has them
    dirty: bool = False  # durability="none" and not closed
    backup: bool = False

    def pack(self) -> bytes:
        return _META.pack(*(getattr(self, field) for field in self.__slots__))

    @classmethod
    def unpack(cls, data: bytes) -> Meta:
        return cls(*_META.unpack(data))


@dataclass(frozen=True, slots=True)
class Intent:
    """What the access with this number was about to read, and how long its note would have been."""

    sequence: int
    note_size: int
    ops: bytes
    addresses: bytes
    draws: bytes
    seed: bytes

    def fill(self, requests: Requests) -> None:
        """The same look-ups with no effect: reads and dummies."""
        m = requests.m
        requests.ops[:m] = np.where(np.frombuffer(self.ops, np.uint8) == Op.DUMMY, Op.DUMMY, Op.READ)
        requests.addresses[:m] = np.frombuffer(self.addresses, "<u4")
        requests.draws[:m] = np.frombuffer(self.draws, "<u4")
        requests.seed[:] = np.frombuffer(self.seed, np.uint8)


@dataclass(frozen=True, slots=True)
class Record:
    """A committed access: the scheme's record and the directory's note."""

    sequence: int
    scheme: bytes
    note: bytes


def _layout() -> int:
    """The name of a full checkpoint: one that did not take effect must not fit in its place."""
    return int.from_bytes(os.urandom(8), "little")


def _key(kind: bytes, incarnation: int, *rest: int) -> bytes:
    return kind + struct.pack(f">I{'Q' * len(rest)}", incarnation, *rest)


class Journal:
    """One incarnation's journal. Every method is one transaction of the file."""

    def __init__(self, file: StateFile, keyring: Keyring, incarnation: int, meta: Meta) -> None:
        self.file, self.keyring, self.incarnation, self.meta = file, keyring, incarnation, meta
        self.installed = False  # whether the file's meta is this incarnation's
        self._places: dict[int, int] = {}  # of write-backs: place -> number of the access

    # --- reading

    @staticmethod
    def incarnation_of(file: StateFile) -> int:
        """The current incarnation. IntegrityError if the meta entry is missing or short."""
        blob = file.get(META)
        if blob is None or len(blob) < 4:
            raise IntegrityError("the client state is incomplete")
        return int.from_bytes(blob[:4], "big")

    @staticmethod
    def salts(file: StateFile, incarnation: int) -> dict[int, bytes]:
        """Salt by generation."""
        prefix = _key(b"g", incarnation)
        return {int.from_bytes(key[len(prefix) :], "big"): salt for key, salt in file.scan(prefix)}

    @classmethod
    def open(cls, file: StateFile, keyring: Keyring, incarnation: int) -> Journal:
        """IntegrityError if meta does not open, or belongs to other salts."""
        blob = file.get(META) or b""
        journal = cls(file, keyring, incarnation, Meta.unpack(keyring.open(META, blob[4:])))
        known = journal.meta.generations
        for generation in [generation for generation in keyring.salts if generation > known]:
            del keyring.salts[generation]  # its commit raised and was durable all the same; or somebody planted it
        if journal.meta.salts != keyring.salts_digest(known):
            raise IntegrityError("the client state was changed")
        journal.installed = True
        return journal

    def _need(self, key: bytes) -> bytes:
        blob = self.file.get(key)
        if blob is None:
            raise IntegrityError("the client state is incomplete")
        return blob

    def load(self, pieces: Pieces) -> list[Record]:
        """Fill the arrays from the pieces; return the records of the ring, in order, to be applied on top."""
        meta, found = self.meta, []
        chain: dict[int, tuple[bytes, bytes]] = {}  # turn -> tag of the entry, and the one it names
        for i in range(pieces.count):
            turn = pieces.turn(i, meta.cursor)
            if meta.sparse and turn == 0:
                continue
            blob = self._need(self._entry_key(i))
            plain = self.keyring.open(self._entry_label(i, turn), blob)
            sequence, before, piece, scheme, note = _ENTRY.unpack_from(plain)
            chain[turn] = blob[-16:], before
            at = _ENTRY.size
            if len(plain) != at + piece + scheme + note:
                raise IntegrityError("the client state was changed")
            try:
                pieces.put(i, plain[at : at + piece])
            except ValueError:
                raise IntegrityError("the client state was changed") from None
            if sequence:
                at += piece
                found.append((turn, Record(sequence, plain[at : at + scheme], plain[at + scheme :])))
        tag = meta.newest
        for turn in range(meta.cursor, max(0, meta.cursor - pieces.count), -1):
            if chain[turn][0] != tag:
                raise IntegrityError("the client state was changed")
            tag = chain[turn][1]
        # an access that recovery did again has two records, of which the later one stands
        records = {record.sequence: record for _, record in sorted(found, key=lambda pair: pair[0])}
        if self.committed and list(records) != list(range(meta.sequence - len(records) + 1, meta.sequence + 1)):
            raise IntegrityError("the client state was changed")
        return list(records.values())

    @property
    def committed(self) -> bool:
        """Whether there was a commit since the last full checkpoint."""
        return self.meta.cursor > 0

    def _entry_key(self, piece: int) -> bytes:
        return _key(b"p", self.incarnation, piece)

    def _entry_label(self, piece: int, turn: int) -> bytes:
        return b"entry%d/%d/%d" % (self.meta.layout, piece, turn)

    def intent(self) -> Intent | None:
        """The intent of the last access or of the one after it; None where there is neither, so that nothing is pending.

        What does not open, or is of another access, was left behind or ahead by a power loss under durability "process". It
        is no authority: whoever can change it can delete it.
        """
        blob = self.file.get(_key(b"i", self.incarnation))
        try:
            plain = b"" if blob is None else self.keyring.open(b"intent", blob)
        except IntegrityError:
            return None
        if not plain:
            return None
        sequence, m, note_size = _INTENT.unpack_from(plain)
        if not self.meta.sequence <= sequence <= self.meta.sequence + 1:
            return None
        at = _INTENT.size
        return Intent(
            sequence,
            note_size,
            plain[at : at + m],
            plain[at + m : at + 5 * m],
            plain[at + 5 * m : at + 9 * m],
            plain[at + 9 * m :],
        )

    def write_backs(self) -> dict[int, int]:
        """Which write-backs are journaled: number of the access -> place."""
        prefix = _key(b"w", self.incarnation)
        self._places = {}
        for key, _ in self.file.scan(prefix):
            place = int.from_bytes(key[len(prefix) :], "big")
            self._places[place] = int.from_bytes(self._write_back(place)[:8], "little")
        return {sequence: place for place, sequence in self._places.items() if sequence <= self.meta.sequence}

    def _write_back(self, place: int) -> bytes:
        return self.keyring.open(b"write-back", self._need(_key(b"w", self.incarnation, place)))

    def write_back(self, place: int) -> list[SlotWrite]:
        """What was, or is, to be written."""
        plain, at, writes = self._write_back(place), 8, []
        while at < len(plain):
            name, n, size = _WRITE.unpack_from(plain, at)
            at += _WRITE.size
            region = plain[at : at + name].decode()
            at += name
            indices = np.frombuffer(plain, np.int64, n, at)
            at += 8 * n
            writes.append(SlotWrite(region, indices, np.frombuffer(plain, np.uint8, n * size, at).reshape(n, size)))
            at += n * size
        return writes

    # --- writing

    def _meta(self, meta: Meta) -> tuple[bytes, bytes]:
        return META, self.incarnation.to_bytes(4, "big") + self.keyring.seal(META, meta.pack())

    def salt_entry(self, generation: int, salt: bytes) -> tuple[bytes, bytes]:
        """The entry that makes a generation durable."""
        return _key(b"g", self.incarnation, generation), salt

    def new_generation(self) -> int:
        """Draw a generation, make its salt durable, seal under it from now on."""
        keyring = self.keyring
        generation, salt = keyring.new_generation()
        before = keyring.current, keyring.counter, keyring.blocks
        keyring.start(generation, salt)
        meta = replace(self.meta, generations=generation, salts=keyring.salts_digest(generation))
        try:
            self.file.commit([self.salt_entry(generation, salt), *([self._meta(meta)] if self.installed else [])])
        except BaseException:
            keyring.undo(generation, *before)
            raise
        self.meta = meta
        return generation

    def log_intent(self, sequence: int, requests: Requests, note_size: int) -> None:
        """Durable before the first read. Length: a function of m (and of the scheme)."""
        m = requests.m
        body = b"".join(part[:m].tobytes() for part in (requests.ops, requests.addresses, requests.draws))
        body += requests.seed.tobytes()
        blob = self.keyring.seal(b"intent", _INTENT.pack(sequence, m, note_size) + body)
        self.file.replace(_key(b"i", self.incarnation), blob)

    def take(self, pieces: Pieces, count: int) -> list[bytes]:
        """The next ``count`` pieces as they are before an access, or all of them."""
        return [pieces.take((self.meta.cursor + k) % pieces.count) for k in range(min(count, pieces.count))]

    def log_commit(
        self,
        record: Record,
        taken: Sequence[bytes],
        pieces: Pieces,
        *,
        writes: Sequence[SlotWrite] = (),
        write_back: Sequence[SlotWrite] = (),
        safe: int = 0,
    ) -> None:
        """The record and the pieces taken before the access; joined with ``writes`` where file and backend are one.

        write_back: to be kept until it is written. safe: the last access whose write-back need not be kept any longer.
        """
        old = self.meta
        puts, cursor, tag = [], old.cursor, old.newest
        for k, piece in enumerate(taken, 1):
            i = cursor % pieces.count
            cursor += 1
            if k < len(taken):
                plain = _ENTRY.pack(0, tag, len(piece), 0, 0) + piece
            else:
                head = _ENTRY.pack(record.sequence, tag, len(piece), len(record.scheme), len(record.note))
                plain = head + piece + record.scheme + record.note
            blob = self.keyring.seal(self._entry_label(i, cursor), plain)
            tag = blob[-16:]
            puts.append((self._entry_key(i), blob))
        if write_back:
            body = record.sequence.to_bytes(8, "little") + b"".join(_pack_write(write) for write in write_back)
            place = next(n for n in count() if self._places.get(n, 0) <= safe)  # none more than there have to be
            puts.append((_key(b"w", self.incarnation, place), self.keyring.seal(b"write-back", body)))
        meta = Meta(
            old.layout,
            cursor,
            record.sequence,
            old.growth,
            tag,
            old.generations,
            old.salts,
            old.sparse,
            old.dirty,
            old.backup,
        )
        puts.append(self._meta(meta))
        self.file.commit(puts, writes=writes)
        self.meta = meta
        if write_back:
            self._places[place] = record.sequence

    def begin(self, growth: int, *, puts: Sequence[tuple[bytes, bytes]], writes: Sequence[SlotWrite]) -> None:
        """The journal of a new, empty store: its pieces are as any new store has them, so none is written."""
        self.meta = replace(self.meta, layout=_layout(), growth=growth, sparse=True)
        self.file.commit([*puts, self._meta(self.meta)], writes=writes)
        self.installed = True

    def mark(self, *, dirty: bool) -> None:
        """Say that the arrays in memory are ahead of the file, or no longer."""
        meta = replace(self.meta, dirty=dirty)
        self.file.commit([self._meta(meta)])
        self.meta = meta

    def checkpoint(
        self,
        pieces: Pieces,
        sequence: int,
        growth: int,
        *,
        puts: Sequence[tuple[bytes, bytes]] = (),
        deletes: Sequence[bytes] = (),
        writes: Sequence[SlotWrite] = (),
        safe: int | None = None,
    ) -> None:
        """All pieces at once, in a new layout; what the old one needed goes in the same transaction.

        safe: the last access whose write-back need not be kept any longer; None where none is.
        """
        old = [key for kind in (b"p", b"i") for key, _ in self.file.scan(_key(kind, self.incarnation))]
        gone = [place for place, number in self._places.items() if safe is None or number <= safe]
        old += [_key(b"w", self.incarnation, place) for place in gone]
        known = self.meta
        self.meta = Meta(_layout(), sequence=sequence, growth=growth, generations=known.generations, salts=known.salts)
        entries = []
        for i in range(pieces.count):
            piece = pieces.take(i)
            plain = _ENTRY.pack(0, bytes(16), len(piece), 0, 0) + piece
            entries.append((self._entry_key(i), self.keyring.seal(self._entry_label(i, 0), plain)))
        self.file.commit([*puts, *entries, self._meta(self.meta)], [*deletes, *old], writes=writes)
        for place in gone:
            del self._places[place]
        self.installed = True

    def mark_backup(self) -> tuple[bytes, bytes]:
        """The meta entry of a copy that must not be opened as it is."""
        return self._meta(replace(self.meta, backup=True))


def entries_of(file: StateFile, incarnation: int) -> list[bytes]:
    """Keys of everything that belongs to one incarnation."""
    return [key for kind in (b"g", b"p", b"i", b"w") for key, _ in file.scan(_key(kind, incarnation))]


def _pack_write(write: SlotWrite) -> bytes:
    name = write.region.encode()
    n, size = write.data.shape
    return _WRITE.pack(len(name), n, size) + name + write.indices.tobytes() + write.data.tobytes()
