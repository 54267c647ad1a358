"""Records with more in them, as a later version writes them, are read and added to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import redis
from flask import Flask

from app.server.background import Background
from app.services import services
from app.store import ResyncPlace
from cohort_reader import CohortReader
from simulator import payloads
from tests.integration.conftest import APP, caller
from tests.integration.web.api.read_api import ADMIN_KEY, KEYS
from tests.integration.web.dashboard.test_views import Browser

ONE, NEW = "[Amplitude] one: 1", "[Amplitude] uno: 1"
LATER = "added-by-a-later-version"
# Hashes whose fields are data: users' traits, keys by id, counts by hour or month, syncs by cohort.
DATA = (":user:", ":keys", ":unknown-callers", ":open", ":upstream-exports")


def traffic(app: Flask) -> None:
    http = caller(app)
    for users, trait, member in ((["a", "b"], ONE, True), (["a"], ONE, False), (["c"], NEW, True)):
        assert (
            http.post(payloads.COHORT_PATH, json=payloads.batch(users, trait, member)).status_code
            == 200
        )
    hook = payloads.webhook("one", "1", ["a", ""], True, computed_time="1692206763", message_id="m")
    assert http.post(payloads.WEBHOOK_PATH, json=hook).status_code == 200
    http.post(payloads.COHORT_PATH, json=payloads.batch([""], ONE, True))
    http.post(payloads.COHORT_PATH, data=b"{", content_type="application/json")
    services(app).sync_recorder.flush()


def with_more(value: str) -> str:
    """A JSON value with more in it; any other value unchanged."""
    try:
        found = json.loads(value)
    except ValueError:
        return value
    if isinstance(found, dict):
        return json.dumps({**found, LATER: {"x": 1}})
    if isinstance(found, list) and found and isinstance(found[0], dict):
        return json.dumps([{**item, LATER: 1} for item in found])
    return value


def add_more(client: redis.Redis) -> set[str]:
    """Add to every record; returns the kinds of the keys that hold some."""
    changed = set()
    for key in client.scan_iter("cohorts:*"):
        kind = client.type(key)
        if kind == "hash":
            for name, value in client.hgetall(key).items():
                client.hset(key, name, with_more(value))
            if not any(part in key for part in DATA):
                client.hset(key, LATER, "1")
        elif kind == "list":
            for place, row in enumerate(client.lrange(key, 0, -1)):
                found = json.loads(row)
                # Defaults at the end of an array are not stored.
                array = isinstance(found, list)
                more = [*found, *DEFAULTS[len(found) :], LATER] if array else {**found, LATER: 1}
                client.lset(key, place, json.dumps(more))
        elif kind == "stream":
            last: Any = client.xrevrange(key, count=1)
            entry_id, fields = last[0]
            client.xdel(key, entry_id)
            client.xadd(key, {**fields, LATER: "1"})
        else:
            continue
        changed.add(key.rsplit(":", 1)[-1] if ":sync:" not in key else "sync")
    return changed


# The values of a stored request that has none of its own, see RequestRecord.
DEFAULTS = [None] * 6 + [0, 0, 0, 0, 0, False, "", "", []]


def read_everything(app: Flask) -> None:
    http, browser = caller(app, ADMIN_KEY), Browser(app).log_in(ADMIN_KEY)
    syncs = http.get("/api/v1/syncs").json["syncs"]
    paths = ["cohorts", "cohorts/1", "cohorts/1/members", "cohorts/1/sizes"]
    paths += ["users/a", "users/b", "changes", "syncs?problems=true", "syncs?cohort=1"]
    for sync in syncs:
        paths += [f"syncs/{sync['id']}", f"syncs/{sync['id']}/requests"]
        paths += [f"syncs/{sync['id']}/requests?problems=true"]
    for path in paths:
        reply = http.get(f"/api/v1/{path}")
        assert reply.status_code == 200, (path, reply.text)
    assert http.get("/readyz").status_code == 200
    for page in ("/", "/cohort?id=1", "/users?id=a", "/syncs", "/syncs?problems=true", "/health"):
        browser.get(page)
    for sync in syncs:
        browser.get(f"/sync?id={sync['id']}")
    store = services(app).store
    store.audit_trail.all()
    store.api_keys.all()


def test_words__of_a_later_version__are_passed_over(
    make_app: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    app = make_app(**KEYS)
    traffic(app)
    store, admin = services(app).store, caller(app, ADMIN_KEY)
    key = store.keys.cohort(APP, 0, "1", "")
    later = {"reason": LATER, "since": 1, "last": 1, "count": 1}
    redis_client.hset(
        f"{key}freshness",
        mapping={
            "completeness": LATER,
            "reasons": json.dumps([later]),
            "verified_at": 1,
            "verified_by": LATER,
        },
    )
    redis_client.hset(store.keys.loss(APP, 0), mapping={"kind": LATER, "at": 1})
    report = {"state": "done", "apply": True, "requested_ms": 1, LATER: 1}
    redis_client.set(f"{key}reconcile", json.dumps(report))
    read_everything(app)
    assert admin.get("/api/v1/cohorts/1").json["completeness"]["state"] == "unverified"
    assert admin.get("/api/v1/cohorts/1/reconcile").json["state"] == "done"
    assert CohortReader(redis_client, app=APP).completeness("1").state == "unverified"
    for field in ("refused", "state", "kind"):
        admin.post("/api/v1/cohorts/1/resync")
        redis_client.hset(f"{key}resync", field, LATER)
        read_everything(app)
        status = admin.get("/api/v1/cohorts/1/resync").status_code
        assert status == (200 if field == "refused" else 404)
        assert list(store.resyncs.steps(ResyncPlace(APP, "1"))) == []
        redis_client.delete(f"{key}resync")


def test_records__with_more_in_them__are_read_and_added_to(
    make_app: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    app = make_app(store_partitions=2, **KEYS)
    store = services(app).store
    traffic(app)
    store.audit_trail.add({"at": 1, "actor": "x", "action": "repair_store"})
    read_everything(app)
    changed = add_more(redis_client)
    assert changed >= {"state", "freshness", "sync", "changes", "history", "audit", "mark"} - {
        "mark"
    }
    read_everything(app)
    traffic(app)
    Background(store).work()
    Background(store).remove_old()
    read_everything(app)
    assert {c.id for c in store.registry.all(APP)} == {"1"}
    list(store.jobs.delete_cohort(APP, "1"))
    assert store.registry.find(APP, "1") is None
