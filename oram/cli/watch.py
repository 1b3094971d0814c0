"""``oram watch``: where the page is, and how it ends."""

from __future__ import annotations

from contextlib import suppress

from oram.cli.exits import InputError
from oram.cli.signals import ending

__all__ = ["run"]

_MISSING = "this needs the extra dashboard: pip install 'oram[dashboard]'"


def run(*, host: str, port: int, scheme: str, seed: int) -> None:
    """Serve the page until Ctrl-C, which is how it is meant to end. InputError where the extra is missing; EndedError after SIGTERM or SIGHUP."""
    try:
        from oram.dashboard.server import hosts_of, listen, serve
        from oram.dashboard.session import Settings
    except ImportError:
        raise InputError(_MISSING) from None
    settings = Settings().changed(scheme=scheme)
    listening = listen(host, port)
    print(f"What the server sees: http://{hosts_of(listening)[0]}/ (Ctrl-C ends it)", flush=True)
    with ending(), suppress(KeyboardInterrupt):
        serve(listening, settings=settings, seed=seed)
    print("stopped")
