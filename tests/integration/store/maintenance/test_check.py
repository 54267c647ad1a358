"""The checker: a store that was broken by hand is found out, and repaired where that is possible.

Each test breaks the store with a plain client, as another program or an operator might.
"""

from __future__ import annotations

import json
import random
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import redis

from app.cohorts import Cohort, MembershipChange
from app.server.background import Background
from app.settings import Settings
from app.store import MEANINGS, CheckReport, Store, connect
from app.store.errors import CohortPartlyDeleted
from app.store.maintenance.findings import Problem
from app.store.maintenance.key_names import parse
from tests.integration.store_contents import contents, traits
from tests.support.effort import PARTITIONS, some, thorough

APP = "shop"
ONE, TWO, OLD = "[Amplitude] one: 1", "[Amplitude] two: 2", "[Amplitude] old: 1"
USERS = [f"u{n}" for n in range(30)]
HOUR, DAY = 3_600_000, 86_400_000


@pytest.fixture(params=PARTITIONS)
def store(request: pytest.FixtureRequest, store_url: str, redis_client: redis.Redis) -> Store:
    """A store with two cohorts: users u0 to u19 are in 1, u20 to u29 have left it."""
    store = Store(connect(Settings(redis_url=store_url)), partitions=request.param)
    say(store, OLD, True, *USERS[:5])
    say(store, ONE, True, *USERS)
    Background(store).work()
    say(store, ONE, False, *USERS[20:], "never")
    say(store, TWO, True, *USERS[::2])
    say(store, "no id", False, "u1")
    return store


def say(store: Store, trait: str, member: bool, *users: str) -> None:
    store.memberships.apply(
        APP, [MembershipChange(Cohort.from_trait(trait), member, list(users))], source="test"
    )


def check(store: Store, *, repair: bool = False) -> CheckReport:
    return store.checker.run([APP], repair=repair)


class Hand:
    """Writes to the keys of one user's partition."""

    def __init__(self, store: Store, client: redis.Redis) -> None:
        self.store, self.client = store, client

    def base(self, user: str) -> str:
        count = self.store.keys.partitions
        tag = APP if count == 1 else f"{APP}:{zlib.crc32(user.encode()) % count}"
        return f"cohorts:{{{tag}}}:"

    def hash(self, user: str) -> str:
        return f"{self.base(user)}user:{user}"

    def part(self, user: str, part: str, cohort: str = "1") -> str:
        return f"{self.base(user)}cohort:{cohort}:{part}"


@pytest.fixture
def hand(store: Store, redis_client: redis.Redis) -> Hand:
    return Hand(store, redis_client)


def test_check__of_what_the_service_wrote__finds_nothing_and_proves_it_all(store: Store) -> None:
    report = check(store)
    assert report.findings == []
    assert report.ok
    assert (report.cohorts, report.users) == (3, 31)
    assert report.memberships == report.fields == 30 + 1 + 15 + 1
    assert len(report.streams) == store.keys.partitions
    assert all(proof.whole for proof in report.streams)
    assert sum(proof.transitions for proof in report.streams) == 30 + 10 + 15
    assert sum(proof.agreeing for proof in report.streams) == 30 + 15
    assert all(p.perhaps_erased == p.members_unverified == 0 for p in report.streams)


def test_check__of_nothing__finds_nothing(store_url: str, redis_client: redis.Redis) -> None:
    report = check(Store(connect(Settings(redis_url=store_url))))
    assert (report.ok, report.cohorts, report.users) == (True, 0, 0)


def test_check__writes_nothing(store: Store, redis_client: redis.Redis) -> None:
    before = {key: redis_client.dump(key) for key in redis_client.scan_iter()}
    check(store)
    assert {key: redis_client.dump(key) for key in redis_client.scan_iter()} == before


def lose_field(hand: Hand) -> None:
    hand.client.hdel(hand.hash("u3"), ONE)


def wrong_value(hand: Hand) -> None:
    hand.client.hset(hand.hash("u3"), ONE, "false")


def no_boolean(hand: Hand) -> None:
    hand.client.hset(hand.hash("u3"), ONE, "1")


