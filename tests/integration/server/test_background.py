"""Background work of one worker: fair to all apps, whatever the jobs of one of them do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Event, Thread

import pytest
import redis

from app.cohorts import Cohort, MembershipChange
from app.server.background import Background
from app.settings import Settings
from app.store import Store, Tuning, connect
from tests.support.polling import wait_until

BUSY, QUIET = "busy", "quiet"


@pytest.fixture(params=[1, 2], ids=["one partition", "two partitions"])
def store(request: pytest.FixtureRequest, store_url: str, redis_client: redis.Redis) -> Store:
    return Store(connect(Settings(redis_url=store_url)), partitions=request.param)


def say(store: Store, app_id: str, trait: str, *users: str) -> None:
    change = MembershipChange(Cohort.from_trait(trait), True, list(users))
    store.memberships.apply(app_id, [change], source="test")


@pytest.fixture
def renames(store: Store) -> Iterator[None]:
    """An app that renames a cohort again before all of its users have moved."""
    say(store, BUSY, "old: 1", *[f"u{n}" for n in range(20_000)])
    ended = Event()

    def rename() -> None:
        number = 0
        while not ended.wait(0.05):
            number += 1
            say(store, BUSY, f"new {number}: 1", "u0")

    thread = Thread(target=rename)
    thread.start()
    yield
    ended.set()
    thread.join()


@pytest.fixture
def worker(store: Store) -> Iterator[Thread]:
    """Background work in one round after the other, as long as the test runs."""
    background, ended = Background(store), Event()

    def work() -> None:
        while not ended.is_set():
            background.work()
            time.sleep(0.01)

    thread = Thread(target=work)
    thread.start()
    yield thread
    ended.set()
    thread.join()


def seconds_of_deletion(store: Store) -> float:
    say(store, QUIET, "ten users: 1", *[f"u{n}" for n in range(10)])
    began = time.monotonic()
    assert store.jobs.begin_deletion(QUIET, "1")
    wait_until(lambda: store.registry.find(QUIET, "1") is None, 30)
    return time.monotonic() - began


def test_deletion__of_one_app__does_not_wait_for_the_renames_of_another(
    store: Store, worker: Thread, renames: None
) -> None:
    wait_until(lambda: bool(store.jobs.pending()))
    # One of three attempts: the machine may be busy with something else.
    assert any(seconds_of_deletion(store) < 5 for _ in range(3))


def test_jobs__more_than_are_listed_at_once__are_all_done(
    store_url: str, redis_client: redis.Redis
) -> None:
    with connect(Settings(redis_url=store_url)) as client:
        store = Store(client, tuning=Tuning(jobs_listed=5))
        for number in range(30):
            say(store, BUSY, f"old: {number}", "u0")
            say(store, BUSY, f"new: {number}", "u1")
        assert (len(store.jobs.pending()), store.jobs.count()) == (5, 30)
        assert store.jobs.count([QUIET]) == 0
        Background(store).work()
        assert store.jobs.count() == 0
        assert redis_client.hgetall("cohorts:{busy}:user:u0").keys() == {
            f"new: {number}" for number in range(30)
        }


def test_deletion__of_one_app__does_not_wait_for_jobs_of_another_that_fail(
    store: Store, redis_client: redis.Redis
) -> None:
    for number in range(10):
        say(store, BUSY, f"n: {number}", *[f"u{n}" for n in range(10)])
        store.jobs.begin_deletion(BUSY, str(number))
    broken = redis_client.keys("cohorts:{busy*:members")
    for key in broken:
        redis_client.delete(key)
        redis_client.set(key, "of another type")
    say(store, QUIET, "ten users: 1", *[f"u{n}" for n in range(10)])
    store.jobs.begin_deletion(QUIET, "1")
    background = Background(store)
    background.work()
    assert store.registry.find(QUIET, "1") is None
    assert {job.app_id for job in store.jobs.pending()} == {BUSY}
    for key in broken:
        redis_client.delete(key)
    wait_until(lambda: background.work() is None and not store.jobs.pending(), 30)


def test_job__of_a_partition_that_fails__leaves_those_of_others_their_turns(
    store: Store, redis_client: redis.Redis
) -> None:
    """A list of jobs that can't be read keeps no other list from being read."""
    say(store, BUSY, "old: 1", "u0", "u1", "u2", "u3")
    say(store, QUIET, "ten users: 1", *[f"u{n}" for n in range(10)])
    store.jobs.begin_deletion(QUIET, "1")
    redis_client.set(store.keys.jobs(BUSY, 0), "of another type")
    Background(store).work()
    assert store.registry.find(QUIET, "1") is None
