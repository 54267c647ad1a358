"""Completeness of cohorts: states, reasons, and what is counted of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient

from app.cohorts import (
    Cohort,
    CompletenessState,
    IncompleteReason,
    Upstream,
    VerifiedBy,
)
from app.services import services
from app.settings import ApiKey
from app.store import Store, Tuning
from tests.integration.conftest import APP, caller
from tests.integration.web.api.read_api import say
from tests.support.effort import PARTITIONS

COHORT, TRAIT = "abc123", "[Amplitude] Power users: abc123"
READ_KEY = "a-read-key"
DAY_MS = 24 * 3600 * 1000
Reason = IncompleteReason


@pytest.fixture(params=PARTITIONS)
def app(request: pytest.FixtureRequest, make_app: Callable[..., Flask]) -> Flask:
    return make_app(
        Tuning(freshness_noted_seconds=0),
        store_partitions=request.param,
        read_api_keys=(ApiKey(APP, READ_KEY),),
    )


@pytest.fixture
def reader(app: Flask) -> FlaskClient:
    return caller(app, READ_KEY)


@pytest.fixture
def store(app: Flask) -> Store:
    """A store with one cohort."""
    store = services(app).store
    say(store, TRAIT, True, ["alice"])
    return store


def shown(reader: FlaskClient, cohort_id: str = COHORT) -> dict[str, Any]:
    """Completeness as the API shows it, the same in the list and alone."""
    alone = reader.get(f"/api/v1/cohorts/{cohort_id}").json["completeness"]
    listed = {row["id"]: row for row in reader.get("/api/v1/cohorts").json["cohorts"]}
    assert listed[cohort_id]["completeness"] == alone
    return dict(alone)


def state(reader: FlaskClient) -> tuple[str, list[str]]:
    found = shown(reader)
    return found["state"], [open["reason"] for open in found["reasons"]]


def delete(store: Store, cohort_id: str = COHORT) -> None:
    for _ in store.jobs.delete_cohort(APP, cohort_id):
        pass


def test_new_cohort__is_unverified(store: Store, reader: FlaskClient) -> None:
    assert shown(reader) == {
        "state": "unverified",
        "reasons": [],
        "verifiedAt": None,
        "verifiedBy": None,
        "leftOut": {},
        "upstream": None,
    }


def test_verify__clears_reasons_and_who_was_left_out(store: Store, reader: FlaskClient) -> None:
    store.completeness.raise_reason(APP, COHORT, Reason.STORE_LOST)
    store.completeness.raise_reason(APP, COHORT, Reason.SYNC_FAILED, 2)
    store.completeness.leave_out(APP, COHORT, {"invalid_user_id": 3})
    store.completeness.leave_out(APP, COHORT, {"invalid_user_id": 1, "unknown_user": 1})
    before = shown(reader)
    assert before["state"] == "incomplete"
    assert [(open["reason"], open["count"]) for open in before["reasons"]] == [
        ("store_lost", 1),
        ("sync_failed", 2),
    ]
    assert before["leftOut"] == {"invalid_user_id": 4, "unknown_user": 1}

    store.completeness.verify(APP, COHORT, VerifiedBy.RESYNC)
    after = shown(reader)
    assert (after["state"], after["reasons"], after["leftOut"]) == ("verified", [], {})
    assert after["verifiedBy"] == "resync"
    assert after["verifiedAt"] >= before["reasons"][0]["since"]


def test_reason_after_verification__leaves_it_unverified_when_cleared(
    store: Store, reader: FlaskClient
) -> None:
    """Something has gone wrong since, so the proof no longer counts."""
    store.completeness.verify(APP, COHORT, VerifiedBy.IMPORT)
    store.completeness.raise_reason(APP, COHORT, Reason.SYNC_FAILED)
    store.completeness.raise_reason(APP, COHORT, Reason.COUNT_DIFFERS)
    assert state(reader) == ("incomplete", ["sync_failed", "count_differs"])
    store.completeness.clear_reason(APP, COHORT, Reason.SYNC_FAILED)
    assert state(reader) == ("incomplete", ["count_differs"])
    store.completeness.clear_reason(APP, COHORT, Reason.COUNT_DIFFERS)
    assert state(reader) == ("unverified", [])
    assert shown(reader)["verifiedBy"] == "import"


def test_clear__reason_that_is_not_open__changes_nothing(store: Store, reader: FlaskClient) -> None:
    store.completeness.verify(APP, COHORT, VerifiedBy.RESYNC)
    store.completeness.clear_reason(APP, COHORT, Reason.SYNC_FAILED)
    assert state(reader) == ("verified", [])


@pytest.mark.parametrize("since_ms", [None, 0])
def test_reason__raised_while_the_clock_was_ahead__is_cleared_by_a_verification(
    store: Store, reader: FlaskClient, redis_client: redis.Redis, since_ms: int | None
) -> None:
    store.completeness.raise_reason(APP, COHORT, Reason.DELETED_HERE)
    move_ahead(redis_client)
    began_ms = int(store.now() * 1000) if since_ms is not None else None
    store.completeness.verify(APP, COHORT, VerifiedBy.IMPORT, began_ms)
    assert state(reader) == ("verified", [])


def test_failure__recorded_while_the_clock_was_ahead__is_cleared_by_a_later_sync(
    store: Store, reader: FlaskClient, redis_client: redis.Redis
) -> None:
    store.completeness.raise_reason(APP, COHORT, Reason.SYNC_FAILED)
    move_ahead(redis_client)
    store.completeness.settle_failed(APP, ())
    assert state(reader) == ("incomplete", ["sync_failed"])
    (freshness,) = redis_client.scan_iter(match="*:freshness")
    now_ms = int(store.now() * 1000)
    (reason,) = json.loads(str(redis_client.hget(freshness, "reasons")))
    assert reason["last"] <= now_ms
    # Two syncs began since.
    reason["last"] = now_ms - DAY_MS
    starts = [now_ms - 8 * 3600_000, now_ms - 3600_000]
    fields = {"reasons": json.dumps([reason]), "starts": json.dumps(starts)}
    redis_client.hset(freshness, mapping=fields)
    store.completeness.settle_failed(APP, ())
    assert state(reader) == ("unverified", [])


def move_ahead(client: redis.Redis) -> None:
    """Leave the open reason as if the store's clock had been ahead by ten days."""
    (freshness,) = client.scan_iter(match="*:freshness")
    (reason,) = json.loads(str(client.hget(freshness, "reasons")))
    for field in ("since", "last"):
        reason[field] += 10 * DAY_MS
    client.hset(freshness, "reasons", json.dumps([reason]))


