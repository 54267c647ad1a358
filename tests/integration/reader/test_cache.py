"""The reader's cache: how long, how much, and what it is good for while the store is away."""

from __future__ import annotations

import re
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import redis
from flask import Flask

from cohort_reader import CohortReader, Membership
from simulator import payloads
from tests.integration.conftest import caller
from tests.integration.reader.conftest import COHORT, TRAIT, Clients, RestartableStore, Service
from tests.integration.reader.docs_examples import DOCS
from tests.support.effort import thorough
from tests.support.polling import wait_until

MakeReader = Callable[..., CohortReader]


class Clock:
    """Tells the seconds that it was set to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cached(service: Service, make_reader: MakeReader, clock: Clock) -> CohortReader:
    """A reader that keeps three answers for ten seconds."""
    return make_reader(cache_entries=3, cache_seconds=10, clock=clock)


def test_cache__within_its_time__answers_without_the_store(
    service: Service, cached: CohortReader, clock: Clock
) -> None:
    service.push("in")
    assert cached.is_member("in", COHORT)
    assert not cached.is_member("out", COHORT)
    assert cached.traits("in") == {TRAIT: True}
    service.push("in", False)
    service.push("out")
    clock.now += 10
    assert cached.membership("in", COHORT).age_seconds == 10
    assert cached.is_member("in", COHORT)
    assert not cached.is_member("out", COHORT)
    assert cached.traits("in") == {TRAIT: True}
    clock.now += 0.001
    assert not cached.is_member("in", COHORT)
    assert cached.is_member("out", COHORT)
    assert cached.traits("in") == {TRAIT: False}
    assert cached.membership("in", COHORT) == Membership(None)


def test_cache__without_one__sees_every_change_at_once(
    service: Service, make_reader: MakeReader
) -> None:
    reader = make_reader()
    for member in (True, False, True):
        service.push("a", member)
        assert reader.is_member("a", COHORT) is member
        assert reader.traits("a") == {TRAIT: member}


def test_cache__that_is_full__drops_what_was_not_used_for_longest(
    service: Service, cached: CohortReader
) -> None:
    for user_id in "abc":
        cached.is_member(user_id, COHORT)
    cached.is_member("a", COHORT)
    cached.is_member("d", COHORT)  # b has to go
    service.push(["a", "b", "c", "d"])
    assert cached.are_members(["a", "c", "d"], COHORT) == {"a": False, "c": False, "d": False}
    assert cached.is_member("b", COHORT)


def test_cache__for_many_users__asks_only_for_those_missing(
    service: Service, cached: CohortReader
) -> None:
    assert not cached.is_member("a", COHORT)
    service.push(["a", "b"])
    assert cached.are_members(["a", "b", "c"], COHORT) == {"a": False, "b": True, "c": False}


def test_traits__that_the_caller_changes__leave_the_cache_alone(
    service: Service, cached: CohortReader
) -> None:
    service.push("a")
    cached.traits("a").clear()
    assert cached.traits("a") == {TRAIT: True}


def test_cache__used_by_many_threads__answers_right(
    service: Service, make_reader: MakeReader
) -> None:
    users = payloads.user_ids(60)
    service.push(users[::2])
    reader = make_reader(cache_entries=20, cache_seconds=60)
    right = {user_id: number % 2 == 0 for number, user_id in enumerate(users)}
    wrong: list[str] = []

    def ask(offset: int) -> None:
        for number in range(300):
            user_id = users[(offset + 7 * number) % len(users)]
            if reader.is_member(user_id, COHORT) is not right[user_id]:
                wrong.append(user_id)

    threads = [threading.Thread(target=ask, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "arguments",
    [
        {"cache_entries": 10},
        {"cache_seconds": 10},
        {"stale_seconds": 10},
        {"cache_entries": -1, "cache_seconds": 1},
        {"cache_entries": 1, "cache_seconds": -1},
    ],
)
def test_arguments__that_make_no_sense__are_refused(
    redis_client: redis.Redis, arguments: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match="cache"):
        CohortReader(redis_client, **arguments)


SINGLE_TRY: dict[str, Any] = {"retry": None, "retry_on_error": []}


def test_store_away__kept_answers__are_given_as_stale_up_to_the_bound(
    restartable_store: RestartableStore,
    make_app: Callable[..., Flask],
    make_reader: MakeReader,
    connect_client: Clients,
    clock: Clock,
) -> None:
    service = Service(caller(make_app(redis_url=restartable_store.url)), 1)
    service.push("a")
    reader = make_reader(
        connect_client(restartable_store.url, **SINGLE_TRY),
        cache_entries=100,
        cache_seconds=10,
        stale_seconds=300,
        breaker_seconds=0.01,
        clock=clock,
    )
    entered = reader.member_since("a", COHORT)
    reader.is_member("b", COHORT)
    reader.profile("a")
    restartable_store.kill()

    clock.now += 10
    assert reader.membership("a", COHORT) == Membership(entered, 10.0, stale=False)
    clock.now += 1
    assert reader.membership("a", COHORT) == Membership(entered, 11.0, stale=True)
    assert reader.are_members(["a", "b"], COHORT) == {"a": True, "b": False}
    assert reader.profile("a").stale
    assert reader.cohorts("a") == {COHORT}

    assert reader.membership("b", COHORT) == Membership(None, 11.0, stale=True)
    with pytest.raises(redis.ConnectionError):
        reader.is_member("never asked before", COHORT)
    with pytest.raises(redis.ConnectionError):
        reader.are_members(["a", "never asked before"], COHORT)
    clock.now += 299
    assert reader.membership("a", COHORT).stale
    clock.now += 1
    with pytest.raises(redis.ConnectionError):
        reader.is_member("a", COHORT)

    restartable_store.start()
    wait_until(lambda: reader.membership("a", COHORT, default=Membership(0)) == Membership(entered))


def test_store_away__without_a_bound__is_the_callers_to_deal_with(
    restartable_store: RestartableStore,
    make_app: Callable[..., Flask],
    make_reader: MakeReader,
    connect_client: Clients,
    clock: Clock,
) -> None:
    service = Service(caller(make_app(redis_url=restartable_store.url)), 1)
    service.push("a")
    reader = make_reader(
        connect_client(restartable_store.url, **SINGLE_TRY),
        cache_entries=9,
        cache_seconds=10,
        clock=clock,
    )
    assert reader.is_member("a", COHORT)
    restartable_store.kill()
    assert reader.is_member("a", COHORT)
    clock.now += 11
    for ask in (reader.is_member, reader.member_since):
        with pytest.raises(redis.ConnectionError):
            ask("a", COHORT)
    with pytest.raises(redis.ConnectionError):
        reader.member_count(COHORT)


@thorough
@pytest.mark.parametrize(
    ("what", "documented"), [("a membership", 430), ("a profile of five traits", 500)]
)
def test_cache_entry__takes_about_as_much_memory_as_documented(
    redis_client: redis.Redis, what: str, documented: int
) -> None:
    page = (DOCS / "python-reader.md").read_text()
    assert re.search(rf"{what}\s+(takes )?about {documented}\b", page, re.IGNORECASE)
    users = payloads.user_ids(1000)
    assert len(users[0]) == 24
    for user_id in users:
        redis_client.zadd("cohorts:{shop}:cohort:abc123:members", {user_id: 1767225600000})
        traits = {payloads.trait_name(f"Cohort number {n}", f"id{n}"): "true" for n in range(5)}
        redis_client.hset(f"cohorts:{{shop}}:user:{user_id}", mapping=traits)
    redis_client.set("cohorts:layout", 1)
    reader = CohortReader(redis_client, app="shop", cache_entries=9999, cache_seconds=60)

    def ask(user_id: str) -> object:
        if what == "a membership":
            return reader.is_member(user_id, COHORT)
        return reader.traits(user_id)

    for user_id in users[:100]:
        ask(user_id)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        # The id of an application's user is an object of its own.
        for user_id in users[100:]:
            ask(user_id.encode().decode())
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.5 * documented < taken / 900 < 1.15 * documented, taken / 900