def lose_hash(hand: Hand) -> None:
    hand.client.delete(hand.hash("u3"))


def old_name_only(hand: Hand) -> None:
    hand.client.hdel(hand.hash("u3"), ONE)
    hand.client.hset(hand.hash("u3"), OLD, "true")


def left_without_field(hand: Hand) -> None:
    hand.client.hdel(hand.hash("u25"), ONE)


def left_at_true(hand: Hand) -> None:
    hand.client.hset(hand.hash("u25"), ONE, "true")


def member_in_left(hand: Hand) -> None:
    hand.client.zadd(hand.part("u3", "left"), {"u3": 1})


def field_of_a_stranger(hand: Hand) -> None:
    hand.client.hset(hand.hash("u1"), TWO, "true")


def out_but_not_kept(hand: Hand) -> None:
    hand.client.zrem(hand.part("u25", "left"), "u25")


def never_was_in_and_not_kept(hand: Hand) -> None:
    hand.client.zrem(hand.part("never", "left"), "never")


def two_names(hand: Hand) -> None:
    hand.client.hset(hand.hash("u3"), OLD, "true")


def name_never_given(hand: Hand) -> None:
    hand.client.hset(hand.hash("u3"), "another name: 1", "false")


def unknown_cohort(hand: Hand) -> None:
    hand.client.hset(hand.hash("u3"), "gone: 77", "true")


def lose_state(hand: Hand) -> None:
    hand.client.delete(hand.part("u3", "state"))


def list_a_ghost(hand: Hand) -> None:
    hand.client.zadd(f"{hand.base('u3')}cohorts", {"ghost": 0})


def lose_listing(hand: Hand) -> None:
    hand.client.zrem(f"{hand.base('u3')}cohorts", "1")


def wrong_counts(hand: Hand) -> None:
    hand.client.hincrby(hand.part("u3", "state"), "entered", 5)


def lose_counts(hand: Hand) -> None:
    hand.client.hdel(hand.part("u3", "state"), "entered", "left")


def job_of_nothing(hand: Hand) -> None:
    hand.client.sadd(f"{hand.base('u3')}jobs", "1", "no cohort")


def lost_job(hand: Hand) -> None:
    hand.client.hset(hand.part("u3", "state"), "moving", "")


def ahead_ms() -> int:
    return time.time_ns() // 1_000_000 + 2 * DAY


def users_of_a_clock_ahead(hand: Hand) -> None:
    for user, part in (("u3", "members"), ("u5", "members"), ("u25", "left")):
        hand.client.zadd(hand.part(user, part), {user: ahead_ms()})


def names_of_a_clock_ahead(hand: Hand) -> None:
    times = ("first", "last", "named", "repeated", "source:test")
    hand.client.hset(hand.part("u3", "state"), mapping=dict.fromkeys(times, ahead_ms()))


def arrivals_of_a_clock_ahead(hand: Hand) -> None:
    key, ahead = hand.store.keys.freshness(APP, "1"), ahead_ms()
    late = {"last_received": ahead, "late_after": ahead + HOUR, "verified_at": ahead}
    reasons = [{"reason": "sync_failed", "since": ahead, "last": ahead, "count": 1}]
    lists = {"starts": json.dumps([ahead]), "reasons": json.dumps(reasons)}
    hand.client.hset(key, mapping={**late, **lists})
    due = hand.store.keys.due(APP, hand.store.keys.partition("1"))
    hand.client.zadd(due, {"1": ahead + HOUR})


