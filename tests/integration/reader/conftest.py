"""The service that fills the store, and stores that are stopped and started again."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
import redis
import redis.asyncio
from flask import Flask
from flask.testing import FlaskClient

from app.settings import Settings
from app.store import Store, Tuning, connect
from cohort_reader import AsyncCohortReader, AsyncFollower, CohortReader, Follower
from simulator import payloads
from tests.integration.conftest import APP, caller
from tests.integration.reader.blocking import Blocking, Loop
from tests.support.effort import THOROUGH
from tests.support.stores import socket_url, start_store, store_folder

COHORT = "abc123"
TRAIT = payloads.trait_name("Power users", COHORT)


# Notices at once that a store has lost its data.
ALERT = Tuning(layout_check_seconds=0)


class Service:
    """The service in this process, and the app whose cohorts it receives."""

    app = APP

    def __init__(self, http: FlaskClient, partitions: int) -> None:
        self._http = http
        self.partitions = partitions

    def push(self, user_ids: Sequence[str] | str, member: bool = True, trait: str = TRAIT) -> None:
        """Send one call, as Amplitude does, and see that it is acknowledged."""
        users = [user_ids] if isinstance(user_ids, str) else user_ids
        self._post(payloads.COHORT_PATH, payloads.batch(users, trait, member))

    def push_traits(self, user_id: str, traits: Sequence[str]) -> None:
        """Send that a user has several traits."""
        identify = payloads.batch([user_id], TRAIT, True)
        identify["batch"][0]["traits"] = dict.fromkeys(traits, True)
        self._post(payloads.COHORT_PATH, identify)

    def store(self, url: str) -> Store:
        """The service's own view of the store."""
        return Store(connect(Settings(redis_url=url)), partitions=self.partitions)

    def push_webhook(self, user_id: str, computed_time: int) -> None:
        """Tell by a webhook that a user is in the cohort."""
        body = payloads.webhook(
            "Power users",
            COHORT,
            [user_id],
            True,
            computed_time=computed_time,
            message_id=f"{user_id}::enter::0",
        )
        self._post(payloads.WEBHOOK_PATH, body)

    def _post(self, path: str, body: object) -> None:
        reply = self._http.post(path, json=body)
        assert reply.status_code == 200, reply.text


@pytest.fixture(params=["blocking", "asyncio"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which of the two a test runs with: the classes for threads, or those for asyncio."""
    return str(request.param)


@pytest.fixture(params=["ordered", "unordered"] if THOROUGH else ["either"])
def ordered(request: pytest.FixtureRequest, kind: str) -> bool:
    """Whether followers are ordered: each of the kinds is both, or if not thorough, one of them."""
    if request.param == "either":
        return kind == "blocking"
    return bool(request.param == "ordered")


@pytest.fixture
def loop(kind: str) -> Iterator[Loop | None]:
    """The event loop of the asyncio classes."""
    if kind == "blocking":
        yield None
        return
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def service(request: pytest.FixtureRequest, kind: str, make_app: Callable[..., Flask]) -> Service:
    """The service, with one partition for the blocking classes, and three for those of asyncio."""
    partitions = getattr(request, "param", 1 if kind == "blocking" else 3)
    return Service(caller(make_app(store_partitions=partitions, tuning=ALERT)), partitions)


@pytest.fixture
def split_service(make_app: Callable[..., Flask]) -> Service:
    """The service with three partitions."""
    return Service(caller(make_app(store_partitions=3, tuning=ALERT)), 3)


@pytest.fixture(params=[False, True], ids=["bytes", "text"])
def decode(request: pytest.FixtureRequest) -> bool:
    """Whether the client's replies are text, with ``decode_responses``, or bytes."""
    return bool(request.param)


Clients = Callable[..., Any]


@pytest.fixture
def connect_client(store_url: str, loop: Loop | None) -> Iterator[Clients]:
    """Make an application's client of the test's kind; arguments are its own, and its address."""
    with ExitStack() as stack:

        def connect(url: str = store_url, **options: Any) -> Any:
            if loop is None:
                return stack.enter_context(redis.Redis.from_url(url, **options))
            client = redis.asyncio.Redis.from_url(url, **options)
            stack.callback(lambda: loop.run(client.aclose()))
            return client

        yield connect


@pytest.fixture
def make_reader(connect_client: Clients, loop: Loop | None) -> Callable[..., CohortReader]:
    """Make a reader; keyword arguments are its own, and ``client``."""

    def make(client: Any = None, **options: Any) -> CohortReader:
        client = client or connect_client()
        options = {"app": APP, **options}
        if loop is None:
            return CohortReader(client, **options)
        return cast(CohortReader, Blocking(AsyncCohortReader(client, **options), loop))

    return make


class RestartableStore:
    """A store that writes all to disk before it answers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.url = socket_url(folder)
        self._server: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self._server = start_store(self._folder, "--appendonly", "yes", "--appendfsync", "always")

    def kill(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait(30)
            self._server = None


@pytest.fixture
def restartable_store() -> Iterator[RestartableStore]:
    with store_folder() as folder:
        store = RestartableStore(folder)
        try:
            yield store
        finally:
            store.kill()


@pytest.fixture
def make(
    redis_client: redis.Redis, connect_client: Clients, loop: Loop | None
) -> Callable[..., Follower]:
    """Make a follower of everything; keyword arguments are its own, and ``client``."""

    def make(client: Any = None, **changes: Any) -> Follower:
        # A follower blocks for half of the timeout at most, and so ends as soon.
        client = client or connect_client(socket_timeout=1.0)
        options: dict[str, Any] = {"group": "mail", "app": APP, "start": "all", **changes}
        if loop is None or isinstance(client, redis.Redis):
            return Follower(client, **options)
        return cast(Follower, Blocking(loop.make(lambda: AsyncFollower(client, **options)), loop))

    return make
