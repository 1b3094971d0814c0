"""Records as lines of CSV or JSON, and how the command line spells bytes and sizes.

    JSONL   {"key": "text", "value": "text"}; "key_b64" and "value_b64" hold bytes that are no text, in base64
    CSV     a header row, then columns key and value; key_b64 and value_b64 likewise, where they are not empty

Text is UTF-8. Any bytes survive a dump and a load.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from oram import record
from oram.cli.exits import InputError
from oram.errors import KeyTooLargeError, ValueTooLargeError

__all__ = ["FORMATS", "Coding", "format_of", "key_writer", "read", "replacing", "size", "writer"]

FORMATS = ("csv", "jsonl")
_UNITS = {"": 1, "b": 1} | {
    letter + tail: base**power
    for power, letter in enumerate("kmgt", 1)
    for tail, base in (("", 1024), ("ib", 1024), ("b", 1000))
}
_FIELD_LIMIT = 1 << 30  # characters: what a key or value of this package can have is far less


def size(text: str, option: str) -> int:
    """A number of bytes: ``4096``, ``4KiB`` or ``4k`` (1024 each), ``4kB`` (1000 each). InputError otherwise."""
    match = re.fullmatch(r"\s*(\d+)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS:
        raise InputError(f"{option} is a number of bytes, or one with a unit as in 16MiB")
    unit: int = _UNITS[match[2].lower()]
    return int(match[1]) * unit


class Coding:
    """How keys and values are written in arguments and on a terminal: as text, in hex or in base64."""

    def __init__(self, *, hex: bool = False, base64: bool = False) -> None:
        if hex and base64:
            raise InputError("--hex and --base64 exclude each other")
        self.name = "hex" if hex else "base64" if base64 else "text"

    def decode(self, text: str, what: str) -> bytes:
        """The bytes of the argument called ``what``, which is never repeated in the message."""
        if self.name == "text":
            return os.fsencode(text)
        try:
            return bytes.fromhex(text) if self.name == "hex" else base64.b64decode(text, validate=True)
        except ValueError:
            how = "an even number of the digits 0-9 and a-f" if self.name == "hex" else "with its padding"
            raise InputError(f"the argument {what} is not {self.name}, {how}") from None

    def encode(self, data: bytes) -> bytes:
        """What to print: the bytes themselves, or their spelling and a line break."""
        return data if self.name == "text" else self.line(data)

    def line(self, data: bytes) -> bytes:
        """The same, with a line break in any case."""
        if self.name == "text":
            return data + b"\n"
        return (data.hex().encode() if self.name == "hex" else base64.b64encode(data)) + b"\n"


def format_of(path: str, chosen: str | None) -> str:
    """``csv`` or ``jsonl``: the chosen one, else by the name of the file (``-`` has none)."""
    if chosen is not None:
        if chosen.lower() not in FORMATS:
            raise InputError(f"--format must be one of {', '.join(FORMATS)}")
        return chosen.lower()
    suffix = Path(path).suffix.lower()
    if suffix == ".csv":
        return "csv"
    if suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    raise InputError(
        "give --format: "
        + ("stdin has no name" if path == "-" else "the file's name ends neither in .csv nor in .jsonl")
    )


# --- reading


def read(
    lines: Iterable[bytes], form: str, record_size: int, *, key_column: str = "key", value_column: str = "value"
) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a file, checked against the size of a record of the store.

    Raises InputError for a line that cannot be read, KeyTooLargeError or ValueTooLargeError for one that does not fit, with its number.
    """
    pairs = _read_csv(lines, key_column, value_column) if form == "csv" else _read_jsonl(lines)
    for number, key, value in pairs:
        try:
            yield record.check(key, value, record_size)
        except (KeyTooLargeError, ValueTooLargeError) as error:
            raise type(error)(f"line {number}: {error}") from None


def _read_jsonl(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes, bytes]]:
    for number, line in enumerate(lines, 1):
        text = _text(line, number)
        if not text.strip():
            continue
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError):
            raise InputError(f"line {number}: not JSON") from None
        if not isinstance(entry, dict):
            raise InputError(f"line {number}: not a JSON object")
        yield number, _member(entry, "key", number), _member(entry, "value", number)


def _member(entry: dict[str, Any], name: str, number: int) -> bytes:
    plain, coded = entry.get(name), entry.get(name + "_b64")
    if (plain is None) == (coded is None):
        raise InputError(f'line {number}: give either "{name}" or "{name}_b64"')
    found = plain if coded is None else coded
    if not isinstance(found, str):
        raise InputError(f"line {number}: the {name} is not a string")
    return _bytes(found, coded is not None, name, number)


