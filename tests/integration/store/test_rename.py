"""A cohort that arrives under a new name."""

from __future__ import annotations

import json
import time
from itertools import permutations

import pytest
import redis

from app.cohorts import Cohort, MembershipChange, Status
from app.server.background import Background
from app.settings import Settings
from app.store import CohortFilter, Store, connect
from tests.integration.store_contents import members, traits, transitions
from tests.support.effort import PARTITIONS
from tests.support.polling import wait_until

APP = "shop"
OLD, NEW = "[Amplitude] old: 1", "[Amplitude] new: 1"


@pytest.fixture(params=PARTITIONS)
def store(request: pytest.FixtureRequest, store_url: str, redis_client: redis.Redis) -> Store:
    client = connect(Settings(redis_url=store_url))
    return Store(client, partitions=request.param)


def say(store: Store, trait: str, member: bool, *users: str, at_ms: int | None = None) -> int:
    change = MembershipChange(Cohort.from_trait(trait), member, list(users), at_ms)
    return store.memberships.apply(APP, [change], source="test").changed


USERS = [f"u{n}" for n in range(12)]


def work_until_done(store: Store) -> None:
    """Do rounds of background work until no job is left: on a busy machine, one does less."""
    background = Background(store)

    def is_done() -> bool:
        background.work()
        return not store.jobs.pending()

    wait_until(is_done)


def test_new_name__touched_users__get_the_new_field_and_lose_the_old_at_once(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, OLD, True, *USERS)
    say(store, OLD, False, *USERS[:3])
    # one who enters again, one who stays out, one who stays in, one who leaves, a new one
    say(store, NEW, True, "u0", "u3", "new")
    say(store, NEW, False, "u1", "u4")
    found = traits(redis_client, APP)
    assert {u: found[u] for u in ("u0", "u1", "u3", "u4", "new")} == {
        "u0": {NEW: "true"},
        "u1": {NEW: "false"},
        "u3": {NEW: "true"},
        "u4": {NEW: "false"},
        "new": {NEW: "true"},
    }


def test_new_name__readers_by_cohort_id__never_notice(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, OLD, True, *USERS)
    before = members(redis_client, APP)
    told = transitions(redis_client, APP)
    say(store, NEW, True, *USERS)
    Background(store).work()
    assert members(redis_client, APP) == before
    assert transitions(redis_client, APP) == told


def test_move__of_the_rest__leaves_no_old_field(store: Store, redis_client: redis.Redis) -> None:
    say(store, OLD, True, *USERS)
    say(store, OLD, False, *USERS[:4])
    say(store, NEW, True, *USERS[8:])
    # every partition learns the new name when it is next spoken to
    store.memberships.register_cohort(APP, Cohort.from_trait(NEW), source="test")
    Background(store).work()
    assert traits(redis_client, APP) == {
        u: {NEW: "false" if u in USERS[:4] else "true"} for u in USERS
    }
    assert store.jobs.pending() == []
    record = store.registry.find(APP, "1")
    assert record is not None
    assert (record.trait, record.status, list(record.earlier_names)) == (NEW, Status.ACTIVE, [OLD])


def test_move__partitions_that_saw_only_the_old_name__follow(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, OLD, True, *USERS)
    say(store, NEW, True, "u0")
    Background(store).work()
    assert traits(redis_client, APP) == {u: {NEW: "true"} for u in USERS}


def test_move__stopped_and_begun_again__completes(store: Store, redis_client: redis.Redis) -> None:
    users = [f"user-{n}" for n in range(3000)]
    for start in range(0, 3000, 1000):
        say(store, OLD, True, *users[start : start + 1000])
    store.memberships.register_cohort(APP, Cohort.from_trait(NEW), source="test")
    for job in store.jobs.pending():
        store.jobs.step(job)  # one step only, then the process is gone
    moved = sum(NEW in fields for fields in traits(redis_client, APP).values())
    assert 0 < moved < 3000
    assert store.registry.find(APP, "1").status == Status.RENAMING
    Background(store).work()
    assert set(map(tuple, traits(redis_client, APP).values())) == {(NEW,)}


