"""The requests of Amplitude's documentation, sent as they are printed there."""

from __future__ import annotations

import json
import time

import redis

from simulator import payloads
from tests.support.service import APP, COHORT_PATH, KEY, Service, stored


def test_header_request__as_printed__sets_the_trait(
    service: Service, redis_client: redis.Redis
) -> None:
    body = b"""
{
  "traits": {
    "cohort name:123": true
  },
  "type": "identify",
  "userId": "test.user@email.com"
}
"""
    reply = service.post(body, COHORT_PATH, api_key=KEY, app_id=APP)

    assert (reply.status, json.loads(reply.data)) == (
        200,
        {"accepted": 1, "changed": 1, "rejected": 0, "errors": []},
    )
    assert redis_client.hgetall("cohorts:{TEST_APP_ID}:user:test.user@email.com") == {
        "cohort name:123": "true"
    }


def test_single_update__as_printed__sets_and_clears_the_trait(
    service: Service, redis_client: redis.Redis
) -> None:
    for value, kept in (("true", "true"), ("false", "false")):
        body = f"""
{{
    "type": "identify",
    "traits": {{
        "[Amplitude] Power users: abc123": {value}
    }},
    "userId": "user 1",
    "context": {{
        "integration": {{
            "name": "Amplitude Cohort Sync",
            "version": "1.0.0"
        }}
    }}
}}"""
        assert service.post(body.encode()).status == 200
        assert redis_client.hgetall("cohorts:{TEST_APP_ID}:user:user 1") == {
            "[Amplitude] Power users: abc123": kept
        }


def test_batch_update__of_a_thousand__sets_every_trait(
    service: Service, redis_client: redis.Redis
) -> None:
    ids = payloads.user_ids(1000)
    trait = "[Amplitude] Power users: abc123"

    reply = service.post(payloads.batch(ids, trait, True))

    assert (reply.status, reply.json()) == (
        200,
        {"accepted": 1000, "changed": 1000, "rejected": 0, "errors": []},
    )
    hashes = [redis_client.hgetall(f"cohorts:{{TEST_APP_ID}}:user:{u}") for u in ids]
    assert hashes == [{trait: "true"}] * 1000
    since = dict(
        redis_client.zrange("cohorts:{TEST_APP_ID}:cohort:abc123:members", 0, -1, withscores=True)
    )
    assert set(since) == set(ids)
    assert all(abs(time.time() * 1000 - ms) < 60_000 for ms in since.values())
    ((_, entry),) = redis_client.xrange("cohorts:{TEST_APP_ID}:changes")
    assert (entry["cohort"], entry["change"]) == ("abc123", "entered")
    assert json.loads(entry["users"]) == ids


def test_wrong_key__is_401(service: Service, redis_client: redis.Redis) -> None:
    reply = service.post(payloads.identify("u", "n: 1", True), Authorization="Basic d3Jvbmc6")
    assert (reply.status, reply.json()["reason"]) == (401, "invalid_credentials")
    reply = service.post(payloads.identify("u", "n: 1", True), api_key=KEY, app_id="another")
    assert (reply.status, reply.json()["reason"]) == (401, "invalid_credentials")
    assert stored(redis_client) == []


def test_no_key__is_401(service: Service) -> None:
    reply = service.post(payloads.identify("u", "n: 1", True), api_key="")
    assert (reply.status, reply.json()["reason"]) == (401, "missing_credentials")


def test_bad_json__is_400(service: Service) -> None:
    # the document's own test request misses its closing quote; so may other senders' bodies
    reply = service.post(b"{'traits': {'cohort name:123': True}}")
    assert (reply.status, reply.json()["reason"]) == (400, "invalid_json")
