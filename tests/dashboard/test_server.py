"""The page's server: whom it answers, what it takes, and that the page needs nothing else."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources
from typing import Any

import pytest
from starlette.testclient import TestClient

from oram.dashboard.server import POLICY, TOKEN_HEADER, Dashboard, hosts_of, listen
from oram.errors import ParameterError

HOST = "127.0.0.1:8787"
FILES = {"/": "text/html", "/watch.css": "text/css", "/watch.js": "text/javascript"}


@pytest.fixture(scope="module")
def dashboard() -> Dashboard:
    return Dashboard([HOST, "localhost:8787"])


@pytest.fixture(scope="module")
def client(dashboard: Dashboard) -> Iterator[TestClient]:
    with TestClient(dashboard.app, base_url=f"http://{HOST}") as client:
        yield client


@pytest.fixture
def token(client: TestClient) -> str:
    found = re.search(r'name="token" content="([\w-]+)"', client.get("/").text)
    assert found is not None
    return found[1]


def frame(dashboard: Dashboard) -> dict[str, Any]:
    """What a viewer would see now."""
    return dict(json.loads(dashboard._newest._frame))


@pytest.mark.parametrize("path", FILES)
def test_the_page_is_three_files_under_a_strict_policy(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(FILES[path])
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "no-store"
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_the_policy_allows_nothing_from_elsewhere() -> None:
    rules = dict(rule.strip().split(" ", 1) for rule in POLICY.split(";"))
    assert rules.pop("default-src") == "'none'"
    assert "'unsafe" not in POLICY
    assert set(rules.values()) <= {"'self'", "'none'", "data:", "'script'"}


@pytest.mark.parametrize("name", ["index.html", "watch.css", "watch.js"])
def test_nothing_is_loaded_from_elsewhere(name: str) -> None:
    text = resources.files("oram.dashboard").joinpath("page", name).read_text("utf-8")
    assert not re.search(
        r"https?:|//[\w.-]+\.\w+/|@import|url\(|innerHTML|outerHTML|insertAdjacent|eval\(|Function\(", text
    )
    found = list[str]()

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert not [name for name, _ in attrs if name == "style" or name.startswith("on")]
            found.extend(value or "" for name, value in attrs if name in ("src", "href"))

    if name == "index.html":
        Parser().feed(text)
        assert sorted(found) == ["data:,", "watch.css", "watch.js"]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "attacker.example"},
        {"host": "attacker.example:8787"},
        {"host": "127.0.0.1"},
        {"host": "127.0.0.1:80"},
        {"host": ""},
        {"origin": "http://attacker.example"},
        {"origin": "null"},
        {"origin": f"https://{HOST}"},
        {"origin": "http://localhost:8787"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_requests_from_elsewhere_are_refused(client: TestClient, token: str, headers: dict[str, str]) -> None:
    for path in (*FILES, "/events"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 403
        assert token not in answer.text
    assert client.post("/settings", json={"paused": True}, headers={**headers, TOKEN_HEADER: token}).status_code == 403


def test_two_hosts_are_refused(client: TestClient) -> None:
    assert client.get("/", headers=[("host", HOST), ("host", "attacker.example")]).status_code == 403


def test_its_own_names_are_served(client: TestClient) -> None:
    for host in (HOST, "localhost:8787", "LOCALHOST:8787"):
        assert client.get("/", headers={"host": host, "origin": f"http://{host.lower()}"}).status_code == 200
    assert client.get("/", headers={"sec-fetch-site": "same-origin"}).status_code == 200


@pytest.mark.parametrize("wrong", [None, b"", b"x", "ü".encode()])
def test_a_change_needs_the_token(client: TestClient, dashboard: Dashboard, wrong: bytes | None) -> None:
    before = frame(dashboard)["settings"]
    headers = [] if wrong is None else [(TOKEN_HEADER.encode(), wrong)]
    answer = client.post("/settings", json={"paused": True}, headers=headers)
    assert answer.status_code == 403
    assert "reload" in answer.json()["error"]
    assert frame(dashboard)["settings"] == before


def test_each_server_has_a_token_of_its_own(dashboard: Dashboard) -> None:
    assert Dashboard([HOST])._token != dashboard._token


def test_a_change_is_a_post_of_json(client: TestClient, token: str) -> None:
    head = {TOKEN_HEADER: token}
    assert client.get("/settings", headers=head).status_code == 405
    assert client.put("/settings", json={}, headers=head).status_code == 405
    form = client.post("/settings", data={"paused": "true"}, headers=head)
    assert form.status_code == 415  # what a form of another site could send without asking first
    bad = {**head, "content-type": "application/json"}
    for body in (b"", b"{", b"\xff", b"[" * 4000, b"[]", b"null", b'"paused"'):
        assert client.post("/settings", content=body, headers=bad).status_code == 400
    assert client.post("/settings", content=b" " * 5000, headers=bad).status_code == 413


@pytest.mark.parametrize(
    "change",
    [
        {"scheme": "none"},
        {"scheme": ["path"]},
        {"scheme": None},
        {"workload": "x"},
        {"workload": {}},
        {"rate": 7},
        {"rate": True},
        {"rate": "200"},
        {"rate": 200.0},
        {"leak": "x"},
        {"leak": []},
        {"leaking": 1},
        {"paused": "yes"},
        {"seed": 1},
        {"reset": False},
        {"reset": True, "paused": True},
        {"scheme": "path", "rate": 10**400},
        {"": ""},
        {"self": 1},
        {"self": {}, "new": {}},
    ],
)
def test_a_change_that_makes_no_sense_changes_nothing(
    client: TestClient, dashboard: Dashboard, token: str, change: dict[str, Any]
) -> None:
    before = frame(dashboard)
    answer = client.post("/settings", json=change, headers={TOKEN_HEADER: token})
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert frame(dashboard) == before


def test_changes_are_seen_by_all(client: TestClient, dashboard: Dashboard, token: str) -> None:
    def change(**what: Any) -> dict[str, Any]:
        assert client.post("/settings", json=what, headers={TOKEN_HEADER: token}).status_code == 204
        return frame(dashboard)

    run = frame(dashboard)["run"]
    assert change(paused=True, rate=1000)["run"] == run  # goes on
    now = change(scheme="linear", workload="scan")
    assert (now["run"], now["settings"]["scheme"], now["settings"]["workload"]) == (run + 1, "linear", "scan")
    assert now["settings"]["paused"]
    assert change(reset=True)["run"] == run + 2


def test_where_it_listens() -> None:
    for host, shown in (("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("127.0.0.9", "127.0.0.9")):
        with listen(host, 0) as listening:
            address, port = listening.getsockname()
            assert address == shown
            assert hosts_of(listening) == [f"{shown}:{port}", f"localhost:{port}"]


def test_names_of_other_sockets() -> None:
    class At:
        def __init__(self, *name: object) -> None:
            self.getsockname = lambda: name

    assert hosts_of(At("::1", 8787, 0, 0)) == ["[::1]:8787", "localhost:8787"]  # type: ignore[arg-type]
    assert hosts_of(At("127.0.0.1", 80)) == ["127.0.0.1:80", "localhost:80", "127.0.0.1", "localhost"]  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.1", "example.org", "localhost.example.org", "127.1"])
def test_other_addresses_are_refused(host: str) -> None:
    with pytest.raises(ParameterError, match="loopback only"):
        listen(host, 0)


def test_no_thread_is_left() -> None:
    before = set(threading.enumerate())
    dashboard = Dashboard([HOST])
    with TestClient(dashboard.app, base_url=f"http://{HOST}") as client:
        assert client.get("/").status_code == 200
        (engine,) = [
            each for each in threading.enumerate() if each not in before and each.name.startswith("oram-watch")
        ]
    assert not engine.is_alive()
    assert set(threading.enumerate()) <= before


def test_events_are_the_choices_and_then_frames(dashboard: Dashboard, client: TestClient) -> None:
    async def scene() -> list[Any]:
        stream = dashboard._stream()
        first = await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        return [first.event, json.loads(str(first.data))]

    event, data = asyncio.run(scene())
    assert event == "choices"
    assert {*data} == {"schemes", "workloads", "rates", "leaks"}


# --- over sockets, as a process of its own

CODE = """
import contextlib, socket
from oram.dashboard import server
vars(server).update(%r)
with server.listen("127.0.0.1", 0) as listening, contextlib.suppress(KeyboardInterrupt):
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    print(listening.getsockname()[1], flush=True)
    server.serve(listening)