def test_raise_again__keeps_since_and_counts(store: Store, reader: FlaskClient) -> None:
    store.completeness.raise_reason(APP, COHORT, Reason.SYNC_FAILED)
    (first,) = shown(reader)["reasons"]
    store.completeness.raise_reason(APP, COHORT, Reason.SYNC_FAILED, 4)
    assert shown(reader)["reasons"] == [first | {"count": 5}]


def test_unknown_cohort__is_skipped(store: Store, redis_client: redis.Redis) -> None:
    """Whoever invents ids must not be able to fill the store."""
    before = set(redis_client.scan_iter())
    store.completeness.raise_reason(APP, "unknown", Reason.SYNC_FAILED)
    store.completeness.verify(APP, "unknown", VerifiedBy.RESYNC)
    store.completeness.leave_out(APP, "unknown", {"invalid_user_id": 1})
    store.completeness.set_upstream(APP, "unknown", Upstream(size=1))
    assert set(redis_client.scan_iter()) == before


def test_list__filters_by_state_and_reason(store: Store, reader: FlaskClient) -> None:
    for cohort_id in ("verified1", "incomplete1"):
        say(store, f"n: {cohort_id}", True, ["bob"])
    store.completeness.verify(APP, "verified1", VerifiedBy.RESYNC)
    store.completeness.raise_reason(APP, "incomplete1", Reason.STORE_LOST)

    def listed(state: str) -> list[str]:
        reply = reader.get("/api/v1/cohorts", query_string={"completeness": state})
        return [row["id"] for row in reply.json["cohorts"]]

    assert listed("verified") == ["verified1"]
    assert listed("incomplete") == ["incomplete1"]
    assert listed("unverified") == [COHORT]
    assert reader.get("/api/v1/cohorts?completeness=broken").status_code == 400
    for reason, found in ((Reason.STORE_LOST, ["incomplete1"]), (Reason.SYNC_FAILED, [])):
        reply = reader.get("/api/v1/cohorts", query_string={"reason": reason})
        assert [row["id"] for row in reply.json["cohorts"]] == found


