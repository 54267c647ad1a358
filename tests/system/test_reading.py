"""Reading over real sockets: ids in paths, and whole cohorts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from simulator import payloads
from tests.support.effort import PARTITIONS, some
from tests.support.service import APP, KEY, Service, running

READ_KEY = "TEST_READ_KEY"
TRAIT = "[Amplitude] a/b: c/d"
IDS = [
    "a@b.c",
    "a/b",
    "/a",
    "a/",
    "a//b",
    "..",
    "../x",
    "a/../b",
    ".",
    "a+b",
    "a b",
    "100%",
    "%2F",
    "é",
    "🎉",
    "query",
    "a?b#c&d=e",
    "line\r\nbreak",
]


@pytest.fixture(scope="module", params=PARTITIONS)
def service(request: pytest.FixtureRequest, store_url: str) -> Iterator[Service]:
    env = {
        "REDIS_URL": store_url,
        "RATE_LIMIT": "off",
        "READ_API_KEYS": f"{APP}:{READ_KEY}",
        "STORE_PARTITIONS": str(request.param),
        "KEY_PREFIX": f"reading-{request.param}",
        "WEB_CONCURRENCY": "1",
    }
    with running(env) as service:
        yield service


def get(service: Service, path: str, key: str = READ_KEY):
    return service.request("GET", f"/api/v1/{path}", api_key=key)


@pytest.mark.parametrize("user_id", some(IDS))
def test_ids_in_paths__through_the_real_server__are_what_was_stored(
    service: Service, user_id: str
) -> None:
    assert service.post(payloads.identify(user_id, TRAIT, True)).status == 200
    user = quote(user_id, safe="")
    # urllib3 resolves "." and "..", as browsers do: these two can only be asked for in a body
    if user_id in (".", ".."):
        user = user.replace(".", "%2E")
    told = get(service, f"users/{user}")
    assert (told.status, told.json()["userId"]) == (200, user_id)
    assert [cohort["id"] for cohort in told.json()["cohorts"]] == ["c/d"]
    assert get(service, f"cohorts/c%2Fd/members/{user}").json()["member"] is True
    asked = service.request("POST", "/api/v1/users/query", {"userIds": [user_id]}, api_key=READ_KEY)
    assert asked.json()["users"] == [told.json()]


def test_read_key__may_read_and_not_send__and_the_ingest_key_the_reverse(service: Service) -> None:
    assert get(service, "users/u").status == 200
    assert get(service, "users/u", KEY).json()["reason"] == "missing_scope"
    sent = service.post(payloads.identify("u", TRAIT, True), api_key=READ_KEY)
    assert sent.json()["reason"] == "missing_scope"


def test_export__of_a_synced_cohort__streams_every_member(service: Service) -> None:
    ids = payloads.user_ids(12_000)
    for start in range(0, len(ids), 4000):
        sent = service.post(payloads.batch(ids[start : start + 4000], "[Amplitude] big: big", True))
        assert sent.status == 200
    reply = get(service, "cohorts/big/members.ndjson")
    assert reply.headers["Transfer-Encoding"] == "chunked"
    assert {json.loads(line)["userId"] for line in reply.data.splitlines()} == set(ids)
    assert get(service, "cohorts/big/members.csv").data.count(b"\r\n") == 12_001