"""
HEAD = "GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n{more}\r\n"


class Serving:
    """A server in a process, which ends by SIGINT as that of a user does."""

    def __init__(self, **settings: float) -> None:
        told = {"_PATIENCE": 60.0, "_SLOW": 60.0, **settings}
        self.process = subprocess.Popen([sys.executable, "-c", CODE % told], stdout=-1, stderr=-1, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def ask(self, path: str, more: str = "") -> socket.socket:
        """A connection with a request on it."""
        made = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        made.sendall(HEAD.format(path=path, port=self.port, more=more).encode())
        return made

    def token(self) -> str:
        with self.ask("/", "connection: close\r\n") as connection, connection.makefile("rb") as answer:
            found = re.search(r'name="token" content="([\w-]+)"', answer.read().decode())
        assert found is not None
        return found[1]

    def unfinished(self, token: str) -> socket.socket:
        """A change whose end never comes."""
        head = f"x-oram-token: {token}\r\ncontent-type: application/json\r\ncontent-length: 50\r\n"
        made = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        made.sendall(HEAD.format(path="/settings", port=self.port, more=head).replace("GET", "POST").encode() + b"{")
        return made

    def ended(self) -> str:
        """What it said, once it has ended. That it had to wait for somebody would be among it."""
        self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate(timeout=30)
        assert self.process.returncode == 0
        return said


@pytest.fixture
def serving(request: pytest.FixtureRequest) -> Iterator[Serving]:
    made = Serving(**getattr(request, "param", {}))
    yield made
    made.process.kill()
    made.process.communicate()


def test_seats_are_taken_where_they_are_given(serving: Serving) -> None:
    """All at once: the first ones have seen nothing yet when the last ones ask."""
    viewers = [socket.create_connection(("127.0.0.1", serving.port), timeout=30) for _ in range(100)]
    for viewer in viewers:
        viewer.sendall(HEAD.format(path="/events", port=serving.port, more="").encode())
    answers = [viewer.recv(12, socket.MSG_WAITALL) for viewer in viewers]
    assert Counter(answers) == {b"HTTP/1.1 200": 16, b"HTTP/1.1 503": 84}
    for viewer in viewers:
        viewer.close()
    end = time.monotonic() + 30
    while True:  # the seats are given back
        with serving.ask("/events") as viewer:
            if viewer.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 200":
                break
        assert time.monotonic() < end
    assert serving.ended() == ""


def test_a_body_that_does_not_end_holds_nothing_up(serving: Serving) -> None:
    with serving.unfinished(serving.token()) as connection:
        time.sleep(0.3)
        assert serving.ended() == ""
        assert connection.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 408"


@pytest.mark.parametrize("serving", [{"_PATIENCE": 0.3}], indirect=True)
def test_a_body_has_to_come_at_once(serving: Serving) -> None:
    token = serving.token()
    with serving.unfinished(token) as connection, connection.makefile("rb") as answer:
        assert answer.read().startswith(b"HTTP/1.1 408")  # and its connection is closed
    serving.unfinished(token).close()
    assert serving.token() == token
    assert serving.ended() == ""


@pytest.mark.parametrize(
    "serving", [{"_BEAT": 0.02, "_SLOW": 1.0}, {"_BEAT": 0.02}], indirect=True, ids=["cut off", "not yet"]
)
def test_who_never_reads_holds_nothing_up(serving: Serving, request: pytest.FixtureRequest) -> None:
    viewer = socket.socket()
    viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    viewer.connect(("127.0.0.1", serving.port))
    with viewer:
        viewer.sendall(HEAD.format(path="/events", port=serving.port, more="").encode())
        time.sleep(4)
        lines = serving.ended().splitlines()
    assert len(lines) == ("cut off" in request.node.name)  # uvicorn's, for which the answer is not complete
    assert not any("Traceback" in line or "Cancel" in line for line in lines)
