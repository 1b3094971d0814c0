"""Where a key or passphrase comes from: a file, the environment or a hidden prompt; never an argument.

In this order: ``--key-file``, ``ORAM_KEY`` (64 hex digits), ``ORAM_KEY_FILE``, ``ORAM_PASSPHRASE``, the prompt.
"""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

import oram
from oram.cli.exits import InputError
from oram.keys import KEY_SIZE, Credential

__all__ = ["NewKey", "existing", "new", "read_key", "replacement", "write_key"]

_HOW = "give --key-file, or set ORAM_KEY, ORAM_KEY_FILE or ORAM_PASSPHRASE"
_HOW_KEY = "give --key-file, or set ORAM_KEY or ORAM_KEY_FILE"
_HOW_PHRASE = "set ORAM_PASSPHRASE"


@dataclass(frozen=True, slots=True)
class NewKey:
    """The credential of a store to be made, and the key file that was written for it, if one was."""

    credential: Credential
    written: Path | None = None


def existing(place: str, state: Path | None, key_file: Path | None) -> Credential:
    """The credential of a store that is there; asks for a passphrase if the store opens with one."""
    given = _given(key_file)
    if given is not None:
        return given
    if oram.info(place, state=state)["kdf"].get("name") != "argon2id":
        raise InputError(f"this store opens with a key: {_HOW_KEY}")
    return Credential.of(None, _ask("Passphrase: ", _HOW_PHRASE))


def new(key_file: Path | None) -> NewKey:
    """The credential of a new store; a key file that is missing is written."""
    missing = _missing(key_file)
    if missing is not None:
        return NewKey(write_key(missing), missing)
    return NewKey(_given(key_file) or Credential.of(None, _ask_twice()))


def replacement(new_key_file: Path | None) -> NewKey:
    """What ``rekey`` changes to."""
    if new_key_file is not None:
        if not new_key_file.exists():
            return NewKey(write_key(new_key_file), new_key_file)
        return NewKey(Credential.of(read_key(new_key_file), None))
    passphrase = os.environ.get("ORAM_NEW_PASSPHRASE")
    if passphrase is not None:
        return NewKey(_phrase(passphrase, "ORAM_NEW_PASSPHRASE"))
    return NewKey(Credential.of(None, _ask_twice("give --new-key-file or set ORAM_NEW_PASSPHRASE")))


def read_key(path: Path) -> bytes:
    """The key in a file: 32 bytes, or 64 hex digits. Warns on stderr where others may read it."""
    try:
        with path.open("rb") as file:
            mode, raw = os.fstat(file.fileno()).st_mode, file.read(4096)
    except OSError as error:
        raise InputError(f"cannot read the key file {path}: {error.strerror}") from None
    if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        print(f"oram: warning: the key file {path} can be read by others (chmod 600 it)", file=sys.stderr)
    if len(raw) == KEY_SIZE:
        return raw
    key = _hex(raw.strip())
    if key is None:
        raise InputError(f"the key file {path} holds neither {KEY_SIZE} bytes nor {2 * KEY_SIZE} hex digits")
    return key


def _given(key_file: Path | None) -> Credential | None:
    """What needs no prompt. What is set but cannot be used is an error, never passed over."""
    if key_file is not None:
        return Credential.of(read_key(key_file), None)
    environ = os.environ
    if "ORAM_KEY" in environ:
        key = _hex(os.fsencode(environ["ORAM_KEY"].strip()))
        if key is None:
            raise InputError(f"ORAM_KEY must be {2 * KEY_SIZE} hex digits")
        return Credential.of(key, None)
    if "ORAM_KEY_FILE" in environ:
        return Credential.of(read_key(Path(environ["ORAM_KEY_FILE"])), None)
    if "ORAM_PASSPHRASE" in environ:
        return _phrase(environ["ORAM_PASSPHRASE"], "ORAM_PASSPHRASE")
    return None


def _missing(key_file: Path | None) -> Path | None:
    """The key file that is named and not there."""
    if key_file is None and "ORAM_KEY" not in os.environ and "ORAM_KEY_FILE" in os.environ:
        key_file = Path(os.environ["ORAM_KEY_FILE"])
    return None if key_file is None or os.path.lexists(key_file) else key_file


def _phrase(passphrase: str, name: str) -> Credential:
    if not passphrase:
        raise InputError(f"{name} is empty")
    return Credential.of(None, passphrase)


def _hex(text: bytes) -> bytes | None:
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        return None
    return key if len(text) == 2 * KEY_SIZE == 2 * len(key) else None


def write_key(path: Path) -> Credential:
    """A new key in a new file that only its owner can read, durable before anything is sealed with it."""
    key = oram.generate_key()
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, key.hex().encode() + b"\n")
            os.fsync(file)
        finally:
            os.close(file)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise InputError(f"cannot write the key file {path}: {error.strerror}") from None
    return Credential.of(key, None)


def _terminal() -> bool:
    """Whether somebody can be asked."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return sys.stdin is not None and sys.stdin.isatty()
    return True


def _ask(prompt: str, how: str) -> str:
    if not _terminal():
        raise InputError(f"nobody to ask for a passphrase: {how}")
    from getpass import getpass

    try:
        passphrase = getpass(prompt)
    except EOFError:
        passphrase = ""
    if not passphrase:
        raise InputError("no passphrase given")
    return passphrase


def _ask_twice(how: str = _HOW) -> str:
    passphrase = _ask("New passphrase: ", how)
    if _ask("The same again: ", how) != passphrase:
        raise InputError("the two passphrases differ")
    return passphrase
