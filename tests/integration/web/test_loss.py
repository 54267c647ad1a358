"""A loss of the store's data, and cohorts that are incomplete, as operators see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from flask import Flask

from app.cohorts import IncompleteReason, VerifiedBy
from app.services import services
from app.settings import ApiKey
from app.store import Tuning
from tests.integration.conftest import APP, Run, caller
from tests.integration.web.api.read_api import say
from tests.integration.web.dashboard.test_views import Browser

COHORT, TRAIT = "abc123", "[Amplitude] Power users: abc123"
ADMIN = "an-admin-key"


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    return make_app(Tuning(freshness_noted_seconds=0), admin_api_keys=(ApiKey(APP, ADMIN),))


@pytest.fixture
def lost(app: Flask, redis_client: redis.Redis) -> Flask:
    """The service after a loss, with a cohort that arrived since."""
    parts = services(app)
    say(parts.store, TRAIT, True, ["alice"])
    parts.store_watch.work()
    redis_client.flushall()
    parts.store_watch.work()
    say(parts.store, TRAIT, True, ["bob"])
    return app


def ready(app: Flask) -> Any:
    services(app).store_gauges._warned_at = None
    reply = caller(app).get("/readyz")
    assert reply.status_code == 200
    return reply.json["warnings"]


def metrics(app: Flask) -> list[str]:
    services(app).store_gauges._queried_at = None
    return str(caller(app, ADMIN).get("/metrics").text).splitlines()


def test_no_loss__warns_of_nothing(app: Flask) -> None:
    say(services(app).store, TRAIT, True, ["alice"])
    services(app).store_watch.work()
    assert ready(app) == []
    assert 'cohort_receiver_store_losses{kind="lost"} 0.0' in metrics(app)


def test_loss__is_reported_until_acknowledged(lost: Flask, run: Run) -> None:
    assert ready(lost) == ["store_lost"]
    found = metrics(lost)
    assert 'cohort_receiver_store_losses{kind="lost"} 1.0' in found
    assert 'cohort_receiver_incomplete_cohorts{reason="store_lost"} 1.0' in found
    assert 'cohort_receiver_cohorts_by_completeness{completeness="incomplete"} 1.0' in found

    result = run("store", "acknowledge-loss")
    assert result.exit_code == 0
    assert f"{APP}: acknowledged (lost" in result.output
    assert ready(lost) == []
    found = metrics(lost)
    assert 'cohort_receiver_store_losses{kind="lost"} 0.0' in found
    assert 'cohort_receiver_incomplete_cohorts{reason="store_lost"} 1.0' in found
    assert "No unacknowledged loss" in run("store", "acknowledge-loss").output
    (entry,) = services(lost).store.audit_trail.all()
    assert entry["action"] == "acknowledge_loss"


def test_intended_loss__takes_one_command(lost: Flask, run: Run) -> None:
    result = run("store", "acknowledge-loss", "--intended")
    assert "Cohorts no longer incomplete because of it: 1." in result.output
    (entry,) = services(lost).store.audit_trail.all()
    assert (entry["action"], entry["intended"]) == ("acknowledge_loss", True)
    assert ready(lost) == []
    assert 'cohort_receiver_incomplete_cohorts{reason="store_lost"} 0.0' in metrics(lost)
    assert "No unacknowledged loss" in run("store", "acknowledge-loss").output


@pytest.mark.parametrize("intended", [False, True])
def test_dashboard__shows_and_acknowledges_a_loss(lost: Flask, intended: bool) -> None:
    browser = Browser(lost).log_in(ADMIN)
    for path in ("/", "/syncs", f"/cohort?id={COHORT}"):
        assert "The store lost its data" in browser.get(path).text
    assert "What to do" in browser.get("/health").text
    fields = {"intended": "true"} if intended else {}
    browser.send("/health/acknowledge-loss", token=browser.token(), **fields)
    assert "The store lost its data" not in browser.get("/syncs").text
    text = browser.get(f"/cohort?id={COHORT}").text
    assert ("This cohort is incomplete" in text) is not intended


@pytest.mark.parametrize("reason", IncompleteReason)
def test_dashboard__says_why_a_cohort_is_incomplete_and_what_to_do(
    app: Flask, reason: IncompleteReason
) -> None:
    store = services(app).store
    say(store, TRAIT, True, ["alice"])
    say(store, "Other: other", True, ["alice"])
    store.completeness.raise_reason(APP, COHORT, reason)
    store.completeness.leave_out(APP, COHORT, {"invalid_user_id": 7})
    browser = Browser(app).log_in(ADMIN)
    text = browser.get(f"/cohort?id={COHORT}").text
    assert f"<code>{reason}</code>" in text
    assert "7 <code>invalid_user_id</code>" in text
    for query in ("completeness=incomplete", f"reason={reason}"):
        listed = browser.get(f"/?{query}").text
        assert COHORT in listed
        assert "id=other" not in listed
    store.completeness.verify(APP, COHORT, VerifiedBy.IMPORT)
    assert "by import" in browser.get(f"/cohort?id={COHORT}").text


def test_store_that_keeps_nothing_on_disk__is_a_warning(
    app: Flask, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store of the tests saves nothing; how long it has run cannot be chosen."""
    monkeypatch.setattr("app.store.server_info._SAVED_WITHIN_SECONDS", -1)
    say(services(app).store, TRAIT, True, ["alice"])
    assert ready(app) == ["store_not_persistent"]
    assert "cohort_receiver_store_persistent 0.0" in metrics(app)
    redis_client.config_set("appendonly", "yes")
    try:
        assert ready(app) == []
        assert "cohort_receiver_store_persistent 1.0" in metrics(app)
    finally:
        redis_client.config_set("appendonly", "no")


def test_store_that_may_evict__is_a_warning(
    app: Flask, redis_client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    redis_client.config_set("maxmemory", "1gb")
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert ready(app) == ["store_may_evict"]
        services(app).store_watch.work()
        services(app).store_watch.work()
        assert capsys.readouterr().out.count("store may evict data") == 1
    finally:
        redis_client.config_set("maxmemory", "0")
        redis_client.config_set("maxmemory-policy", "noeviction")
