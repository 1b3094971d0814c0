"""What is to be measured, from flags or from one TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from oram.benchmark.place import BACKENDS, check_server
from oram.benchmark.subject import names
from oram.benchmark.workload import WORKLOADS, read_trace
from oram.errors import ParameterError

__all__ = ["QUICK", "Plan"]

CIPHERS = ("aes-256-gcm", "aegis-256")
_KINDS: dict[type, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Plan:
    """Subjects on each of the backends, with one setting after the other varied: its values, with the first of all others but for the largest capacity.

    subjects: names of schemes, baselines or what others bring. backends: "memory", "lmdb", "redis" (a server of its own), or the URL of a server, as
    ``RedisOptions.from_url`` takes it: scratch stores lie there under random names that begin as the one in the URL, and are erased.
    capacities: blocks N; half of them are records when a run begins. block_sizes: bytes.
    batches: requests of a call. rtts: milliseconds of a round trip added, where the backend is not "lmdb".
    workloads: names of YCSB's, or paths of traces. seconds: for each subject in each combination. seed: of what is asked for.
    product: whether to measure all combinations, capacities x block_sizes x batches x rtts x workloads x ciphers.

    ParameterError with all problems together.
    """

    subjects: tuple[str, ...] = (
        "path",
        "ring",
        "cuckoo",
        "linear",
        "dict",
        "plain-lmdb",
        "plain-redis",
        "encrypted",
        "pyoram",
    )
    backends: tuple[str, ...] = ("memory", "lmdb", "redis")
    ciphers: tuple[str, ...] = ("aes-256-gcm",)
    capacities: tuple[int, ...] = (1 << 10, 1 << 12, 1 << 14, 1 << 16)
    block_sizes: tuple[int, ...] = (256, 4096)
    batches: tuple[int, ...] = (1, 16, 64, 256)
    rtts: tuple[float, ...] = (0.0, 1.0, 10.0)
    workloads: tuple[str, ...] = ("A",)
    seconds: float = 2.0
    seed: int = 1
    product: bool = False

    def __post_init__(self) -> None:
        problems = [f"{each.name} must not be empty" for each in fields(self) if getattr(self, each.name) == ()]
        known = names()
        problems += [
            f"no subject {name!r}: there are {', '.join(known)}" for name in self.subjects if name not in known
        ]
        for name in self.backends:
            if name in BACKENDS:
                continue
            if "://" not in name:
                problems.append(f"no backend {name!r}: {', '.join(BACKENDS)}, or the URL of a server")
                continue
            try:
                check_server(name)
            except ParameterError as error:
                problems.append(str(error))
        problems += [f"no cipher {name!r}: {', '.join(CIPHERS)}" for name in self.ciphers if name not in CIPHERS]
        for name in self.workloads:
            problems += self._troubles(name)
        if not all(16 <= n <= 1 << 24 for n in self.capacities):
            problems.append("a capacity must be from 16 to 2^24 blocks")
        if not all(32 <= size <= 1 << 20 for size in self.block_sizes):
            problems.append("a block must be from 32 bytes, for its key, to 2^20")
        if not all(1 <= m <= 1024 for m in self.batches):
            problems.append("a batch must be from 1 to 1024 requests")
        if not all(0 <= rtt <= 1000 for rtt in self.rtts):
            problems.append("a round trip must be from 0 to 1000 ms")
        if not 0.01 <= self.seconds <= 3600:
            problems.append("seconds must be from 0.01 to 3600")
        if self.seed < 0:
            problems.append("seed must not be negative")
        if problems:
            raise ParameterError("; ".join(problems))

    def _troubles(self, workload: str) -> list[str]:
        """What is wrong with a workload, of a trace also with its records."""
        if workload in WORKLOADS:
            return []
        if not Path(workload).is_file():
            return [f"no workload {workload!r}: {', '.join(WORKLOADS)}, or the path of a trace"]
        try:
            put = {each.number for each in read_trace(Path(workload)) if each.kind == "put"}
        except ParameterError as error:
            return [str(error)]
        over = [N for N in self.capacities if N // 2 + sum(number >= N // 2 for number in put) > N]
        return (
            [f"{workload} puts more records than a capacity of {min(over)} has room for, half of it being taken"]
            if over
            else []
        )

    @classmethod
    def of(cls, values: Mapping[str, Any], base: Self) -> Self:
        """``base`` with these fields replaced. ParameterError for one that is not there, or of another kind."""
        found = asdict(base)
        for name, value in values.items():
            if name not in found:
                raise ParameterError(f"no setting {name!r}: there are {', '.join(found)}")
            if isinstance(found[name], tuple):
                kind = type(found[name][0])
                listed = value if isinstance(value, list | tuple) else [value]
            else:
                kind, listed = type(found[name]), [value]
            allowed = (int, float) if kind is float else (kind,)
            if not all(isinstance(each, allowed) and isinstance(each, bool) == (kind is bool) for each in listed):
                raise ParameterError(f"{name}: not {_KINDS[kind]}")
            found[name] = tuple(map(kind, listed)) if isinstance(found[name], tuple) else kind(value)
        return cls(**found)

    @classmethod
    def from_toml(cls, path: Path, base: Self) -> Self:
        """The settings in a file, in place of those of ``base``."""
        try:
            return cls.of(tomllib.loads(path.read_text(encoding="utf-8")), base)
        except OSError as error:
            raise ParameterError(f"cannot read {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ParameterError(f"{path} is no TOML: {error}") from None


#: What ``--quick`` measures.
QUICK = Plan(
    capacities=(1 << 8, 1 << 10, 1 << 12), block_sizes=(256,), batches=(1, 16, 64), rtts=(0.0, 5.0), seconds=0.2
)
