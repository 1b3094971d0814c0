"""``oram doctor`` and ``oram info``: what this installation can do, and what a store's header says."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

import oram
from oram import kernels
from oram.assembly import Shape
from oram.backends import Slots
from oram.cli import places
from oram.cli.exits import one_line
from oram.errors import BackendWarning, CipherUnavailableError, IntegrityError, ParameterError
from oram.params import BinnedGeometry, CuckooGeometry, LinearGeometry, PathGeometry, RingGeometry, ShardedGeometry
from oram.record import OVERHEAD

__all__ = ["describe", "examine", "look", "report", "rows"]

_PACKAGES = ("cffi", "cryptography", "lmdb", "numpy", "rich", "typer")
#: Extras: what they are for, and their packages.
_EXTRAS = {
    "redis": ("stores on a Redis or Valkey server", ("redis", "hiredis")),
    "aegis": ("the cipher aegis-256", ("pyaegis",)),
    "audit": ("oram audit", ("scipy",)),
    "dashboard": ("oram watch", ("scipy", "sse-starlette", "starlette", "uvicorn")),
    "report": ("the page of oram bench, the figures of oram reproduce", ("matplotlib", "scipy")),
    "testing": ("tests of schemes and backends of your own", ("hypothesis", "pytest", "scipy")),
}
_NOTHING = "Nothing to improve."
_PAGE = 4096  # bytes sealed at a time when a cipher is measured
_PAGES = 128
_SECONDS = 0.08  # for each direction


def describe(public: dict[str, Any]) -> dict[str, Any]:
    """A header in words of the user. IntegrityError if it makes no sense."""
    try:
        found = _describe(public)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError("the header is damaged") from error
    if not all(isinstance(value, int | float | str | None) for value in found.values()):
        raise IntegrityError("the header is damaged")
    return found


def _describe(public: dict[str, Any]) -> dict[str, Any]:
    shape = Shape.of(public)
    g, kdf = shape.geometry, str(public["kdf"]["name"])
    found: dict[str, Any] = {
        "format": public["format"],
        "store": shape.store,
        "scheme": shape.scheme,
        "capacity": shape.records,
        "block_size": g.B,
        "blocks_per_value": shape.blocks_per_value,
        "key_and_value_limit": shape.blocks_per_value * g.B - OVERHEAD if shape.keyed else None,
        "cipher": shape.cipher,
        "opens_with": {"argon2id": "passphrase", "hkdf-sha256": "key"}.get(kdf, kdf),
    }
    shards = shape.shards
    if isinstance(g, ShardedGeometry):
        found |= {"shards": shards}
        g = g.tree
    if isinstance(g, PathGeometry):
        found |= {
            "levels": g.L + 1,
            "cached_levels": g.T,
            "slots_a_bucket": g.Z,
            "levels_a_page": g.h,
            "pages_a_path": g.layers,
        }
    if isinstance(g, RingGeometry):
        return found | _ring(g, shards)
    if isinstance(g, CuckooGeometry):
        return found | _cuckoo(g, shards)
    pages = shards * g.slots
    return found | {"pages": pages, "page_bytes": g.slot_size, "server_bytes": pages * g.slot_size}


def _ring(g: RingGeometry, shards: int) -> dict[str, Any]:
    """What there is to say of a Ring tree: slots of one block each, in place of pages."""
    metadata = g.buckets * g.meta_size if g.metadata == "server" else 0
    return {
        "levels": g.L + 1,
        "cached_levels": g.T,
        "blocks_a_bucket": g.Z,
        "dummies_a_bucket": g.S,
        "accesses_an_eviction": g.A,
        "metadata": g.metadata,
        "xor": {None: "where the backend can and it saves time", True: "always", False: "never"}[g.xor],
        "slots_an_access": g.levels,
        "slots": shards * g.slots,
        "slot_bytes": g.slot_size,
        "server_bytes": shards * (g.slots * g.slot_size + metadata),
    }


def _cuckoo(g: CuckooGeometry, shards: int) -> dict[str, Any]:
    """What there is to say of a hierarchy."""
    return {
        "levels": g.L + 1,
        "blocks_of_the_top_buffer": g.c,
        "eps": g.eps / 1000,
        "rebuild": g.rebuild,
        "index": "none" if isinstance(g, BinnedGeometry) else "client",
        "slots": shards * g.slots,
        "slot_bytes": g.slot_size,
        "server_bytes": shards * g.slots * g.slot_size,
    }


def rows(found: dict[str, Any]) -> str:
    """The same for people, one parameter a line. Nobody has authenticated it: nothing in it reaches the terminal as a command."""
    return "\n".join(f"{name.replace('_', ' '):20} {one_line(str(value))}" for name, value in found.items())


def examine() -> dict[str, Any]:
    """Versions, kernels, ciphers with their speed, hardware, and advice."""
    active, trouble = _active()
    found: dict[str, Any] = {
        "oram": oram.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "lmdb_library": _lmdb_library(),
        "extras": {extra: {name: _version(name) for name in packages} for extra, (_, packages) in _EXTRAS.items()},
        "openssl": _openssl(),
        "kernels": {"active": active, "native": _native(), "problem": trouble},
        "aes_hardware": _aes_hardware(),
        "ciphers": {cipher: _measure(cipher) for cipher in kernels.CIPHERS} if active else {},
    }
    return found | {"advice": _advice(found)}


def look(found: dict[str, Any], place: str, state: Path | None) -> dict[str, Any]:
    """What ``examine`` found, and the header of a store; of one on a server also the settings that can lose it, as far as the server says."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", BackendWarning)
        found = found | {"store": describe(oram.info(place, state=state))}
    if places.remote(place):
        troubles = list(dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, BackendWarning)))
        advice = [sentence for sentence in found["advice"] if sentence != _NOTHING]
        advice += [f"The server's setting: {trouble}." for trouble in troubles]
        found |= {"server": {"settings": troubles}, "advice": advice or [_NOTHING]}
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _lmdb_library() -> str | None:
    """Version of the C library; the backend has loaded its package, if it is there."""
    door = sys.modules.get("lmdb")
    return None if door is None else ".".join(map(str, door.version()))


