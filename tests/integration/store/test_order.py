"""Which statement about a (user, cohort) counts when they come out of order."""

from __future__ import annotations

import math
import time

import pytest
import redis

from app.cohorts import Cohort, MembershipChange
from app.store import Applied, Store
from tests.integration.store_contents import contents, members, traits, transitions

APP = "shop"
TRAIT = "[Amplitude] n: 1"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
def say(store: Store):
    def say(member: bool, at_ms: int | None = None, trait: str = TRAIT, **options) -> Applied:
        change = MembershipChange(Cohort.from_trait(trait), member, ["u"], at_ms)
        return store.memberships.apply(APP, [change], source="test", **options)

    return say


@pytest.fixture
def is_member(redis_client: redis.Redis):
    def is_member() -> bool:
        found = members(redis_client, APP).get("1", set()) == {"u"}
        assert traits(redis_client, APP)["u"] == {TRAIT: "true" if found else "false"}
        return found

    return is_member


def test_older_statement__than_the_entry__is_ignored(say, is_member) -> None:
    now = now_ms()
    say(True, now - 1000)
    assert say(False, now - 2000).changed == 0
    assert is_member()


def test_older_statement__after_the_user_left__is_ignored(say, is_member) -> None:
    now = now_ms()
    say(True, now - 3000)
    say(False, now - 1000)
    assert say(True, now - 2000).changed == 0
    assert not is_member()


def test_older_statement__than_a_repeated_one__is_ignored(say, is_member) -> None:
    now = now_ms()
    say(True, now - 3000)
    say(True, now - 1000)
    say(False, now - 2000)
    assert is_member()


def test_older_statement__than_a_false_about_a_user_never_in__is_ignored(say, is_member) -> None:
    now = now_ms()
    say(False, now - 1000)
    say(True, now - 2000)
    assert not is_member()


def test_older_statement__than_one_without_a_time__is_ignored(say, is_member) -> None:
    before = now_ms() - 1000
    say(True)
    say(False, before)
    assert is_member()
    say(True)  # a repeat, which moves the last statement on
    say(False, before)
    assert is_member()
    say(False)
    say(True, before)
    assert not is_member()


def test_statement_without_a_time__counts_as_of_its_arrival(say, is_member) -> None:
    say(True, now_ms())
    say(False)
    assert not is_member()


def test_statements_of_the_same_time__count_in_the_order_of_arrival(say, is_member) -> None:
    now = now_ms()
    say(True, now)
    say(False, now)
    assert not is_member()


def test_time_in_the_future__counts_as_the_arrival(say, is_member, redis_client) -> None:
    say(True, now_ms() + 3_600_000)
    since = redis_client.zscore("cohorts:{shop}:cohort:1:members", "u")
    assert abs(since - now_ms()) < 60_000
    say(False)
    assert not is_member()


def test_time_of_the_statement__is_since_when(say, redis_client) -> None:
    at = now_ms() - 5000
    say(True, at)
    say(True, at + 1000)
    assert redis_client.zscore("cohorts:{shop}:cohort:1:members", "u") == at
    ((_, entry),) = redis_client.xrange("cohorts:{shop}:changes")
    assert entry["at"] == str(at)


def test_members__of_calls_of_one_time__stand_in_the_order_of_arrival(store, redis_client) -> None:
    def enter(user: str, at_ms: int) -> None:
        change = MembershipChange(Cohort.from_trait(TRAIT), True, [user], at_ms)
        store.memberships.apply(APP, [change], source="test")

    at, key = now_ms() - 5000, "cohorts:{shop}:cohort:1:members"
    users = [f"u{n}" for n in (2, 0, 3, 1)]
    for user in users:
        enter(user, at)
    found = redis_client.zrange(key, 0, -1, withscores=True)
    assert [user for user, _ in found] == users
    assert [math.floor(score) for _, score in found] == [at] * 4
    assert found[0][1] == at

    redis_client.zadd(key, {"last": math.nextafter(at + 1, 0)})  # no room within the ms
    enter("more", at)
    assert redis_client.zscore(key, "more") == at
    enter("next", at + 1)
    assert redis_client.zscore(key, "next") == at + 1


def test_statement__of_the_time_of_several_calls__is_not_taken_for_an_older_one(
    store, redis_client
) -> None:
    at = now_ms() - 5000
    for member in (True, False):
        for user in ("a", "b", "c"):
            change = MembershipChange(Cohort.from_trait(TRAIT), member, [user], at)
            assert store.memberships.apply(APP, [change], source="test").changed == 1
    assert members(redis_client, APP) == {}


def test_message__applied_before__is_recognised_and_does_nothing(
    say, is_member, redis_client
) -> None:
    now = now_ms()
    assert not say(True, now, message_id="m1").repeated
    say(False, now, message_id="m2")
    before = contents(redis_client)
    again = say(True, now, message_id="m1")
    assert (again.repeated, again.changed) == (True, 0)
    assert contents(redis_client) == before
    assert not is_member()


def test_message__that_could_not_be_applied__is_not_taken_for_a_repeat(say, redis_client) -> None:
    redis_client.config_set("maxmemory", "1")
    try:
        with pytest.raises(Exception, match="memory"):
            say(True, now_ms(), message_id="m1")
    finally:
        redis_client.config_set("maxmemory", "0")
    assert say(True, now_ms(), message_id="m1").changed == 1


def test_orders__all_permutations_of_timed_statements__end_alike(store, redis_client) -> None:
    import itertools

    base = now_ms() - 10_000
    facts = [(True, base), (False, base + 1), (True, base + 2), (False, base + 3)]
    ends = set()
    for number, order in enumerate(itertools.permutations(facts)):
        for member, at in order:
            change = MembershipChange(Cohort.from_trait(TRAIT), member, [f"u{number}"], at)
            store.memberships.apply(APP, [change], source="test")
        ends.add(redis_client.hget(f"cohorts:{{shop}}:user:u{number}", TRAIT))
    assert ends == {"false"}
    assert members(redis_client, APP) == {}
    told = transitions(redis_client, APP)
    for number in range(24):
        changes = [t.change for t in told if t.user == f"u{number}"]
        assert changes == ["entered", "left"] * (len(changes) // 2)


def test_old_repeats__after_a_day__are_forgotten(say, store, redis_client) -> None:
    seen, state = "cohorts:{shop}:cohort:1:seen", "cohorts:{shop}:cohort:1:state"
    day_ago = now_ms() - 25 * 3_600_000
    cohort = Cohort.from_trait(TRAIT)
    say(True)
    say(True)
    assert redis_client.zcard(seen) == 1
    # The first call in a second looks for them, and each about many users.
    for users in (["a"], [f"b{n}" for n in range(99)]):
        redis_client.zadd(seen, {"u": day_ago})
        if len(users) == 1:
            redis_client.hset(state, "last", day_ago)
        store.memberships.apply(APP, [MembershipChange(cohort, True, users)], source="test")
        assert redis_client.zcard(seen) == 0
