"""Hypothesis profiles: ``dev`` looks for new examples each time, ``ci`` runs the same ones always."""

from __future__ import annotations

import os
import signal
import zlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

#: What runs no kernels, or both by itself, or is about the engine and servers whatever the kernel: once is enough.
ONE_KERNEL = {"audit", "benchmark", "backends", "dashboard", "docs", "kernels", "papers", "test_trace.py"}
ONE_KERNEL |= {
    "test_failover.py",
    "test_failover_crash.py",
    "test_remote.py",
    "test_server_log.py",
    "test_shards.py",
    "test_simulation.py",
}

#: Crashes, failures, changed slots and worlds of every kind: about the engine and the journal, which are the same over either kernel set, while
#: the sets agree bit for bit by the tests in `kernels`. All of them run over the native kernels, and every fifth case over the second
#: set, which leaves out no scheme, place or operation. `make thorough` runs all over both.
EVERY_FIFTH = {
    "test_crash.py",
    "test_kill.py",
    "test_failing_steps.py",
    "test_slots.py",
    "test_state.py",
    "test_what_the_server_sees.py",
    "test_whole.py",
    "test_worlds.py",
    "test_kinds.py",
}
STRIDE = 5

THOROUGH = bool(os.environ.get("ORAM_THOROUGH"))

#: The largest products of place, scheme and operation: every second case, in each place and scheme and of each operation. `make thorough` runs all.
EVERY_SECOND = {"test_crash.py::test_access", "test_crash.py::test_blocks"}


#: Large products that take minutes: half of their cases, picked by their names, so that no value of any parameter is always left out. `make thorough` runs
#: all.
HALF = {
    "test_costs.py::test_cuckoo",
    "test_costs.py::test_ring",
    "test_costs.py::test_store",
    "test_crash.py::test_access_of_ring",
    "test_crash.py::test_whole_store",
    "test_failing_steps.py::test_operations",
    "test_failing_steps.py::test_recovery",
    "test_listening.py::test_a_store_that_tells_the_address_is_found",
    "test_listening.py::test_sound_stores_pass",
    "test_same.py::test_keyed",
    "test_server_log.py::test_two_worlds",
    "test_slots.py::test_every_slot",
    "test_what_the_server_sees.py::test_the_logged_read_again_and_nothing_else",
    "test_whole.py::test_create",
    "test_worlds.py::test_journaled",
}


#: Cases of half a minute each, for which another one stands in CI: of the same fault, the same flaw, the same checks. `make thorough` runs them.
LONGEST = {
    "test_audit.py::test_sound_stores_pass_and_each_leak_is_found[cuckoo]",
    "test_audit.py::test_sound_stores_pass_and_each_leak_is_found[ring]",
    "test_crash.py::test_blocks[write_many-torn-reverse-unsynced-cuckoo]",
    "test_crash.py::test_whole_store[load-torn-reverse-unsynced-cuckoo]",
    "test_cuckoo_controls.py::test_what_is_looked_up_gives_it_away[keys drawn again until the entries fit]",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here, turns = Path(__file__).parent, Counter[str]()
    left_out = dict[pytest.Item, None]()  # in order
    for item in items:
        case = item.nodeid.partition("[")[0]
        if item.nodeid.rpartition("/")[2] in LONGEST and not THOROUGH:
            left_out[item] = None
        if case.rpartition("/")[2] in HALF and zlib.crc32(item.nodeid.encode()) % 2 and not THOROUGH:
            left_out[item] = None
        if item.path.name in EVERY_FIFTH:
            if turns[case] % STRIDE:
                item.add_marker(pytest.mark.one_kernel)
            if turns[case] % 2 and case.rpartition("/")[2] in EVERY_SECOND and not THOROUGH:
                left_out[item] = None
            turns[case] += 1
        place = item.path.relative_to(here).parts
        # Evidence of Cuckoo knows the pairs of the reference kernel, and sees to it that this one runs.
        pinned = place[0] == "evidence" and "cuckoo" in item.nodeid
        if pinned or {place[0], place[-1]} & ONE_KERNEL:
            item.add_marker(pytest.mark.one_kernel)
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


# Who starts the tests in the background may have Ctrl-C ignored, by them and all that they start; some of them are about it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The machines open stores, which no deadline in milliseconds fits.
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))