def test_counts__by_state_and_reason(store: Store) -> None:
    for n in range(4):
        say(store, f"n: c{n}", True, ["bob"])
    store.completeness.verify(APP, "c0", VerifiedBy.RESYNC)
    for cohort_id in ("c1", "c2"):
        store.completeness.raise_reason(APP, cohort_id, Reason.STORE_LOST)
    store.completeness.raise_reason(APP, "c2", Reason.SYNC_FAILED)
    states, reasons = store.completeness_counts()
    assert states == {
        CompletenessState.VERIFIED: 1,
        CompletenessState.UNVERIFIED: 2,
        CompletenessState.INCOMPLETE: 2,
    }
    assert {reason: n for reason, n in reasons.items() if n} == {
        Reason.STORE_LOST: 2,
        Reason.SYNC_FAILED: 1,
    }
    found = store.completeness.with_reason(APP, Reason.STORE_LOST)
    assert sorted(cohort_id for cohort_id, _ in found) == ["c1", "c2"]

    store.completeness.verify(APP, "c2", VerifiedBy.IMPORT)
    delete(store, "c1")
    states, reasons = store.completeness_counts()
    assert (states[CompletenessState.VERIFIED], states[CompletenessState.INCOMPLETE]) == (2, 0)
    assert not any(reasons.values())


def test_upstream__is_stored_and_removed(store: Store, reader: FlaskClient) -> None:
    record = Upstream(6512, 1767225000000, 12, "hourly", 1767225000001, None)
    store.completeness.set_upstream(APP, COHORT, record)
    assert shown(reader)["upstream"] == {
        "size": 6512,
        "computedAt": 1767225000000,
        "anonymous": 12,
        "frequency": "hourly",
        "lastSuccess": 1767225000001,
        "lastFailure": None,
    }
    assert store.completeness.of(APP, [COHORT])[0].upstream == record
    store.completeness.set_upstream(APP, COHORT, None)
    assert shown(reader)["upstream"] is None


def test_deleted_cohort_that_arrives_again__is_incomplete(
    store: Store, reader: FlaskClient
) -> None:
    delete(store)
    say(store, TRAIT, True, ["bob"])
    assert state(reader) == ("incomplete", ["deleted_here"])
    store.completeness.verify(APP, COHORT, VerifiedBy.RESYNC)
    say(store, TRAIT, True, ["carol"])
    assert state(reader) == ("verified", [])


def test_deleted_cohort_that_an_import_created_again__stays_verified_when_it_arrives(
    store: Store, reader: FlaskClient
) -> None:
    delete(store)
    store.memberships.register_cohort(APP, Cohort.from_trait(TRAIT), source="")
    store.completeness.verify(APP, COHORT, VerifiedBy.IMPORT)
    say(store, TRAIT, True, ["bob"])
    assert state(reader) == ("verified", [])


