"""Kills a process that works on a store, again and again, and checks each time that nothing acknowledged was lost.

Run as a program, so that the children forked from it have one thread and no memory of a test runner:
killing.py PATH STATE DURABILITY KILLS SECONDS SEED SCHEME. STATE is "-" where it lies beside the slots. SCHEME is "path", "ring" or "ring-server"; with
"-remote" at its end the slots are behind a network, as it were, so that writes wait for the next read.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import select
import signal
import struct
import sys
import time
from typing import Any

import oram
from oram.backends import Backend, LMDBBackend
from oram.params import PathParams, RingParams, SchemeParams
from oram.store import ObliviousStore
from oram.testing.model import check
from oram.testing.remote import RemoteBackend

KEY = bytes(32)
CAPACITY = 12
SCHEMES: dict[str, SchemeParams] = {
    "path": PathParams(),
    "ring": RingParams(Z=4, A=3, S=3),
    "ring-server": RingParams(Z=3, A=1, S=2, metadata="server"),
}
Step = tuple[str, Any]


def apply(model: dict[bytes, bytes], step: Step) -> dict[bytes, bytes]:
    name, argument = step
    after = dict(model)
    if name == "put":
        after[argument[0]] = argument[1]
    elif name == "delete":
        after.pop(argument, None)
    elif name in ("put_many", "load"):
        after.update(argument)
    elif name == "delete_many":
        for key in argument:
            after.pop(key, None)
    elif name == "clear":
        after.clear()
    return after


def run(store: ObliviousStore, step: Step) -> None:
    name, argument = step
    if name == "put":
        store[argument[0]] = argument[1]
    elif name == "delete":
        store.pop(argument, None)
    elif name == "put_many":
        store.put_many(argument)
    elif name == "load":
        store.load(argument)
    elif name == "delete_many":
        store.delete_many(argument)
    elif name == "clear":
        store.clear()


def draw(rng: random.Random) -> Step:
    def key() -> bytes:
        return b"k%d" % rng.randrange(CAPACITY)

    def pairs() -> list[tuple[bytes, bytes]]:
        return [(key(), rng.randbytes(rng.randrange(20))) for _ in range(rng.randrange(1, 6))]

    name = rng.choices(["put", "delete", "put_many", "delete_many", "load", "clear"], [40, 20, 15, 10, 4, 1])[0]
    if name == "put":
        return name, (key(), rng.randbytes(rng.randrange(20)))
    if name == "delete":
        return name, key()
    if name in ("put_many", "load"):
        return name, pairs()
    return name, [key() for _ in range(4)] if name == "delete_many" else None


def place(path: str, remote: bool, durability: str) -> str | Backend:
    return RemoteBackend(LMDBBackend(path, sync=durability == "sync")) if remote else f"lmdb:{path}"


def child(path: str, remote: bool, state: str | None, durability: str, seed: int, out: int) -> None:
    """Open the store, say what is in it, then work for ever, saying what was begun and what was done."""

    def say(*message: object) -> None:
        body = pickle.dumps(message)
        os.write(out, struct.pack("<I", len(body)) + body)

    rng = random.Random(seed)
    store = oram.open(place(path, remote, durability), key=KEY, durability=durability, state=state)
    found = dict(store.items())
    check(store, found)
    say("found", found)
    while True:
        step = draw(rng)
        say("begin", step)
        run(store, step)
        say("done", step)


def messages(data: bytes) -> list[tuple[Any, ...]]:
    at, found = 0, []
    while at + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, at)
        if at + 4 + size > len(data):
            break
        found.append(pickle.loads(data[at + 4 : at + 4 + size]))
        at += 4 + size
    return found


def one_life(arguments: tuple[str, bool, str | None, str], seed: int, lifetime: float) -> list[tuple[Any, ...]]:
    """A child that is killed ``lifetime`` seconds after its birth, or after it has found the store; what it said."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            child(*arguments, seed, writer)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    data, patient = b"", random.Random(seed + 1).random() < 0.8
    deadline = time.monotonic() + (10 if patient else lifetime)
    killed = False
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(pid, signal.SIGKILL)
            killed = True
            while more := os.read(reader, 1 << 16):
                data += more
            break
        more = os.read(reader, 1 << 16)
        if not more:
            break
        if patient and not data:
            deadline = time.monotonic() + lifetime
        data += more
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    assert killed, f"the child died by itself, {status}"
    return messages(data)


def main() -> None:
    path, state, durability, kills, seconds, seed, scheme = sys.argv[1:]
    remote, scheme = scheme.endswith("-remote"), scheme.removesuffix("-remote")
    apart = None if state == "-" else state
    rng = random.Random(int(seed))
    where = place(path, remote, durability)
    oram.create(
        where, key=KEY, capacity=CAPACITY, block_size=64, scheme=SCHEMES[scheme], tree_top=rng.choice([0, 1000]),
        durability=durability, state=apart,
    ).close()  # fmt: skip
    if isinstance(where, Backend):
        where.close()
    possible: list[dict[bytes, bytes]] = [{}]
    done, lives, until = 0, 0, time.monotonic() + float(seconds)
    while lives < int(kills) and time.monotonic() < until:
        lives += 1
        for message in one_life((path, remote, apart, durability), rng.randrange(1 << 30), rng.expovariate(1 / 0.012)):
            if message[0] == "found":
                assert message[1] in possible, f"lost after {lives} kills: {message[1]} instead of one of {possible}"
                possible = [message[1]]
            elif message[0] == "begin":
                possible = [possible[0], apply(possible[0], message[1])]
            else:
                possible = [possible[1]]
                done += 1
    store = oram.open(place(path, remote, durability), key=KEY, durability=durability, state=apart)
    assert dict(store.items()) in possible
    check(store, dict(store.items()), by_access=True)
    store.close()
    print(json.dumps({"lives": lives, "done": done}))


if __name__ == "__main__":
    main()
