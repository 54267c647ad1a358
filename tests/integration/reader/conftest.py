"""The service that fills the store, and stores that are stopped and started again."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient

from app.store import Tuning
from simulator import payloads
from tests.integration.conftest import APP, caller
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


@pytest.fixture(params=[1, 3], ids=["one partition", "three partitions"])
def service(request: pytest.FixtureRequest, make_app: Callable[..., Flask]) -> Service:
    return Service(caller(make_app(store_partitions=request.param, tuning=ALERT)), request.param)


@pytest.fixture
def split_service(make_app: Callable[..., Flask]) -> Service:
    """The service with three partitions."""
    return Service(caller(make_app(store_partitions=3, tuning=ALERT)), 3)


@pytest.fixture(params=[False, True], ids=["bytes", "text"])
def reading_client(
    request: pytest.FixtureRequest, store_url: str, redis_client: redis.Redis
) -> Iterator[redis.Redis]:
    """An application's client; replies are bytes or, with ``decode_responses``, text."""
    with redis.Redis.from_url(store_url, decode_responses=request.param) as client:
        yield client


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