REPAIRED: list[tuple[Callable[[Hand], None], list[Problem]]] = [
    (lose_field, [Problem.MEMBER_WITHOUT_TRAIT]),
    (wrong_value, [Problem.MEMBER_WITHOUT_TRAIT]),
    (no_boolean, [Problem.MEMBER_WITHOUT_TRAIT]),
    (lose_hash, [Problem.MEMBER_WITHOUT_TRAIT]),
    (old_name_only, [Problem.MEMBER_WITHOUT_TRAIT, Problem.STRAY_FIELD]),
    (left_without_field, [Problem.LEFT_WITHOUT_TRAIT]),
    (left_at_true, [Problem.LEFT_WITHOUT_TRAIT]),
    (member_in_left, [Problem.MEMBER_ALSO_LEFT]),
    (field_of_a_stranger, [Problem.TRAIT_WITHOUT_MEMBERSHIP]),
    (out_but_not_kept, [Problem.TRAIT_WITHOUT_MEMBERSHIP]),
    (never_was_in_and_not_kept, [Problem.TRAIT_WITHOUT_MEMBERSHIP]),
    (two_names, [Problem.STRAY_FIELD]),
    (name_never_given, [Problem.STRAY_FIELD]),
    (unknown_cohort, [Problem.FIELD_OF_UNKNOWN_COHORT]),
    (lose_state, [Problem.COHORT_WITHOUT_STATE]),
    (list_a_ghost, [Problem.COHORT_WITHOUT_STATE]),
    (lose_listing, [Problem.COHORT_NOT_LISTED]),
    (wrong_counts, [Problem.WRONG_COUNTERS]),
    (lose_counts, [Problem.WRONG_COUNTERS]),
    (job_of_nothing, [Problem.JOB_WITHOUT_WORK]),
    (lost_job, [Problem.WORK_WITHOUT_JOB]),
    (users_of_a_clock_ahead, [Problem.TIME_AHEAD]),
    (names_of_a_clock_ahead, [Problem.TIME_AHEAD]),
    (arrivals_of_a_clock_ahead, [Problem.TIME_AHEAD]),
]


@pytest.mark.parametrize(("damage", "problems"), REPAIRED, ids=[d.__name__ for d, _ in REPAIRED])
def test_damage__of_each_kind__is_found_repaired_and_gone(
    damage: Callable[[Hand], None], problems: list[Problem], store: Store, hand: Hand
) -> None:
    damage(hand)
    assert set(check(store).found) == set(problems)
    emitted = {key: hand.client.xlen(key) for key in hand.client.keys("*:changes")}
    repaired = check(store, repair=True)
    # what is repaired under one name may not be there any more under the other
    assert set(repaired.found) <= set(problems)
    assert repaired.found == repaired.repaired
    assert all(finding.repaired for finding in repaired.findings)
    assert check(store).findings == []
    assert {key: hand.client.xlen(key) for key in hand.client.keys("*:changes")} == emitted


def test_repair__of_times_ahead__leaves_none_in_the_future_that_a_later_statement_has_to_beat(
    store: Store, hand: Hand
) -> None:
    for damage in (users_of_a_clock_ahead, names_of_a_clock_ahead, arrivals_of_a_clock_ahead):
        damage(hand)
    check(store, repair=True)
    now = time.time_ns() // 1_000_000
    for key in hand.client.scan_iter(match="*:cohort:1:*"):
        if hand.client.type(key) == "zset":
            scores = [score for _, score in hand.client.zrange(key, 0, -1, withscores=True)]
            assert max(scores) <= now
        elif hand.client.type(key) == "hash":
            times = {
                name: int(value)
                for name, value in hand.client.hgetall(key).items()
                if value.isdigit() and name != "late_after"
            }
            assert max(times.values()) <= now, times
    (freshness,) = store.freshness.of(APP, ["1"])
    assert freshness.late_after_ms == (freshness.last_received_ms or 0) + HOUR
    # A webhook that was computed before the repair, and is retried after it.
    leave = MembershipChange(Cohort.from_trait(ONE), False, ["u3"], now - HOUR)
    assert store.memberships.apply(APP, [leave], source="test").changed == 1


def test_repair__of_hashes__makes_them_as_they_were(
    store: Store, hand: Hand, redis_client: redis.Redis
) -> None:
    before = contents(redis_client)
    for damage in (lose_hash, left_at_true, two_names, unknown_cohort, member_in_left):
        damage(hand)
    hand.client.hdel(hand.hash("u8"), ONE, TWO)
    check(store, repair=True)
    assert contents(redis_client) == before


