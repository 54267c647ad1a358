"""``strict=True``: typos are errors; and questions about cohorts as such."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest
import redis
import redis.asyncio
from flask import Flask

from app.cohorts.completeness import IncompleteReason as ServiceReason
from app.cohorts.completeness import Upstream, VerifiedBy
from cohort_reader import (
    AsyncCohortReader,
    AsyncFollower,
    CohortReader,
    Completeness,
    CompletenessState,
    Follower,
    StoreUnavailable,
    UnknownApp,
    UnknownCohort,
)
from tests.integration.conftest import APP, caller
from tests.integration.reader.blocking import Loop
from tests.integration.reader.conftest import COHORT, Clients, Service

MakeReader = Callable[..., CohortReader]

QUESTIONS: list[Callable[[CohortReader, str], object]] = [
    lambda reader, cohort: reader.is_member("a", cohort),
    lambda reader, cohort: reader.membership("a", cohort),
    lambda reader, cohort: reader.member_since("a", cohort),
    lambda reader, cohort: reader.are_members(["a", "b"], cohort),
    lambda reader, cohort: reader.memberships(["a"], cohort),
    lambda reader, cohort: reader.member_count(cohort),
    lambda reader, cohort: list(reader.members(cohort)),
    lambda reader, cohort: reader.freshness(cohort),
    lambda reader, cohort: reader.completeness(cohort),
    lambda reader, cohort: reader.is_member("a", cohort, default=True),
]
OF_A_USER: list[Callable[[CohortReader], object]] = [
    lambda reader: reader.traits("a"),
    lambda reader: reader.cohorts("a"),
    lambda reader: reader.profile("a"),
    lambda reader: reader.cohort_ids(),
]


def test_strict__for_a_cohort_never_received__raises_on_every_question(
    service: Service, make_reader: MakeReader
) -> None:
    service.push("b")
    reader = make_reader(strict=True)
    for ask in QUESTIONS:
        with pytest.raises(UnknownCohort, match="the cohort 'typo' is not in the store") as raised:
            ask(reader, "typo")
        assert isinstance(raised.value, LookupError)
        assert not isinstance(raised.value, UnknownApp)
        ask(reader, COHORT)
    for ask_about_user in OF_A_USER:
        ask_about_user(reader)
    assert not reader.exists("typo")
    with pytest.raises(UnknownCohort):
        make_reader(strict=True, cache_entries=9, cache_seconds=9).is_member("a", "typo")


def test_strict__for_a_cohort_that_has_gone__raises_as_soon_as_it_matters(
    service: Service, make_reader: MakeReader, redis_client: redis.Redis
) -> None:
    """A lost cohort must not look like one without a known gap, or without members."""
    clock = Clock()
    for cached in ({}, {"cache_entries": 9, "cache_seconds": 9}):
        service.push("a")
        reader = make_reader(strict=True, clock=clock, **cached)
        assert not reader.is_member("b", COHORT)
        redis_client.flushall()
        service.push("a", trait="Another: x")
        about_the_cohort: list[Callable[[], object]] = [
            lambda reader=reader: reader.completeness(COHORT),
            lambda reader=reader: reader.freshness(COHORT),
            lambda reader=reader: reader.member_count(COHORT),
            lambda reader=reader: list(reader.members(COHORT)),
        ]
        assert not reader.is_member("c", COHORT)  # remembers the cohort
        for ask in about_the_cohort:
            with pytest.raises(UnknownCohort):
                ask()
        clock.now += 61
        with pytest.raises(UnknownCohort):
            reader.is_member("c", COHORT)


def test_strict__for_a_cohort_that_everybody_left__is_content(
    service: Service, make_reader: MakeReader
) -> None:
    service.push("a")
    service.push("a", False)
    assert not make_reader(strict=True).is_member("a", COHORT)
    assert make_reader(strict=True).exists(COHORT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"app": "shpo"}, "nothing was ever received for the app 'shpo'"),
        ({"prefix": "cohort"}, "the store has no cohort:layout: wrong prefix, database or store"),
    ],
    ids=["app", "prefix"],
)
def test_strict__with_a_wrong_app_or_prefix__says_so(
    service: Service, make_reader: MakeReader, options: dict[str, Any], message: str
) -> None:
    service.push("a")
    reader = make_reader(strict=True, **options)
    for ask in QUESTIONS:
        with pytest.raises(UnknownApp, match=message):
            ask(reader, COHORT)
    for ask_about_user in OF_A_USER:
        with pytest.raises(UnknownApp, match=message):
            ask_about_user(reader)
    assert make_reader(**options).cohort_ids() == []


def test_strict__on_a_wrong_database__says_so(
    service: Service, make_reader: MakeReader, connect_client: Clients
) -> None:
    service.push("a")
    with pytest.raises(UnknownApp, match="wrong prefix, database or store"):
        make_reader(connect_client(db=5), strict=True).is_member("a", COHORT)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_partitions__that_are_others_after_the_store_was_emptied__are_found_out(
    make_app: Callable[..., Flask],
    redis_client: redis.Redis,
    make_reader: MakeReader,
    strict: bool,
) -> None:
    users = [f"u{number}" for number in range(9)]
    Service(caller(make_app(store_partitions=2)), 2).push(users)
    clock = Clock()
    reader = make_reader(strict=strict, clock=clock)
    assert all(reader.are_members(users, COHORT).values())
    redis_client.flushall()
    Service(caller(make_app(store_partitions=5)), 5).push(users)
    clock.now += 0 if strict else 61
    for user_id in users:
        assert reader.is_member(user_id, COHORT)


def test_unfinished_copy__is_reported_as_unavailable(
    service: Service, redis_client: redis.Redis, make_reader: MakeReader
) -> None:
    service.push("a")
    redis_client.set("cohorts:layout", 0)
    with pytest.raises(StoreUnavailable, match="unfinished copy"):
        make_reader().is_member("a", COHORT)
    assert make_reader().is_member("a", COHORT, default=True)


def test_cohort_ids__of_many_cohorts__are_all_sorted(
    service: Service, make_reader: MakeReader
) -> None:
    traits = [f"n: c{number:04}" for number in range(1100)]
    for start in range(0, len(traits), 100):
        service.push_traits("a", traits[start : start + 100])
    assert make_reader().cohort_ids() == [f"c{number:04}" for number in range(1100)]
    assert make_reader().exists("c0007")
    assert not make_reader().exists("c1100")


def test_deleted_cohort__no_longer_exists(
    service: Service, make_reader: MakeReader, store_url: str
) -> None:
    service.push("a")
    store = service.store(store_url)
    assert sum(store.jobs.delete_cohort(APP, COHORT)) == 1
    assert not make_reader().exists(COHORT)
    assert make_reader().cohort_ids() == []


def test_completeness__of_a_cohort__is_what_the_service_says(
    service: Service, make_reader: MakeReader, store_url: str
) -> None:
    service.push("a")
    reader = make_reader(strict=True)
    assert reader.completeness(COHORT) == Completeness()
    assert make_reader().completeness("other").state is CompletenessState.UNVERIFIED

    states = service.store(store_url).completeness
    before = time.time_ns() // 1_000_000
    states.verify(APP, COHORT, VerifiedBy.RESYNC)
    states.leave_out(APP, COHORT, {"invalid_user_id": 3})
    found = reader.completeness(COHORT)
    assert (found.state, found.verified_by) == (CompletenessState.VERIFIED, "resync")
    assert found.verified_at_ms is not None
    assert found.verified_at_ms >= before - 1000
    assert found.left_out == {"invalid_user_id": 3}
    assert (found.reasons, found.upstream) == ((), None)

    states.raise_reason(APP, COHORT, ServiceReason.STORE_LOST, 2)
    states.set_upstream(APP, COHORT, Upstream(size=6512))
    found = reader.completeness(COHORT)
    assert found.state is CompletenessState.INCOMPLETE
    (reason,) = found.reasons
    assert (reason.reason, reason.count) == ("store_lost", 2)
    assert reason.since_ms >= before - 1000
    assert found.upstream is not None
    assert found.upstream["size"] == 6512


class Declared(str, Enum):  # noqa: UP042 - also such an enum, whose members render by their name
    POWER_USERS = COHORT


def test_enum__as_a_cohort_id__is_its_value(service: Service, make_reader: MakeReader) -> None:
    service.push("a")
    reader = make_reader(strict=True)
    assert reader.is_member("a", Declared.POWER_USERS)
    assert reader.member_count(Declared.POWER_USERS) == 1
    assert reader.exists(Declared.POWER_USERS)


@pytest.mark.parametrize("users", ["alice", b"alice"])
def test_many_users__given_as_one_string__are_refused(make_reader: MakeReader, users: Any) -> None:
    reader = make_reader()
    for ask in (reader.are_members, reader.memberships):
        with pytest.raises(TypeError, match="iterable of user ids"):
            ask(users, COHORT)


def test_client__of_the_other_kind__is_refused_in_one_line(
    kind: str, loop: Loop | None, redis_client: redis.Redis
) -> None:
    def refused(make: Callable[[], object], message: str) -> None:
        with pytest.raises(TypeError, match=message) as raised:
            make()
        assert "\n" not in str(raised.value)

    if loop is None:
        asynchronous: Any = redis.asyncio.Redis()
        refused(lambda: CohortReader(asynchronous), "use AsyncCohortReader")
        refused(lambda: Follower(asynchronous, "g"), "use AsyncFollower")
        url: Any = "redis://localhost"
        refused(
            lambda: CohortReader(url), r"needs a redis.Redis, but got a str; pass connect\(url\)"
        )
    else:
        refused(lambda: AsyncCohortReader(redis_client), "needs a redis.asyncio.Redis")
        refused(lambda: AsyncFollower(redis_client, "g"), "; use Follower")
        refused(lambda: AsyncFollower(None, "g"), r"got a NoneType; pass connect_async\(url\)")  # type: ignore[arg-type]
