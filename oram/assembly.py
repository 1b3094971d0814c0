"""Puts the parts of one store together: header -> keys -> scheme -> engine."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from oram import kernels
from oram.backends import Backend, Capability, RegionShape, SlotWrite, XorBackend
from oram.directory import Directory
from oram.engine import CLOCK_SIZE, Durability, Engine
from oram.errors import BackupError, IntegrityError, ParameterError, TookEffectError, UncleanShutdownError
from oram.journal import HEADER, Journal, Meta, entries_of
from oram.kernels.base import Keys
from oram.keys import Credential, Header, Keyring
from oram.params import (
    GEOMETRIES,
    BinnedGeometry,
    CuckooGeometry,
    Geometry,
    LinearGeometry,
    PathGeometry,
    RingGeometry,
    SchemeParams,
    ShardedGeometry,
    SlotCost,
    TreeGeometry,
    geometry_from,
    geometry_of,
)
from oram.schemes.base import Scheme
from oram.schemes.binned import BinnedORAM
from oram.schemes.cuckoo import CuckooORAM
from oram.schemes.linear import LinearORAM
from oram.schemes.path import PathORAM
from oram.schemes.pool import initial_positions
from oram.schemes.ring import RingORAM
from oram.schemes.sharded import ShardedORAM, placement
from oram.site import HEADER_REGION, HEADER_SHAPE, REGIONS, Site


@dataclass(frozen=True, slots=True)
class Shape:
    """The public description of a store, as in its header."""

    store: str  # 128-bit id, hex
    geometry: Geometry
    blocks_per_value: int
    cipher: str
    keyed: bool

    @classmethod
    def new(
        cls,
        records: int,
        block_size: int,
        blocks_per_value: int,
        params: SchemeParams,
        tree_top: int,
        cost: SlotCost,
        cipher: str,
        keyed: bool,
        shards: int = 1,
    ) -> Shape:
        """ParameterError, all problems of the geometry together."""
        geometry = geometry_of(records * blocks_per_value, block_size, params, tree_top, cost, shards)
        return cls(os.urandom(16).hex(), geometry, blocks_per_value, cipher, keyed)

    @property
    def scheme(self) -> str:
        """Name of the scheme."""
        return self.geometry.scheme

    @property
    def shards(self) -> int:
        """Trees that it is made of."""
        return self.geometry.shards if isinstance(self.geometry, ShardedGeometry) else 1

    @property
    def records(self) -> int:
        """Records, or blocks where there is no directory."""
        return self.geometry.N // self.blocks_per_value

    def public(self) -> dict[str, Any]:
        """For the header: no secret, no time, nothing of the content."""
        g = self.geometry
        return {
            "format": 1, "store": self.store, "scheme": self.scheme, **g.public(), "blocks": g.N, "block_size": g.B,
            "blocks_per_value": self.blocks_per_value, "cipher": self.cipher, "keyed": self.keyed,
        }  # fmt: skip

    @classmethod
    def of(cls, public: dict[str, Any]) -> Shape:
        """From an authenticated header."""
        if public["scheme"] not in GEOMETRIES:
            raise IntegrityError("the header names a scheme that this version does not know")
        geometry = geometry_from(public)
        return cls(public["store"], geometry, public["blocks_per_value"], public["cipher"], public["keyed"])


def assemble(
    site: Site, header: Header, incarnation: int, keyring: Keyring, journal: Journal, durability: Durability
) -> Engine:
    """An engine over the arrays of an empty store: what creation fills and recovery overwrites."""
    try:
        return _assemble(site, header, incarnation, keyring, journal, durability)
    except MemoryError:
        raise ParameterError("the client state of a store of this capacity does not fit in memory") from None


def _assemble(
    site: Site, header: Header, incarnation: int, keyring: Keyring, journal: Journal, durability: Durability
) -> Engine:
    shape = Shape.of(header.public)
    if site.backend.parts not in (1, shape.shards):  # they fail, and are rolled back, one by one: each needs a clock
        raise ParameterError(
            f"this store has {shape.shards} shards: give as many places, in the order it was made with"
        )
    kernel = kernels.serving(shape.scheme)
    keys = kernel.keys(shape.cipher, keyring.page_key)
    scheme = _scheme(site, shape.geometry, incarnation, keyring, keys, journal.meta.growth or None)
    directory = Directory(kernels.active(), np.zeros((shape.records, 16), np.uint8)) if shape.keyed else None
    clock = f"clock.{incarnation}"
    for name, form in (
        *scheme.regions().items(),
        (clock, RegionShape(scheme.shards, CLOCK_SIZE)),
        (HEADER_REGION, HEADER_SHAPE),
    ):
        site.backend.allocate(name, form)
    return Engine(site.backend, journal, keys, scheme, directory, durability, clock, shape.blocks_per_value)


def _scheme(site: Site, g: Geometry, incarnation: int, keyring: Keyring, keys: Keys, pool_size: int | None) -> Scheme:
    tree, k = (g.tree, g.shards) if isinstance(g, ShardedGeometry) else (g, 1)
    make = _maker(site.backend, tree, incarnation, keyring, keys, pool_size)
    own = 0 if isinstance(tree, LinearGeometry | CuckooGeometry) else 4 * tree.N
    positions = keyring.initial_positions(k * own) if own else b""
    trees = [make(j, positions[j * own : (j + 1) * own]) for j in range(k)]
    if not isinstance(g, ShardedGeometry):
        return trees[0]
    return ShardedORAM(g, trees, placement(g.places, keyring.placement(8 * g.places)))


def _maker(
    backend: Backend, g: TreeGeometry, incarnation: int, keyring: Keyring, keys: Keys, pool_size: int | None
) -> Callable[[int, bytes], Scheme]:
    """What makes a tree from its number, and the random bytes of its initial positions."""
    kernel, region = kernels.serving(g.scheme), f"slots.{incarnation}"
    if isinstance(g, LinearGeometry):
        return lambda _j, _random: LinearORAM(g, region, kernel, keys)
    if isinstance(g, BinnedGeometry):
        return lambda j, _random: BinnedORAM(g, region, kernel, keys, keyring.hash_key(j))
    if isinstance(g, CuckooGeometry):
        return lambda j, _random: CuckooORAM(g, region, kernel, keys, keyring.hash_key(j))
    if isinstance(g, PathGeometry):
        return lambda _j, random: PathORAM(g, region, kernel, keys, initial_positions(g.N, g.leaves, random), pool_size)
    xor = _folds(backend, g) if g.xor is None else g.xor
    if xor and Capability.XOR not in backend.capabilities:
        raise ParameterError("this backend cannot XOR slots: give xor=None or False")
    meta = f"meta.{incarnation}"
    return lambda _j, random: RingORAM(
        g, region, meta, kernel, keys, initial_positions(g.N, g.leaves, random), pool_size, xor=xor
    )


def _folds(backend: Backend, g: RingGeometry) -> bool:
    """Whether the slots of a path come as their XOR. Both say the same to the server, so that a handle may choose by the clock."""
    if Capability.XOR not in backend.capabilities:
        return False
    return cast(XorBackend, backend).fold_pays(g.levels, g.slot_size)


def _journal(site: Site, header: Header, incarnation: int, *, existing: bool) -> Journal:
    assert header.secret is not None
    public = header.public
    salts = Journal.salts(site.file, incarnation) if existing else {}
    keyring = Keyring(header.secret, bytes.fromhex(public["store"]), incarnation, public["cipher"], salts)
    return (
        Journal.open(site.file, keyring, incarnation) if existing else Journal(site.file, keyring, incarnation, Meta())
    )


def fresh(site: Site, header: Header, incarnation: int, durability: Durability) -> Engine:
    """A new incarnation: nothing of it counts until ``install``."""
    for kind in REGIONS:
        site.backend.drop(f"{kind}.{incarnation}")
    journal = _journal(site, header, incarnation, existing=False)
    generation = journal.new_generation()  # its salt also says where the blocks begin
    engine = assemble(site, header, incarnation, journal.keyring, journal, durability)
    engine.build()
    engine.start(generation)
    return engine


def install(site: Site, engine: Engine, header_blob: bytes, *, empty: bool, old: int | None) -> None:
    """Make a fresh incarnation the store, in one transaction of the state file; then forget the old one.

    Whoever is told that this failed believes that there is the old one still. So what fails after the transaction is TookEffectError.
    """
    journal = engine.journal
    joint = site.file.shared is site.backend
    writes: list[SlotWrite] = [engine.tick(engine.sequence), site.header_write(header_blob)]
    if not joint:
        engine.put(writes[0])
        site.backend.sync()
        site.backend.replicate()  # before the old incarnation goes
    puts = [(HEADER, header_blob)]
    now = writes if joint else []
    deletes = [] if old is None else entries_of(site.file, old)
    if empty and old is None:
        journal.begin(engine.growth, puts=puts, writes=now)
    else:
        engine.checkpoint(puts=puts, deletes=deletes, writes=now)
    try:
        if not joint:
            site.backend.write_all(writes[1:])
        engine.settle()
        site.backend.replicate()
        engine.whole()
        site.drop_all_but(journal.incarnation)
    except IntegrityError:
        raise
    except Exception as error:
        raise TookEffectError("it took effect; what had to be done behind it failed: open the store again") from error


def _names_another(blob: bytes | None, header: Header) -> bool:
    """Whether this is a header, but of another store. One that is damaged says nothing, and is mended."""
    try:
        return blob is not None and Header.peek(blob).public.get("store") != header.public["store"]
    except IntegrityError:
        return False


def reopen(
    site: Site, credential: Credential, durability: Durability, *, from_backup: bool = False
) -> tuple[Engine, Header]:
    """The store at this site, recovered and ready."""
    blob = site.header()
    header = Header.open(blob, credential)
    copy = blob if site.file.shared is site.backend else site.server_header()
    if _names_another(copy, header):
        raise IntegrityError("client state and slots belong to different stores")
    incarnation = Journal.incarnation_of(site.file)
    journal = _journal(site, header, incarnation, existing=True)
    if journal.meta.backup and not from_backup:
        raise BackupError("this is a backup: restore it into a new store, its positions may have been used since")
    if journal.meta.dirty:
        raise UncleanShutdownError(
            'the store was last used with durability="none" and not closed; its client state is lost'
        )
    engine = assemble(site, header, incarnation, journal.keyring, journal, durability)
    engine.recover()
    site.drop_all_but(incarnation)  # not before: an old copy of the client state takes the latest slots for leftovers
    if copy is not None and copy.rstrip(b"\0") != blob.rstrip(b"\0"):  # a crash came between a rekey and its copy
        site.backend.write_all([site.header_write(blob)])
    return engine, header