def test_repair__of_a_field_without_membership__says_that_the_user_is_out(
    store: Store, hand: Hand, redis_client: redis.Redis
) -> None:
    field_of_a_stranger(hand)
    check(store, repair=True)
    assert traits(redis_client, APP)["u1"][TWO] == "false"
    # and any later statement is taken
    change = MembershipChange(Cohort.from_trait(TWO), True, ["u1"], 1_000_000_000_000)
    assert store.memberships.apply(APP, [change], source="test").changed == 1


def test_repair__of_a_lost_state__takes_the_name_from_the_users(store: Store, hand: Hand) -> None:
    for user in USERS:
        hand.client.delete(hand.part(user, "state"))
    check(store, repair=True)
    record = store.registry.find(APP, "1")
    assert record is not None
    assert (record.trait, record.members, record.entered) == (ONE, 20, 20)
    say(store, "[Amplitude] uno: 1", True, "u3")
    assert store.registry.trait(APP, "1") == "[Amplitude] uno: 1"


@pytest.mark.parametrize("value", ["premium", ""])
def test_field__of_another_program__is_reported_and_left_alone(
    value: str, store: Store, hand: Hand
) -> None:
    hand.client.hset(hand.hash("u3"), "plan", value)
    for _ in range(2):
        report = check(store, repair=True)
        assert dict(report.found) == {Problem.FOREIGN_FIELD: 1}
        assert not +report.repaired
    assert hand.client.hget(hand.hash("u3"), "plan") == value


def test_key__of_another_type__is_reported_and_left_alone(store: Store, hand: Hand) -> None:
    hand.client.set(hand.hash("nobody"), "text")
    report = check(store, repair=True)
    assert dict(report.found) == {Problem.NOT_A_HASH: 1}
    assert hand.client.get(hand.hash("nobody")) == "text"


def emit(hand: Hand, change: str, *users: str) -> None:
    for user in users:
        hand.client.xadd(
            f"{hand.base(user)}changes",
            {"cohort": "1", "change": change, "at": "1", "users": json.dumps([user])},
        )


def test_stream__that_repeats_a_change__is_reported(store: Store, hand: Hand) -> None:
    emit(hand, "entered", "u3")
    emit(hand, "left", "u25")
    report = check(store, repair=True)
    assert dict(report.found) == {Problem.CHANGE_REPEATED: 2}
    assert not +report.repaired
    assert {finding.user_id for finding in report.findings} == {"u3", "u25"}


def test_stream__that_tells_of_leaving_without_entering__is_reported(
    store: Store, hand: Hand
) -> None:
    emit(hand, "left", "stranger")
    (finding,) = check(store).findings
    assert (finding.problem, finding.user_id) == (Problem.CHANGE_REPEATED, "stranger")


def test_stream__that_ends_otherwise_than_the_members__is_reported(
    store: Store, hand: Hand
) -> None:
    emit(hand, "left", "u3")
    emit(hand, "entered", "u25")
    hand.client.zrem(hand.part("u4", "members"), "u4")
    found = {(f.problem, f.user_id) for f in check(store).findings if f.user_id}
    assert found == {
        (Problem.CHANGE_MISSING, "u3"),
        (Problem.CHANGE_MISSING, "u25"),
        (Problem.CHANGE_MISSING, "u4"),
        (Problem.TRAIT_WITHOUT_MEMBERSHIP, "u4"),
    }


def test_stream__that_misses_a_member__is_reported(store: Store, hand: Hand) -> None:
    hand.client.zadd(hand.part("silent", "members"), {"silent": 1})
    assert check(store).found[Problem.MEMBER_NOT_IN_STREAM] == 1


def test_stream__an_entry_taken_out_by_hand__is_reported(store: Store, hand: Hand) -> None:
    say(store, ONE, False, "u3")
    say(store, ONE, True, "u3")
    stream = f"{hand.base('u3')}changes"
    left, _entered = hand.client.xrevrange(stream, count=2)[::-1]
    assert left[1]["change"] == "left"
    hand.client.xdel(stream, left[0])
    assert dict(check(store).found) == {Problem.CHANGE_REPEATED: 1}


