"""The operator's calls on the real server: ids of every kind in the path."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import redis

from simulator import payloads
from tests.support.effort import some
from tests.support.polling import DEADLINE, wait_until
from tests.support.service import ADMIN_KEY, APP, Service

TRAIT = "[Amplitude] Power users: abc123"

IDS = [
    "a/b",
    "a//b",
    "a/",
    "a//",
    "/",
    "//",
    "/a",
    "//a/b",
    "a@b.c",
    "a%b",
    "a%2Fb",
    "%",
    "a+b",
    "a b",
    "🎉é",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/./b",
    "a?b=c&d#e",
    "a;b=c",
    "line\nbreak",
    "\\'\"<>",
    "x" * 1024,
    "é" * 512,
]


def delete(service: Service, path: str) -> tuple[int, Any]:
    """Send a path just as it is: other clients tidy it up."""
    address = urlsplit(service.url)
    connection = HTTPConnection(str(address.hostname), address.port, timeout=DEADLINE)
    try:
        connection.putrequest("DELETE", path)
        connection.putheader("Authorization", f"Bearer {ADMIN_KEY}")
        connection.endheaders()
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.parametrize("user_id", some(IDS), ids=lambda user_id: repr(user_id)[:20])
def test_erase__user_ids_of_every_kind__are_taken_from_the_path_as_they_are(
    user_id: str, service: Service, redis_client: redis.Redis
) -> None:
    others = [other for other in IDS if other != user_id]
    service.post(payloads.batch(IDS, TRAIT, True))
    path = f"/api/v1/users/{quote(user_id, safe='')}"
    assert delete(service, f"{path}?suppress=true") == (
        200,
        {
            "traits": 1,
            "streamEntriesRemoved": 0,
            "streamEntriesKept": 1,
            "suppressed": True,
        },
    )
    key = f"cohorts:{{{APP}}}:cohort:abc123:members"
    assert set(redis_client.zrange(key, 0, -1)) == set(others)
    assert redis_client.smembers(f"cohorts:{{{APP}}}:suppressed") == {user_id}
    suppression = f"/api/v1/suppressions/{quote(user_id, safe='')}"
    assert delete(service, f"{suppression}/") == (200, {"removed": True})


@pytest.mark.parametrize(
    ("path", "user_id"),
    [
        ("a/b", "a/b"),
        ("a//b", "a//b"),
        ("/a", "/a"),
        ("a@b.c", "a@b.c"),
        ("a+b", "a+b"),
        ("a/../b", "a/../b"),
        ("a/", "a"),
        ("a//", "a/"),
        ("a%2F", "a/"),
        ("a%2f/", "a/"),
        ("%61", "a"),
    ],
)
def test_erase__path_not_all_encoded__means_the_same(
    path: str, user_id: str, service: Service, redis_client: redis.Redis
) -> None:
    service.post(payloads.identify(user_id, TRAIT, True))
    assert delete(service, f"/api/v1/users/{path}")[1]["traits"] == 1
    assert redis_client.keys("*:user:*") == []


@pytest.mark.parametrize("path", ["%FF", "a%ED%A0%80"])
def test_erase__path_not_utf_8__is_400(path: str, service: Service) -> None:
    status, problem = delete(service, f"/api/v1/users/{path}")
    assert (status, problem["reason"]) == (400, "invalid_parameter")
    assert problem["errors"] == [{"place": "user_id", "message": "Must be valid UTF-8."}]


def test_calls__about_a_user__do_not_log_the_id(service: Service) -> None:
    for path in ("users/my-secret?suppress=no", "users/my-secret", "suppressions/my-secret"):
        delete(service, f"/api/v1/{path}")
    service.post({"userIds": ["my-secret", 1]}, "/api/v1/users", api_key=ADMIN_KEY)
    rule = "/api/v1/users/<rest:user_id>"
    wait_until(lambda: [e for e in service.events() if e.get("path") == "/api/v1/users"])
    assert {e["status"] for e in service.events() if e.get("path") == rule} >= {200, 400}
    assert "my-secret" not in service.output()


def test_delete__of_a_cohort__is_done_by_the_running_service(
    service: Service, redis_client: redis.Redis
) -> None:
    ids = payloads.user_ids(2000)
    assert service.post(payloads.batch(ids, TRAIT, True)).status == 200
    wait_until(lambda: _known(service, redis_client))
    assert delete(service, "/api/v1/cohorts/abc123") == (
        202,
        {"cohortId": "abc123", "status": "deleting"},
    )
    wait_until(lambda: delete(service, "/api/v1/cohorts/abc123")[0] == 404)
    assert redis_client.keys("*:user:*") == redis_client.keys("*:members") == []
    assert service.post(payloads.batch(ids[:10], TRAIT, True)).json()["changed"] == 10


def _known(service: Service, redis_client: redis.Redis) -> bool:
    """Whether the service has seen that its store was emptied by another test."""
    service.post(payloads.identify("u", TRAIT, True))
    return bool(redis_client.sismember("cohorts:apps", APP))
