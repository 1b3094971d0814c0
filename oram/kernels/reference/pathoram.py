"""Path ORAM: the specification of csrc/path.c."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag

from oram.backends.base import Slots
from oram.kernels.base import (
    COUNTER_BITS,
    EMPTY,
    At,
    Keys,
    Op,
    PathPlan,
    PathState,
    PoolFullError,
    Requests,
    TamperedError,
)
from oram.kernels.reference.cipher import ReferenceKeys
from oram.params import PathGeometry
from oram.types import I64, U8, U32, U64


@dataclass(slots=True, eq=False)
class Page:
    """A page of the union, in clear."""

    slot: int
    layer: int
    parent: Page | None
    turn: int  # which child of its parent
    children: dict[int, Page] = field(default_factory=dict)
    refs: list[int] = field(default_factory=list)
    content: list[tuple[int, int, bytes]] = field(default_factory=list)  # per slot: address, leaf, block


@dataclass(slots=True, eq=False)
class Entry:
    """A block in hand. ``page`` only where it came from the server and was not asked for: such blocks evict first."""

    addr: int
    leaf: int
    block: bytes
    page: Page | None = None
    pool: int = -1


Node = tuple[int, int]  # slot of the page, bucket in the page


class ReferencePath:
    """Path ORAM (Stefanov et al. 2013, figure 1) on the union of the paths of a batch."""

    def __init__(self, geometry: PathGeometry, state: PathState, keys: Keys) -> None:
        assert isinstance(keys, ReferenceKeys)
        self._geometry, self._keys, self.state = geometry, keys, state
        self._requests = Requests(1, geometry.B)
        g = geometry
        self._page_type = np.dtype(
            [
                ("refs", "<u8", (1 << g.h,)),
                ("meta", "<u4", (g.buckets * g.Z, 2)),
                ("blocks", "u1", (g.buckets * g.Z, g.B)),
            ]
        )

    def requests(self, m: int) -> Requests:
        """The kernel's own request buffers, for a batch of m."""
        if m > self._requests.capacity:
            self._requests = Requests(m, self._geometry.B)
        self._requests.m = m
        return self._requests

    # --- which pages

    def plan(self, requests: Requests) -> PathPlan:
        """Which pages the batch reads: the first request to an address reads its path, all others a uniform one."""
        g, path, seen = self._geometry, [], set()
        for op, addr, draw in requests.rows():
            if op == Op.DUMMY or addr in seen:
                path.append(draw % g.leaves)
            else:
                seen.add(addr)
                path.append(int(self.state.position[addr]))
        slots = [
            offset + prefix
            for layer, offset in enumerate(g.offsets[:-1])
            for prefix in sorted({leaf >> (g.L - g.root_level(layer)) for leaf in path})
        ]
        return PathPlan(np.array(path, np.uint32), np.array(slots, np.int64))

    # --- pages and bytes

    def _open(self, slot: int, ref: int, sealed: bytes, present: bool) -> Any:
        """One page as a record; empty under reference 0."""
        if ref == 0:
            page = np.zeros((), self._page_type)
            page["meta"][:, 0] = EMPTY
            return page
        if not present:
            raise InvalidTag
        return np.frombuffer(self._keys.open(slot, ref, sealed), self._page_type)[0]

    def _seal(self, slot: int, counter: int, refs: Any, meta: list[tuple[int, int]], blocks: list[bytes]) -> U8:
        page = np.zeros((), self._page_type)
        page["refs"], page["meta"] = refs, meta
        for z, block in enumerate(blocks):
            page["blocks"][z] = np.frombuffer(block, np.uint8)
        return np.frombuffer(self._keys.seal(slot, counter, page.tobytes()), np.uint8)

    def _read(self, plan: PathPlan, pages: Slots) -> list[Page]:
        """Open the union from the top, each page under the reference in its parent."""
        g, bad = self._geometry, False
        union: dict[int, Page] = {}
        for i, slot in enumerate(plan.slots.tolist()):
            layer = sum(slot >= offset for offset in g.offsets[1:-1])
            prefix, parent, turn = slot - g.offsets[layer], None, 0
            ref = int(self.state.refs[prefix]) if layer == 0 else 0
            if layer:
                above = g.height(layer - 1)
                parent, turn = union[g.offsets[layer - 1] + (prefix >> above)], prefix & ((1 << above) - 1)
                ref = parent.refs[turn]
            page = union[slot] = Page(slot, layer, parent, turn)
            if parent is not None:
                parent.children[turn] = page
            try:
                plain = self._open(slot, ref, pages.data[i].tobytes(), bool(pages.present[i]))
            except InvalidTag:
                bad, plain = True, self._open(slot, 0, b"", False)  # go on: the pattern must not say where
            page.refs = plain["refs"].tolist()
            page.content = [
                (addr, leaf, block.tobytes())
                for (addr, leaf), block in zip(plain["meta"].tolist(), plain["blocks"], strict=True)
            ]
        if bad:
            raise TamperedError
        return list(union.values())

    # --- where a block may go

    def _deepest(self, leaf: int, page: Page) -> Node:
        """The deepest bucket of the union that is legal for ``leaf``, from a page on its path downwards."""
        g = self._geometry
        while page.layer + 1 < g.layers:
            turn = (leaf >> (g.L - g.root_level(page.layer + 1))) & ((1 << g.height(page.layer)) - 1)
            if turn not in page.children:
                break
            page = page.children[turn]
        lowest = g.height(page.layer) - 1
        within = (leaf >> (g.L - g.root_level(page.layer) - lowest)) & ((1 << lowest) - 1)
        return page.slot, (1 << lowest) - 1 + within

    def _above(self, page: Page, bucket: int) -> Node | None:
        """The parent of a bucket; None above layer 0."""
        if bucket:
            return page.slot, (bucket - 1) // 2
        if page.parent is None:
            return None
        lowest = self._geometry.height(page.parent.layer) - 1
        return page.parent.slot, (1 << lowest) - 1 + (page.turn >> 1)

    # --- the access

    def access(self, requests: Requests, plan: PathPlan, pages: Slots) -> U32:
        """Open, serve, evict and seal."""
        state = self.state
        union = self._read(plan, pages)
        top = [page.slot for page in union if page.layer == 0]
        rows = requests.rows()
        wanted = {addr for op, addr, _ in rows if op != Op.DUMMY}
        if state.pool_addr.size - state.used < len(wanted):
            raise PoolFullError

        entries, found = self._gather(union, top, wanted)
        self._serve(requests, rows, entries, found)
        placed, stay = self._evict(union, top, entries)
        first = self._keys.take(len(union))
        written = self._write(union, placed, pages, first)
        state.refs[top] = np.arange(first, first + len(top), dtype=np.uint64) | np.uint64(
            self._keys.current << COUNTER_BITS
        )
        self._report(requests, rows, found, stay)
        self._settle(entries, stay)
        for r in range(requests.m):
            requests.pool[r] = found[rows[r][1]].pool if requests.where[r] == At.POOL else EMPTY
        return written

    def _gather(self, union: list[Page], top: list[int], wanted: set[int]) -> tuple[list[Entry], dict[int, Entry]]:
        """Every block of the union, then the pool's chains below its layer-0 pages."""
        state, entries, found = self.state, [], {}
        for page in union:
            for addr, leaf, block in page.content:
                if addr != EMPTY:
                    entries.append(Entry(addr, leaf, block, None if addr in wanted else page))
        for slot in top:
            q = int(state.head[slot])
            while q >= 0:
                entries.append(
                    Entry(int(state.pool_addr[q]), int(state.pool_leaf[q]), state.pool_data[q].tobytes(), pool=q)
                )
                q = int(state.pool_next[q])
            state.head[slot] = -1
        for entry in entries:
            if entry.addr in wanted:
                found[entry.addr] = entry
        return entries, found

    def _serve(
        self, requests: Requests, rows: list[tuple[int, int, int]], entries: list[Entry], found: dict[int, Entry]
    ) -> None:
        """Serve the requests in order; the first one to an address remaps it."""
        g, remapped, zeros = self._geometry, set(), bytes(self._geometry.B)
        for r, (op, addr, draw) in enumerate(rows):
            if op == Op.DUMMY:
                requests.out[r] = 0
                continue
            entry = found.get(addr)
            requests.out[r] = np.frombuffer(zeros if entry is None else entry.block, np.uint8)
            if addr not in remapped:
                remapped.add(addr)
                self.state.position[addr] = draw % g.leaves
                if entry is not None:
                    entry.leaf = draw % g.leaves
            if op == Op.WRITE:
                if entry is None:
                    entry = found[addr] = Entry(addr, int(self.state.position[addr]), zeros)
                    entries.append(entry)
                entry.block = requests.data[r].tobytes()
            elif op == Op.REMOVE and entry is not None:
                entry.addr = EMPTY
                del found[addr]

    def _evict(
        self, union: list[Page], top: list[int], entries: list[Entry]
    ) -> tuple[dict[Node, list[Entry]], list[Entry]]:
        """Bottom-up: a bucket takes up to Z of its blocks, those that came from the server first, and hands the rest up."""
        g = self._geometry
        server: dict[Node, list[Entry]] = {}
        client: dict[Node, list[Entry]] = {}
        placed: dict[Node, list[Entry]] = {}
        stay: list[Entry] = []
        by_slot = {page.slot: page for page in union}
        for entry in entries:
            if entry.addr == EMPTY:
                continue
            if entry.page is not None:
                server.setdefault(self._deepest(entry.leaf, entry.page), []).append(entry)
                continue
            at = bisect_left(top, entry.leaf >> (g.L - g.T))
            if at < len(top) and top[at] == entry.leaf >> (g.L - g.T):
                client.setdefault(self._deepest(entry.leaf, by_slot[top[at]]), []).append(entry)
            else:
                stay.append(entry)
        for page in reversed(union):
            for bucket in reversed(range((1 << g.height(page.layer)) - 1)):
                node = page.slot, bucket
                mine, theirs = server.pop(node, []), client.pop(node, [])
                placed[node] = (mine + theirs)[: g.Z]
                theirs = theirs[max(0, g.Z - len(mine)) :]
                mine = mine[g.Z :]
                up = self._above(page, bucket)
                if up is None:
                    stay += mine + theirs
                else:
                    server.setdefault(up, []).extend(mine)
                    client.setdefault(up, []).extend(theirs)
        return placed, stay

    def _write(self, union: list[Page], placed: dict[Node, list[Entry]], pages: Slots, first: int) -> U32:
        """WriteBucket for the whole union."""
        g = self._geometry
        counter = {page.slot: first + i for i, page in enumerate(union)}
        written = np.full((len(union), g.buckets * g.Z), EMPTY, np.uint32)
        for i, page in enumerate(union):
            refs = list(page.refs)
            for turn, child in page.children.items():
                refs[turn] = self._keys.current << COUNTER_BITS | counter[child.slot]
            meta, blocks = [(EMPTY, 0)] * (g.buckets * g.Z), [bytes(g.B)] * (g.buckets * g.Z)
            for bucket in range(g.buckets):
                for z, entry in enumerate(placed.get((page.slot, bucket), [])):
                    at = bucket * g.Z + z
                    meta[at], blocks[at], written[i, at] = (entry.addr, entry.leaf), entry.block, entry.addr
            pages.data[i] = self._seal(page.slot, counter[page.slot], refs, meta, blocks)
            pages.present[i] = 1
        return written

    def _report(
        self, requests: Requests, rows: list[tuple[int, int, int]], found: dict[int, Entry], stay: list[Entry]
    ) -> None:
        """For the journal: where each requested block is now, and what it holds."""
        staying, seen = {id(entry) for entry in stay}, set()
        for r, (op, addr, _) in enumerate(rows):
            entry, requests.where[r], requests.after[r] = None, At.REPEAT, 0
            if op != Op.DUMMY and addr not in seen:
                seen.add(addr)
                entry = found.get(addr)
                requests.where[r] = At.NONE if entry is None else At.POOL if id(entry) in staying else At.SERVER
            if entry is not None:
                requests.after[r] = np.frombuffer(entry.block, np.uint8)

    def _settle(self, entries: list[Entry], stay: list[Entry]) -> None:
        """Those that left the pool free their slots first, then the rest is chained again."""
        g, state = self._geometry, self.state
        staying = {id(entry) for entry in stay}
        for entry in entries:
            if entry.pool >= 0 and id(entry) not in staying:
                state.pool_addr[entry.pool] = EMPTY
                state.pool_next[entry.pool] = state.free
                state.free, state.used = entry.pool, state.used - 1
        for entry in stay:
            if entry.pool < 0:
                entry.pool, state.free = state.free, int(state.pool_next[state.free])
                state.used += 1
                state.pool_addr[entry.pool] = entry.addr
            q, chain = entry.pool, entry.leaf >> (g.L - g.T)
            state.pool_leaf[q] = entry.leaf
            state.pool_data[q] = np.frombuffer(entry.block, np.uint8)
            state.pool_next[q], state.head[chain] = state.head[chain], q

    def access_in_place(self, requests: Requests, region: Slots) -> None:
        """Plan and access over the region's own memory."""
        plan = self.plan(requests)
        pages = Slots(region.data[plan.slots], region.present[plan.slots])
        self.access(requests, plan, pages)
        region.data[plan.slots], region.present[plan.slots] = pages.data, pages.present

    # --- bulk

    def open_pages(self, slots: I64, refs: U64, pages: Slots) -> U8:
        """Pages in clear."""
        plain = np.empty((slots.size, self._geometry.plain), np.uint8)
        for i, (slot, ref) in enumerate(zip(slots.tolist(), refs.tolist(), strict=True)):
            try:
                page = self._open(slot, ref, pages.data[i].tobytes(), bool(pages.present[i]))
            except InvalidTag:
                raise TamperedError from None
            plain[i] = np.frombuffer(page.tobytes(), np.uint8)
        return plain

    def build_pages(self, slots: I64, children: U64, source: I64, addr: U32, leaf: U32, blocks: U8) -> U8:
        """Seal given content."""
        g = self._geometry
        sealed = np.empty((slots.size, g.slot_size), np.uint8)
        first = self._keys.take(slots.size)
        for i, slot in enumerate(slots.tolist()):
            rows = source[i].tolist()
            meta = [(EMPTY, 0) if k < 0 else (int(addr[k]), int(leaf[k])) for k in rows]
            content = [bytes(g.B) if k < 0 else blocks[k].tobytes() for k in rows]
            sealed[i] = self._seal(slot, first + i, children[i], meta, content)
        return sealed