def _read_csv(lines: Iterable[bytes], key_column: str, value_column: str) -> Iterator[tuple[int, bytes, bytes]]:
    before = csv.field_size_limit(_FIELD_LIMIT)
    try:
        rows = csv.reader((_text(line, number) for number, line in enumerate(lines, 1)), strict=True)
        columns = next(_rows(rows), None)
        if columns is None:
            raise InputError("the file is empty: its first row must name the columns")
        pick_key, pick_value = _column(columns, key_column, "key"), _column(columns, value_column, "value")
        for row in _rows(rows):
            if len(row) != len(columns):
                raise InputError(f"line {rows.line_num}: {len(row)} columns where the header has {len(columns)}")
            yield rows.line_num, pick_key(row, rows.line_num), pick_value(row, rows.line_num)
    finally:
        csv.field_size_limit(before)


def _rows(rows: Any) -> Iterator[list[str]]:
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:
            raise InputError(f"line {rows.line_num}: not CSV (an unfinished quote?)") from None
        if row:
            yield row


def _column(columns: list[str], name: str, what: str) -> Callable[[list[str], int], bytes]:
    """Finds one field in a row: under its name, or in base64 under that name and ``_b64``."""
    names = [column for column in (name, name + "_b64") if column in columns]
    if not names:
        raise InputError(f"line 1: no column {name} (or {name}_b64): name it with --{what}-column")
    if any(columns.count(column) > 1 for column in names):
        raise InputError(f"line 1: the column {name} is there twice")
    places = [(columns.index(column), column != name) for column in names]

    def pick(row: list[str], number: int) -> bytes:
        filled = [(row[at], coded) for at, coded in places if row[at]]
        if len(filled) > 1:
            raise InputError(f"line {number}: both {name} and {name}_b64 are filled in")
        text, coded = filled[0] if filled else ("", False)
        return _bytes(text, coded, name, number)

    return pick


def _text(line: bytes, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise InputError(f"line {number}: not UTF-8") from None


def _bytes(text: str, coded: bool, name: str, number: int) -> bytes:
    try:
        return base64.b64decode(text, validate=True) if coded else text.encode()
    except ValueError:
        raise InputError(f"line {number}: the {name} is not {'base64' if coded else 'text'}") from None


# --- writing


def writer(file: IO[bytes], form: str) -> Callable[[bytes, bytes], None]:
    """Writes one record to ``file``; for CSV the header row comes at once."""
    if form == "jsonl":
        return lambda key, value: _write_json(file, key, value)
    rows = csv.writer(_Utf8(file))
    rows.writerow(["key", "value", "key_b64", "value_b64"])

    def write(key: bytes, value: bytes) -> None:
        texts = [_as_text(data) for data in (key, value)]
        coded = ["" if text is not None else _b64(data) for text, data in zip(texts, (key, value), strict=True)]
        rows.writerow([*(text or "" for text in texts), *coded])

    return write


class _Utf8:
    """What csv.writer writes to."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(text.encode())


def _write_json(file: IO[bytes], key: bytes, value: bytes) -> None:
    file.write(_json_line(_entry("key", key) | _entry("value", value)))


def _entry(name: str, data: bytes) -> dict[str, str]:
    text = _as_text(data)
    return {name: text} if text is not None else {name + "_b64": _b64(data)}


def _json_line(entry: dict[str, str]) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def key_writer(file: IO[bytes], coding: Coding, *, as_json: bool) -> Callable[[bytes], None]:
    """Writes one key to ``file`` as a line."""
    if as_json and coding.name != "text":
        raise InputError("--json excludes --hex and --base64")

    def write(key: bytes) -> None:
        file.write(_json_line(_entry("key", key)) if as_json else coding.line(key))

    return write


def _as_text(data: bytes) -> str | None:
    """The text that these bytes are, None where they are not text that every reader of CSV takes as it is."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text or "\r" in text or text.startswith("\ufeff") else text


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@contextmanager
def replacing(path: Path, *, force: bool = False) -> Iterator[IO[bytes]]:
    """A new file, for its owner only, that is at ``path`` when all of it is written and durable.

    InputError if something is there, before and after; with ``force``, a file is replaced.
    """
    _refuse(path, force)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent or ".")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _refuse(path, force)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _refuse(path: Path, force: bool) -> None:
    if os.path.lexists(path) and not (force and path.is_file()):
        # a device or a pipe would be replaced by a file, too
        why = "there already: --force replaces it" if path.is_file() else "there and no file"
        raise InputError(f"{path} is {why}")
