"""``oram audit``: whether what a server sees of a store depends on what is asked of it, with the evidence.

    place       scratch stores with the parameters of a store, and what the server saw of them
    worlds      exact checks: the simulator, and two workloads under the same randomness
    chance      statistical checks of the randomness itself, and what they could have found
    verdict     all of it, with each kind of check on stores that leak on purpose for it
    page        the verdict for people

    workload    what is asked for
    sights      what one access showed, from its trace alone
    running     tests that may be looked at as often as one likes, with one false-alarm rate for the run
    sides       stores, and all that was seen of each
    leaks       stores that are broken on purpose, each in a way of its own

It is evidence and not a proof. Needs the extra ``audit``. Everything runs on scratch stores: those of the user are asked for their public
parameters and for nothing else.
"""

from oram.audit.leaks import LEAKS, Leak
from oram.audit.place import Target
from oram.audit.verdict import Check, Verdict, audit
from oram.audit.worlds import named_workload

__all__ = ["LEAKS", "Check", "Leak", "Target", "Verdict", "audit", "named_workload"]
