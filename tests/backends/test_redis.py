"""The Redis backend over real servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from oram.backends import RedisBackend
from oram.testing.conformance import BackendConformance
from oram.testing.servers import Server, redis_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def unix_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("unix"), unix=True) as server:
        yield server


class TestRedisBackend(BackendConformance):
    @pytest.fixture
    def backend(self, server: Server, request: pytest.FixtureRequest) -> Iterator[RedisBackend]:
        self.url = server.url(f"store-{abs(hash(request.node.name))}")
        with RedisBackend(self.url) as backend:
            yield backend

    def reopen(self, backend: object) -> RedisBackend:
        assert isinstance(backend, RedisBackend)
        backend.close()
        return RedisBackend(self.url)
