"""Deleting cohorts: beside requests, on several partitions, and killed at any point."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import redis

from app.cohorts import Cohort, MembershipChange
from app.server.background import Background
from app.settings import Settings
from app.store import Applied, Store, connect
from app.store.errors import CohortPartlyDeleted
from tests.integration.killed_process import KilledError, killed_at
from tests.integration.store_contents import members

APP = "shop"
ONE = "[Amplitude] one: 1"
OLD = [f"old{n}" for n in range(12)]
NEW = [f"new{n}" for n in range(12)]


def say(store: Store, *users: str, member: bool = True, trait: str = ONE) -> Applied:
    change = MembershipChange(Cohort.from_trait(trait), member, list(users))
    return store.memberships.apply(APP, [change], source="test")


def finish(store: Store, client: redis.Redis) -> None:
    """Another worker, after the leases of a killed one have ended."""
    for lease in client.scan_iter(match="*:lease"):
        client.delete(lease)
    for _ in range(10):
        if not store.jobs.pending():
            return
        Background(store).work()
    pytest.fail("the deletion does not end")


@pytest.fixture(params=[1, 2, 3], ids=["one partition", "two partitions", "three partitions"])
def make_store(
    request: pytest.FixtureRequest, store_url: str, redis_client: redis.Redis
) -> Callable[..., Store]:
    """A store as a new process has it; killed at a command, if one is given."""

    def make(killed: int | None = None) -> Store:
        client = connect(Settings(redis_url=store_url))
        if killed is not None:
            killed_at(client, killed)
        return Store(client, partitions=request.param)

    return make


@pytest.fixture
def partitions(store_url: str, redis_client: redis.Redis) -> Store:
    return Store(connect(Settings(redis_url=store_url)), partitions=2)


def test_request__of_which_one_partition_has_only_skipped_users__is_refused_as_a_whole(
    partitions: Store,
) -> None:
    """Nothing of it was applied, so nothing is undone either."""
    users = [next(u for u in NEW if partitions.keys.partition(u) == p) for p in (0, 1)]
    say(partitions, *OLD)
    partitions.erasure.erase(APP, users[0], suppress=True)
    partitions.jobs.begin_deletion(APP, "1")
    assert say(partitions, *users).refused == {"1"}


def test_request__after_a_deletion_was_killed_anywhere__is_applied_or_can_be_repeated(
    make_store: Callable[..., Store], redis_client: redis.Redis
) -> None:
    for command in itertools.count():
        redis_client.flushall()
        say(make_store(), *OLD)
        try:
            list(make_store(killed=command).jobs.delete_cohort(APP, "1"))
        except KilledError:
            pass
        else:
            break
        store = make_store()
        try:
            refused = say(store, *NEW).refused == {"1"}
        except CohortPartlyDeleted:
            refused = True
        else:
            there = members(redis_client, APP).get("1", set())
            assert there.issuperset(NEW) if not refused else there.isdisjoint(NEW), command
        finish(store, redis_client)
        if refused:
            assert members(redis_client, APP) == {}, command
            assert say(store, *NEW).refused == set(), command
        began = command == 0 or not refused
        assert members(redis_client, APP)["1"] - set(OLD if began else ()) == set(NEW), command
        assert store.checker.run([APP]).ok, command
        assert store.jobs.pending() == [], command
    assert command > 3
    assert redis_client.keys("*:cohort:1:*") == []


def due(store: Store) -> int:
    return sum(store.freshness.counts([APP]).values())


@pytest.mark.parametrize(
    "late_call",
    [
        lambda store: store.freshness.record_received(APP, ["1"]),
        lambda store: store.freshness.record_known(APP, "1"),
        lambda store: store.freshness.set_cadence(APP, "1", 60_000),
        lambda store: store.size_history.record(APP, ["1"]),
        lambda store: store.completeness.leave_out(APP, "1", {"unknown_user": 1}),
    ],
    ids=["received", "known", "cadence", "sizes", "left out"],
)
@pytest.mark.parametrize("while_deleting", [True, False], ids=["during", "after"])
def test_record__of_a_request_that_a_deletion_overtook__leaves_nothing(
    make_store: Callable[..., Store],
    redis_client: redis.Redis,
    late_call: Callable[[Store], None],
    while_deleting: bool,
) -> None:
    store = make_store()
    say(store, *OLD)
    store.size_history.record(APP, ["1"])
    store.jobs.begin_deletion(APP, "1")
    if while_deleting:
        late_call(make_store())
    finish(store, redis_client)
    if not while_deleting:
        late_call(make_store())
    expiring = redis_client.keys("*:cohort:1:lease")
    assert redis_client.keys("*:cohort:1:*") == expiring
    assert due(store) == 0
    assert store.checker.run([APP]).ok


def test_record__in_a_home_partition_without_users_of_the_cohort__is_kept_until_its_deletion(
    make_store: Callable[..., Store], redis_client: redis.Redis
) -> None:
    store = make_store()
    for number in range(6):  # in some, the only user is elsewhere than the records
        say(store, "u1", trait=f"n: {number}")
    assert due(store) == 6
    found = store.freshness.of(APP, [str(number) for number in range(6)])
    assert all(freshness.last_received_ms for freshness in found)
    assert store.checker.run([APP]).ok
    for number in range(6):
        list(store.jobs.delete_cohort(APP, str(number)))
    assert due(store) == 0
    assert redis_client.keys("*:cohort:*") == []
    assert store.checker.run([APP]).ok


def test_message__half_of_which_was_applied_when_a_deletion_began__is_new_when_repeated(
    store_url: str, redis_client: redis.Redis
) -> None:
    store = Store(connect(Settings(redis_url=store_url)), partitions=2)
    say(store, *OLD)
    change = MembershipChange(Cohort.from_trait(ONE), True, NEW)

    def send() -> Applied:
        return store.memberships.apply(APP, [change], source="test", message_id="m1")

    # the deletion has marked its first partition only
    redis_client.hset(store.keys.cohort(APP, 0, "1", "state"), "deleting", "d1")
    redis_client.sadd(store.keys.jobs(APP, 0), "1")
    with pytest.raises(CohortPartlyDeleted):
        send()
    assert send().refused == {"1"}  # all partitions are marked by now
    finish(store, redis_client)
    applied = send()
    assert (applied.changed, applied.repeated) == (len(NEW), False)
    assert members(redis_client, APP) == {"1": set(NEW)}
