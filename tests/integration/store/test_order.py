"""Which statement about a (user, cohort) counts when they come out of order."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.cohorts import Cohort, MembershipChange
from app.settings import Settings
from app.store import Applied, Store, StoreError, Tuning, connect
from tests.integration.store_contents import contents, members, traits, transitions
from tests.support.polling import wait_until

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
        found = "u" in members(redis_client, APP).get("1", set())
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


def test_statement__that_waited__counts_as_of_its_arrival(say, is_member, redis_client) -> None:
    say(True)
    arrived = time.monotonic() - 5
    assert say(False, arrived=arrived).changed == 0  # the user entered after it arrived
    assert is_member()
    assert say(False).changed == 1
    assert say(True, arrived=arrived).changed == 0
    assert not is_member()
    redis_client.zadd("cohorts:{shop}:cohort:1:left", {"u": now_ms() - 6000})
    assert say(True, arrived=arrived).changed == 1
    assert redis_client.zscore(MEMBERS, "u") == pytest.approx(now_ms() - 5000, abs=1000)


def test_statement__that_waited_for_a_connection__counts_as_of_its_arrival(
    say, is_member, store_url
) -> None:
    say(True)
    tuning = Tuning(waited_seconds=0.01)
    with connect(Settings(redis_url=store_url, store_connections=1)) as client:
        waiting = Store(client, tuning=tuning)
        waiting.layout.check_writable(APP)
        change = MembershipChange(Cohort.from_trait(TRAIT), False, ["u"])
        connection = client.connection_pool.get_connection()
        with ThreadPoolExecutor(1) as pool:
            arrived = time.monotonic()
            call = pool.submit(
                waiting.memberships.apply, APP, [change], source="test", arrived=arrived
            )
            wait_until(lambda: client.connection_pool.pool._waiting)
            time.sleep(0.02)
            say(False)
            say(True)
            client.connection_pool.release(connection)
            assert call.result(10).changed == 0
    assert is_member()


def test_statement__that_waited__and_a_repeat_in_a_cohort_with_times(say, is_member) -> None:
    say(True, now_ms() - 60_000)
    say(True)
    say(False, arrived=time.monotonic() - 5)
    assert is_member()


def test_statement__that_reached_the_store_soon__counts_as_the_newest(say, is_member) -> None:
    arrived = time.monotonic()
    say(True)
    assert say(False, arrived=arrived).changed == 1
    assert not is_member()


def test_name__of_a_statement_that_waited__is_not_the_newest(say, store) -> None:
    say(True, trait="old: 1")
    say(True, trait="new: 1")
    say(True, arrived=time.monotonic() - 5, trait="another: 1")
    assert store.registry.trait(APP, "1") == "new: 1"


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


@pytest.mark.parametrize("known_only", [False, True], ids=["applied", "left out"])
def test_message__is_remembered_for_a_day(known_only: bool, say, redis_client) -> None:
    for _ in range(2):
        say(True, now_ms(), message_id="m1", known_only=known_only)
        records = list(redis_client.scan_iter("cohorts:{shop}:message:*"))
        assert records
        assert all(DAY - 60_000 < redis_client.pttl(key) <= DAY for key in records)


HOUR, DAY = 3_600_000, 24 * 3_600_000
MEMBERS, STATE = "cohorts:{shop}:cohort:1:members", "cohorts:{shop}:cohort:1:state"
SEEN, SEEN_BEFORE = "cohorts:{shop}:cohort:1:seen", "cohorts:{shop}:cohort:1:seen-before"


def test_older_statement__of_times_more_than_a_day_ago__is_ignored(
    say, is_member, redis_client
) -> None:
    now = now_ms()
    say(True, now - 50 * HOUR)
    say(True, now - 30 * HOUR)
    redis_client.hset(STATE, "last", now - 2000)  # the next call tidies up
    say(True, now - 30 * HOUR)
    say(False, now - 40 * HOUR)
    assert is_member()
    say(False, now - 20 * HOUR)
    assert not is_member()


def test_repeats__are_remembered_for_a_day_after_they_arrived(
    say, store, is_member, redis_client
) -> None:
    now = now_ms()
    say(True, now - 5 * HOUR)
    say(True, now - 3 * HOUR)
    assert DAY < redis_client.pttl(SEEN) <= 2 * DAY
    redis_client.pexpire(SEEN, DAY)  # a day later, another user is reported again
    for at in (now - 1, now):
        change = MembershipChange(Cohort.from_trait(TRAIT), True, ["other"], at)
        store.memberships.apply(APP, [change], source="test")
    assert redis_client.zrange(SEEN, 0, -1) == ["other"]
    assert redis_client.zrange(SEEN_BEFORE, 0, -1) == ["u"]
    assert redis_client.pttl(SEEN_BEFORE) <= DAY < redis_client.pttl(SEEN) <= 2 * DAY
    say(False, now - 4 * HOUR)
    assert is_member()
    say(True, now - HOUR)  # recorded once
    assert redis_client.zrange(SEEN, 0, -1) == ["u", "other"]
    assert not redis_client.exists(SEEN_BEFORE)
    say(False, now)
    assert redis_client.zrange(SEEN, 0, -1) == ["other"]


def test_repeats__without_a_time__take_no_room(say, redis_client) -> None:
    for _ in range(2):
        say(True)
    assert not redis_client.exists(SEEN)
    time.sleep(0.002)  # times are in ms
    say(True, now_ms())  # from now on, a statement may be older than another
    say(True)
    assert redis_client.zcard(SEEN) == 1


def test_repeats__of_the_same_time__take_no_room(say, is_member, redis_client) -> None:
    """A full sync that arrives twice: the score says as much."""
    now = now_ms()
    for _ in range(2):
        say(True, now - HOUR)
    assert not redis_client.exists(SEEN)
    say(False, now - HOUR - 1)
    assert is_member()
    say(False, now - HOUR)
    assert not is_member()


def test_first_statement_with_a_time__older_than_a_repeat__is_ignored(say, is_member) -> None:
    say(True)
    before = now_ms()
    time.sleep(0.002)
    say(True)
    say(False, before)
    assert is_member()
    say(False, now_ms())
    assert not is_member()


def test_first_statement_with_a_time__a_day_after_a_repeat__is_not_ignored(
    say, is_member, redis_client
) -> None:
    say(True, now_ms() - 50 * HOUR)
    redis_client.hset(STATE, "repeated", now_ms() - DAY - 1)
    say(False, now_ms() - 30 * HOUR)
    assert not is_member()


@pytest.mark.parametrize("key", [MEMBERS, SEEN, SEEN_BEFORE])
def test_times_of_a_clock_that_was_ahead__do_not_beat_a_current_statement(
    key: str, say, is_member, redis_client
) -> None:
    ahead = now_ms() + 2 * DAY
    say(True, now_ms() - 10_000)
    redis_client.zadd(key, {"u": ahead})
    redis_client.hset(STATE, mapping={"last": ahead, "named": ahead, "repeated": ahead})
    assert say(False, now_ms() - 5000).changed == 1
    assert not is_member()
    redis_client.zadd("cohorts:{shop}:cohort:1:left", {"u": ahead})
    assert say(True, now_ms() - 4000).changed == 1
    assert is_member()
    assert latest_stored_ms(redis_client) <= now_ms()


def test_times_of_a_clock_that_was_ahead__are_corrected_as_users_are_reported(
    say, is_member, redis_client
) -> None:
    ahead = now_ms() + 2 * DAY
    say(True)
    redis_client.zadd(MEMBERS, {"u": ahead})
    redis_client.zadd(SEEN, {"u": ahead})
    redis_client.pexpire(SEEN, 4 * DAY)
    redis_client.hset(STATE, mapping={"last": ahead, "named": ahead, "timed": 1})
    at = now_ms() - 5000
    say(True, at)
    assert redis_client.zscore(MEMBERS, "u") == at
    assert latest_stored_ms(redis_client) <= now_ms()
    assert redis_client.pttl(SEEN) <= 2 * DAY


def test_name_of_a_clock_that_was_ahead__does_not_beat_a_current_one(
    say, store, redis_client
) -> None:
    ahead = now_ms() + 2 * DAY
    say(True, trait="old: 1")
    redis_client.hset(STATE, "named", ahead)
    say(True, now_ms() - 5000, trait="new: 1")
    assert store.registry.trait(APP, "1") == "new: 1"
    names = redis_client.hget(STATE, "names").replace(str(now_ms())[:7], str(ahead)[:7])
    redis_client.hset(STATE, "names", names)
    say(True, trait="old: 1")  # not a late retry: the rename is not two days in the future
    assert store.registry.trait(APP, "1") == "old: 1"


def test_time__of_a_server_whose_clock_is_a_minute_ahead__counts_as_the_present(
    say, is_member, redis_client
) -> None:
    say(True, now_ms() - 5000)
    redis_client.zadd(MEMBERS, {"u": now_ms() + 60_000})  # before a failover
    say(False, now_ms() - 2000)
    assert is_member()
    say(False)
    assert not is_member()


def latest_stored_ms(client: redis.Redis) -> float:
    """The latest time in the records of cohort 1."""
    times = [float(client.hget(STATE, field) or 0) for field in ("last", "named", "repeated")]
    for name in ("members", "left", "seen", "seen-before"):
        scores = client.zrange(f"cohorts:{{shop}}:cohort:1:{name}", 0, -1, withscores=True)
        times += [score for _, score in scores]
    return max(times)


def test_message__completed_by_a_retry__is_no_repeat(
    store_url: str, redis_client: redis.Redis
) -> None:
    """One partition had applied it, another one had not."""
    store = Store(connect(Settings(redis_url=store_url)), partitions=2)
    users = [next(f"u{n}" for n in count() if store.keys.partition(f"u{n}") == p) for p in (0, 1)]
    entry = MembershipChange(Cohort.from_trait(TRAIT), True, users, now_ms() - 2000)
    exit_ = MembershipChange(Cohort.from_trait(TRAIT), False, users, now_ms() - 1000)
    # From now on, both partitions know the cohort.
    store.memberships.apply(APP, [entry], source="test")
    broken = store.keys.changes(APP, 1)
    redis_client.rename(broken, "aside")
    redis_client.set(broken, "no stream, so this partition refuses the message")

    def send() -> Applied:
        return store.memberships.apply(APP, [exit_], source="test", message_id="m")

    with pytest.raises(StoreError):
        send()
    redis_client.rename("aside", broken)
    assert members(redis_client, APP) == {"1": {users[1]}}
    completed, repeated = send(), send()
    assert (completed.repeated, completed.changed) == (False, 1)
    assert (repeated.repeated, repeated.changed) == (True, 0)


statements = st.lists(
    st.tuples(
        st.sampled_from(["u1", "u2", "u3"]),
        st.booleans(),
        # Hours ago; None for the time of arrival, as is a time in the future.
        st.one_of(st.none(), st.just(-1), st.integers(1, 60)),
        st.integers(1, 2),  # how often it arrives
        st.booleans(),  # whether the store tidies up
    ),
    max_size=14,
)


@pytest.mark.parametrize("partitions", [1, 2])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequence=statements)
def test_any_sequence_of_statements__leaves_what_the_newest_says(
    sequence: list, partitions: int, store_url: str, redis_client: redis.Redis
) -> None:
    redis_client.flushall()
    store = Store(connect(Settings(redis_url=store_url)), partitions=partitions)
    start = now_ms()
    newest: dict[str, tuple[float, bool]] = {}  # by user
    timed, repeated = set[int](), set[int]()  # partitions
    for user, member, hours, times, tidy in sequence:
        partition = store.keys.partition(user)
        for _ in range(times):
            at_ms = None if hours is None else start - hours * HOUR
            at = math.inf if hours is None or hours < 0 else -hours
            last, is_in = newest.get(user, (-math.inf, False))
            in_doubt = partition in repeated and is_in and hours is not None and at < math.inf
            if at >= last and not in_doubt:
                if member and is_in and hours is None and partition not in timed:
                    repeated.add(partition)
                newest[user] = at, member
            if hours is not None:
                timed.add(partition)
            change = MembershipChange(Cohort.from_trait(TRAIT), member, [user], at_ms)
            if tidy:
                for key in redis_client.scan_iter("*:state"):
                    redis_client.hset(key, "last", 0)
            store.memberships.apply(APP, [change], source="test")
    assert members(redis_client, APP).get("1", set()) == {
        u for u, (_, is_in) in newest.items() if is_in
    }
    assert traits(redis_client, APP) == {
        user: {TRAIT: "true" if is_in else "false"} for user, (_, is_in) in newest.items()
    }
    told: dict[str, list[str]] = {}
    for transition in transitions(redis_client, APP):
        told.setdefault(transition.user, []).append(transition.change)
    for user, changes in told.items():
        assert changes == (["entered", "left"] * len(changes))[: len(changes)], user
    # A score may be some 4096ths of a ms higher, so whole ms are too coarse.
    assert latest_stored_ms(redis_client) <= time.time_ns() / 1_000_000 or partitions > 1
