"""Whatever a sender's template or library makes of a body: an answer, never an error of ours."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.payloads import COHORT_PATH, WEBHOOK_PATH
from tests.integration.conftest import caller

PATHS = (COHORT_PATH, WEBHOOK_PATH, "/v1/identify", "/v1/batch", "/lists", "/lists/1/add")

GOOD = {
    "cohort_name": "n",
    "cohort_id": "1",
    "in_cohort": True,
    "computed_time": "1692206763",
    "message_id": "m",
    "users": [{"user_id": "u"}],
    "type": "identify",
    "userId": "u",
    "userIds": ["u"],
    "name": "n: 1",
    "traits": {"n: 1": True},
    "timestamp": "2023-08-16T17:26:03Z",
    "messageId": "m",
    "context": {"traits": {"n: 1": True}},
    "batch": [{"type": "identify", "userId": "u", "traits": {"n: 1": True}}],
}
# JSON as a template may print it, valid or not.
scalars = st.one_of(
    st.sampled_from(["1e400", "-1e400", "NaN", "Infinity", "-0", "1" * 400, "-1", "0.1", "1e22"]),
    st.sampled_from(['"NaN"', '"1e400"', '"-5"', '"\\ud800"', '"\\u0000"', '"", ', "'x'", "true"]),
    st.integers().map(str),
    st.floats().map(repr),
    st.text(max_size=4).map(json.dumps),
)
values = st.one_of(
    scalars,
    st.lists(scalars, max_size=2).map(lambda inner: f"[{', '.join(inner)}]"),
    scalars.map(lambda inner: f'{{"user_id": {inner}}}'),
    scalars.map(lambda inner: f'[{{"user_id": {inner}}}]'),
    scalars.map(lambda inner: f'[{{"type": "identify", "userId": "u", "timestamp": {inner}}}]'),
)
bodies = st.dictionaries(st.sampled_from(list(GOOD)), values, max_size=3).map(
    lambda changes: (
        "{"
        + ", ".join(
            f"{json.dumps(name)}: {changes.get(name, json.dumps(value))}"
            for name, value in GOOD.items()
            if changes.get(name) != "true"  # left out
        )
        + "}"
    )
)


@pytest.fixture
def http(make_app: Callable[..., Flask], redis_client: redis.Redis) -> FlaskClient:
    http = caller(make_app())
    http.post("/lists", json={"name": "n: 1"})
    return http


@pytest.mark.parametrize("path", PATHS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies)
def test_body__however_bent__is_taken_or_refused_with_places(
    path: str, body: str, http: FlaskClient
) -> None:
    reply = http.post(
        path, data=body.encode(), headers={"Content-Type": "application/json; charset=utf-8"}
    )
    if reply.status_code == 200:
        errors = reply.json.get("errors", [])
        assert reply.json.get("rejected", 0) == len(errors)
        assert {error["reason"] for error in errors} <= {"invalid_user_id", "no_cohort_traits"}
    elif reply.status_code == 404:
        assert reply.json["reason"] == "invalid_user_id"
        assert reply.json["errors"]
    else:
        assert (reply.status_code, reply.mimetype) == (400, "application/problem+json")
        assert reply.json["reason"] in ("invalid_json", "invalid_payload")
        assert reply.json["reason"] == "invalid_json" or reply.json["errors"]
