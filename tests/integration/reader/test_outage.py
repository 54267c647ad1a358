"""The reader is never the cause of an outage: defaults, the breaker, one refresh at a time."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from flask import Flask

from cohort_reader import (
    AsyncCohortReader,
    CohortReader,
    Completeness,
    Freshness,
    FreshnessState,
    Membership,
    Profile,
    StoreUnavailable,
    connect,
    connect_async,
)
from tests.integration.conftest import APP, caller
from tests.integration.reader.conftest import COHORT, Clients, RestartableStore, Service
from tests.support.polling import DEADLINE, wait_until
from tests.support.stores import socket_url, start_store, store_folder

MakeReader = Callable[..., CohortReader]
SINGLE_TRY: dict[str, Any] = {"retry": None, "retry_on_error": []}


class HangingStore:
    """A store that can be stopped, as by SIGSTOP: connections stay open, nothing is answered."""

    def __init__(self, folder: Path) -> None:
        self.url = socket_url(folder)
        self._server = start_store(folder)

    def hang(self) -> None:
        os.kill(self._server.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._server.pid, signal.SIGCONT)

    def end(self) -> None:
        self._server.kill()
        self._server.wait(30)


@pytest.fixture
def hanging_store() -> Iterator[HangingStore]:
    with store_folder() as folder:
        store = HangingStore(folder)
        try:
            yield store
        finally:
            store.end()


@pytest.fixture
def hanging_service(hanging_store: HangingStore, make_app: Callable[..., Flask]) -> Service:
    service = Service(caller(make_app(redis_url=hanging_store.url)), 1)
    service.push("a")
    return service


def test_default__of_every_lookup__is_returned_while_the_store_is_away(
    restartable_store: RestartableStore, make_reader: MakeReader, connect_client: Clients
) -> None:
    reader = make_reader(connect_client(restartable_store.url, **SINGLE_TRY))
    restartable_store.kill()
    freshness = Freshness(FreshnessState.LATE)
    for _ in range(5):  # also when the breaker has opened
        assert reader.is_member("a", COHORT, default=True)
        assert not reader.is_member("a", COHORT, default=False)
        assert reader.member_since("a", COHORT, default=None) is None
        assert reader.member_since("a", COHORT, default=7) == 7
        assert reader.membership("a", COHORT, default=Membership(7)) == Membership(7)
        assert reader.are_members(["a", "b"], COHORT, default=True) == {"a": True, "b": True}
        assert reader.memberships(["a"], COHORT, default=Membership(7)) == {"a": Membership(7)}
        assert reader.profile("a", default=Profile({})) == Profile({})
        assert reader.traits("a", default={"t": True}) == {"t": True}
        assert reader.cohorts("a", default=set()) == set()
        assert reader.member_count(COHORT, default=3) == 3
        assert reader.freshness(COHORT, default=freshness) == freshness
        assert reader.completeness(COHORT, default=Completeness()) == Completeness()
        assert reader.exists(COHORT, default=True)
        assert reader.cohort_ids(default=["x"]) == ["x"]
    with pytest.raises(redis.ConnectionError):
        reader.is_member("a", COHORT)
    with pytest.raises(redis.ConnectionError):
        list(reader.members(COHORT))


def test_default__where_the_store_refuses_the_reader__is_returned_and_a_warning_logged(
    service: Service,
    make_reader: MakeReader,
    connect_client: Clients,
    redis_client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service.push("a")
    redis_client.acl_setuser("nobody", enabled=True, nopass=True)
    try:
        reader = make_reader(connect_client(username="nobody", password="any"))
        for _ in range(3):
            assert reader.is_member("a", COHORT, default=True)
        assert caplog.text.count("returning defaults") == 1
        assert "no permissions" in caplog.text.lower()
    finally:
        redis_client.acl_deluser("nobody")


def test_default__for_an_argument_of_the_wrong_type__hides_no_mistake(
    service: Service, make_reader: MakeReader
) -> None:
    service.push("a")
    nobody: Any = None
    with pytest.raises((redis.DataError, AttributeError)):
        make_reader().is_member(nobody, COHORT, default=False)


def test_breaker__after_failures__asks_once_per_pause(
    restartable_store: RestartableStore,
    make_app: Callable[..., Flask],
    make_reader: MakeReader,
    connect_client: Clients,
) -> None:
    service = Service(caller(make_app(redis_url=restartable_store.url)), 1)
    service.push("a")
    client = connect_client(restartable_store.url, **SINGLE_TRY)
    reader = make_reader(client, breaker_failures=2, breaker_seconds=1000)
    quick = make_reader(client, breaker_failures=2, breaker_seconds=0.01)
    assert reader.is_member("a", COHORT)
    restartable_store.kill()
    for one in (reader, quick):
        for _ in range(2):
            with pytest.raises(redis.ConnectionError) as raised:
                one.is_member("a", COHORT)
            assert not isinstance(raised.value, StoreUnavailable)
    restartable_store.start()
    with pytest.raises(StoreUnavailable, match=r"not called.*connecting to "):
        reader.is_member("a", COHORT)
    wait_until(lambda: quick.is_member("a", COHORT, default=False))


def test_breaker__of_a_reader_whose_pool_is_full__stays_closed(
    hanging_service: Service, hanging_store: HangingStore
) -> None:
    with redis.Redis.from_url(hanging_store.url, max_connections=1, **SINGLE_TRY) as client:
        reader = CohortReader(client, app=APP)
        held = client.connection_pool.get_connection()
        for _ in range(9):
            with pytest.raises(redis.exceptions.MaxConnectionsError):
                reader.is_member("a", COHORT)
        client.connection_pool.release(held)
        assert reader.is_member("a", COHORT)


def test_store_that_hangs__with_a_default__costs_threads_a_bounded_time(
    hanging_service: Service, hanging_store: HangingStore
) -> None:
    with connect(hanging_store.url) as client:
        reader = CohortReader(client, app=APP)
        assert reader.is_member("a", COHORT)

        def ask(number: int) -> bool:
            return reader.is_member("a", COHORT, default=False)

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(ask, range(64)))
            hanging_store.hang()
            began = time.monotonic()
            answers = list(threads.map(ask, range(1000)))
            took = time.monotonic() - began
            hanging_store.go_on()
        assert not any(answers)
        assert took < 3, took
        began = time.monotonic()
        wait_until(lambda: ask(0))
        assert time.monotonic() - began < 2


def test_store_that_hangs__with_a_default__costs_coroutines_a_bounded_time(
    hanging_service: Service, hanging_store: HangingStore
) -> None:
    async def run() -> None:
        async with connect_async(hanging_store.url) as client:
            reader = AsyncCohortReader(client, app=APP)
            assert await reader.is_member("a", COHORT)

            async def ask_all() -> list[bool]:
                asked = (reader.is_member("a", COHORT, default=False) for _ in range(1000))
                return await asyncio.gather(*asked)

            # On a busy machine, so many lookups may take longer than the timeout.
            ends = time.monotonic() + DEADLINE
            while not all(await ask_all()):
                assert time.monotonic() < ends, "more than the pool has connections"
                await asyncio.sleep(0.1)
            hanging_store.hang()
            began = time.monotonic()
            assert not any(await ask_all())
            assert time.monotonic() - began < 3
            hanging_store.go_on()
            began = time.monotonic()
            while not await reader.is_member("a", COHORT, default=False):
                await asyncio.sleep(0.01)
            assert time.monotonic() - began < 2

    asyncio.run(run())


@pytest.mark.parametrize("connections", [2, 100])
def test_coroutines__more_than_connections__wait_for_each_other(
    service: Service, store_url: str, connections: int
) -> None:
    service.push("a")

    async def run() -> list[bool]:
        client = redis.asyncio.Redis.from_url(store_url, max_connections=connections)
        async with client:
            reader = AsyncCohortReader(client, app=APP)
            return await asyncio.gather(*(reader.is_member("a", COHORT) for _ in range(200)))

    assert asyncio.run(run()) == [True] * 200


def test_cancelled_lookup__leaves_the_reader_as_it_was(
    hanging_service: Service, hanging_store: HangingStore
) -> None:
    async def run() -> None:
        client = redis.asyncio.Redis.from_url(hanging_store.url)
        async with client:
            reader = AsyncCohortReader(client, app=APP, cache_entries=9, cache_seconds=0.001)
            assert await reader.is_member("a", COHORT)
            hanging_store.hang()
            lookups = [
                asyncio.create_task(reader.is_member("a", COHORT, default=False)) for _ in range(9)
            ]
            # Until its reply is awaited: before, on Python 3.11.2, the client polls the connection
            # with a timeout that can swallow a cancellation.
            for _ in range(20):
                await asyncio.sleep(0)
            lookups[0].cancel()
            await asyncio.sleep(0)
            hanging_store.go_on()
            answers = await asyncio.gather(*lookups, return_exceptions=True)
            assert isinstance(answers[0], asyncio.CancelledError)
            assert answers[1:] == [True] * 8
            assert await reader.is_member("a", COHORT)

    asyncio.run(run())


class CountingClient(redis.Redis):
    """Counts the questions about members, and answers them when told to."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.asked = 0
        self.answer = threading.Event()

    def zmscore(self, *args: Any) -> Any:
        self.asked += 1
        assert self.answer.wait(DEADLINE)
        return super().zmscore(*args)