def test_old_name__in_a_late_retry__does_not_undo_the_rename(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, OLD, True, "u0")
    say(store, NEW, True, "u0")
    say(store, OLD, False, "u0")
    assert traits(redis_client, APP) == {"u0": {NEW: "false"}}
    assert store.registry.trait(APP, "1") == NEW


def test_old_name__in_an_older_statement__does_not_undo_the_rename(
    store: Store, redis_client: redis.Redis
) -> None:
    now = time.time_ns() // 1_000_000
    say(store, NEW, True, "u0", at_ms=now - 1000)
    say(store, OLD, True, "u0", at_ms=now - 2000)
    assert traits(redis_client, APP) == {"u0": {NEW: "true"}}
    assert store.registry.trait(APP, "1") == NEW


def test_three_names__one_after_the_other__end_at_the_last(
    store: Store, redis_client: redis.Redis
) -> None:
    third = "[Amplitude] third: 1"
    say(store, OLD, True, *USERS)
    say(store, NEW, True, *USERS[:6])
    say(store, third, True, *USERS[:3])
    Background(store).work()
    assert traits(redis_client, APP) == {u: {third: "true"} for u in USERS}
    assert set(store.registry.find(APP, "1").earlier_names) <= {OLD, NEW}


def test_lease__held_by_another_process__leaves_the_job_to_it(
    store: Store, store_url: str, redis_client: redis.Redis
) -> None:
    other = Store(connect(Settings(redis_url=store_url)), partitions=store.keys.partitions)
    say(store, OLD, True, *USERS)
    say(store, NEW, True, "u0")
    jobs = other.jobs.pending()
    assert len(jobs) == store.keys.partitions
    for job in jobs:
        assert other.jobs.lease(job)
        assert other.jobs.lease(job)
        assert not store.jobs.lease(job)
    Background(store).work()
    assert store.jobs.pending() == jobs


def test_new_name__while_users_are_moved_to_another__reaches_all_partitions(
    store: Store, redis_client: redis.Redis
) -> None:
    users, third = [f"user-{n}" for n in range(6000)], "[Amplitude] third: 1"
    for start in range(0, 6000, 1000):
        say(store, OLD, True, *users[start : start + 1000])
    say(store, NEW, True, "user-0")
    (job, *_) = store.jobs.pending()
    assert store.jobs.step(job) is not None
    say(store, third, True, "user-0")
    work_until_done(store)
    assert set(map(tuple, traits(redis_client, APP).values())) == {(third,)}
    assert store.jobs.pending() == []
    assert store.registry.find(APP, "1").status == Status.ACTIVE


def test_names__more_than_are_kept_while_users_are_moved__leave_no_old_field(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, OLD, True, *USERS)
    for n in range(60):
        say(store, f"n{n}: 1", True, "u0")
    for _ in range(2):
        Background(store).work()
    assert traits(redis_client, APP) == {u: {"n59: 1": "true"} for u in USERS}


def test_old_name__in_a_late_retry_to_a_partition_that_meets_the_cohort__does_not_undo_the_rename(
    store: Store, redis_client: redis.Redis
) -> None:
    home = store.keys.partition("u0")
    others = [user for user in USERS if store.keys.partition(user) != home]
    say(store, OLD, True, "u0")
    say(store, NEW, True, "u0")
    say(store, OLD, True, *others)
    for _ in range(2):
        Background(store).work()
    assert store.registry.trait(APP, "1") == NEW
    assert traits(redis_client, APP) == {u: {NEW: "true"} for u in ["u0", *others]}


def test_new_name__first_told_to_a_partition_that_meets_the_cohort__reaches_the_others(
    store: Store, redis_client: redis.Redis
) -> None:
    home = store.keys.partition("u0")
    others = [user for user in USERS if store.keys.partition(user) != home] or USERS[1:]
    say(store, OLD, True, "u0")
    say(store, NEW, True, *others)
    for _ in range(2):
        Background(store).work()
    assert traits(redis_client, APP) == {u: {NEW: "true"} for u in ["u0", *others]}


