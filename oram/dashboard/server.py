"""The page, its events and its switches, on the loopback.

What may reach it: requests that name this server as their host, which a page of another site cannot make a browser send after it has bound its own name to
127.0.0.1 (DNS rebinding); from no other origin, as far as the browser says; and changes only with the token that the page was served with (CSRF).
There is no CORS header. The page loads nothing but its own three files, and may by its policy.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import secrets
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any, ParamSpec, TypeVar

import uvicorn
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from oram.dashboard.frames import Newest
from oram.dashboard.session import Session, Settings, choices
from oram.errors import ParameterError

__all__ = ["POLICY", "TOKEN_HEADER", "Dashboard", "Guard", "hosts_of", "listen", "serve"]

T = TypeVar("T")
P = ParamSpec("P")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
TOKEN_HEADER = "x-oram-token"  # noqa: S105 - its name

_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_BEAT = 0.2  # seconds between frames
_VIEWERS = 16  # at a time
_BODY = 4096  # bytes of a change
_PATIENCE = 5.0  # seconds until all of them have to be there
_SLOW = 60.0  # seconds that a viewer may take for a frame
_FILES = {"watch.css": "text/css", "watch.js": "text/javascript"}


class Guard:
    """Turns away what is not from this server's own page, and gives every answer the headers that a browser is to keep to.

    hosts: the names under which this server may be asked for, with port.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app, self._hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        refused = self._refuse(Headers(scope=scope))
        app = self._app if refused is None else PlainTextResponse(refused, 403)
        await app(scope, receive, headed)

    def _refuse(self, headers: Headers) -> str | None:
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return "this host is not served here"
        if any(origin.lower() != f"http://{hosts[0].lower()}" for origin in origins):
            return "requests of other origins are refused"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "requests of other sites are refused"
        return None


