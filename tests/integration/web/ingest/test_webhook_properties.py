"""Webhooks whose users carry properties: what nobody reads costs no limit but the body's size."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import cache

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.services import services
from simulator import payloads
from tests.integration.conftest import APP, caller
from tests.integration.store_contents import members
from tests.support.effort import thorough

LIMIT = 16 << 20


@cache
def message(users: int, properties: int) -> bytes:
    body = payloads.webhook(
        "n", "1", payloads.user_ids(users), True, computed_time=1692206763, message_id="m"
    )
    for number, user in enumerate(body["users"]):
        user["user_properties"] = {
            f"property_{n}": f"v{n}-{number % 97}" for n in range(properties)
        }
    return json.dumps(body).encode()


def post(http: FlaskClient, body: bytes, *, packed: bool = False) -> TestResponse:
    headers = {"Content-Type": "application/json"}
    if packed:
        headers["Content-Encoding"] = "gzip"
        body = gzip.compress(body, 1)
    return http.post(payloads.WEBHOOK_PATH, data=body, headers=headers)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("users", [pytest.param(5000, marks=thorough), 10_000])
def test_users__with_fifty_properties_each__are_applied(
    client: FlaskClient, redis_client: redis.Redis, users: int, packed: bool
) -> None:
    body = message(users, 50)
    assert len(body) > 8 << 20 or users == 5000
    reply = post(client, body, packed=packed)
    assert (reply.status_code, reply.json["accepted"], reply.json["changed"]) == (200, users, users)
    assert members(redis_client, APP) == {"1": set(payloads.user_ids(users))}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_body__up_to_twice_the_limit_of_others__is_taken(client: FlaskClient, packed: bool) -> None:
    body = message(10, 1)
    body += b" " * (LIMIT - len(body))
    assert post(client, body, packed=packed).status_code == 200
    reply = post(client, body + b" ", packed=packed)
    assert (reply.status_code, reply.json["reason"]) == (413, "body_too_large")
    if packed:
        two = gzip.compress(body, 1) + gzip.compress(b" ")
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        reply = client.post(payloads.WEBHOOK_PATH, data=two, headers=headers)
        assert (reply.status_code, reply.json["reason"]) == (413, "body_too_large")


def test_bad_users__in_a_large_message__cost_only_themselves(client: FlaskClient) -> None:
    body = json.loads(message(5000, 50))
    bad = [None, " ", 1.5, True, [[]], {"a": [1]}, "x" * 10_000]
    for number, user_id in enumerate(bad):
        body["users"][number]["user_id"] = user_id
    body["users"][len(bad)]["user_id"] = 7
    del body["users"][-1]["user_id"]
    reply = post(client, json.dumps(body).encode())
    assert (reply.status_code, reply.json["accepted"]) == (200, 5000 - len(bad) - 1)
    assert [e["place"] for e in reply.json["errors"]] == [
        *(f"users.{n}.user_id" for n in range(len(bad))),
        "users.4999.user_id",
    ]


def test_too_many_users__in_a_large_message__are_a_400(make_app: Callable[..., Flask]) -> None:
    http = caller(make_app(max_batch_users=4999))
    reply = post(http, message(5000, 50))
    assert reply.status_code == 400
    assert reply.json["errors"] == [{"place": "users", "message": "Must hold at most 4,999 users."}]


@pytest.mark.parametrize("cut", [0, 1], ids=["too many users", "invalid JSON"])
def test_refused__in_a_large_message__belongs_to_the_cohort_that_it_names(
    make_app: Callable[..., Flask], cut: int
) -> None:
    app = make_app(max_batch_users=4999)
    http, history = caller(app), services(app).store.sync_history
    body = message(5000, 50)
    assert post(http, body[: len(body) - cut]).status_code == 400
    services(app).sync_recorder.flush()
    (sync,) = history.syncs(APP).syncs
    assert history.first_problems(APP, [sync])[sync.id].unknown_cohorts == ["1"]
    assert post(http, message(1, 1)).status_code == 200
    assert post(http, body[: len(body) - cut]).status_code == 400
    services(app).sync_recorder.flush()
    assert history.syncs(APP, cohort_id="1").syncs[0].failed == 1