def test_new_name__from_a_node_whose_clock_is_behind__reaches_the_others(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, OLD, True, *USERS)
    ahead = time.time_ns() // 1_000_000 + 60_000
    for key in redis_client.scan_iter("*:state"):
        if key != store.keys.cohort(APP, store.keys.partition("u0"), "1", "state"):
            redis_client.hset(key, "named", ahead)
    say(store, NEW, True, "u0")
    for _ in range(2):
        Background(store).work()
    assert traits(redis_client, APP) == {u: {NEW: "true"} for u in USERS}
    assert store.registry.trait(APP, "1") == NEW
    third = "[Amplitude] third: 1"  # and from a node whose clock is ahead
    say(store, third, True, *[u for u in USERS if store.keys.partition(u) == 0][:1])
    Background(store).work()
    assert traits(redis_client, APP) == {u: {third: "true"} for u in USERS}


def test_rename__completed_by_another_process__is_not_remembered(
    store: Store, store_url: str, redis_client: redis.Redis
) -> None:
    other = Store(connect(Settings(redis_url=store_url)), partitions=store.keys.partitions)
    say(store, OLD, True, *[f"u{n}" for n in range(2000)])
    say(store, NEW, True, "u0")
    for job in store.jobs.pending():
        assert store.jobs.step(job)
    work_until_done(other)
    assert store.jobs.pending() == []
    assert store.jobs._spread == {}


def test_earlier_names__that_are_long__take_little_room(
    store: Store, redis_client: redis.Redis
) -> None:
    for number in range(25):
        say(store, f"{number:0>450}: 1", True, "u0", *USERS[number % 2 :])
        Background(store).work()
    for key in redis_client.scan_iter("*:state"):
        assert len(redis_client.hget(key, "names") or "") < 7000
    assert traits(redis_client, APP) == {u: {f"{24:0>450}: 1": "true"} for u in USERS}


