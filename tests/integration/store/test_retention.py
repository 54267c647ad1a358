"""What is kept for a limited time leaves without requests, in small steps."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from app.cohorts import Cohort, MembershipChange
from app.server.background import Background
from app.settings import Settings
from app.store import Store, Tuning, connect
from app.store.api_keys import StoredKey
from app.store.change_stream import EntryId, PositionLost
from app.store.jobs import Job

APP, SILENT = "shop", "silent"
HOUR, DAY = 3600, 24 * 3600
LIMIT_DAYS = 7


@pytest.fixture(params=[1, 2], ids=["one partition", "two partitions"])
def store(request: pytest.FixtureRequest, store_url: str, redis_client: redis.Redis) -> Store:
    client = connect(Settings(redis_url=store_url))
    return Store(client, partitions=request.param, changes_max_age_hours=24 * LIMIT_DAYS)


def say(store: Store, app_id: str, *users: str, member: bool = True) -> None:
    change = MembershipChange(Cohort.from_trait("one: 1"), member, list(users))
    store.memberships.apply(app_id, [change], source="test")


def age(client: redis.Redis, days: float, pattern: str = "cohorts:*:changes") -> None:
    """Rewrite streams as if all their entries had been added this many days ago."""
    for key in client.scan_iter(match=pattern, _type="stream"):
        entries: Any = client.xrange(key)
        client.delete(key)
        last = b"0-0"
        for number, (_, fields) in enumerate(entries):
            at = f"{int((time.time() - days * DAY) * 1000)}-{number}"
            last = client.xadd(key, {**fields, "previous": last}, id=at)
        client.set(f"{key}:last", last)


def entries(client: redis.Redis, app_id: str) -> int:
    return sum(client.xlen(key) for key in client.keys(f"cohorts:{{{app_id}*:changes"))


def test_change_stream__of_an_app_that_is_silent__ages(
    store: Store, redis_client: redis.Redis
) -> None:
    for number in range(60):
        say(store, SILENT, *(f"u{n}" for n in range(8)), member=number % 2 == 0)
    age(redis_client, 30)
    say(store, APP, *(f"u{n}" for n in range(8)))
    before = entries(redis_client, APP)
    assert entries(redis_client, SILENT) >= 60
    Background(store).remove_old()
    assert entries(redis_client, SILENT) == 0
    assert entries(redis_client, APP) == before > 0


def test_change_stream__partly_too_old__keeps_the_rest_to_the_entry(
    store: Store, redis_client: redis.Redis
) -> None:
    for number in range(20):
        say(store, SILENT, *(f"u{n}" for n in range(8)), member=number % 2 == 0)
    age(redis_client, 30)
    for number in range(6):
        say(store, SILENT, *(f"u{n}" for n in range(8)), member=number % 2 == 0)
    Background(store).remove_old()
    assert entries(redis_client, SILENT) == 6 * store.keys.partitions
    assert store.checker.run([SILENT]).ok


def test_change_stream__very_long__ages_in_steps(store: Store, redis_client: redis.Redis) -> None:
    key = store.keys.changes(SILENT, 0)
    old = int((time.time() - 30 * DAY) * 1000)
    pipeline = redis_client.pipeline(transaction=False)
    for number in range(5000):
        pipeline.xadd(key, {"cohort": "1"}, id=f"{old}-{number}")
    pipeline.execute()
    assert sum(1 for _ in store.retention.steps(SILENT, 0)) > 5
    assert redis_client.xlen(key) == 0


def test_position__before_entries_that_have_all_aged__is_lost(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, SILENT, *(f"u{n}" for n in range(8)))
    age(redis_client, 30)
    first = store.change_stream.read(SILENT, store.change_stream.oldest(), limit=1)
    position = tuple(EntryId(1, 0) for _ in first.after)
    Background(store).remove_old()
    with pytest.raises(PositionLost):
        store.change_stream.read(SILENT, position, limit=10)
    newest = store.change_stream.newest(SILENT)
    assert store.change_stream.read(SILENT, newest, limit=10).changes == []
    say(store, SILENT, *(f"new{n}" for n in range(8)))
    users = [c.users for c in store.change_stream.read(SILENT, newest, limit=10).changes]
    assert len(users) == store.keys.partitions


def test_given_up_entries__of_a_follower__age_and_are_erased_with_their_user(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, SILENT, "u1")
    stream = store.keys.changes(SILENT, store.keys.partition("u1"))
    redis_client.xgroup_create(stream, "crm", id="0")
    redis_client.xgroup_create(stream, b"\xff", id="0")  # type: ignore[arg-type]  not text
    failed = f"{stream}:crm:failed"
    for users in ('["u1"]', '["u1", "u2"]'):
        redis_client.xadd(failed, {"cohort": "1", "change": "entered", "users": users})
    store.erasure.erase(SILENT, "u1")
    assert [e["users"] for _, e in redis_client.xrange(failed)] == ['["u1", "u2"]']
    age(redis_client, 30, failed)
    Background(store).remove_old()
    assert redis_client.xlen(failed) == 0


def test_ended_keys__long_ago__are_forgotten_without_another_being_created(
    store: Store, redis_client: redis.Redis
) -> None:
    for key_id, ended_days in (("recent", 89), ("old", 91)):
        ended = int((time.time() - ended_days * DAY) * 1000)
        store.api_keys.create(StoredKey(key_id, "00" * 32, APP, "read", 1, ended, None))
    now = int(time.time() * 1000)
    store.api_keys.note_used({"old": now, "recent": now, "env-1": 1, "env-2": now})
    Background(store).remove_old()
    assert [key.id for key in store.api_keys.all()] == ["recent"]
    assert set(store.api_keys.used()) == {"recent", "env-2"}


def test_clock_of_the_process__is_not_asked_what_is_old(
    store: Store, store_url: str, redis_client: redis.Redis
) -> None:
    ended = int((time.time() - 91 * DAY) * 1000)
    store.api_keys.create(StoredKey("a", "00" * 32, APP, "read", 1, ended, None))
    with connect(Settings(redis_url=store_url)) as client:
        other = Store(client, tuning=Tuning(store_now=lambda: time.time() - 2 * DAY))
        other.sync_history.count_unknown_callers({"missing_credentials": 1})
        Background(other).remove_old()
        assert other.sync_history.unknown_callers() == {"missing_credentials": 1}
    assert [key.id for key in store.api_keys.all()] == ["a"]
    assert store.sync_history.unknown_callers() == {}


def test_unknown_callers__counted_again_and_again__keep_two_days(
    store: Store, redis_client: redis.Redis
) -> None:
    hour = int(time.time()) // HOUR
    for ago in (-24, 0, 47, 48, 100):
        redis_client.hset(store.keys.unknown_callers(), f"{hour - ago}:missing_credentials", 1)
    Background(store).remove_old()
    kept = redis_client.hkeys(store.keys.unknown_callers())
    assert sorted(hour - int(name.split(":")[0]) for name in kept) == [0, 47]


def test_remove_old__in_two_processes__looks_once(store: Store, redis_client: redis.Redis) -> None:
    say(store, SILENT, "u1")
    assert list(store.retention.steps(SILENT, 0))
    assert not list(store.retention.steps(SILENT, 0))
    assert redis_client.ttl(store.keys.looked_through(SILENT, 0)) > 0


def test_remove_old__an_app_whose_history_is_broken__leaves_the_others_their_turn(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, SILENT, *(f"u{n}" for n in range(8)))
    say(store, APP, "u1")
    age(redis_client, 30)
    for partition in range(store.keys.partitions):
        broken = store.keys.changes(APP, partition)
        redis_client.delete(broken)
        redis_client.set(broken, "of another type")
    Background(store).remove_old()
    assert entries(redis_client, SILENT) == 0


def test_leases__of_a_clock_that_was_ahead__do_not_outlast_it(
    store: Store, redis_client: redis.Redis
) -> None:
    """The store keeps the time at which a key ends, so setting its clock back extends it."""
    say(store, APP, "u")
    age(redis_client, 30)
    job = Job(APP, 0, "1")
    assert store.jobs.lease(job)
    Background(store).remove_old()
    age(redis_client, 30)
    for key in (*redis_client.keys("*:lease"), *redis_client.keys("*:looked-through")):
        redis_client.set(key, "a process that has ended", px=2 * DAY * 1000)
    assert store.jobs.lease(job)
    say(store, APP, "v")
    age(redis_client, 30)
    Background(store).remove_old()
    assert entries(redis_client, APP) == 0
