"""A message is recognised by its id and content, once all of it was applied."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient

from app.services import services
from simulator import payloads
from tests.integration.conftest import APP, caller
from tests.integration.store_contents import members

BODY = payloads.webhook("n", "1", ["a", "b"], True, computed_time="1692206763", message_id="m")


def post(http: FlaskClient) -> tuple[int, dict]:
    reply = http.post(payloads.WEBHOOK_PATH, json=BODY)
    return reply.status_code, reply.json


def test_message__refused_for_unknown_users__is_applied_once_they_are_registered(
    make_app: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    app = make_app(user_policy="known")
    http, store = caller(app), services(app).store
    assert post(http)[0] == 404
    assert post(http)[0] == 404, "a retry must not hear that it was accepted"
    store.registered_users.add(APP, ["a"])
    for changed in (1, 0):
        status, reply = post(http)
        assert (status, reply["accepted"], reply["rejected"]) == (200, 1, 1)
        assert reply["changed"] == changed
    store.registered_users.add(APP, ["b"])
    assert post(http)[1]["changed"] == 1
    assert members(redis_client, APP) == {"1": {"a", "b"}}
    assert post(http)[1] == {"accepted": 2, "changed": 0, "rejected": 0, "errors": []}


def test_message__that_left_somebody_out__repeated_after_a_newer_one__undoes_nothing(
    make_app: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    app = make_app(user_policy="known")
    http, store = caller(app), services(app).store
    store.registered_users.add(APP, ["a"])
    assert post(http)[1]["changed"] == 1
    leaves = payloads.webhook("n", "1", ["a"], False, computed_time="1692206763", message_id="m2")
    assert http.post(payloads.WEBHOOK_PATH, json=leaves).json["changed"] == 1
    store.registered_users.add(APP, ["b"])
    status, reply = post(http)
    assert (status, reply["accepted"], reply["changed"], reply["rejected"]) == (200, 2, 1, 0)
    assert members(redis_client, APP) == {"1": {"b"}}
    assert post(http)[1]["changed"] == 0


def test_message__that_left_out_a_suppressed_user__is_recognised(
    make_app: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    app = make_app(store_partitions=3)
    http, store = caller(app), services(app).store
    store.erasure.erase(APP, "b", suppress=True)
    assert post(http)[1]["changed"] == 1
    leaves = payloads.webhook("n", "1", ["a"], False, computed_time="1692206763", message_id="m2")
    assert http.post(payloads.WEBHOOK_PATH, json=leaves).json["changed"] == 1
    status, reply = post(http)
    assert (status, reply["changed"], reply["rejected"]) == (200, 0, 1)
    assert members(redis_client, APP) == {}


def test_message__that_met_a_key_of_another_type__is_503_until_it_is_gone(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    redis_client.set(f"cohorts:{{{APP}}}:user:b", "someone else's")
    assert post(client)[0] == 503
    assert post(client)[0] == 503
    redis_client.delete(f"cohorts:{{{APP}}}:user:b")
    assert post(client)[0] == 200
    assert members(redis_client, APP) == {"1": {"a", "b"}}


@pytest.mark.parametrize(
    "other",
    [
        {"cohort_id": "2"},
        {"cohort_name": "renamed"},
        {"in_cohort": False},
        {"users": [{"user_id": "c"}, {"user_id": "d"}]},
        {"users": [{"user_id": "a"}, {"user_id": "b"}, {"user_id": "c"}]},
        {"users": [{"user_id": "ab"}]},
        {"computed_time": "1692206764", "in_cohort": False},
    ],
    ids=["cohort", "name", "direction", "users", "more users", "joined", "time"],
)
@pytest.mark.parametrize("partitions", [1, 3])
def test_message__with_the_id_of_another__is_applied(
    make_app: Callable[..., Flask], partitions: int, other: dict[str, Any]
) -> None:
    http = caller(make_app(store_partitions=partitions))
    assert http.post(payloads.WEBHOOK_PATH, json=BODY).json["changed"] == 2
    users = len(other.get("users", BODY["users"]))
    changed = 1 if len(other.get("users", ())) == 3 else users
    for expected in (changed, 0):
        reply = http.post(payloads.WEBHOOK_PATH, json={**BODY, **other})
        assert (reply.status_code, reply.json["accepted"]) == (200, users)
        assert reply.json["changed"] == expected


def test_message__that_says_again_what_an_earlier_one_said__is_applied(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    """A template with a constant for an id: the times tell these messages apart."""
    for seconds, member in enumerate((True, False, True, False)):
        body = {**BODY, "in_cohort": member, "computed_time": str(1692206763 + seconds)}
        assert client.post(payloads.WEBHOOK_PATH, json=body).json["changed"] == 2
        assert members(redis_client, APP) == ({"1": {"a", "b"}} if member else {})


def test_message_record__of_the_longest_id__is_short(
    client: FlaskClient, redis_client: redis.Redis
) -> None:
    body = {**BODY, "message_id": "m" * 256}
    assert client.post(payloads.WEBHOOK_PATH, json=body).status_code == 200
    (key,) = redis_client.keys(f"cohorts:{{{APP}}}:message:*")
    assert len(key) == len(f"cohorts:{{{APP}}}:message:") + 32
    assert 0 < redis_client.pttl(key) <= 24 * 3600 * 1000


def test_message__that_left_users_out__keeps_no_user_id(
    make_app: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    app = make_app(user_policy="known")
    http, store = caller(app), services(app).store
    store.registered_users.add(APP, ["a"])
    assert post(http)[1]["rejected"] == 1
    store.erasure.erase(APP, "a", suppress=True)
    other = payloads.webhook("n", "2", ["a", "b"], True, computed_time="1", message_id="m2")
    http.post(payloads.WEBHOOK_PATH, json=other)
    (record, *others) = [redis_client.get(key) for key in redis_client.keys("*:message:*")]
    assert others
    for kept in (record, *others):
        assert all(len(user) == 16 for user in json.loads(kept))