@pytest.mark.parametrize(
    "entry",
    [
        {"cohort": "1", "change": "entered", "users": "[oops"},
        {"cohort": "1", "change": "came", "users": "[]"},
        {"hello": "world"},
    ],
)
def test_stream__entry_of_another_program__is_reported(
    entry: dict[str, str], store: Store, hand: Hand
) -> None:
    hand.client.xadd(f"{hand.base('u3')}changes", entry)
    assert dict(check(store).found) == {Problem.UNREADABLE_ENTRY: 1}


def test_stream__trimmed__proves_less_and_says_so(store: Store, hand: Hand) -> None:
    for key in hand.client.keys("*:changes"):
        hand.client.xtrim(key, maxlen=1, approximate=False)
    report = check(store)
    assert report.findings == []
    assert not any(proof.whole for proof in report.streams)
    assert sum(proof.members_unverified for proof in report.streams) == 20
    # what is still there is proved all the same
    say(store, ONE, False, "u3")
    emit(hand, "left", "u3")
    assert dict(check(store).found) == {Problem.CHANGE_REPEATED: 1}


def test_stream__of_erased_users__raises_no_alarm(store: Store, redis_client: redis.Redis) -> None:
    say(store, ONE, True, "alone")
    for user in ("alone", "u3", "u25"):
        store.erasure.erase(APP, user)
    report = check(store)
    assert report.findings == []
    assert all(proof.whole for proof in report.streams)
    assert sum(proof.perhaps_erased for proof in report.streams) == 1
    # taken in again, the user's changes before and after need not agree
    say(store, ONE, True, "u3", "alone")
    say(store, ONE, False, "u25")
    report = check(store)
    assert report.findings == []
    assert sum(proof.perhaps_erased for proof in report.streams) == 1


def test_stream__damage_after_an_erasure__is_still_found(store: Store, hand: Hand) -> None:
    for user in USERS[10:16]:
        store.erasure.erase(APP, user)
    say(store, ONE, False, "u3")
    say(store, ONE, False, "u4")
    emit(hand, "left", "u3")
    emit(hand, "entered", "u4")
    found = {(f.problem, f.user_id) for f in check(store).findings}
    assert found == {(Problem.CHANGE_REPEATED, "u3"), (Problem.CHANGE_MISSING, "u4")}


def test_check__in_the_middle_of_a_rename_and_a_deletion__finds_nothing(
    store_url: str, redis_client: redis.Redis
) -> None:
    store = Store(connect(Settings(redis_url=store_url)), partitions=2)
    users = [f"user-{n}" for n in range(4000)]
    for trait in (OLD, TWO):
        say(store, trait, True, *users)
        say(store, trait, False, *users[:700])
    say(store, ONE, True, "user-900")
    store.jobs.begin_deletion(APP, "2")
    steps = 0
    while jobs := store.jobs.pending():
        for job in jobs:
            store.memberships.spread_name(APP, job.cohort_id)
            store.jobs.step(job)
        steps += 1
        assert check(store).findings == []
    assert steps > 2


def test_names__that_disagree_for_good__are_found_and_the_newest_is_spread(
    store_url: str, redis_client: redis.Redis
) -> None:
    store = Store(connect(Settings(redis_url=store_url)), partitions=2)
    say(store, ONE, True, *USERS)
    for user in USERS:
        if store.keys.partition(user) == 1:
            redis_client.hdel(store.keys.user(APP, user), ONE)
            redis_client.hset(store.keys.user(APP, user), OLD, "true")
    redis_client.hset(store.keys.cohort(APP, 1, "1", "state"), mapping={"trait": OLD, "named": 0})
    (finding,) = check(store).findings
    assert (finding.problem, finding.cohort_id) == (Problem.NAMES_DISAGREE, "1")
    assert finding.detail == f"{OLD}, {ONE}"
    assert check(store, repair=True).repaired[Problem.NAMES_DISAGREE] == 1
    assert check(store).ok, "the move is under way"
    Background(store).work()
    assert check(store).ok
    assert traits(redis_client, APP) == {user: {ONE: "true"} for user in USERS}


