"""What the Python reader answers, from data that the service has received."""

from __future__ import annotations

import time
from collections.abc import Callable
from unittest.mock import Mock

import pytest
import redis
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from app.cohorts import Cohort
from app.server.background import Background
from app.settings import Settings
from app.store import Store, connect
from app.store.keys import Keys as ServiceKeys
from cohort_reader import CohortReader, Freshness, FreshnessState, cohort_id_from_trait
from cohort_reader.keys import Keys, prefix_for
from cohort_reader.steps import run
from simulator import payloads
from tests.integration.conftest import caller
from tests.integration.reader.conftest import COHORT, TRAIT, Clients, Service

ODD_IDS = ["a@b.c", "a/b", "a b", "é", "🎉", "a{b}", "*", "a:b", "'\"\\", "line\nbreak", "x" * 1024]


MakeReader = Callable[..., CohortReader]


@pytest.fixture
def reader(
    service: Service, make_reader: MakeReader, connect_client: Clients, decode: bool
) -> CohortReader:
    return make_reader(connect_client(decode_responses=decode))


def test_is_member__after_entering_and_leaving__follows(
    service: Service, reader: CohortReader
) -> None:
    assert not reader.is_member("a", COHORT)
    service.push("a")
    assert reader.is_member("a", COHORT)
    assert not reader.is_member("a", "another")
    assert not reader.is_member("b", COHORT)
    service.push("a", False)
    assert not reader.is_member("a", COHORT)


def test_membership__as_a_condition__says_whether_the_user_is_in(
    service: Service, reader: CohortReader
) -> None:
    service.push("a")
    assert reader.membership("a", COHORT)
    assert not reader.membership("b", COHORT)
    assert (reader.membership("a", COHORT).stale, reader.membership("a", COHORT).age_seconds) == (
        False,
        0.0,
    )


def test_since__of_a_member__is_when_the_user_entered(
    service: Service, reader: CohortReader
) -> None:
    before = time.time_ns() // 1_000_000
    service.push("a")
    since = reader.member_since("a", COHORT)
    assert since is not None
    assert before <= since <= time.time_ns() // 1_000_000
    service.push("a")
    assert reader.member_since("a", COHORT) == since
    assert reader.member_since("b", COHORT) is None


def test_since__of_members_in_the_same_ms__is_whole(service: Service, reader: CohortReader) -> None:
    users = [f"u{n}" for n in range(10)]
    for user in users:
        service.push_webhook(user, computed_time=1_700_000_000)
    assert {reader.member_since(user, COHORT) for user in users} == {1_700_000_000_000}


def test_users__with_ids_of_every_kind__are_found(service: Service, reader: CohortReader) -> None:
    service.push(ODD_IDS)
    assert reader.are_members([*ODD_IDS, "other"], COHORT) == {
        **dict.fromkeys(ODD_IDS, True),
        "other": False,
    }
    assert set(reader.members(COHORT)) == set(ODD_IDS)
    for user_id in ODD_IDS:
        assert reader.traits(user_id) == {TRAIT: True}


def test_many_users__more_than_one_command_takes__are_answered_in_the_order_asked(
    service: Service, reader: CohortReader
) -> None:
    users = payloads.user_ids(2500)
    service.push(users[::2])
    asked = [*users, *users[:10]]
    assert list(reader.are_members(asked, COHORT).items()) == [
        (user_id, number % 2 == 0) for number, user_id in enumerate(users)
    ]
    assert reader.member_count(COHORT) == 1250
    assert sorted(set(reader.members(COHORT))) == sorted(users[::2])
    assert reader.are_members([], COHORT) == {}


def test_unknown_cohort__has_no_members(service: Service, reader: CohortReader) -> None:
    service.push("a")
    assert reader.member_count("unknown") == 0
    assert list(reader.members("unknown")) == []


def test_traits__of_a_user__hold_what_the_user_has_and_had(
    service: Service, reader: CohortReader
) -> None:
    left, unnamed = payloads.trait_name("Left: early", "l1"), "no colon"
    service.push("a")
    service.push("a", trait=left)
    service.push("a", False, trait=left)
    service.push("a", trait=unnamed)
    assert reader.traits("a") == {TRAIT: True, left: False, unnamed: True}
    assert reader.cohorts("a") == {COHORT, Cohort.from_trait(unnamed).id}
    assert all(reader.is_member("a", cohort_id) for cohort_id in reader.cohorts("a"))
    assert reader.traits("unknown") == {}
    assert reader.cohorts("unknown") == set()


