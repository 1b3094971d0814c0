"""The commands. Each opens the store, does one thing and closes it again."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

import typer

import oram
from oram import cli, record
from oram.cli import credentials, exits, formats, places, schemes
from oram.cli.audit import audit
from oram.cli.bench import bench
from oram.cli.exits import InputError
from oram.cli.progress import Meter, meter
from oram.cli.reproduce import reproduce
from oram.errors import (
    BackendUnavailableError,
    BackendWarning,
    CapacityError,
    OramError,
    StoreExistsError,
    StoreLockedError,
)
from oram.keys import Credential
from oram.params import check_shape, refuse

__all__ = ["app", "run"]

_CODES = (cli.__doc__ or "").partition("rely on:\n")[2].partition("\nAn error")[0]
EPILOG = f"""\b
Exit codes:
{_CODES.strip(chr(10))}
\b
Keys come from --key-file (32 bytes or 64 hex digits), ORAM_KEY (hex digits),
ORAM_KEY_FILE, ORAM_PASSPHRASE or a hidden prompt, in this order.
\b
A store is lmdb:PATH, or just the path; or on a Redis or Valkey server
redis://HOST:PORT/DB?name=NAME, rediss://... (TLS) or unix:///SOCKET?name=NAME,
with --state PATH for the client state, which stays here. User and password
come from ORAM_REDIS_USERNAME and ORAM_REDIS_PASSWORD.
"""

app = typer.Typer(
    name="oram",
    help="An oblivious key-value store: its server does not learn which records are touched.",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_URLS = "lmdb:PATH, or just the path; redis://HOST:PORT/DB?name=NAME, rediss://..., unix:///SOCKET"
Where = Annotated[str, typer.Argument(metavar="URL", help=f"{_URLS}.")]
State = Annotated[
    Path | None,
    typer.Option("--state", metavar="PATH", help="Client state, where it is kept apart: as it must be from a server."),
]
KeyFile = Annotated[Path | None, typer.Option("--key-file", metavar="FILE", help="32 bytes, or 64 hex digits.")]
Key = Annotated[str, typer.Argument(metavar="KEY", show_default=False)]
Hex = Annotated[bool, typer.Option("--hex", help="KEY and VALUE are hex digits, also on output. Files are always raw.")]
Base64 = Annotated[bool, typer.Option("--base64", help="The same in base64.")]
Durability = Annotated[
    str | None,
    typer.Option(help="sync (survives power loss), process (a killed process) or none.", show_default="sync"),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")]
Format = Annotated[str | None, typer.Option("--format", help="csv or jsonl, where the file's name does not say it.")]
KeyColumn = Annotated[str, typer.Option("--key-column", help="CSV: the column of the keys.")]
ValueColumn = Annotated[str, typer.Option("--value-column", help="CSV: the column of the values.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output file if it is there.")]


def run(args: Sequence[str] | None) -> int:
    """Run one command and return its exit code; whatever goes wrong becomes one line on stderr."""
    args = sys.argv[1:] if args is None else list(args)
    try:
        with _plain_warnings():
            result = app(args=args or ["--help"], prog_name="oram", standalone_mode=False)
        sys.stdout.flush()
        if result == exits.INTERRUPTED:
            raise KeyboardInterrupt
    except SystemExit as stop:
        # The parser leaves with 1 when the output is closed early, but 1 has another meaning here.
        return _fail(stop.__context__ if isinstance(stop.__context__, BrokenPipeError) else stop)
    except BaseException as error:
        return _fail(error)
    return result if isinstance(result, int) else 0


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """What the library warns of is one line on stderr, said once however many connections the command makes."""
    said = set()
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *more: Any, **options: Any) -> None:
        if not issubclass(category, BackendWarning):
            others(message, category, *more, **options)
        elif str(message) not in said:
            said.add(str(message))
            print(f"oram: warning: {exits.one_line(str(message))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", BackendWarning)
        warnings.showwarning = show
        yield


def _fail(error: BaseException) -> int:
    """Say what went wrong; the exit code."""
    code, message = exits.explain(error)
    if os.environ.get("ORAM_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):
        # What is still in the buffer has nowhere to go; Python would complain about it at exit. As of any
        # program at the left of a pipe, nobody wants to hear of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code
    try:
        print(f"oram: {message}", file=sys.stderr)
    except OSError:
        # The terminal went away. What is in the buffer would fail once more at exit, which changes the exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    return code


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"oram {oram.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


# --- stores and their keys


def _open(where: str, state: Path | None, key_file: Path | None, durability: str | None = None) -> oram.ObliviousStore:
    place = places.store(where, state)
    return _open_with(credentials.existing(place, state, key_file), place, state, durability)


def _open_with(
    credential: Credential, place: str, state: Path | None, durability: str | None = None
) -> oram.ObliviousStore:
    return oram.open(place, key=credential.key, passphrase=credential.passphrase, state=state, durability=durability)


def _announce_key(written: Path | None) -> None:
    if written is not None:
        print(f"oram: wrote a new key to {written} (mode 0600): without it nothing can be read", file=sys.stderr)


@contextmanager
def _making(place: str, state: Path | None, written: Path | None, shards: int = 1) -> Iterator[None]:
    """A store is made in the block. If none comes of it, neither its files stay nor the key that was written for it."""
    try:
        with places.making(place, state, shards):
            yield
    except BaseException as error:
        of_another = isinstance(error, StoreExistsError | StoreLockedError)
        if written is not None and (of_another or not places.made(place, state)):
            written.unlink()
        else:
            _announce_key(written)
        raise


def _say(text: str) -> None:
    print(exits.one_line(text))


def _count(n: int, noun: str = "record") -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


# --- create and look


@app.command()
def create(
    url: Where,
    capacity: Annotated[int, typer.Option(help="Records that the store can hold.")],
    block_size: Annotated[str, typer.Option(metavar="BYTES", help="Of a block, as in 4096 or 4KiB.")] = "4KiB",
    blocks_per_value: Annotated[int, typer.Option(min=1, help="Blocks that each record takes.")] = 1,
    scheme: Annotated[
        str | None,
        typer.Option(
            help="path, ring, cuckoo or linear.", show_default="ring on a server, else path; linear for a handful"
        ),
    ] = None,
    blocks: Annotated[
        int | None,
        typer.Option(
            "-Z", metavar="Z", help="Path, Ring: blocks of a bucket.", show_default="Path 4, Ring the cheapest"
        ),
    ] = None,
    eviction: Annotated[
        int | None,
        typer.Option("-A", metavar="A", help="Ring: accesses an eviction.", show_default="the most that are proved"),
    ] = None,
    dummies: Annotated[
        int | None,
        typer.Option("-S", metavar="S", help="Ring: dummies of a bucket.", show_default="what moves the fewest bytes"),
    ] = None,
    metadata: Annotated[
        str | None,
        typer.Option(help="Ring: where buckets' metadata is, client or server.", show_default="client"),
    ] = None,
    xor: Annotated[
        bool | None,
        typer.Option(
            "--xor/--no-xor", help="Ring: fetch the XOR of a path's slots.", show_default="where the backend can"
        ),
    ] = None,
    eps: Annotated[
        float | None,
        typer.Option(help="Cuckoo: spare cells of a table, as a fraction of its entries.", show_default="0.1"),
    ] = None,
    rebuild: Annotated[
        str | None,
        typer.Option(
            help="Cuckoo: deamortized (a little with each access) or amortized (in one access).",
            show_default="deamortized",
        ),
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(
            help="Cuckoo: client (knows where each block is; one round trip) or none (the smallest client; a round trip for each table).",
            show_default="client",
        ),
    ] = None,
    cipher: Annotated[str, typer.Option(help="aes-256-gcm or aegis-256.")] = "aes-256-gcm",
    tree_top: Annotated[
        str,
        typer.Option(
            metavar="BYTES",
            help="Client memory for the top of the tree, or for Cuckoo's newest blocks, which the server never sees.",
        ),
    ] = "16MiB",
    shards: Annotated[
        int,
        typer.Option(
            help="Trees that share the records and every batch; on a server NAME.0, NAME.1, ... For large batches."
        ),
    ] = 1,
    durability: Durability = None,
    items: Annotated[
        Path | None,
        typer.Option("--items", metavar="FILE", help="Records to start with, CSV or JSONL as for load; - is stdin."),
    ] = None,
    form: Format = None,
    key_column: KeyColumn = "key",
    value_column: ValueColumn = "value",
    key_file: Annotated[
        Path | None, typer.Option("--key-file", metavar="FILE", help="A new key is written where it is missing.")
    ] = None,
    state: State = None,
) -> None:
    """Make a new store. All options but the items and the key are public.

    If that fails, for instance because an item cannot be loaded, nothing is left of it.
    """
    place = places.store(url, state)
    block, top = formats.size(block_size, "--block-size"), formats.size(tree_top, "--tree-top")
    chosen = schemes.choose(
        scheme, Z=blocks, A=eviction, S=dummies, metadata=metadata, xor=xor, eps=eps, rebuild=rebuild, index=index
    )
    places.refuse_existing(place, state)
    records = None
    if items is not None:
        form = formats.format_of(str(items), form)
        refuse(_record_problems(capacity, block, blocks_per_value))
        with _source(items) as (lines, total), meter("reading", total) as bar:
            size = block * blocks_per_value
            records = list(formats.read(bar.lines(lines), form, size, key_column=key_column, value_column=value_column))
        if len({key for key, _ in records}) > capacity:
            raise CapacityError("more items than the store has capacity for")
    new = credentials.new(key_file)
    with _making(place, state, new.written, shards), meter("making the store"):
        oram.create(
            place, key=new.credential.key, passphrase=new.credential.passphrase, capacity=capacity, block_size=block,
            blocks_per_value=blocks_per_value, scheme=chosen, cipher=cipher, tree_top=top, durability=durability,
            state=state, shards=shards, items=records,
        ).close()  # fmt: skip
    _announce_key(new.written)
    _say(f"created a store for {_count(capacity)}" + ("" if records is None else f", loaded {_count(len(records))}"))


def _record_problems(capacity: int, block: int, blocks_per_value: int) -> list[str]:
    """What would make the first item too large, although it is not the item that is wrong."""
    problems = check_shape(capacity, block)
    if not problems and block * blocks_per_value <= record.OVERHEAD:
        problems.append(f"a record needs more than {record.OVERHEAD} bytes: raise --block-size or --blocks-per-value")
    return problems


@app.command()
def info(url: Where, state: State = None, as_json: Json = False) -> None:
    """The public parameters of a store. Needs no key, and therefore does not authenticate them."""
    from oram.cli.doctor import describe, rows

    found = describe(oram.info(places.store(url, state), state=state))
    print(json.dumps(found) if as_json else rows(found))


app.command("open-info", hidden=True)(info)


# --- one record


@app.command()
def put(
    url: Where,
    key: Key,
    value: Annotated[
        str | None, typer.Argument(metavar="[VALUE | -]", help="The value; - reads it from stdin.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="Take the value from a file, as it is.")
    ] = None,
    hex: Hex = False,
    base64: Base64 = False,
    key_file: KeyFile = None,
    state: State = None,
    durability: Durability = None,
) -> None:
    """Store one value. Other users of this machine can see arguments: prefer --file or - for what is secret."""
    coding = formats.Coding(hex=hex, base64=base64)
    name = coding.decode(key, "KEY")
    if (value is None) == (file is None):
        raise InputError("give either VALUE, or - for stdin, or --file")
    if file is not None:
        data = _input(file)
    elif value == "-":
        data = sys.stdin.buffer.read()
    else:
        assert value is not None
        data = coding.decode(value, "VALUE")
    with _open(url, state, key_file, durability) as store:
        store.put(name, data)


@app.command()
def get(
    url: Where,
    key: Key,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A new file for it, as it is, mode 0600.")
    ] = None,
    force: Force = False,
    hex: Hex = False,
    base64: Base64 = False,
    key_file: KeyFile = None,
    state: State = None,
) -> None:
    """Write one value to stdout, byte for byte. Exit code 1 if the key is not in the store."""
    coding = formats.Coding(hex=hex, base64=base64)
    name = coding.decode(key, "KEY")
    if output is not None:
        with formats.replacing(output, force=force) as file, _open(url, state, key_file) as store:
            file.write(store[name])
        return
    with _open(url, state, key_file) as store:
        value = store[name]
    sys.stdout.buffer.write(coding.encode(value))
    sys.stdout.buffer.flush()


@app.command()
def delete(
    url: Where,
    key: Key,
    hex: Hex = False,
    base64: Base64 = False,
    key_file: KeyFile = None,
    state: State = None,
    durability: Durability = None,
) -> None:
    """Delete one record. Exit code 1 if the key is not in the store."""
    name = formats.Coding(hex=hex, base64=base64).decode(key, "KEY")
    with _open(url, state, key_file, durability) as store:
        store.delete(name)


# --- many records


def _input(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


@contextmanager
def _source(path: Path) -> Iterator[tuple[IO[bytes], int | None]]:
    """A file to read (``-`` is stdin), and its size in bytes where it is known."""
    if str(path) == "-":
        yield sys.stdin.buffer, None
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    with file:
        yield file, os.fstat(file.fileno()).st_size or None


@app.command()
def load(
    url: Where,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="CSV with a header row, or one JSON object a line; - is stdin.")
    ],
    form: Format = None,
    key_column: KeyColumn = "key",
    value_column: ValueColumn = "value",
    bulk: Annotated[
        bool | None,
        typer.Option(
            "--bulk/--no-bulk",
            help="Write every slot anew, or put records in batches.",
            show_default="bulk before the first access",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Records a batch; the last one is filled up with dummies.")] = 64,
    key_file: KeyFile = None,
    state: State = None,
    durability: Durability = None,
) -> None:
    """Load records. If a line cannot be loaded, nothing is.

    The server learns the number of batches, or only that there was a bulk load.
    """
    form = formats.format_of(str(file), form)
    with (
        _source(file) as (lines, total),
        _open(url, state, key_file, durability) as store,
        meter("reading", total) as bar,
    ):
        size = store.value_limit + record.OVERHEAD
        pairs = formats.read(bar.lines(lines), form, size, key_column=key_column, value_column=value_column)
        if bulk is None:
            bulk = store.stats().accesses == 0
        try:
            told = _load_bulk(store, pairs) if bulk else _load_batches(store, pairs, batch, bar)
        except (InputError, OramError) as error:
            outcome = _BULK_UNKNOWN if bulk and isinstance(error, BackendUnavailableError) else "nothing was loaded"
            raise type(error)(_with_outcome(str(error), outcome)) from error
    _say(told)


#: The server may have got the last of it before the connection broke.
_BULK_UNKNOWN = "either nothing was loaded or everything: see keys"


def _with_outcome(message: str, outcome: str) -> str:
    return message if "loaded" in message else f"{message}; {outcome}"


def _load_bulk(store: oram.ObliviousStore, pairs: Iterator[tuple[bytes, bytes]]) -> str:
    count = 0

    def counted() -> Iterator[tuple[bytes, bytes]]:
        nonlocal count
        for pair in pairs:
            yield pair
            count += 1

    store.load(counted())
    return f"loaded {_count(count)} in bulk"


def _load_batches(store: oram.ObliviousStore, pairs: Iterator[tuple[bytes, bytes]], batch: int, bar: Meter) -> str:
    records = list(pairs)  # all of the file is checked before the first access
    if len(store) + len({key for key, _ in records if key not in store}) > store.capacity:
        raise CapacityError("more records than the store has room for")
    batch = min(batch, store.max_batch)
    batches = range(0, len(records), batch)
    bar.stage("storing", len(records))
    for done in batches:
        try:
            store.put_many(records[done : done + batch], size=batch)
        except OramError as error:
            more = ", and perhaps the next batch" if isinstance(error, BackendUnavailableError) else ""
            raise type(error)(f"{error}; {_loaded(done, records)}{more}") from error
        except KeyboardInterrupt:
            raise exits.StoppedError(f"interrupted; {_loaded(done, records)}") from None
        bar.at(done + batch)
    return f"loaded {_count(len(records))} in {_count(len(batches), 'batch').replace('batchs', 'batches')} of {batch}"


def _loaded(done: int, records: Sequence[Any]) -> str:
    return f"the first {done} of {len(records)} records were loaded"


@app.command()
def dump(
    url: Where,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="A new file of mode 0600, there when it is complete.",
            show_default="stdout",
        ),
    ] = None,
    force: Force = False,
    form: Format = None,
    key_file: KeyFile = None,
    state: State = None,
) -> None:
    """Write all records, in the clear, as JSONL or CSV. One scan; load reads it back byte for byte."""
    form = formats.format_of("x.jsonl" if output is None else str(output), form)
    if output is not None:
        with formats.replacing(output, force=force) as file, _open(url, state, key_file) as store:
            store.scan(formats.writer(file, form))
        return
    with _open(url, state, key_file) as store:
        store.scan(formats.writer(sys.stdout.buffer, form))
    sys.stdout.buffer.flush()


@app.command()
def keys(
    url: Where,
    as_json: Annotated[
        bool, typer.Option("--json", help='{"key": "text"} on each line, or {"key_b64": "base64"}.')
    ] = False,
    hex: Annotated[bool, typer.Option("--hex", help="In hex digits.")] = False,
    base64: Annotated[bool, typer.Option("--base64", help="In base64.")] = False,
    key_file: KeyFile = None,
    state: State = None,
) -> None:
    """Write all keys, one a line, in no useful order. One scan, as for dump.

    As they are, keys with line breaks in them cannot be told apart: --json, --hex and --base64 are safe.
    """
    write = formats.key_writer(sys.stdout.buffer, formats.Coding(hex=hex, base64=base64), as_json=as_json)
    with _open(url, state, key_file) as store:
        store.scan(lambda key, _: write(key))
    sys.stdout.buffer.flush()


# --- the whole store


@app.command()
def verify(url: Where, key_file: KeyFile = None, state: State = None, as_json: Json = False) -> None:
    """Open every slot. Exit code 5 if one was changed or is stale."""
    try:
        with _open(url, state, key_file) as store:
            store.verify()
            # Live blocks are not what the user stored: Linear counts all of them.
            records, blocks = store.stats().records, store.capacity
    except OramError as error:
        if as_json:
            code, message = exits.explain(error)
            print(json.dumps({"ok": False, "exit": code, "error": message}))
        raise
    if as_json:
        print(json.dumps({"ok": True, "exit": 0} | ({"blocks": blocks} if records is None else {"records": records})))
    else:
        _say(f"ok: every slot opens, {_count(blocks, 'block') if records is None else _count(records)}")


@app.command()
def backup(
    url: Where,
    target: Annotated[str, typer.Argument(metavar="BACKUP", help="A new directory: lmdb:PATH, or just the path.")],
    key_file: KeyFile = None,
    state: State = None,
) -> None:
    """Copy the store to a new directory.

    The copy can be restored, but never opened as it is: its positions may have been used since.
    """
    path = places.directory(target)
    with _open(url, state, key_file) as store:
        store.backup(path)
    _say("backup written; it opens with the key that the store has now")


@app.command()
def restore(
    source: Annotated[str, typer.Argument(metavar="BACKUP", help="What backup wrote: lmdb:PATH, or just the path.")],
    url: Where,
    key_file: KeyFile = None,
    state: State = None,
    durability: Durability = None,
) -> None:
    """Make a new store from a backup.

    All blocks get new positions; the key stays the same.
    """
    place, copy = places.store(url, state), f"lmdb:{places.directory(source)}"
    places.refuse_existing(place, state)
    credential = credentials.existing(copy, None, key_file)
    with _making(place, state, None, int(oram.info(copy).get("shards", 1))):
        store = oram.restore(
            copy, place, key=credential.key, passphrase=credential.passphrase, state=state, durability=durability
        )
        with store:
            count = store.stats().records
    _say("restored" if count is None else f"restored {_count(count)}")


@app.command()
def rekey(
    url: Where,
    key_file: KeyFile = None,
    new_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The new key; written where it is missing.")
    ] = None,
    state: State = None,
    durability: Durability = None,
) -> None:
    """Change the key or passphrase, and write everything anew.

    The new one comes from --new-key-file, ORAM_NEW_PASSPHRASE or a prompt.
    Old copies of the slots stay readable to whoever has the old key.
    """
    place = places.store(url, state)
    credential = credentials.existing(place, state, key_file)
    word = "key" if credential.passphrase is None else "passphrase"
    with _open_with(credential, place, state, durability) as store:
        new = credentials.replacement(new_key_file)
        if new.credential == credential:
            raise InputError(f"the new {word} is the one that the store has: nothing was changed")
        _announce_key(new.written)
        store.rekey(key=new.credential.key, passphrase=new.credential.passphrase)
    _say(f"rekeyed: the old {word} no longer opens this store")


@app.command()
def doctor(
    url: Annotated[
        str | None,
        typer.Argument(metavar="[URL]", help="Also check the header of this store, and its server's settings."),
    ] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """What this installation can do and how fast, with advice. Needs no key."""
    from oram.cli.doctor import examine, look, report

    place = None if url is None else places.store(url, state)
    found = examine()
    if place is not None:
        found = look(found, place, state)
    print(json.dumps(found) if as_json else report(found))


@app.command()
def demo(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="[URL]",
            help="redis://HOST and the like: the stores are there, under new names, and are removed. 450 MB, 40 with --fast.",
            show_default="this disk",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The same as one web page.")] = Path(
        "oram-demo.html"
    ),
    directory: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="Keep the stores on disk there.", show_default="temporary"),
    ] = None,
    accesses: Annotated[int | None, typer.Option(min=100, max=100_000, help="How many.", show_default="2000")] = None,
    seed: Annotated[int, typer.Option(help="Of the workload.")] = 1,
    fast: Annotated[
        bool, typer.Option("--fast", help="A sixteenth of the records and a third of the accesses.")
    ] = False,
) -> None:
    """Show what the server sees, and make a web page of it.

    The names of all Unicode characters are loaded into an encrypted store and into two oblivious ones, Path and Ring, and the
    same skewed workload runs against each.
    """
    from oram.cli.demo import run as run_demo

    if url is not None and not places.remote(place := places.url(url)):
        raise InputError("the demo is on this disk, or on a server: redis://HOST, rediss://HOST or unix:///SOCKET")
    server = None if url is None else place
    run_demo(output=output, directory=directory, accesses=accesses, seed=seed, fast=fast, server=server)


@app.command()
def watch(
    host: Annotated[str, typer.Option(help="127.0.0.1, ::1 or localhost; no other address is taken.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for one that is free.")] = 8787,
    scheme: Annotated[str, typer.Option(help="path, ring, cuckoo or linear, to begin with.")] = "path",
    seed: Annotated[int, typer.Option(min=0, help="Of the workload.")] = 1,
) -> None:
    """Show live, on a page of this machine, what the server sees of a plain store and of an oblivious one.

    Both are scratch stores in memory. Ctrl-C ends it. Needs the extra dashboard.
    """
    from oram.cli.watch import run as run_watch

    run_watch(host=host, port=port, scheme=scheme, seed=seed)


app.command()(audit)
app.command()(bench)
app.command()(reproduce)
