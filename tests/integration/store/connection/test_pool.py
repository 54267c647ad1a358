"""The pool's connections, to a real store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from threading import Thread
from typing import Any

import pytest
import redis

from app.store.connection.calls import Call, Wait
from app.store.connection.pool import Client, make_pool
from app.store.connection.scripts import register_fenced
from app.store.connection.server import NotResponding
from tests.support.polling import wait_until

Make = Callable[..., Client]


@pytest.fixture
def make(store_url: str) -> Iterator[Make]:
    """Make a client with a pool; keyword arguments are the pool's."""
    with ExitStack() as stack:

        def make(**options: Any) -> Client:
            options = {"max_connections": 1, "timeout": 10, "tls_options": {}, **options}
            pool = make_pool(store_url, **options)
            stack.callback(pool.disconnect)
            return Client(connection_pool=pool)

        yield make


@pytest.fixture
def client(make: Make) -> Client:
    return make()


def test_connection__after_a_change_of_the_primary__is_made_anew_once(client: Client) -> None:
    before = client.client_id()
    assert client.client_id() == before
    pool: Any = client.connection_pool
    pool.server.changed()
    after = client.client_id()
    assert after != before
    assert client.client_id() == after


def test_write__to_a_primary_that_became_a_replica__fails_and_all_connections_are_replaced(
    make: Make, redis_client: redis.Redis
) -> None:
    client = make(max_connections=2)
    before = connection_ids(client, 2)
    redis_client.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(redis.ReadOnlyError):
            client.set("key", "1")
    finally:
        redis_client.replicaof("NO", "ONE")
    assert not before & connection_ids(client, 2)
    assert client.set("key", "1")


def connection_ids(client: Client, count: int) -> set[int]:
    """The ids of several connections of a client's pool."""
    pool: Any = client.connection_pool
    held = [pool.get_connection() for _ in range(count)]
    ids = set()
    for connection in held:
        connection.send_command("CLIENT", "ID")
        ids.add(connection.read_response())
        pool.release(connection)
    assert len(ids) == count
    return ids


def test_write__by_a_user_who_may_not_wait_for_replicas__fails(
    make: Make, redis_client: redis.Redis
) -> None:
    redis_client.acl_setuser(
        "hasty", enabled=True, nopass=True, keys="*", commands=["+@all", "-wait"]
    )
    try:
        client = make(username="hasty", password="any")
        script = register_fenced(client, "#!lua\nreturn 7")
        assert client.write(script, Call("key", [])) == 7
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.write(script, Call("key", []), Wait(1))
    finally:
        redis_client.acl_deluser("hasty")


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
