"""Cohort Webhooks: repeats are recognised, and an older message never undoes a newer."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.services import services
from simulator import payloads
from tests.integration.conftest import APP, caller
from tests.integration.store_contents import Transition, contents, members, traits, transitions
from tests.integration.web.ingest.contract import (
    COHORT,
    NAME,
    TRAIT,
    BatchContract,
    without_missing,
)

NOW = int(time.time())


def message(
    users: Sequence[str], member: bool, at: float | str = NOW, message_id: str | None = None
) -> dict[str, Any]:
    if message_id is None:
        message_id = payloads.message_id(random.Random(uuid.uuid4().int), member)
    return payloads.webhook(
        NAME, COHORT, users, member, computed_time=str(at), message_id=message_id
    )


def post(http: FlaskClient, body: Any) -> dict[str, Any]:
    reply = http.post(payloads.WEBHOOK_PATH, json=body)
    assert reply.status_code == 200, reply.json
    return reply.json


class TestContract(BatchContract):
    source, place = "webhook", "users.{}.user_id"

    def request(self, http: FlaskClient, user_ids: Sequence[Any], member: bool) -> TestResponse:
        body = message(user_ids, member, at=int(time.time()))
        return http.post(payloads.WEBHOOK_PATH, json=without_missing(body))


class TestWithoutTimeOrId(BatchContract):
    """A template of the customer's own may leave both out; then arrival orders."""

    source, place = "webhook", "users.{}.user_id"

    def request(self, http: FlaskClient, user_ids: Sequence[Any], member: bool) -> TestResponse:
        body = message(user_ids, member)
        del body["computed_time"], body["message_id"]
        return http.post(payloads.WEBHOOK_PATH, json=without_missing(body))


def test_reply__of_a_message__counts_what_happened(client: FlaskClient) -> None:
    post(client, message(["u1"], True))
    assert post(client, message(["u1", "u2"], True)) == {
        "accepted": 2,
        "changed": 1,
        "rejected": 0,
        "errors": [],
    }