def test_rename__of_a_cohort__is_never_noticed_by_its_id(
    service: Service, reader: CohortReader, store_url: str
) -> None:
    users = [f"u{number}" for number in range(20)]
    service.push(users)
    since = reader.memberships(users, COHORT)
    renamed = payloads.trait_name("Best users", COHORT)
    service.push(users[:3], trait=renamed)
    for _ in range(2):  # while most users have the earlier name, and when all have the new one
        assert reader.memberships(users, COHORT) == since
        assert all(reader.cohorts(user_id) == {COHORT} for user_id in users)
        store = Store(connect(Settings(redis_url=store_url)), partitions=service.partitions)
        Background(store).work()
    assert all(reader.traits(user_id) == {renamed: True} for user_id in users)


def test_freshness__of_a_cohort__follows_its_arrivals(
    service: Service, reader: CohortReader, redis_client: redis.Redis, store_url: str
) -> None:
    store = Store(connect(Settings(redis_url=store_url)), partitions=service.partitions)
    assert reader.freshness(COHORT) == Freshness(FreshnessState.NEVER)
    before = time.time_ns() // 1_000_000
    service.push("a")
    fresh = reader.freshness(COHORT)
    assert fresh.state is FreshnessState.FRESH
    assert fresh.last_received_ms is not None
    assert before <= fresh.last_received_ms <= time.time_ns() // 1_000_000
    assert (fresh.cadence_ms, fresh.late_after_ms) == (None, None)

    store.freshness.set_cadence(service.app, COHORT, 3_600_000)
    assert reader.freshness(COHORT) == Freshness(
        FreshnessState.FRESH,
        fresh.last_received_ms,
        3_600_000,
        fresh.last_received_ms + 5_400_000,
    )
    key = store.keys.freshness(service.app, COHORT)
    redis_client.hset(key, "late_after", before)  # as if that were long ago
    assert reader.freshness(COHORT).state is FreshnessState.LATE


def test_apps__that_share_a_store__are_apart(service: Service, make_reader: MakeReader) -> None:
    service.push("a")
    assert not make_reader(app="other").is_member("a", COHORT)
    assert not make_reader(prefix="x").is_member("a", COHORT)


def test_reader__made_before_anything_was_received__learns_the_partitions(
    redis_client: redis.Redis, make_reader: MakeReader, make_app: Callable[..., Flask]
) -> None:
    reader = make_reader()
    assert not reader.is_member("a", COHORT)
    Service(caller(make_app(store_partitions=5)), 5).push(["a", "b", "c"])
    assert reader.are_members(list("abc"), COHORT) == dict.fromkeys("abc", True)
    assert reader.member_count(COHORT) == 3


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a{b}", "x" * 65])
def test_app_or_prefix__that_no_key_can_have__is_refused(
    redis_client: redis.Redis, name: str
) -> None:
    with pytest.raises(ValueError, match="must be 1 to 64"):
        CohortReader(redis_client, app=name)
    with pytest.raises(ValueError, match="must be 1 to 64"):
        CohortReader(redis_client, prefix=name)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(TEXT | st.builds("{}:{}".format, TEXT, TEXT))
def test_cohort_id__of_any_trait_name__is_the_services(trait: str) -> None:
    assert cohort_id_from_trait(trait) == Cohort.from_trait(trait).id


@given(TEXT, st.integers(1, 50))
def test_keys__of_any_user__are_the_services(user_id: str, partitions: int) -> None:
    client = Mock(redis.Redis, get=lambda name: str(partitions).encode())
    prefixes = run(Keys(client, "shop", "cohorts").partition_prefixes())
    service = ServiceKeys("cohorts", partitions)
    assert prefix_for(user_id, prefixes) + f"user:{user_id}" == service.user("shop", user_id)
    assert [f"{base}changes" for base in prefixes] == [
        service.changes("shop", partition) for partition in range(partitions)
    ]