@thorough
@pytest.mark.parametrize("partitions", [1, 3])
def test_check__while_everything_goes_on_at_once__raises_no_alarm(
    partitions: int, store_url: str, redis_client: redis.Redis
) -> None:
    def connected(most_entries: int = 100_000) -> Store:
        client = connect(Settings(redis_url=store_url))
        return Store(client, partitions=partitions, changes_max_entries=most_entries)

    ends = time.monotonic() + 4
    users = [f"u{n}" for n in range(40)]
    names = [ONE, "[Amplitude] uno: 1", TWO, "no id"]

    def send(number: int) -> None:
        store, chance = connected(), random.Random(number)
        while time.monotonic() < ends:
            some = chance.sample(users, chance.randint(1, 20))
            for _ in range(chance.randint(1, 2)):
                with suppress(CohortPartlyDeleted):  # to be repeated, as after any 503
                    say(store, chance.choice(names), chance.random() < 0.5, *some)
            if chance.random() < 0.01:
                store.erasure.erase(APP, chance.choice(users))

    def look_after() -> None:
        store, chance = connected(), random.Random(0)
        while time.monotonic() < ends:
            Background(store).work()
            if chance.random() < 0.1:
                store.jobs.begin_deletion(APP, "2")

    checks = 0
    with ThreadPoolExecutor(4) as pool:
        running = [*(pool.submit(send, number) for number in range(3)), pool.submit(look_after)]
        store = connected()
        while time.monotonic() < ends:
            assert check(store).findings == []
            checks += 1
        for future in running:
            future.result()
    report = check(store)
    assert report.findings == []
    assert checks > 5
    assert sum(proof.transitions for proof in report.streams) > 1000
    assert sum(proof.agreeing for proof in report.streams) > 40


def test_check__of_a_stream_that_is_trimmed_meanwhile__raises_no_alarm(
    store_url: str, redis_client: redis.Redis
) -> None:
    client = connect(Settings(redis_url=store_url))
    store = Store(client, changes_max_entries=1)
    ends = time.monotonic() + 2

    def send() -> None:
        while time.monotonic() < ends:
            for member in (True, False):
                for user in USERS:
                    say(store, ONE, member, user)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(send)
        while time.monotonic() < ends:
            assert check(store).findings == []
        running.result()
    report = check(store)
    assert report.findings == []
    assert not report.streams[0].whole


def test_check__of_several_apps__keeps_them_apart(store: Store, hand: Hand) -> None:
    change = MembershipChange(Cohort.from_trait(ONE), True, ["u3", "b:1"])
    store.memberships.apply("b", [change], source="test")
    lose_field(hand)
    assert store.checker.run(["b"]).ok
    report = store.checker.run(["b", APP])
    assert [finding.app_id for finding in report.findings] == [APP]
    assert report.app_ids == ["b", APP]


def test_check__user_ids_of_every_kind__are_told_apart(store: Store) -> None:
    odd = ["a:b", "}:user:x", "}:cohort:1:members", "é", "line\nbreak", "*", "a/b", "x" * 1024]
    say(store, ONE, True, *odd)
    say(store, "n: i}:user:d", True, *odd)
    report = check(store)
    assert report.findings == []
    assert report.users == 31 + len(odd)


def test_meanings__every_problem__has_one() -> None:
    assert set(MEANINGS) == set(Problem)


def other_type(client: redis.Redis, key: str) -> str:
    """Replace a key by one of another type; returns that type."""
    client.delete(key)
    if parse(key.encode(), "cohorts").expected_type == b"string":
        client.rpush(key, "another program's")
    else:
        client.set(key, "another program's")
    return client.type(key)


