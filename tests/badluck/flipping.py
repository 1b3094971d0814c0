"""Opens and reads a store whose file was changed, once for each change, in a forked child.

flipping.py PATH KIND COUNT SEED prints how many children found the store whole, refused it with a typed error, found something wrong, failed with
another exception, or were killed by a signal.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

import oram
from oram.errors import OramError
from oram.testing.model import check

KEY = bytes(range(32))
MODEL = {b"k%d" % i: b"v%d" % i for i in range(30)}
PAGE = 4096


def build(path: Path) -> None:
    with oram.create(
        f"lmdb:{path}", key=KEY, capacity=40, block_size=200, scheme="path", tree_top=0, durability="process"
    ) as store:
        for key, value in MODEL.items():
            store[key] = value
        store.rekey(key=KEY)
        for key, value in MODEL.items():
            store[key] = value


def look(path: Path) -> int:
    """0: whole. 1: a typed error. 2: something else was there. 3: another exception."""
    try:
        with oram.open(f"lmdb:{path}", key=KEY, durability="process") as store:
            check(store, MODEL, by_access=True)
    except OramError:
        return 1
    except AssertionError:
        return 2
    except BaseException:
        import traceback

        traceback.print_exc()
        return 3
    return 0


def change(data: bytes, kind: str, where: float, rng: random.Random) -> bytes:
    """One change; ``where`` from 0 to 1 goes through the whole file."""
    pages = len(data) // PAGE
    at = int(where * pages) * PAGE
    changed = bytearray(data)
    if kind == "cut":
        return data[: rng.randrange(len(data))]
    if kind == "header":  # of the page: its number, flags and bounds
        changed[at + rng.randrange(16)] ^= 1 << rng.randrange(8)
    elif kind == "bit":
        changed[at + rng.randrange(PAGE)] ^= 1 << rng.randrange(8)
    elif kind == "zeros":
        changed[at : at + PAGE] = bytes(PAGE)
    elif kind == "noise":
        changed[at : at + PAGE] = rng.randbytes(PAGE)
    elif kind == "swap":
        other = rng.randrange(pages) * PAGE
        changed[at : at + PAGE], changed[other : other + PAGE] = data[other : other + PAGE], data[at : at + PAGE]
    return bytes(changed)


def main() -> None:
    path, kind, count, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    build(path)
    data = (path / "data.mdb").read_bytes()
    rng, found = random.Random(seed), Counter[str]()
    for number in range(count):
        shutil.rmtree(path)
        path.mkdir()
        (path / "data.mdb").write_bytes(change(data, kind, number / count, rng))
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            os._exit(look(path))
        status = os.waitpid(pid, 0)[1]
        if os.WIFSIGNALED(status):
            found[f"signal {os.WTERMSIG(status)}"] += 1
        else:
            found[("whole", "refused", "wrong", "untyped")[os.WEXITSTATUS(status)]] += 1
    print(json.dumps({"pages": len(data) // PAGE, **found}))


if __name__ == "__main__":
    main()
