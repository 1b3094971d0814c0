"""The one exception tree. Messages carry public values only: no key, value, address, stash size or level."""

from __future__ import annotations

__all__ = [
    "AddressError",
    "BackendAccessError",
    "BackendError",
    "BackendFullError",
    "BackendReadOnlyError",
    "BackendUnavailableError",
    "BackendWarning",
    "BackupError",
    "BlockSizeError",
    "CapacityError",
    "CipherUnavailableError",
    "FencedError",
    "ForkedStoreError",
    "HandleError",
    "IntegrityError",
    "KeyTooLargeError",
    "KeyTypeError",
    "MissingKeyError",
    "OramError",
    "ParameterError",
    "PoisonedError",
    "RollbackError",
    "ShardOverflowError",
    "StaleStateError",
    "StashOverflowError",
    "StateMissingError",
    "StoreClosedError",
    "StoreExistsError",
    "StoreLockedError",
    "StoreNotFoundError",
    "TookEffectError",
    "UncleanShutdownError",
    "ValueTooLargeError",
    "WrongKeyError",
]


class OramError(Exception):
    """Base of everything this package raises on purpose."""


class ParameterError(OramError, ValueError):
    """Parameters that cannot make a store, all problems together; or a store without keys used as a mapping."""


class AddressError(OramError, IndexError):
    """A block address outside ``0 <= address < capacity``."""


class BlockSizeError(OramError, ValueError):
    """Block data longer than the block size."""


class KeyTypeError(OramError, TypeError):
    """A key, a value or block data that is not bytes-like, or items that are no pairs. Raised before anything happens."""


class KeyTooLargeError(OramError, ValueError):
    """A key that cannot fit a record of this store."""


class ValueTooLargeError(OramError, ValueError):
    """A value that cannot fit a record of this store. Raised before anything happens."""


class MissingKeyError(OramError, KeyError):
    """The key is not in the store. Raised after the access, which a miss costs like a hit."""

    def __str__(self) -> str:
        return "no such key"


class CapacityError(OramError):
    """The store is full, or a load would not fit. Raised after the access, or after a load that costs the same; nothing was stored."""


class ShardOverflowError(OramError):
    """Too many of a batch's addresses are in one shard, which happens with a probability of 2^-80 at most. Raised before anything happens."""


class StashOverflowError(OramError):
    """A rebuild of a Cuckoo store left over more blocks than a stash holds. Nothing of the access was written, and opening the store again repeats it.

    The chance is below 2^-80 for each rebuild: docs/schemes/cuckoo.md.
    """

    def __str__(self) -> str:
        return "a rebuild left over more blocks than a stash holds"


class BackendError(OramError):
    """The backend failed to read or write."""


class BackendFullError(BackendError):
    """The backend has no room left (disk or memory limit). Nothing acknowledged is lost; make room, close the handle, open the store again."""


class BackendUnavailableError(BackendError):
    """The server cannot be reached, or does not answer in time, also after further attempts. What was about to be written may have been written."""


class BackendAccessError(BackendError):
    """The server refused the user or the password, or the user may not do this."""


class BackendReadOnlyError(BackendError):
    """The server takes no writes: it is a replica, has too few of them, or cannot save. Nothing was written."""


class TookEffectError(BackendError):
    """What was asked for took effect, and something behind it failed: its cause. The handle is closed.

    Raised by what replaces the whole store (``create``, ``restore``, ``load``, ``clear``, ``rekey``), after the switch. Open the store, with the
    new key if that was changed: it holds what it was to hold.
    """


class FencedError(BackendError):
    """Another client took the store over, because this one's lease had expired. This one has written nothing since, and cannot be used again."""


class BackendWarning(UserWarning):
    """The server is told to lose slots: a setting that a store should not run with."""


class StoreNotFoundError(OramError):
    """No store at that place."""


class StoreExistsError(OramError):
    """There is a store at that place already."""


class StoreLockedError(OramError):
    """Another handle, in this or another process, has the store open."""


class HandleError(OramError, TypeError):
    """A handle used in a way it refuses: pickled, copied, or from inside one of its own operations (``visit``, a signal handler, a finalizer)."""


class StoreClosedError(OramError):
    """The handle was closed, or failed in the middle of an access. Close it, then open the store again: the access is finished then."""


class ForkedStoreError(OramError):
    """The handle was opened before a fork and is used after it in the child, where ``close`` only lets go."""


class StateMissingError(OramError):
    """The server's part of the store is there, the client state is not."""


class UncleanShutdownError(OramError):
    """A store with ``durability="none"`` was not closed, so that its client state is gone."""


class BackupError(OramError):
    """The client state is a backup. Restore it into a new store; it is never opened as it is."""


class WrongKeyError(OramError):
    """The key or passphrase does not open the header (or the header was changed)."""


class CipherUnavailableError(OramError):
    """The store's cipher is not installed here (``pip install oram[aegis]``)."""


class IntegrityError(OramError):
    """Stored data was changed, swapped, withheld or is stale. The handle refuses further work."""


class RollbackError(IntegrityError):
    """The server's part of the store is older than the client state."""


class StaleStateError(IntegrityError):
    """The client state is older than the server's part of the store."""


class PoisonedError(IntegrityError):
    """An earlier access of this handle found changed data; it refuses further work."""
