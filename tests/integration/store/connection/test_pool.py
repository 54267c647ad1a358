"""The pool's connections, to a real store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from threading import Thread
from typing import Any

import pytest
import redis

from app.store.connection.pool import Client, make_pool
from app.store.connection.server import NotResponding
from tests.support.polling import wait_until


@pytest.fixture
def client(store_url: str) -> Iterator[Client]:
    with ExitStack() as stack:
        pool = make_pool(store_url, max_connections=1, timeout=10, tls_options={})
        stack.callback(pool.disconnect)
        yield Client(connection_pool=pool)


def test_connection__after_a_change_of_the_primary__is_made_anew_once(client: Client) -> None:
    before = client.client_id()
    assert client.client_id() == before
    pool: Any = client.connection_pool
    pool.server.changed()
    after = client.client_id()
    assert after != before
    assert client.client_id() == after


def test_call__that_waited_for_a_connection_to_a_silent_server__is_not_sent(
    client: Client,
) -> None:
    pool: Any = client.connection_pool
    held = pool.get_connection()
    failures: list[Exception] = []

    def call() -> None:
        try:
            client.set("sent", "1")
        except redis.RedisError as error:
            failures.append(error)

    waiting = Thread(target=call)
    waiting.start()
    wait_until(lambda: bool(pool.pool._waiting))
    pool.server._failure = redis.TimeoutError("Timeout reading from socket")
    pool.release(held)
    waiting.join(10)
    assert [type(failure) for failure in failures] == [NotResponding]
    pool.server.replied()
    assert client.get("sent") is None


def test_pool__in_a_forked_process__makes_connections_of_its_own(client: Client) -> None:
    before = client.client_id()
    pool: Any = client.connection_pool
    pool.pid = -1  # that of the process that made the pool
    assert client.client_id() != before


def test_connection__of_the_process_that_was_forked__is_closed_and_replaced(
    client: Client,
) -> None:
    before = client.client_id()
    pool: Any = client.connection_pool
    connection = pool.get_connection()
    connection.pid = -1
    pool.release(connection)
    assert connection._sock is None
    assert client.client_id() != before