def test_list__while_a_partition_has_an_earlier_name__shows_the_newest(
    store_url: str, redis_client: redis.Redis
) -> None:
    """By the number of renames: the times are those of different nodes."""
    with connect(Settings(redis_url=store_url)) as client:
        store = Store(client, partitions=2)
        say(store, OLD, True, *USERS)
        say(store, NEW, True, *USERS)
        behind = {"trait": OLD, "renames": 0, "named": time.time_ns() // 1_000_000 + 60_000}
        redis_client.hset(store.keys.cohort(APP, 1, "1", "state"), mapping=behind)
        (listed,) = store.cohort_list.page(APP, CohortFilter()).cohorts
        assert (listed.trait, listed.status) == (NEW, Status.RENAMING)
        assert store.registry.trait(APP, "1") == NEW


def test_renames__in_one_partition_each__end_at_the_last(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, OLD, True, *USERS)
    names = [f"n{n}: 1" for n in range(8)]
    for name, user in zip(names, USERS, strict=False):
        say(store, name, True, user)
        states = redis_client.scan_iter("*:state")
        assert {redis_client.hget(key, "trait") for key in states} == {name}
    for _ in range(2):
        Background(store).work()
    assert traits(redis_client, APP) == {u: {names[-1]: "true"} for u in USERS}


def test_flood_of_names__while_users_are_moved__is_bounded_and_ends_at_the_last(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, OLD, True, *USERS)
    redis_client.config_set("slowlog-log-slower-than", 40_000)
    redis_client.slowlog_reset()
    for n in range(300):
        say(store, f"{n}{'x' * 480}: 1", True, "u0", "new")
    for key in redis_client.scan_iter("*:state"):
        assert len(redis_client.hget(key, "names")) < 60 * 512
    assert redis_client.slowlog_get() == []
    for _ in range(4):
        Background(store).work()
    last = f"299{'x' * 480}: 1"
    assert traits(redis_client, APP) == {u: {last: "true"} for u in [*USERS, "new"]}
    assert store.jobs.pending() == []
    assert store.checker.run([APP]).ok
    assert sum(store.jobs.delete_cohort(APP, "1")) == len(USERS) + 1


def move_all(store: Store) -> None:
    """Do all steps of all jobs, without the pauses of background work."""
    for _ in range(20):
        for job in store.jobs.pending():
            store.jobs.step(job)
    assert store.jobs.pending() == []


def test_name__that_has_to_wait__leaves_users_who_left_no_old_field(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, OLD, True, *USERS)
    say(store, OLD, False, *USERS)
    for n in range(12):
        say(store, f"n{n}: 1", True, "new")
    move_all(store)
    expected = dict.fromkeys(USERS, "false") | {"new": "true"}
    assert traits(redis_client, APP) == {u: {"n11: 1": value} for u, value in expected.items()}


def test_current_name__after_one_that_has_to_wait__stays(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, OLD, True, *USERS)
    for n in range(30):
        say(store, f"n{n}: 1", True, "u0")
    current = store.registry.trait(APP, "1")
    assert current is not None
    for _ in range(2):
        say(store, current, True, "u0")
    for _ in range(2):
        Background(store).work()
    assert {tuple(fields) for fields in traits(redis_client, APP).values()} == {(current,)}


def test_older_name__than_one_that_has_to_wait__does_not_replace_it(
    store: Store, redis_client: redis.Redis
) -> None:
    then = time.time_ns() // 1_000_000 - 60_000
    for n in range(20):  # the last ones wait until users have been moved
        say(store, f"n{n}: 1", True, "u0", at_ms=then + n)
    assert store.registry.trait(APP, "1") != "n19: 1"
    say(store, "older: 1", True, "u0", at_ms=then + 15)
    move_all(store)
    assert store.registry.trait(APP, "1") == "n19: 1"


def test_old_name__ten_minutes_after_the_rename__renames_the_cohort_back(
    store: Store, redis_client: redis.Redis
) -> None:
    say(store, OLD, True, "u0")
    say(store, NEW, True, "u0")
    Background(store).work()
    (state,) = [key for key in redis_client.scan_iter("*:state") if redis_client.hget(key, "names")]
    (name,) = json.loads(redis_client.hget(state, "names"))
    for minutes, current in ((9.9, NEW), (10.1, OLD)):
        until = time.time_ns() // 1_000_000 - int(minutes * 60_000)
        redis_client.hset(state, "names", json.dumps([{**name, "until": until}]))
        say(store, OLD, True, "u0")
        assert store.registry.trait(APP, "1") == current


def test_move__after_the_server_was_restarted__begins_again(
    store: Store, redis_client: redis.Redis
) -> None:
    users = [f"user-{n}" for n in range(2000)]
    for member in (True, False):
        for start in range(0, 2000 if member else 1000, 1000):
            say(store, OLD, member, *users[start : start + 1000])
    store.memberships.register_cohort(APP, Cohort.from_trait(NEW), source="test")
    for job in store.jobs.pending():
        # As far as a scan on a server that is no more has come: its place means nothing here.
        state = store.keys.cohort(*job, "state")
        redis_client.hset(state, "moving", f"left 18446744073709551615 {'0' * 40}")
    work_until_done(store)
    assert set(map(tuple, traits(redis_client, APP).values())) == {(NEW,)}


def test_name__without_a_time__is_newer_than_an_older_one_with_a_time(
    store: Store, redis_client: redis.Redis
) -> None:
    now = time.time_ns() // 1_000_000
    say(store, NEW, True, "u0", at_ms=now - 5000)
    say(store, NEW, True, "u0")
    say(store, OLD, True, "u0", at_ms=now - 2000)
    assert store.registry.trait(APP, "1") == NEW


@pytest.mark.parametrize("order", sorted(permutations([0, 1, 2])))
def test_names_with_times__in_any_order__end_at_that_of_the_newest(
    store: Store, redis_client: redis.Redis, order: tuple[int, ...]
) -> None:
    now = time.time_ns() // 1_000_000
    said = [(OLD, now - 3000), (NEW, now - 2000), (OLD, now - 1000)]
    for place in order:
        trait, at_ms = said[place]
        say(store, trait, True, "u0", "u1", at_ms=at_ms)
    assert store.registry.trait(APP, "1") == OLD