def test_refresh__of_an_answer_that_many_threads_want__is_made_once(
    hanging_service: Service, hanging_store: HangingStore
) -> None:
    with CountingClient.from_url(hanging_store.url, **SINGLE_TRY) as client:
        now = [0.0]
        reader = CohortReader(
            client,
            app=APP,
            cache_entries=9,
            cache_seconds=1,
            stale_seconds=60,
            clock=lambda: now[0],
        )
        client.answer.set()
        assert reader.is_member("a", COHORT)
        client.answer.clear()
        now[0] += 2
        with ThreadPoolExecutor(50) as threads:
            lookups = [threads.submit(reader.membership, "a", COHORT) for _ in range(50)]
            wait_until(lambda: client.asked == 2)
            client.answer.set()
            answers = [lookup.result(DEADLINE) for lookup in lookups]
        assert client.asked == 2
        assert {(answer.is_member, answer.stale) for answer in answers} == {(True, False)}


def test_stale_answers__wanted_by_many_threads_while_the_store_hangs__cost_one_timeout(
    hanging_service: Service, hanging_store: HangingStore
) -> None:
    with connect(hanging_store.url, timeout_seconds=0.1) as client:
        now = [0.0]
        reader = CohortReader(
            client,
            app=APP,
            cache_entries=9,
            cache_seconds=1,
            stale_seconds=60,
            clock=lambda: now[0],
        )
        assert reader.is_member("a", COHORT)
        now[0] += 2
        hanging_store.hang()
        with ThreadPoolExecutor(50) as threads:
            began = time.monotonic()
            lookups = [threads.submit(reader.membership, "a", COHORT) for _ in range(500)]
            answers = [lookup.result(DEADLINE) for lookup in lookups]
            took = time.monotonic() - began
        assert {(answer.is_member, answer.stale) for answer in answers} == {(True, True)}
        assert took < 4, took  # more, if each thread waited for each of its lookups
