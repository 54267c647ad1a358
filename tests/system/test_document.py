"""The requests of Amplitude's document, sent as they are printed there."""

from __future__ import annotations

import json

import redis

from tests.system.service import APP, COHORT_PATH, KEY, Service


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