def test_deleted_cohort_whose_list_is_created_again__is_incomplete_once_users_arrive(
    app: Flask, store: Store, reader: FlaskClient
) -> None:
    sender = caller(app)
    delete(store)
    sender.post("/lists", json={"name": TRAIT})
    assert state(reader) == ("unverified", [])
    sender.post(f"/lists/{COHORT}/add", json={"userIds": ["bob"]})
    assert state(reader) == ("incomplete", ["deleted_here"])


@pytest.mark.parametrize("is_list", [True, False], ids=["list", "identify"])
def test_deleted_cohort_that_arrives_again_at_once__is_incomplete_and_fresh(
    make_app: Callable[..., Flask], is_list: bool
) -> None:
    # An arrival is not recorded this soon after another.
    app = make_app(Tuning(freshness_noted_seconds=1000), read_api_keys=(ApiKey(APP, READ_KEY),))
    store, sender, reader = services(app).store, caller(app), caller(app, READ_KEY)
    say(store, TRAIT, True, ["alice"])
    delete(store)
    if is_list:
        sender.post("/lists", json={"name": TRAIT})
        sender.post(f"/lists/{COHORT}/add", json={"userIds": ["bob"]})
    else:
        say(store, TRAIT, True, ["bob"])
    assert state(reader) == ("incomplete", ["deleted_here"])
    (freshness,) = store.freshness.of(APP, [COHORT])
    assert freshness.last_received_ms is not None


def test_deletions__of_more_than_a_year_ago_or_too_many__are_forgotten(
    store: Store, redis_client: redis.Redis
) -> None:
    deleted = store.keys.deleted(APP, store.keys.partition(COHORT))
    now = time.time_ns() // 1_000_000
    long_ago = {f"old{n}": now - 367 * DAY_MS for n in range(3)}
    redis_client.zadd(deleted, long_ago | {"recent": now - 365 * DAY_MS})
    delete(store)
    assert redis_client.zrange(deleted, 0, -1) == ["recent", COHORT]
    assert 0 < redis_client.pttl(deleted) <= 366 * DAY_MS
    redis_client.zadd(deleted, {f"c{n}": now + n for n in range(9_999)})
    say(store, TRAIT, True, ["alice"])
    delete(store)
    assert redis_client.zcard(deleted) == 10_000
    assert redis_client.zscore(deleted, "recent") is None
    assert redis_client.zscore(deleted, COHORT)


def test_cohort_never_deleted__is_not_marked(store: Store, reader: FlaskClient) -> None:
    delete(store, COHORT)
    say(store, "n: other", True, ["bob"])
    assert shown(reader, "other")["reasons"] == []


def test_transitions__each_once(store: Store, redis_client: redis.Redis) -> None:
    store.completeness.raise_reason(APP, COHORT, Reason.SYNC_FAILED)
    store.completeness.raise_reason(APP, COHORT, Reason.SYNC_FAILED)
    store.completeness.raise_reason(APP, COHORT, Reason.STORE_LOST)
    store.completeness.clear_reason(APP, COHORT, Reason.SYNC_FAILED)
    store.completeness.clear_reason(APP, COHORT, Reason.SYNC_FAILED)
    store.completeness.verify(APP, COHORT, VerifiedBy.RESYNC)
    store.completeness.verify(APP, COHORT, VerifiedBy.RESYNC)
    key = store.keys.transitions(APP, store.keys.partition(COHORT))
    assert [fields for _, fields in redis_client.xrange(key)] == [
        {"cohort": COHORT, "from": before, "to": after, "raised": raised, "cleared": cleared}
        for before, after, raised, cleared in (
            ("unverified", "incomplete", "sync_failed", ""),
            ("incomplete", "incomplete", "store_lost", ""),
            ("incomplete", "incomplete", "", "sync_failed"),
            ("incomplete", "verified", "", "store_lost"),
        )
    ]
    assert 0 < redis_client.ttl(key) <= 7 * 24 * 3600
