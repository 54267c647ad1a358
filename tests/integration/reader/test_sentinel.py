"""A reader of a store behind Sentinels follows each failover."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import redis
from flask import Flask

from cohort_reader import AsyncCohortReader, CohortReader, connect, connect_async
from simulator import payloads
from tests.integration.conftest import APP, caller
from tests.support.effort import thorough
from tests.support.polling import wait_until
from tests.support.sentinels import SERVICE, Sentinels, running_sentinels

COHORT = "abc123"


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Sentinels]:
    with running_sentinels(password="s3cret") as sentinels:
        yield sentinels


@pytest.fixture
def send(sentinels: Sentinels, make_app: Callable[..., Flask]) -> Callable[[str], bool]:
    """Let a user enter. Returns whether the service could store that."""
    http = caller(make_app(redis_url=sentinels.url, store_timeout_seconds=0.5))

    def send(user_id: str) -> bool:
        body = payloads.identify(user_id, f"[Amplitude] Power users: {COHORT}", True)
        return http.post(payloads.COHORT_PATH, json=body).status_code == 200

    return send


def fail_over(sentinels: Sentinels) -> None:
    old = sentinels.primary()

    def begins() -> bool:
        with suppress(redis.ResponseError):  # the last one may not have ended
            sentinels.clients[0].execute_command("SENTINEL", "FAILOVER", SERVICE)
            return True
        return False

    wait_until(begins)
    wait_until(lambda: sentinels.primary() is not old)


@thorough
def test_reader__when_another_server_becomes_the_primary__follows(
    sentinels: Sentinels, send: Callable[[str], bool]
) -> None:
    with connect(sentinels.url, timeout_seconds=0.5) as client:
        reader = CohortReader(client, app=APP)
        wait_until(lambda: send("a"))
        assert reader.is_member("a", COHORT)
        fail_over(sentinels)
        began = time.monotonic()
        # The first may be written to the old primary, and be lost with it.
        wait_until(lambda: send("b") and reader.is_member("b", COHORT, default=False))
        assert time.monotonic() - began < 10


@thorough
def test_async_reader__when_another_server_becomes_the_primary__follows(
    sentinels: Sentinels, send: Callable[[str], bool]
) -> None:
    async def follow() -> None:
        async with connect_async(sentinels.url, timeout_seconds=0.5) as client:
            reader = AsyncCohortReader(client, app=APP)
            await asyncio.to_thread(wait_until, lambda: send("c"))
            assert await reader.is_member("c", COHORT)
            await asyncio.to_thread(fail_over, sentinels)
            began = time.monotonic()
            while not await reader.is_member("d", COHORT, default=False):
                assert time.monotonic() - began < 10
                # Again and again: the first may be written to the old primary, and be lost with it.
                await asyncio.to_thread(send, "d")

    asyncio.run(follow())


def test_reader__whose_sentinels_are_down__says_so() -> None:
    with connect("redis+sentinel://127.0.0.1:1,127.0.0.1:1/cohorts") as client:
        reader = CohortReader(client, app=APP)
        with pytest.raises(redis.ConnectionError):
            reader.is_member("a", COHORT)
        assert reader.is_member("a", COHORT, default=True)


@pytest.mark.parametrize("url", ["redis+sentinel://h:1", "redis+sentinel://h:1/s/x"])
def test_connect__to_an_address_of_another_form__is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="redis\\+sentinel://host:port"):
        connect(url)
