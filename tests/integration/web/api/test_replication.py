"""What administrators change waits for replicas, as memberships do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from flask import Flask

from app.settings import ApiKey
from simulator import payloads
from tests.integration.conftest import APP, caller

BOSS = "the-admin-key"
COHORT = "/api/v1/cohorts/abc123"
CSV = {"data": "user_id\nu1\n", "content_type": "text/csv"}
# Each call that changes something, by the rule of its address.
CALLS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("DELETE", "/api/v1/cohorts/<segment:cohort_id>"): (COHORT, {}),
    ("DELETE", "/api/v1/users/<rest:user_id>"): ("/api/v1/users/u1?suppress=true", {}),
    ("DELETE", "/api/v1/suppressions/<rest:user_id>"): ("/api/v1/suppressions/u1", {}),
    ("POST", "/api/v1/users"): ("/api/v1/users", {"json": {"userIds": ["u1"]}}),
    ("PUT", "/api/v1/cohorts/<segment:cohort_id>/cadence"): (
        f"{COHORT}/cadence",
        {"json": {"seconds": 3600}},
    ),
    ("DELETE", "/api/v1/cohorts/<segment:cohort_id>/cadence"): (f"{COHORT}/cadence", {}),
    ("POST", "/api/v1/cohorts/<segment:cohort_id>/resync"): (f"{COHORT}/resync", {}),
    ("POST", "/api/v1/cohorts/<segment:cohort_id>/resync/finish"): (f"{COHORT}/resync/finish", {}),
    ("DELETE", "/api/v1/cohorts/<segment:cohort_id>/resync"): (f"{COHORT}/resync", {}),
    ("PUT", "/api/v1/cohorts/<segment:cohort_id>/members"): (f"{COHORT}/members", CSV),
}
# They read, or their reply is a 202: the work goes on.
OTHERS = {
    ("POST", "/api/v1/users/query"),
    ("POST", "/api/v1/cohorts/<segment:cohort_id>/members/query"),
    ("POST", "/api/v1/cohorts/<segment:cohort_id>/reconcile"),
}


def writing_calls(app: Flask) -> set[tuple[str, str]]:
    """Calls of the API that may change something, other than what senders call."""
    return {
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/api/v1/") and "/integration/" not in rule.rule
        for method in (rule.methods or set()) - {"GET", "HEAD", "OPTIONS"}
    }


@pytest.fixture
def make(make_app: Callable[..., Flask]) -> Callable[..., Flask]:
    def make(**settings: Any) -> Flask:
        keys = (ApiKey(APP, BOSS),)
        return make_app(admin_api_keys=keys, store_timeout_seconds=0.4, **settings)

    return make


def test_calls__that_change_something__are_all_listed_here(make: Callable[..., Flask]) -> None:
    assert writing_calls(make()) == CALLS.keys() | OTHERS


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_call__without_the_replica_to_wait_for__is_503(
    make: Callable[..., Flask], call: tuple[str, str]
) -> None:
    boss = caller(make(), BOSS)
    boss.post(payloads.COHORT_PATH, json=payloads.identify("u1", "[Amplitude] n: abc123", True))
    if "/resync" in call[1] and call != ("POST", "/api/v1/cohorts/<segment:cohort_id>/resync"):
        assert boss.post(f"{COHORT}/resync").status_code == 202
        boss.post(payloads.COHORT_PATH, json=payloads.identify("u1", "n: abc123", True))
    path, body = CALLS[call]
    waiting = caller(make(store_wait_replicas=1), BOSS)
    reply = waiting.open(path, method=call[0], **body)
    assert (reply.status_code, reply.json["reason"]) == (503, "store_not_replicated")


def test_key__without_the_replica_to_wait_for__is_reported(
    make: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    runner = make(store_wait_replicas=1).test_cli_runner()
    made = runner.invoke(args=("keys", "create", "--app-id", APP, "--scope", "read"))
    assert made.exit_code == 1
    assert "store_not_replicated" in made.stderr
    assert redis_client.exists("cohorts:keys")