class Dashboard:
    """A session behind a page. hosts: as for ``Guard``. The engine runs in one thread of its own, and only while somebody looks."""

    def __init__(self, hosts: Sequence[str], *, settings: Settings | None = None, seed: int = 1) -> None:
        self._settings, self._seed = settings, seed
        self._token = secrets.token_urlsafe(32)
        self._session: Session
        self._worker: ThreadPoolExecutor
        self._newest: Newest
        self._reading = set[asyncio.Timeout]()
        routes = [
            Route("/", self._page),
            *(Route(f"/{name}", self._file) for name in _FILES),
            Route("/events", self._events),
            Route("/settings", self._change, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes, middleware=[Middleware(Guard, hosts=hosts)], lifespan=self._lifespan)

    # --- the engine

    async def _run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call it in the engine's thread, after what was asked for before."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, lambda: function(*args, **kwargs))

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:  # noqa: ARG002
        self._newest = Newest(_VIEWERS)
        with ThreadPoolExecutor(1, "oram-watch") as self._worker:
            self._session = await self._run(Session, self._settings, self._seed)
            await self._show()
            driving = asyncio.create_task(self._drive())
            try:
                yield
            finally:
                driving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await driving

    async def _show(self) -> None:
        frame = await self._run(lambda: json.dumps(self._session.frame(), separators=(",", ":")))
        await self._newest.show(frame)

    async def _drive(self) -> None:
        """Accesses at the chosen rate, and a frame each beat. What a slow machine did not manage is not made up for."""
        due, now = 0.0, asyncio.get_running_loop().time
        while True:
            await self._newest.watched()
            begun = now()
            settings = self._session.settings
            if not settings.paused and not self._session.over:
                due += settings.rate * _BEAT
                await self._run(self._session.step, int(due))
                due -= int(due)
                await self._show()
            await asyncio.sleep(max(0.0, begun + _BEAT - now()))

    async def end(self) -> None:
        """End every stream, and wait for no body any longer."""
        await self._newest.end()
        for timeout in self._reading:
            timeout.reschedule(asyncio.get_running_loop().time())

    # --- what is served

    async def _page(self, request: Request) -> Response:  # noqa: ARG002
        page = _read("index.html").replace("{{token}}", self._token)
        return Response(page, media_type="text/html")

    async def _file(self, request: Request) -> Response:
        name = request.url.path[1:]
        return Response(_read(name), media_type=_FILES[name])

    async def _events(self, request: Request) -> Response:  # noqa: ARG002
        if not self._newest.enter():
            return PlainTextResponse("too many viewers", 503)
        return _Seated(self._newest, self._stream())

    async def _stream(self) -> AsyncIterator[ServerSentEvent]:
        yield ServerSentEvent(json.dumps(choices()), event="choices")
        async with contextlib.aclosing(self._newest.frames()) as frames:
            async for frame in frames:
                yield ServerSentEvent(frame, event="frame")

    async def _change(self, request: Request) -> Response:
        if not hmac.compare_digest(request.headers.get(TOKEN_HEADER, "").encode(), self._token.encode()):
            return _problem("reload the page: this server was started after it", 403)
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return _problem("a change is JSON", 415)
        try:
            body = await self._body(request)
        except TimeoutError:
            return _problem("a change comes at once", 408, last=True)
        except ClientDisconnect:  # nobody gets this answer
            return _problem("a change is sent to its end", 400)
        if body is None:
            return _problem("a change is shorter", 413, last=True)
        try:
            change = json.loads(body)
        except (ValueError, RecursionError):
            return _problem("a change is JSON", 400)
        if not isinstance(change, dict):
            return _problem("a change is an object", 400)
        try:
            await self._run(self._apply, change)
        except ParameterError as error:
            return _problem(str(error), 400)
        await self._show()
        return Response(status_code=204)

    async def _body(self, request: Request) -> bytes | None:
        """None for one that is too long, TimeoutError for one that takes too long or is not there yet when the server ends."""
        body = b""
        async with asyncio.timeout(_PATIENCE) as timeout:
            self._reading.add(timeout)
            try:
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > _BODY:
                        return None
            finally:
                self._reading.discard(timeout)
        return body

    def _apply(self, change: dict[str, Any]) -> None:
        if change == {"reset": True}:
            self._session.reset()
        else:
            self._session.change(**change)


class _Seated(EventSourceResponse):
    """The events of one viewer. The seat, taken before, is given back after the last of them, also where the first one never got through."""

    def __init__(self, newest: Newest, events: AsyncIterator[ServerSentEvent]) -> None:
        super().__init__(events, send_timeout=_SLOW, shutdown_grace_period=2)  # ``end`` comes first
        self._newest = newest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One stream."""
        try:
            with contextlib.suppress(SendTimeoutError):  # it is cut off, and gets a seat again when it comes back
                await super().__call__(scope, receive, send)
        finally:
            self._newest.leave()


def _problem(text: str, status: int, *, last: bool = False) -> Response:
    """last: of its connection, on which the rest of a body may still come."""
    return JSONResponse({"error": text}, status, {"connection": "close"} if last else None)


def _read(name: str) -> str:
    return resources.files("oram.dashboard").joinpath("page", name).read_text("utf-8")


# --- the socket


def listen(host: str, port: int) -> socket.socket:
    """A socket on the loopback. host: 127.0.0.0/8, ::1 or localhost; ParameterError for any other. port: 0 for one that is free. OSError if it is taken."""
    address = "127.0.0.1" if host == "localhost" else host
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        ip = None
    if ip is None or not ip.is_loopback:
        raise ParameterError("the page is served on the loopback only: 127.0.0.1, ::1 or localhost")
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    return socket.create_server((str(ip), port), family=family)


def hosts_of(listening: socket.socket) -> list[str]:
    """The names, with port, under which a socket may be asked for; the first is the one to show."""
    address, port = listening.getsockname()[:2]
    own = f"[{address}]" if ":" in address else address
    return [f"{own}:{port}", f"localhost:{port}", *([own, "localhost"] if port == 80 else [])]


class _Server(uvicorn.Server):
    """A server whose streams end before it waits for them."""

    def __init__(self, config: uvicorn.Config, dashboard: Dashboard) -> None:
        super().__init__(config)
        self._dashboard = dashboard

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._dashboard.end()
        for connection in list(self.server_state.connections):
            if (
                isinstance(connection, H11Protocol) and connection.flow.write_paused
            ):  # nobody reads what is still to be sent
                connection.transport.abort()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGHUP too, with which a terminal goes away, unless it is ignored. Once all has ended, a signal goes to whoever had it before."""
        with super().capture_signals():  # which raises again, at its end, what came
            before = signal.getsignal(signal.SIGHUP)
            if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
                yield
                return
            signal.signal(signal.SIGHUP, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(signal.SIGHUP, before)


def serve(listening: socket.socket, *, settings: Settings | None = None, seed: int = 1) -> None:
    """Serve the page until SIGINT, SIGTERM or SIGHUP, then end every stream and the engine's thread, and raise the signal again: KeyboardInterrupt
    after SIGINT.
    """
    dashboard = Dashboard(hosts_of(listening), settings=settings, seed=seed)
    config = uvicorn.Config(
        dashboard.app, log_level="warning", access_log=False, proxy_headers=False, server_header=False, ws="none", http="h11",
        loop="asyncio", lifespan="on", timeout_graceful_shutdown=3,
    )  # fmt: skip
    with listening:
        _Server(config, dashboard).run(sockets=[listening])
