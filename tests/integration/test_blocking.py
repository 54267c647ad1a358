"""A user of ten thousand cohorts: nothing that concerns the user holds up the store for long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
import redis

from app.cohorts import Cohort, MembershipChange
from app.cohorts.cohort import MAX_USER_ID_BYTES
from app.settings import Settings
from app.store import Copier, Store, connect, side
from tests.conftest import running_store

APP, COHORTS = "shop", 10_000
USERS = ["ann", "bob"]
# Four times what a call may take on a quiet machine.
LONGEST_US = 40_000
# Other programs may take the core from the store in the middle of a call, which it counts as its
# own time. What takes too long by itself does so every time.
ATTEMPTS = 6


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A store in which each user is in all cohorts."""
    with running_store() as url:
        store = open_store(url)
        for start in range(0, COHORTS, 250):
            changes = [MembershipChange(cohort(n), True, USERS) for n in range(start, start + 250)]
            store.apply(APP, changes, way="test")
        yield url


def open_store(url: str, partitions: int = 1) -> Store:
    return Store(connect(Settings(redis_url=url)), partitions=partitions)


@pytest.fixture
def client(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        client.config_set("slowlog-log-slower-than", LONGEST_US)
        yield client


def slow_calls(*clients: redis.Redis) -> list[tuple[int, str]]:
    """Microseconds and beginning of the calls that took a store too long since this was asked."""
    found = [entry for client in clients for entry in client.slowlog_get(100)]
    for client in clients:
        client.slowlog_reset()
    return [(entry["duration"], str(entry["command"])[:80]) for entry in found]


def enter(store: Store, user: str) -> None:
    for start in range(0, COHORTS, 500):
        changes = [MembershipChange(cohort(n), True, [user]) for n in range(start, start + 500)]
        store.apply(APP, changes, way="test")


def cohort(number: int) -> Cohort:
    return Cohort(f"cohort-{number:06}", f"Who did this: cohort-{number:06}")


def read(store: Store, number: int) -> None:
    user = USERS[number % len(USERS)]
    assert len(store.reads.user(APP, user).memberships) == COHORTS
    assert len(store.user(APP, user).traits) == COHORTS
    assert sum(map(len, store.reads.users(APP, USERS))) == len(USERS)


def check(store: Store, number: int) -> None:
    report = store.checker.run([APP])
    assert report.ok
    assert report.fields >= len(USERS) * COHORTS


def rename(store: Store, number: int) -> None:
    renamed = Cohort(cohort(number).id, f"Who did that: {cohort(number).id}")
    store.register_cohort(APP, renamed, way="test")
    jobs = store.lifecycle.jobs()
    assert jobs
    for job in jobs:
        while store.lifecycle.step(job) is not None:
            pass


def delete(store: Store, number: int) -> None:
    assert sum(store.lifecycle.delete(APP, cohort(number).id)) == len(USERS)
    store.apply(APP, [MembershipChange(cohort(number), True, USERS)], way="test")


def erase(store: Store, number: int) -> None:
    assert store.lifecycle.erase(APP, USERS[number % len(USERS)]).traits == COHORTS
    enter(store, USERS[number % len(USERS)])


@pytest.mark.parametrize("call", [read, check, rename, delete, erase])
def test_store__of_users_in_ten_thousand_cohorts__is_not_held_up(
    url: str, client: redis.Redis, call: Callable[[Store, int], None]
) -> None:
    store = open_store(url)
    for number in range(ATTEMPTS):
        slow_calls(client)
        call(store, number)
        slow = slow_calls(client)
        if not slow:
            return
    pytest.fail(f"{slow}")


def test_copy__of_users_in_thousands_of_cohorts__holds_up_neither_store() -> None:
    few = 2500
    for _ in range(ATTEMPTS):
        with running_store() as here, running_store() as there, ExitStack() as stack:
            source = Settings(redis_url=here)
            target = replace(source, redis_url=there, store_partitions=2)
            store, copied = open_store(here), open_store(there, 2)
            clients = [stack.enter_context(redis.Redis.from_url(u)) for u in (here, there)]
            for client in clients:
                client.config_set("slowlog-log-slower-than", LONGEST_US)
            for start in range(0, few, 250):
                changes = [
                    MembershipChange(cohort(n), True, USERS) for n in range(start, start + 250)
                ]
                store.apply(APP, changes, way="test")
            assert Copier(side(source), side(target)).run().ok
            for user in USERS:
                assert copied.traits(APP, user) == store.traits(APP, user)
                assert len(copied.reads.user(APP, user).memberships) == few
            assert copied.checker.run([APP]).ok
            store.lifecycle.erase(APP, USERS[0])
            assert Copier(side(source), side(target)).run().ok
            assert copied.traits(APP, USERS[0]) == {}
            assert len(copied.traits(APP, USERS[1])) == few
            assert copied.checker.run([APP]).ok
            slow = slow_calls(*clients)
        if not slow:
            return
    pytest.fail(f"{slow}")


@pytest.mark.parametrize("sign", ["x", "語", "\x01"])  # of one byte, of three, of six in the stream
def test_store__told_of_users_with_the_longest_ids__is_not_held_up(
    url: str, client: redis.Redis, sign: str
) -> None:
    store, slow = open_store(url), []
    for number in range(ATTEMPTS):
        length = MAX_USER_ID_BYTES // len(sign.encode())
        ids = [f"{number:03}{n:05}".ljust(length, sign)[:length] for n in range(1000)]
        slow_calls(client)
        assert (
            store.apply(APP, [MembershipChange(cohort(0), True, ids)], way="test").changed == 1000
        )
        slow = slow_calls(client)
        if not slow:
            return
    assert slow == []