def _openssl() -> str | None:
    try:
        import ssl
    except ImportError:
        return None
    return ssl.OPENSSL_VERSION


def _active() -> tuple[str | None, str | None]:
    try:
        return kernels.active().name, None
    except ParameterError as error:
        return None, str(error)


def _native() -> str:
    """The word built, or why not."""
    try:
        kernels.load("native")
    except ParameterError as error:
        return f"not built: {error.__cause__ or error}"
    return "built"


def _aes_hardware() -> list[str] | None:
    """The processor's instructions for AES, None where that cannot be found out."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            have = set(flags.split())
            return [flag for flag in ("aes", "pclmulqdq", "vaes", "vpclmulqdq", "pmull") if flag in have]
    return None


def _measure(cipher: str) -> dict[str, Any]:
    """Microseconds to seal and to open 4 KB in the active kernels."""
    kernel = kernels.active()
    try:
        keys = kernel.keys(cipher, lambda _: bytes(32))
    except CipherUnavailableError as error:
        return {"available": False, "why": str(error)}
    keys.start(1)
    linear = kernel.linear(LinearGeometry.of(_PAGES, _PAGE), np.zeros(1, np.uint64), keys)
    blocks = np.zeros((_PAGES, _PAGE), np.uint8)
    seal = _time(lambda: linear.build_pages(blocks))
    pages = Slots(linear.build_pages(blocks), np.ones(_PAGES, np.uint8))
    return {"available": True, "seal_us": seal, "open_us": _time(lambda: linear.open_pages(pages))}


def _time(call: Any) -> float:
    """Microseconds a page: the best of several runs, because everything that disturbs makes it longer."""
    best = float("inf")
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return round(best / _PAGES * 1e6, 2)


def _advice(found: dict[str, Any]) -> list[str]:
    """What to do, in sentences; one that says so if there is nothing."""
    advice = []
    state, ciphers = found["kernels"], found["ciphers"]
    if state["problem"]:
        advice.append("ORAM_KERNELS asks for kernels that are not here: unset it.")
    if state["native"] != "built":
        advice.append(
            "The native kernels are not built, which costs a factor of 10 and more: install a C compiler, Python's and OpenSSL's headers "
            f"(gcc, python3-dev, libssl-dev), then reinstall the package: {_reinstall()}"
        )
    elif state["active"] == "reference":
        advice.append("ORAM_KERNELS chose the reference kernels; unset it for speed.")
    if found["aes_hardware"] is not None and not {"aes"} & set(found["aes_hardware"]):
        advice.append(
            "This processor has no AES instructions (or the virtual machine hides them): both ciphers will be slow."
        )
    gcm, aegis = (ciphers.get(name, {}) for name in kernels.CIPHERS)
    if ciphers and not aegis["available"]:
        advice.append(
            "A faster cipher, aegis-256, is optional: pip install 'oram[aegis]', then oram create --cipher aegis-256."
        )
    elif ciphers and gcm["available"]:
        factor = gcm["seal_us"] / aegis["seal_us"]
        if factor >= 1.2:
            advice.append(
                f"aegis-256 seals 4 KB {factor:.1f} times as fast as aes-256-gcm here: oram create --cipher aegis-256."
            )
    return advice or [_NOTHING]


def _reinstall() -> str:
    """The command that builds the kernels: from where this installation came, and past pip's cache of wheels without them."""
    command = "pip install --force-reinstall --no-deps --no-cache-dir"
    try:
        origin = json.loads(importlib.metadata.distribution("oram").read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        origin = {}
    where = urlsplit(origin.get("url", ""))
    if where.scheme != "file" or where.path.endswith(".whl"):
        # another wheel without them would do no good
        return f"{command} --no-binary oram oram, or the directory of its source in place of the last word"
    editable = " --editable" if origin.get("dir_info", {}).get("editable") else ""
    return f"{command}{editable} {shlex.quote(unquote(where.path))}"


def report(found: dict[str, Any]) -> str:
    """The same for people."""
    hardware = found["aes_hardware"]
    facts = [
        ("oram", found["oram"]),
        ("python", f"{found['python']} on {found['platform']}, {found['cores']} cores"),
        ("packages", ", ".join(f"{name} {version or 'missing'}" for name, version in found["packages"].items())),
        ("lmdb library", found["lmdb_library"] or "missing"),
        *((f"extra {extra}", _extra(extra, versions)) for extra, versions in found["extras"].items()),
        ("openssl", found["openssl"] or "unknown"),
        ("native kernels", found["kernels"]["native"]),
        ("active kernels", found["kernels"]["active"] or found["kernels"]["problem"]),
        ("AES hardware", "unknown" if hardware is None else ", ".join(hardware) or "none"),
    ]
    facts += [(cipher, _speed(measured)) for cipher, measured in found["ciphers"].items()]
    lines = [f"{name:16} {value}" for name, value in facts]
    if "store" in found:
        lines += ["", "the header of the store, not authenticated:", rows(found["store"])]
    if "server" in found:
        lines += ["", "settings of its server that can lose slots, as far as it says: " + _listed(found["server"])]
    return "\n".join([*lines, "", *found["advice"]])


def _extra(extra: str, versions: dict[str, str | None]) -> str:
    """The packages of an extra, or how to get them."""
    have = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    if None not in versions.values():
        return f"installed: {have}"
    return f"not installed ({have}); for {_EXTRAS[extra][0]}: pip install 'oram[{extra}]'"


def _listed(server: dict[str, Any]) -> str:
    return f"{len(server['settings'])}, see below" if server["settings"] else "none"


def _speed(measured: dict[str, Any]) -> str:
    if not measured["available"]:
        return str(measured["why"])
    seal, opened = measured["seal_us"], measured["open_us"]
    return f"4 KB: seal {seal} us, open {opened} us ({_PAGE / seal / 1000:.1f} and {_PAGE / opened / 1000:.1f} GB/s)"