@pytest.mark.parametrize(
    "part",
    some(
        [
            *("cohort:1:members", "cohort:1:left", "cohort:1:seen", "cohort:1:state"),
            *("cohort:1:freshness", "cohort:1:sizes", "cohort:1:lease", "cohort:1:syncs"),
            *("cohort:1:confirmed", "cohort:1:resync", "message:m", "added:x", "sync:1"),
            *("sync:1:requests", "changes", "changes:last", "erased", "due", "cohorts", "jobs"),
            *("registered", "suppressed", "deleted", "completeness:incomplete", "syncs", "history"),
            *("open", "hold", "mark", "transitions", "upstream", "resyncs", "looked-through"),
        ]
    ),
)
@pytest.mark.parametrize("repair", [False, True], ids=["check", "repair"])
def test_key_of_another_type__is_named_and_the_rest_is_checked(
    store: Store, redis_client: redis.Redis, hand: Hand, part: str, repair: bool
) -> None:
    places = range(store.keys.partitions)
    keys = [f"{store.keys.base(APP, partition)}{part}" for partition in places]
    found = [other_type(redis_client, key) for key in keys]
    redis_client.hset(hand.hash("u4"), TWO, "1")  # something else is wrong too
    if part == "hold" and repair:
        return  # nothing may be repaired then
    report = check(store, repair=repair)
    wrong = [finding for finding in report.findings if finding.problem is Problem.WRONG_TYPE]
    wrong.sort(key=lambda finding: finding.partition)
    assert [(f.app_id, f.partition, f.repaired) for f in wrong] == [(APP, p, False) for p in places]
    for finding, key, kind in zip(wrong, keys, found, strict=True):
        assert finding.detail.startswith(f"{key} is a {kind}, not a ")
        if part.startswith("cohort:1:") and part != "cohort:1:syncs":
            assert finding.cohort_id == "1"
    (other,) = (f for f in report.findings if f.problem is Problem.MEMBER_WITHOUT_TRAIT)
    assert (other.cohort_id, other.user_id, other.repaired) == ("2", "u4", repair)


@pytest.mark.parametrize(
    "part", ["layout", "apps", "keys", "keys:used", "audit", "session-secret", "unknown-callers"]
)
def test_global_key_of_another_type__is_named(
    store: Store, redis_client: redis.Redis, part: str
) -> None:
    other_type(redis_client, f"cohorts:{part}")
    (finding,) = check(store).findings
    assert finding.problem is Problem.WRONG_TYPE
    assert finding.detail.startswith(f"cohorts:{part} is a ")


def test_records__of_a_cohort_that_is_gone__are_found_and_removed(
    store: Store, redis_client: redis.Redis
) -> None:
    """As a deletion beside a request left them in an earlier version."""
    for cohort_id, part in (("gone", "freshness"), ("gone", "due"), ("old", "due")):
        home = store.keys.base(APP, store.keys.partition(cohort_id))
        if part == "due":
            redis_client.zadd(f"{home}due", {cohort_id: 1})
        else:
            redis_client.hset(f"{home}cohort:{cohort_id}:{part}", "last_received", 1)
            redis_client.set(f"{home}cohort:{cohort_id}:sizes", "12345678")
    assert store.freshness_counts()["late"] == 2
    report = check(store, repair=True)
    assert {(f.problem, f.cohort_id, f.repaired) for f in report.findings} == {
        (Problem.RECORDS_WITHOUT_COHORT, cohort_id, True) for cohort_id in ("gone", "old")
    }
    assert store.freshness_counts()["late"] == 0
    assert redis_client.keys("*:gone:*") == []
    assert check(store).ok


def test_records__in_a_home_partition_that_lost_the_cohort__are_kept(
    store_url: str, redis_client: redis.Redis
) -> None:
    store = Store(connect(Settings(redis_url=store_url)), partitions=3)
    say(store, ONE, True, *USERS)
    home = store.keys.base(APP, store.keys.partition("1"))
    for user in redis_client.zrange(f"{home}cohort:1:members", 0, -1):
        store.erasure.erase(APP, user)
    redis_client.delete(f"{home}cohort:1:state", f"{home}cohort:1:left", f"{home}cohort:1:members")
    redis_client.zrem(f"{home}cohorts", "1")
    assert {f.problem for f in check(store, repair=True).findings} == {
        Problem.RECORDS_WITHOUT_COHORT
    }
    assert store.freshness.of(APP, ["1"])[0].last_received_ms
    assert check(store).ok
