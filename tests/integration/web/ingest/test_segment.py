"""The Segment protocol: identify calls land, other calls are rejected one by one."""

from __future__ import annotations

import gzip
import json
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.services import services
from simulator import payloads
from tests.integration.conftest import APP, caller
from tests.integration.store_contents import contents, members, traits
from tests.integration.web.ingest.contract import (
    COHORT,
    MISSING,
    NAME,
    TRAIT,
    BatchContract,
    CohortContract,
    without_missing,
)

IDENTIFY_PATH, BATCH_PATH = "/v1/identify", "/v1/batch"
TRACK = {"type": "track", "userId": "u", "event": "Song Played", "properties": {"n": 1}}


def at(seconds: float = 0) -> str:
    """A time so many seconds from now, as libraries write it."""
    return (datetime.now(tz=UTC) + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def call(user_id: str, member: bool, **changes: Any) -> dict[str, Any]:
    """An identify call with all that a library adds."""
    return {
        "type": "identify",
        "userId": user_id,
        "anonymousId": None,
        "traits": {TRAIT: member},
        "context": {"library": {"name": "analytics-python", "version": "2.4.0"}, "ip": None},
        "integrations": {"All": True},
        "messageId": str(uuid.uuid4()),
        "timestamp": at(),
        **changes,
    }


def batch(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"batch": list(calls), "sentAt": at(), "writeKey": "not looked at"}


def post(http: FlaskClient, body: Any, path: str = BATCH_PATH) -> dict[str, Any]:
    reply = http.post(path, json=body)
    assert reply.status_code == 200, reply.json
    return reply.json


class TestBatch(BatchContract):
    source, place = "segment", "batch.{}.userId"

    def request(self, http: FlaskClient, user_ids: Sequence[Any], member: bool) -> TestResponse:
        now = at()
        body = batch(*(call(user, member, timestamp=now) for user in user_ids))
        return http.post(BATCH_PATH, json=without_missing(body))


class TestSingleIdentify(CohortContract):
    source, place = "segment", "userId"
    many = 100  # a request each

    def request(self, http: FlaskClient, user_ids: Sequence[Any], member: bool) -> TestResponse:
        (user_id,) = user_ids
        return http.post(IDENTIFY_PATH, json=without_missing(call(user_id, member)))


class TestTraitsInContext(BatchContract):
    """As RudderStack's libraries send them."""

    source, place = "segment", "batch.{}.userId"

    def request(self, http: FlaskClient, user_ids: Sequence[Any], member: bool) -> TestResponse:
        now, calls = at(), []
        for user_id in user_ids:
            moved = call(user_id, member, timestamp=now)
            moved["context"]["traits"] = moved.pop("traits")
            calls.append(moved)
        return http.post(BATCH_PATH, json=without_missing(batch(*calls)))


class TestAmplitudeNames(BatchContract):
    """As Segment's own destination names Amplitude's cohorts, next to other traits."""

    source, place = "segment", "batch.{}.userId"

    def request(self, http: FlaskClient, user_ids: Sequence[Any], member: bool) -> TestResponse:
        said = {"email": "a@b.c", f"[Amplitude] {NAME} ({COHORT})": member, "age": 7}
        now = at()
        body = batch(*(call(user, member, timestamp=now, traits=said) for user in user_ids))
        return http.post(BATCH_PATH, json=without_missing(body))


def test_other_traits__are_ignored_and_counted(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    others = {"email": "a@b.c", "plan": None, "address": {"city": "x"}, "age": 7, "n" * 600: 1}
    said = call("u", True, traits={"email": "a@b.c", TRAIT: True, **others})
    assert post(client, said, IDENTIFY_PATH) == {
        "accepted": 1,
        "changed": 1,
        "rejected": 0,
        "errors": [],
        "ignoredTraits": 5,
    }
    in_context = call("v", True)
    in_context["context"]["traits"] = {**in_context.pop("traits"), "plan": "gold"}
    reply = post(client, batch(said, TRACK, in_context))
    assert (reply["accepted"], reply["ignoredTraits"]) == (2, 6)
    assert traits(redis_client, APP) == {"u": {TRAIT: "true"}, "v": {TRAIT: "true"}}


@pytest.mark.parametrize(
    "changes",
    [
        {"traits": {"email": "a@b.c"}},
        {"traits": {}},
        {"traits": None},
        {"traits": MISSING},
        {"traits": MISSING, "context": {"traits": {"email": "a@b.c"}}},
        {"traits": None, "context": {"traits": None}},
        {"traits": {"email": "a@b.c"}, "userId": None},
    ],
)
def test_call__without_a_boolean_trait__is_skipped_with_a_reason(
    client: FlaskClient, redis_client: redis.Redis, changes: dict[str, Any]
) -> None:
    silent = without_missing(call("a", True, **changes))
    reply = post(client, silent, IDENTIFY_PATH)
    assert (reply["accepted"], reply["changed"], reply["rejected"]) == (0, 0, 1)
    assert [(e["place"], e["reason"]) for e in reply["errors"]] == [("traits", "no_cohort_traits")]
    assert redis_client.keys("cohorts:{shop*") == []
    reply = post(client, batch(silent, TRACK, call("b", True), silent))
    assert (reply["accepted"], reply["changed"], reply["rejected"]) == (1, 1, 3)
    assert [(e["place"], e["reason"]) for e in reply["errors"]] == [
        ("batch.0.traits", "no_cohort_traits"),
        ("batch.1.type", "unsupported_type"),
        ("batch.3.traits", "no_cohort_traits"),
    ]
    assert set(traits(redis_client, APP)) == {"b"}


def test_cohort__named_in_brackets_and_renamed__stays_one_cohort(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    for name in ("Trial: day 3", "Trial (new): day (4)"):
        post(client, call("u", True, traits={f"[Amplitude] {name} (abc123)": True}), IDENTIFY_PATH)
    assert members(redis_client, APP) == {"abc123": {"u"}}
    assert traits(redis_client, APP) == {"u": {"[Amplitude] Trial (new): day (4): abc123": "true"}}
    webhook = payloads.webhook(
        "Trial (new): day (4)",
        "abc123",
        ["u"],
        True,
        computed_time=int(time.time()),
        message_id="m",
    )
    assert post(client, webhook, payloads.WEBHOOK_PATH)["changed"] == 0


def test_identify__without_a_type__is_taken(client: FlaskClient, redis_client: redis.Redis) -> None:
    body = call("u", True)
    del body["type"]
    assert post(client, body, IDENTIFY_PATH)["changed"] == 1
    assert traits(redis_client, APP) == {"u": {TRAIT: "true"}}


def test_identify__of_another_type__is_400_and_writes_nothing(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    reply = client.post(IDENTIFY_PATH, json=TRACK)
    assert (reply.status_code, reply.json["reason"]) == (400, "invalid_payload")
    assert "type" in {e["place"] for e in reply.json["errors"]}
    assert redis_client.keys("cohorts:{*") == []


@pytest.mark.parametrize("path", [IDENTIFY_PATH, BATCH_PATH, IDENTIFY_PATH + "/", BATCH_PATH + "/"])
def test_body__in_gzip__is_read(client: FlaskClient, path: str) -> None:
    body = batch(call("u", True)) if "batch" in path else call("u", True)
    reply = client.post(
        path,
        data=gzip.compress(json.dumps(body).encode()),
        headers={"Content-Type": "application/json", "Content-Encoding": "gzip"},
    )
    assert (reply.status_code, reply.json["changed"]) == (200, 1)


def test_other_calls__in_a_batch__are_rejected_one_by_one(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    others = [{"type": name} for name in ("page", "screen", "group", "audience")]
    reply = post(client, batch(TRACK, call("a", True), *others, call("b", True)))
    assert {k: reply[k] for k in ("accepted", "changed", "rejected")} == {
        "accepted": 2,
        "changed": 2,
        "rejected": 5,
    }
    assert [(e["place"], e["reason"]) for e in reply["errors"]] == [
        (f"batch.{n}.type", "unsupported_type") for n in (0, 2, 3, 4, 5)
    ]
    assert set(traits(redis_client, APP)) == {"a", "b"}


def test_other_calls__alone_in_a_batch__are_a_200_that_says_so(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    reply = post(client, batch(*[TRACK] * 60))
    assert (reply["accepted"], reply["rejected"], len(reply["errors"])) == (0, 60, 50)
    assert redis_client.keys("cohorts:{shop*") == []


def test_malformed_identify__in_a_batch__refuses_all_of_it(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    reply = client.post(
        BATCH_PATH, json=batch(call("a", True), TRACK, call("b", True, timestamp="soon"))
    )
    assert (reply.status_code, reply.json["reason"]) == (400, "invalid_payload")
    assert [e["place"] for e in reply.json["errors"]] == ["batch.2.timestamp"]
    assert redis_client.keys("cohorts:{*") == []


def test_error__has_the_members_that_libraries_read(client: FlaskClient) -> None:
    refused = client.post(BATCH_PATH, json={"batch": 1}).json
    assert (refused["code"], refused["message"]) == ("invalid_payload", refused["detail"])
    unknown = client.post(BATCH_PATH, json=batch(), headers={"api_key": "wrong"}).json
    assert unknown["code"] == unknown["reason"] == "invalid_credentials"
    assert unknown["message"] == unknown["detail"]


def test_error__of_the_store__has_the_members_that_libraries_read(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    redis_client.config_set("maxmemory", "1")
    try:
        reply = client.post(IDENTIFY_PATH, json=call("u", True))
    finally:
        redis_client.config_set("maxmemory", "0")
    assert (reply.status_code, reply.json["code"]) == (503, "store_full")
    assert reply.json["message"] == reply.json["detail"]
    assert "Retry-After" in reply.headers


def test_known_users_only__rejections_of_both_kinds__have_their_places(
    make_app: Callable[..., Flask],
) -> None:
    app = make_app(user_policy="known")
    services(app).store.registered_users.add(APP, ["known"])
    reply = post(caller(app), batch(TRACK, call("x", True), TRACK, call("known", True)))
    assert (reply["accepted"], reply["rejected"]) == (1, 3)
    assert {(e["place"], e["reason"]) for e in reply["errors"]} == {
        ("batch.0.type", "unsupported_type"),
        ("batch.2.type", "unsupported_type"),
        ("batch.1.userId", "unknown_user"),
    }
    nobody = caller(app).post(BATCH_PATH, json=batch(TRACK, call("x", True)))
    assert (nobody.status_code, nobody.json["reason"]) == (404, "unknown_user")


def test_timestamp__older_than_the_last_applied__never_undoes_it(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    post(client, batch(call("u", True, timestamp=at(-30))))
    leave = batch(call("u", False, timestamp=at(-10)))
    post(client, leave)
    before = contents(redis_client)
    for late in (at(-20), "2001-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59"):
        assert post(client, batch(call("u", True, timestamp=late)))["changed"] == 0
    assert contents(redis_client) == before


def test_timestamp__within_one_batch__orders_whatever_the_place(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    post(client, batch(call("u", False, timestamp=at(-1)), call("u", True, timestamp=at(-2))))
    assert traits(redis_client, APP) == {"u": {TRAIT: "false"}}


def test_timestamp__without_an_offset__is_in_utc(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    said = datetime.now(tz=UTC).replace(tzinfo=None, microsecond=0) - timedelta(hours=1)
    post(client, batch(call("u", True, timestamp=said.isoformat())))
    ((_, since),) = redis_client.zrange(
        f"cohorts:{{{APP}}}:cohort:abc123:members", 0, -1, withscores=True
    )
    assert since == said.replace(tzinfo=UTC).timestamp() * 1000


def test_timestamp__in_the_future__counts_as_arrival(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    post(client, batch(call("u", True, timestamp="9999-12-31T23:59:59-23:59")))
    client.post(payloads.COHORT_PATH, json=payloads.identify("u", TRAIT, False))
    assert traits(redis_client, APP) == {"u": {TRAIT: "false"}}


def test_webhook_and_segment__about_the_same_user__are_ordered_by_their_times(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    now = int(time.time())
    webhook = payloads.webhook(
        "Power: users", "abc123", ["u"], True, computed_time=now - 60, message_id="m"
    )
    post(client, batch(call("u", False, timestamp=at(-30))))
    assert post(client, webhook, payloads.WEBHOOK_PATH)["changed"] == 0
    assert members(redis_client, APP) == {}
