"""Who has deleted, erased, or changed keys is written down, whichever way it was done."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from flask import Flask
from structlog.testing import capture_logs

from app.auth.authenticate import ADMIN
from app.cohorts import user_hash
from app.services import services
from app.settings import ApiKey
from app.store import Store
from app.store.audit_trail import KEPT
from simulator import payloads
from tests.integration.conftest import APP, Run, caller
from tests.integration.web.dashboard.test_views import Browser

BOSS = "the-admin-key"
USER = "secret.person@example.com"
TRAIT = "[Amplitude] Power users: abc123"

RESYNC = "/api/v1/cohorts/abc123/resync"

# What each call of an operator writes down. Registering is routine: a service may do it for each of
# its users. Reconciling is tested with Amplitude's API beside it.
ELSEWHERE = {("POST", "/api/v1/cohorts/abc123/reconcile")}
CALLS = {
    ("PUT", "/api/v1/cohorts/abc123/cadence"): {
        "action": "set_cadence",
        "cohort": "abc123",
        "seconds": 777,
    },
    ("DELETE", "/api/v1/cohorts/abc123/cadence"): {
        "action": "set_cadence",
        "cohort": "abc123",
        "seconds": 0,
    },
    ("DELETE", f"/api/v1/users/{USER}"): {
        "action": "erase_user",
        "user": user_hash(USER),
        "suppress": False,
    },
    ("DELETE", f"/api/v1/suppressions/{USER}"): {
        "action": "unsuppress_user",
        "user": user_hash(USER),
    },
    ("DELETE", "/api/v1/cohorts/abc123"): {"action": "delete_cohort", "cohort": "abc123"},
    ("POST", RESYNC): {"action": "open_resync", "cohort": "abc123"},
    ("POST", f"{RESYNC}/finish"): {
        "action": "finish_resync",
        "cohort": "abc123",
        "forced": True,
    },
    ("DELETE", RESYNC): {"action": "abort_resync", "cohort": "abc123"},
    ("PUT", "/api/v1/cohorts/abc123/members"): {
        "action": "import_members",
        "cohort": "abc123",
        "forced": False,
        "added": 0,
        "removed": 1,
        "unchanged": 1,
        "unknown": 0,
    },
    ("POST", "/api/v1/users"): None,
}


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    app = make_app(admin_api_keys=(ApiKey(APP, BOSS),))
    body = payloads.batch([USER, "other"], TRAIT, True)
    assert caller(app, BOSS).post(payloads.COHORT_PATH, json=body).status_code == 200
    return app


def trail(app: Flask) -> list[dict[str, Any]]:
    store: Store = services(app).store
    return store.audit_trail.all()


def call(app: Flask, method: str, path: str) -> None:
    body: dict[str, Any] = {"json": {"userIds": [USER], "seconds": 777, "force": True}}
    if path.endswith("/members"):
        body = {"data": f"user_id\n{USER}\n", "content_type": "text/csv"}
    reply = caller(app, BOSS).open(path, method=method, **body if method[0] == "P" else {})
    assert reply.status_code in (200, 202), reply.text


def test_calls__of_an_operator__are_all_known_here(app: Flask) -> None:
    parts = {"user_id": USER, "cohort_id": "abc123"}
    rules = {
        (method, re.sub(r"<\w+:(\w+)>", lambda part: parts[part[1]], rule.rule))
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"GET", "HEAD", "OPTIONS"}
        if getattr(app.view_functions[rule.endpoint], "scope", None) == ADMIN
        and not getattr(app.view_functions[rule.endpoint], "by_session", False)
    }
    assert rules == CALLS.keys() | ELSEWHERE


@pytest.mark.parametrize(("method", "path"), CALLS, ids=" ".join)
def test_call__of_an_operator__is_in_the_trail_and_in_the_log(
    app: Flask, method: str, path: str
) -> None:
    if (method, path) in (("POST", f"{RESYNC}/finish"), ("DELETE", RESYNC)):
        call(app, "POST", RESYNC)
    before = time.time_ns() // 1_000_000
    with capture_logs() as logs:
        call(app, method, path)
    expected = CALLS[method, path]
    if expected is None:
        assert trail(app) == []
        return
    entry = trail(app)[-1]
    (request,) = [event for event in logs if event["event"] == "request"]
    assert before <= entry.pop("at") <= time.time_ns() // 1_000_000
    assert entry.pop("request_id") == request["request_id"]
    assert entry == {"by": "api", "who": request["key"], "app": APP} | expected
    (told,) = [event for event in logs if event["event"] == "admin action"]
    assert told | entry == told


def test_dashboard__deleting_and_erasing__is_in_the_trail(app: Flask) -> None:
    admin = Browser(app).log_in(BOSS)
    fields = {"token": admin.token(), "id": USER}
    admin.send("/users/erase", 400, **fields, confirm="mistyped")
    assert trail(app) == []
    admin.send("/users/erase", **fields, confirm=USER, suppress="true")
    admin.send("/cohort/delete", token=admin.token(), id="abc123", confirm="Power users")
    erased, deleted = trail(app)
    assert {entry["by"] for entry in (erased, deleted)} == {"dashboard"}
    assert erased["who"] == deleted["who"] != BOSS
    assert erased["who"].startswith("admin-")
    assert (erased["action"], erased["user"]) == ("erase_user", user_hash(USER))
    assert erased["suppress"] is True
    assert (deleted["action"], deleted["cohort"]) == ("delete_cohort", "abc123")


def test_commands__of_an_operator__are_in_the_trail_and_listed(
    app: Flask, run: Run, redis_client: redis.Redis
) -> None:
    made = json.loads(run("keys", "create", "--json", "--label", "shop", "--expires", "9d").stdout)
    run("keys", "expire", made["id"], "7d")
    run("keys", "revoke", made["id"], "--yes")
    run("users", "erase", USER, "--suppress", "--yes")
    run("users", "unsuppress", USER)
    run("users", "register", "-", input=USER)
    run("users", "unregister", "-", input=USER)
    run("cohorts", "cadence", "abc123", "3600")
    run("cohorts", "delete", "abc123", "--yes")
    run("store", "check", "--repair")
    run("store", "check")
    run("cohorts", "list")
    assert [entry["action"] for entry in trail(app)] == [
        *("create_key", "expire_key", "revoke_key", "erase_user", "unsuppress_user"),
        *("unregister_users", "set_cadence", "delete_cohort", "repair_store"),
    ]
    assert {entry["by"] for entry in trail(app)} == {"command"}
    assert all(entry["who"] for entry in trail(app))
    kept = "".join(redis_client.lrange("cohorts:audit", 0, -1))
    listed = run("audit", "list").stdout
    for secret in (USER, "secret.person", made["key"]):
        assert secret not in kept + listed
    assert f"key_id={made['id']} scope=ingest expires=20" in listed
    (line,) = [line for line in listed.splitlines() if "erase_user" in line]
    assert f"user={user_hash(USER)}" in line
    assert json.loads(run("audit", "list", "--json").stdout) == trail(app)
    last = json.loads(run("audit", "list", "--json", "--app-id", APP, "--last", "1").stdout)
    assert [entry["action"] for entry in last] == ["delete_cohort"]
    found = json.loads(run("audit", "list", "--json", "--action", "erase_user").stdout)
    assert [entry["user"] for entry in found] == [user_hash(USER)]


def test_command__that_is_not_confirmed__is_not_in_the_trail(app: Flask, run: Run) -> None:
    assert run("users", "erase", USER, input="n\n").exit_code == 1
    assert run("cohorts", "delete", "abc123", input="n\n").exit_code == 1
    assert trail(app) == []


def test_trail__with_too_many_entries__loses_the_oldest(app: Flask) -> None:
    store: Store = services(app).store
    with store._client.pipeline() as pipeline:
        for number in range(KEPT):
            pipeline.rpush(store.keys.audit(), json.dumps({"number": number}))
        pipeline.execute()
    store.audit_trail.add({"number": KEPT})
    entries = store.audit_trail.all()
    assert (entries[0]["number"], entries[-1]["number"], len(entries)) == (1, KEPT, KEPT)


def test_trail__with_what_somebody_else_wrote__still_tells_the_rest(app: Flask, run: Run) -> None:
    store: Store = services(app).store
    store._client.rpush(store.keys.audit(), b"\xff", "[1]", "x", '{"at": "x", "who": "\\u001b"}')
    store.audit_trail.add({"action": "erase_user"})
    assert len(store.audit_trail.all()) == 2
    result = run("audit", "list")
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout


def test_full_store__the_cohort_is_deleted_nevertheless_and_the_log_says_so(
    app: Flask, redis_client: redis.Redis
) -> None:
    redis_client.config_set("maxmemory", 1)
    redis_client.config_set("maxmemory-policy", "noeviction")
    try:
        with capture_logs() as logs:
            reply = caller(app, BOSS).delete("/api/v1/cohorts/abc123")
    finally:
        redis_client.config_set("maxmemory", 0)
    assert reply.status_code == 202, reply.text
    assert trail(app) == []
    (told,) = [event for event in logs if "not in the audit trail" in event["event"]]
    assert (told["action"], told["reason"], told["log_level"]) == (
        "delete_cohort",
        "store_full",
        "warning",
    )
