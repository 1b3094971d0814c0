"""From the options of ``oram create`` to the parameters of a scheme."""

from __future__ import annotations

from typing import Any

from oram.cli.exits import InputError
from oram.params import SCHEMES, SchemeParams, refuse

__all__ = ["choose"]

#: Options by scheme, as the user writes them.
_OPTIONS = {
    "path": {"Z": "-Z"},
    "ring": {"Z": "-Z", "A": "-A", "S": "-S", "metadata": "--metadata", "xor": "--xor"},
    "cuckoo": {"eps": "--eps", "rebuild": "--rebuild", "index": "--index"},  # c follows from --tree-top
}


def choose(scheme: str | None, **given: Any) -> str | SchemeParams | None:
    """What ``oram.create`` takes as its scheme. InputError for an option that is another scheme's, ParameterError for a value out of range.

    given: the values of the options, by the names of the parameters; None where there is none.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if not given or (scheme is not None and scheme not in SCHEMES):
        return scheme  # what is wrong with a name, the library says
    own = _OPTIONS.get(scheme or "", {})
    flags = {name: flag for options in _OPTIONS.values() for name, flag in options.items()}
    foreign = [flags[name] for name in given if name not in own]
    if foreign:
        where = " or ".join(f"--scheme {name}" for name, options in _OPTIONS.items() if {*given} <= {*options})
        if not where:
            raise InputError(f"{', '.join(flags[name] for name in given)}: no scheme has all of these")
        raise InputError(f"{', '.join(foreign)}: only with {where}")
    params = SCHEMES[scheme or ""](**given)
    refuse(params.problems())
    return params
