"""``oram bench``: oblivious stores beside one another, and beside what they are compared with.

    plan      what is to be measured: from flags or a TOML file
    workload  what is asked for: YCSB A to F, and recorded traces
    subject   what is asked: the schemes, the baselines, and those of others by the entry point ``oram.benchmark.subjects``
    place     where they keep their slots: memory, LMDB, a Redis or Valkey server, near or far
    run       the measurements, in which the subjects take turns
    counting  what the server sees of an access, counted and not timed
    figures, report   one HTML page of all that

Costs time and nothing else: each store is a scratch store, in memory, in a directory or under a name of its own that is gone afterwards.
"""

from oram.benchmark.plan import Plan
from oram.benchmark.run import Results, measure
from oram.benchmark.subject import GROUP, Session, Subject, SubjectMissingError
from oram.benchmark.workload import WORKLOADS, Recorder, Request, Workload, read_trace

__all__ = [
    "GROUP",
    "WORKLOADS",
    "Plan",
    "Recorder",
    "Request",
    "Results",
    "Session",
    "Subject",
    "SubjectMissingError",
    "Workload",
    "measure",
    "read_trace",
]
