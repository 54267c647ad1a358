"""Ids and names that mean something to a store, a file system, a browser or a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from urllib.parse import quote

import pytest
import redis

from simulator.payloads import LISTS_PATH, identify, list_users
from tests.support.effort import some
from tests.support.raw_http import AUTH, head, raw, status
from tests.support.service import ADMIN_KEY, APP, Service

BASE = f"cohorts:{{{APP}}}:"
COHORTS, USERS = "/api/v1/cohorts/", "/api/v1/users/"
ADMIN = {"api_key": ADMIN_KEY}

# Hash tags and wildcards of the store, its protocol, its scripts, paths, commands of a shell,
# markup, formulas, line breaks.
ODD = [
    "{}",
    "{other}",
    "}:user:{",
    "{a}{b}",
    "*",
    "?",
    "[a-z]",
    "cohorts:{other}:user:u",
    ":members",
    "x:members",
    "..",
    "../../etc/passwd",
    "a/../b",
    "/",
    "%2e%2e%2f",
    "\\..\\",
    "a\r\nX-Injected: 1",
    "a\r\n\r\nHTTP/1.1 200 OK",
    "*1\r\n$8\r\nFLUSHALL\r\n",
    "\x1b[2J",
    "]]..redis.call('FLUSHALL')..[[",
    "'; return redis.call('FLUSHALL') --",
    '"}) redis.call("FLUSHALL") ({"',
    "$(touch /tmp/x)",
    "; DROP TABLE users; --",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "=HYPERLINK(1)",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\uff1d1",
    "{{7*7}}",
    "%s%n",
    "true",
    "null",
    "0",
    "-0",
    "1e9",
    "inf",
    "(1",
    "[x",
    "__proto__",
]


@pytest.fixture(autouse=True)
def bystander(redis_client: redis.Redis, empty_store: None) -> None:
    """Data of another app and of another program."""
    redis_client.set("elsewhere", "1")
    redis_client.hset("cohorts:{other}:user:u", "n: 1", "true")
    redis_client.zadd("cohorts:{other}:cohort:1:members", {"u": 1})


def encoded(name: str) -> str:
    """As one segment of a path. Dots too: clients tidy away a segment of two of them."""
    return quote(name, safe="").replace(".", "%2E")


def is_untouched(client: redis.Redis) -> bool:
    return (
        client.get("elsewhere") == "1"
        and client.hgetall("cohorts:{other}:user:u") == {"n: 1": "true"}
        and client.zrange("cohorts:{other}:cohort:1:members", 0, -1) == ["u"]
        and set(client.keys("cohorts:{other}*"))
        == {"cohorts:{other}:user:u", "cohorts:{other}:cohort:1:members"}
    )


@pytest.mark.parametrize("name", some(ODD))
def test_odd_ids__in_every_call__are_that_id_and_nothing_else(
    service: Service, redis_client: redis.Redis, name: str
) -> None:
    trait = f"n: {name}"
    cohort = trait.rpartition(":")[2].strip()
    in_path = encoded(cohort)
    assert service.post(identify(name, trait, True)).json()["changed"] == 1
    assert service.post(identify("plain", "n: plain", True)).status == 200
    assert redis_client.hgetall(f"{BASE}user:{name}") == {trait: "true"}
    assert redis_client.zrange(f"{BASE}cohort:{cohort}:members", 0, -1) == [name]

    add = f"{LISTS_PATH}/{in_path}/add"
    assert service.post(list_users(["second"]), add).json()["changed"] == 1
    assert service.post(list_users(["second"]), add.replace("/add", "/remove")).status == 200

    user = service.request("GET", USERS + encoded(name), **ADMIN)
    assert user.json()["userId"] == name
    assert [found["id"] for found in user.json()["cohorts"]] == [cohort]
    one = service.request("GET", f"{COHORTS}{in_path}/members/{encoded(name)}", **ADMIN)
    assert one.json()["member"] is True
    members = service.request("GET", f"{COHORTS}{in_path}/members?limit=1", **ADMIN)
    assert [member["userId"] for member in members.json()["members"]] == [name]
    found = service.request("GET", f"{COHORTS.rstrip('/')}?name={encoded(name)}", **ADMIN).json()
    assert cohort in [row["id"] for row in found["cohorts"]]
    asked = service.request("POST", f"{USERS}query", {"userIds": [name]}, **ADMIN)
    assert asked.json()["users"][0]["traits"] == {trait: True}

    assert service.request("DELETE", USERS + encoded(name), **ADMIN).json()["traits"] == 1
    assert service.request("DELETE", COHORTS + in_path, **ADMIN).status == 202
    assert redis_client.hgetall(f"{BASE}user:plain") == {"n: plain": "true"}
    assert is_untouched(redis_client)


@pytest.mark.parametrize("name", some(ODD))
def test_replies__about_odd_names__are_data_with_a_type_and_headers_of_ours(
    service: Service, name: str
) -> None:
    trait = f"{name}: c1"
    service.post(identify(name, trait, True))
    for path in (
        f"{USERS}{encoded(name)}",
        f"{COHORTS}c1",
        f"{COHORTS}{encoded(name)}",
        f"{COHORTS}c1/members.ndjson",
        f"{COHORTS}c1/members.csv",
        f"{COHORTS}c1/members/{encoded(name)}",
        f"/api/v1/changes?cursor={encoded(name)}",
        f"/{encoded(name)}",
        f"{COHORTS.rstrip('/')}?sort={encoded(name)}",
    ):
        reply = service.request("GET", path, **ADMIN)
        assert reply.status < 500, (path, reply.data)
        assert reply.headers["Content-Type"].partition(";")[0] in (
            "application/json",
            "application/problem+json",
            "application/x-ndjson",
            "text/csv",
        )
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert "X-Injected" not in reply.headers


def test_csv__of_ids_that_a_spreadsheet_would_run__begins_no_cell_with_a_formula(
    service: Service,
) -> None:
    for name in ODD:
        service.post(identify(name, "n: c1", True))
    reply = service.request("GET", f"{COHORTS}c1/members.csv", **ADMIN)
    rows = list(csv.reader(io.StringIO(reply.data.decode(), newline="")))[1:]
    cells = [user for user, _ in rows]
    assert sorted(cell.removeprefix("'") for cell in cells) == sorted(set(ODD))
    assert not [cell for cell in cells if cell[0] in "=+-@\t\r\n \uff1d"]


@pytest.mark.parametrize("header", ["X-Request-ID", "app_id", "Last-Event-ID", "If-None-Match"])
@pytest.mark.parametrize(
    "value", ["a\tb", "\x7f", "é", "{}", "<b>", "x" * 4000, "%0d%0aX-Injected: 1"]
)
def test_headers__with_odd_values__never_come_back_as_they_are(
    service: Service, header: str, value: str
) -> None:
    lines = [AUTH.replace("TEST_API_KEY", ADMIN_KEY), f"{header}: {value}", "Connection: close"]
    reply = raw(service, head(*lines, method="GET", path=f"{COHORTS}c1"))
    assert status(reply) in (304, 400, 401, 404)
    assert b"X-Injected" not in reply
    assert value.encode() not in reply


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/../healthz",
        "/healthz/../api/v1/users/u",
        "/healthz/..%2fapi/v1/users/u",
        "/healthz;/api/v1/users/u",
        "/healthz%3f/../api/v1/users/u",
        "/%61pi/v1/users/u",
        "//api/v1/users/u",
        "/api//v1/users/u",
        "/api/v1/users/u%00",
        "/api/v1/users/%ff",
        "/api/v1/users/%c0%ae",
        "/api/v1/users/" + "u" * 4000,
        "/api/v1/cohorts/..%2f..%2fusers",
        "/static/../app/auth/authenticate.py",
        "/lists/%2e%2e/add",
    ],
)
def test_paths__that_try_to_be_another__open_nothing_without_a_key(
    service: Service, path: str
) -> None:
    for method in ("GET", "POST", "DELETE"):
        reply = raw(
            service, head("Connection: close", "Content-Length: 0", path=path, method=method)
        )
        assert status(reply) in (400, 401, 404, 405, 431), (method, reply)


def test_script__name_or_code_as_an_argument__is_stored_and_never_run(
    service: Service, redis_client: redis.Redis
) -> None:
    code = "return redis.call('FLUSHALL')"
    redis_client.config_resetstat()
    body = json.dumps({"batch": [identify(code, f"{code}: {code}", True)], "context": {}})
    assert service.post(body.encode()).status == 200
    assert redis_client.hgetall(f"{BASE}user:{code}") == {f"{code}: {code}": "true"}
    ran = redis_client.info("commandstats")
    assert not {"cmdstat_flushall", "cmdstat_eval", "cmdstat_function|load"} & ran.keys()
    assert is_untouched(redis_client)


def test_ids__as_long_as_they_may_be__fit_into_a_path(service: Service) -> None:
    cohort, user = "\u00e9" * 250, "\u00e9" * 512
    assert service.post(identify(user, f"n: {cohort}", True)).status == 200
    path = f"{COHORTS}{quote(cohort)}/members/{quote(user)}"
    reply = service.request("GET", path, **ADMIN)
    assert (reply.status, reply.json()["member"]) == (200, True)
