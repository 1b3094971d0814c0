"""Scratch stores on a server that has other things to keep: each under a random name, and all of them gone afterwards."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from oram.backends import RedisBackend, RedisOptions
from oram.errors import BackendWarning, OramError

__all__ = ["ScratchNames"]

T = TypeVar("T", bound=RedisBackend)


class ScratchNames:
    """Names on the server of ``options``. They begin as the one there, so that a user who may use names that begin so may use these.

    purpose: what else is in them, so that one sees where a name comes from.
    """

    def __init__(self, options: RedisOptions, purpose: str) -> None:
        self._options, self._prefix = options, f"{options.name[:30]}-{purpose}-"
        self._given: list[RedisOptions] = []

    def new(self) -> RedisOptions:
        """How to reach a place under a name that nobody has. Whoever puts something there removes it."""
        return replace(self._options, name=self._prefix + secrets.token_hex(8))

    def open(self, kind: Callable[[RedisOptions], T]) -> T:
        """A backend at a new place, which ``erase`` removes."""
        options = self.new()
        with warnings.catch_warnings(action="ignore", category=BackendWarning):
            backend = kind(options)
        self._given.append(options)
        return backend

    def erase(self) -> None:
        """Nothing stays of the stores under these names, which are closed. What the server does not let go is warned of."""
        while self._given:
            options = self._given.pop()
            try:
                with (
                    warnings.catch_warnings(action="ignore", category=BackendWarning),
                    RedisBackend(options) as backend,
                ):
                    backend.erase()
            except OramError as error:
                warnings.warn(
                    f"not all was removed, see the server's keys {{{options.name}}}:*: {error}",
                    BackendWarning,
                    stacklevel=2,
                )