def test_message__with_no_users__is_fine_and_changes_nothing(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    assert post(client, message([], True))["accepted"] == 0
    assert contents(redis_client) == {}


def test_unknown_fields__also_inside_users__are_ignored(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    body = message(["u1"], True) | {"schema": 2}
    body["users"][0]["user_properties"] = {"plan": "gold", "nested": [{}]}
    post(client, body)
    assert traits(redis_client, APP) == {"u1": {TRAIT: "true"}}


def test_repeat__after_a_newer_opposite_of_the_same_time__changes_nothing(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    enter, leave = message(["u1"], True), message(["u1"], False)
    post(client, enter)
    post(client, leave)
    before = contents(redis_client)
    assert post(client, enter)["changed"] == 0
    assert contents(redis_client) == before
    assert members(redis_client, APP) == {}


def test_message__older_than_the_last_applied__never_undoes_it(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    post(client, message(["u1"], True, NOW - 10))
    before = contents(redis_client)
    assert post(client, message(["u1"], False, NOW - 20))["changed"] == 0
    assert contents(redis_client) == before


def test_message__older_than_the_leaving__does_not_bring_the_user_back(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    post(client, message(["u1"], True, NOW - 30))
    post(client, message(["u1"], False, NOW - 10))
    before = contents(redis_client)
    assert post(client, message(["u1"], True, NOW - 20))["changed"] == 0
    assert contents(redis_client) == before
    assert traits(redis_client, APP) == {"u1": {TRAIT: "false"}}


def test_messages__in_any_order__end_as_the_newest_says(
    make_app: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    said = [message(["u1", f"other{n}"], n % 2 == 0, NOW - 100 + n) for n in range(7)]
    for seed in range(5):
        redis_client.flushall()
        http = caller(make_app(store_partitions=1 + seed % 2))
        shuffled = random.Random(seed).sample(said * 2, 14)
        for body in shuffled:
            post(http, body)
        assert traits(redis_client, APP)["u1"] == {TRAIT: "true"}, seed
        assert members(redis_client, APP) == {
            COHORT: {"u1", "other0", "other2", "other4", "other6"}
        }


@pytest.mark.parametrize("arrived_member", [True, False])
def test_identify__without_a_time__counts_as_of_its_arrival(
    client: FlaskClient, redis_client: redis.Redis, arrived_member: bool
) -> None:
    """Computed before the identify call arrived: older, however late it comes."""
    post(client, message(["u1"], not arrived_member, NOW - 60))
    client.post(payloads.COHORT_PATH, json=payloads.identify("u1", TRAIT, arrived_member))
    before = contents(redis_client)
    assert post(client, message(["u1"], not arrived_member, NOW - 30))["changed"] == 0
    assert contents(redis_client) == before


def test_identify__without_a_time__is_applied_in_order_of_arrival(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    post(client, message(["u1"], True, time.time()))
    client.post(payloads.COHORT_PATH, json=payloads.identify("u1", TRAIT, False))
    assert traits(redis_client, APP) == {"u1": {TRAIT: "false"}}
    post(client, message(["u1"], True, time.time() + 1))
    assert traits(redis_client, APP) == {"u1": {TRAIT: "true"}}
    assert [t.change for t in transitions(redis_client, APP)] == ["entered", "left", "entered"]


def test_message__from_the_future__counts_as_of_its_arrival(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    post(client, message(["u1"], True, NOW + 86_400))
    ((_, since),) = redis_client.zrange(
        f"cohorts:{{{APP}}}:cohort:{COHORT}:members", 0, -1, withscores=True
    )
    assert abs(since / 1000 - time.time()) < 60
    post(client, message(["u1"], False, time.time() + 1))
    assert transitions(redis_client, APP)[-1] == Transition(COHORT, "left", "u1")


def test_large_message__cut_by_a_store_failure__is_completed_by_its_retry(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    ids = payloads.user_ids(10_000)
    body = message(ids, True)
    # A warm-up loads the script, so that memory grows by the message alone from here on.
    post(client, message(["warm up"], False))
    used = redis_client.info("memory")["used_memory"]
    redis_client.config_set("maxmemory", used + 600_000)
    try:
        reply = client.post(payloads.WEBHOOK_PATH, json=body)
    finally:
        redis_client.config_set("maxmemory", 0)
    assert (reply.status_code, reply.json["reason"]) == (503, "store_full")
    before = len(members(redis_client, APP).get(COHORT, ()))
    assert 0 < before < 10_000

    assert post(client, body)["changed"] == 10_000 - before
    assert members(redis_client, APP) == {COHORT: set(ids)}
    told = transitions(redis_client, APP)
    assert (len(told), len(set(told))) == (10_000, 10_000)

    after = contents(redis_client)
    assert post(client, body) == {"accepted": 10_000, "changed": 0, "rejected": 0, "errors": []}
    assert contents(redis_client) == after


def test_known_users_only__others_are_named_by_their_place(make_app: Callable[..., Flask]) -> None:
    app = make_app(user_policy="known")
    services(app).store.registered_users.add(APP, ["known"])
    reply = post(caller(app), message(["x", "known"], True))
    assert (reply["accepted"], reply["rejected"]) == (1, 1)
    assert reply["errors"][0]["place"] == "users.0.user_id"
    assert caller(app).post(payloads.WEBHOOK_PATH, json=message(["x"], True)).status_code == 404


def test_body__bad_in_many_ways__is_400_and_writes_nothing(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    body = message(["a"] * 17, True) | {"in_cohort": "yes", "computed_time": "soon"}
    body["users"].append("u")
    reply = client.post(payloads.WEBHOOK_PATH, json=body)
    assert (reply.status_code, reply.json["reason"]) == (400, "invalid_payload")
    assert {e["place"] for e in reply.json["errors"]} == {
        "in_cohort",
        "computed_time",
        "users.17",
    }
    assert redis_client.keys("cohorts:{*") == []


@pytest.mark.parametrize("cohort_id", ["us:7", "7:", ":7", " ", "", 7.0, True, None, [7]])
def test_cohort_id__that_could_be_read_as_another__is_400_and_writes_nothing(
    client: FlaskClient, redis_client: redis.Redis, cohort_id: object
) -> None:
    post(client, {**message(["u"], True), "cohort_id": "7"})
    before = contents(redis_client)
    body = {**message(["u"], False), "cohort_id": cohort_id}
    reply = client.post(payloads.WEBHOOK_PATH, json=body)
    assert (reply.status_code, reply.json["reason"]) == (400, "invalid_payload")
    assert [e["place"] for e in reply.json["errors"]] == ["cohort_id"]
    assert contents(redis_client) == before
