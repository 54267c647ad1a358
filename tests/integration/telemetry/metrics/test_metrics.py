"""What is counted of requests, and what is asked of the store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from flask import Flask
from prometheus_client.parser import text_string_to_metric_families

from app.services import services
from app.settings import ApiKey
from app.store import Store
from app.telemetry.metrics.store_gauges import StoreGauges
from tests.integration.conftest import APP, KEY, caller

READ_KEY = "the-read-key"
COHORT = "/api/v1/integration/amplitude/cohort"


class Metered:
    """A service, and how much each metric has changed since the last look."""

    def __init__(self, app: Flask) -> None:
        self.http = caller(app)
        self._read = caller(app, READ_KEY)
        self._before = self.now()

    def now(self) -> dict[str, float]:
        reply = self._read.get("/metrics")
        assert reply.status_code == 200
        return {
            f"{sample.name} {' '.join(map(str, sample.labels.values()))}".strip(): sample.value
            for family in text_string_to_metric_families(reply.text)
            for sample in family.samples
        }

    def grown(self, name: str) -> dict[str, float]:
        """The samples of a metric that have grown, by the values of their labels."""
        now = self.now()
        found = {
            key.removeprefix(name).strip(): value - self._before.get(key, 0)
            for key, value in now.items()
            if key.split(" ")[0] == name
        }
        return {labels: change for labels, change in found.items() if change}


@pytest.fixture
def metered(make_app: Callable[..., Flask]) -> Metered:
    return Metered(make_app(read_api_keys=(ApiKey(APP, READ_KEY),)))


def batch(*users: str, trait: str = "Buyers:b1") -> dict[str, Any]:
    return {
        "batch": [{"type": "identify", "userId": user, "traits": {trait: True}} for user in users]
    }


def test_users__of_each_way__are_counted_under_it(metered: Metered) -> None:
    metered.http.post(COHORT, json=batch("a", "b", "c"))
    metered.http.post(COHORT, json=batch("a", "d"))
    metered.http.post("/lists", json={"name": "Buyers:b1"})
    metered.http.post("/lists/b1/remove", json={"userIds": ["a"]})
    metered.http.post("/v1/identify", json={"userId": "e", "traits": {"Buyers:b1": True}})
    accepted = metered.grown("cohort_receiver_users_accepted_total")
    assert accepted == {"identify": 5, "list": 1, "segment": 1}
    changed = metered.grown("cohort_receiver_users_changed_total")
    assert changed == {"identify": 4, "list": 1, "segment": 1}
    times = metered.grown("cohort_receiver_store_seconds_count")
    assert times == {"identify": 2, "list": 1, "segment": 1}


def test_users__rejected__are_counted_by_their_reason(make_app: Callable[..., Flask]) -> None:
    app = make_app(user_policy="known", read_api_keys=(ApiKey(APP, READ_KEY),))
    store: Store = services(app).store
    store.registered_users.add(APP, ["a", "s"])
    store.erasure.erase(APP, "s", suppress=True)
    store.registered_users.add(APP, ["s"])
    metered = Metered(app)
    assert metered.http.post(COHORT, json=batch("a", "s", "x", "y")).json["rejected"] == 3
    assert metered.http.post(COHORT, json=batch("z")).status_code == 404
    assert metered.grown("cohort_receiver_users_rejected_total") == {
        "unknown_user identify": 3,
        "suppressed_user identify": 1,
    }
    assert metered.grown("cohort_receiver_users_accepted_total") == {"identify": 1}


def test_requests__of_every_outcome__are_counted_by_reason(metered: Metered) -> None:
    metered.http.post(COHORT, json=batch("a"))
    metered.http.post(COHORT, json=batch(""))
    metered.http.post(COHORT, data=b"{", content_type="application/json")
    metered.http.post(COHORT, json=batch("a"), headers={"api_key": "wrong"})
    metered.http.get("/nowhere")
    metered.http.get("/api/v1/users/a")
    told = metered.grown("cohort_receiver_requests_total")
    told = {labels: n for labels, n in told.items() if "/metrics" not in labels}
    assert told == {
        f"POST none {COHORT} 200": 1,
        f"POST invalid_user_id {COHORT} 404": 1,
        f"POST invalid_json {COHORT} 400": 1,
        f"POST invalid_credentials {COHORT} 401": 1,
        "GET not_found none 404": 1,
        "GET missing_scope /api/v1/users/<rest:user_id> 403": 1,
    }


def test_path__with_and_without_slash__is_the_same_in_log_and_metrics(
    make_app: Callable[..., Flask], capfd: pytest.CaptureFixture[str]
) -> None:
    metered = Metered(make_app(read_api_keys=(ApiKey(APP, READ_KEY),)))
    capfd.readouterr()
    for path in ("/lists/x/add", "/lists/x/add/"):
        metered.http.post(path, json={"userIds": ["a"]})
    logged = {json.loads(line)["path"] for line in capfd.readouterr().out.splitlines()}
    assert logged == {"/lists/<path:list_id>/add"}
    told = metered.grown("cohort_receiver_requests_total")
    assert told["POST unknown_cohort /lists/<path:list_id>/add 404"] == 2


def test_gauges__of_the_store__are_what_is_there(
    metered: Metered, redis_client: redis.Redis
) -> None:
    metered.http.post(COHORT, json=batch("a"))
    metered.http.post("/lists", json={"name": "Never:n1"})
    redis_client.sadd(f"cohorts:{{{APP}}}:jobs", "b1")
    told = Metered(metered.http.application).now()
    told |= fresh_gauges(metered)
    assert told["cohort_receiver_store_up"] == 1
    assert told["cohort_receiver_cohorts fresh"] == 1
    assert told["cohort_receiver_cohorts never"] == 1
    assert told["cohort_receiver_cohorts late"] == 0
    assert told["cohort_receiver_jobs"] == 1
    assert told["cohort_receiver_store_memory_bytes"] > 100_000


def test_gauges__late_cohort__is_counted_as_late(
    metered: Metered, redis_client: redis.Redis
) -> None:
    metered.http.post(COHORT, json=batch("a"))
    late_ms = time.time_ns() // 1_000_000 - 3_600_000
    redis_client.zadd(f"cohorts:{{{APP}}}:due", {"b1": late_ms, "b2": late_ms + 1000})
    told = fresh_gauges(metered)
    assert told["cohort_receiver_cohorts late"] == 2
    assert told["cohort_receiver_longest_late_seconds"] == pytest.approx(3600, abs=60)


def test_gauges__store_with_a_limit__tell_how_full_it_is_and_whether_it_drops_data(
    metered: Metered, redis_client: redis.Redis
) -> None:
    redis_client.config_set("maxmemory", "1gb")
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        told = fresh_gauges(metered)
        assert told["cohort_receiver_store_memory_limit_bytes"] == 1 << 30
        assert told["cohort_receiver_store_may_evict"] == 1
        redis_client.config_set("maxmemory-policy", "noeviction")
        assert fresh_gauges(metered)["cohort_receiver_store_may_evict"] == 0
    finally:
        redis_client.config_set("maxmemory-policy", "noeviction")
        redis_client.config_set("maxmemory", "0")


@pytest.mark.parametrize(
    ("option", "reason"),
    [("maxmemory", "store_full"), ("min-replicas-to-write", "store_read_only")],
)
def test_gauges__store_that_refuses_writes__is_up_with_the_reason_and_everything_else(
    metered: Metered, redis_client: redis.Redis, option: str, reason: str
) -> None:
    before = fresh_gauges(metered)
    name = "cohort_receiver_store_refuses_writes"
    assert before[f"{name} store_full"] == before[f"{name} store_read_only"] == 0
    services(metered.http.application).store.layout._checked.clear()  # as a second later
    redis_client.config_set(option, 1)
    try:
        told = fresh_gauges(metered)
    finally:
        redis_client.config_set(option, 0)
    assert told["cohort_receiver_store_up"] == 1
    assert told[f"{name} store_full"] + told[f"{name} store_read_only"] == 1
    assert told[f"{name} {reason}"] == 1
    assert told.keys() == before.keys()


def test_gauges__store_that_refuses_to_tell_of_its_memory__leave_that_out(
    make_app: Callable[..., Flask], store_url: str, redis_client: redis.Redis
) -> None:
    redis_client.acl_setuser(
        "modest", enabled=True, passwords=["+pw"], commands=["+@all", "-info"], keys=["*"]
    )
    try:
        url = store_url.replace("unix://", "unix://modest:pw@")
        app = make_app(redis_url=url, read_api_keys=(ApiKey(APP, READ_KEY),))
        told = Metered(app).now()
        assert told["cohort_receiver_store_up"] == 1
        assert told["cohort_receiver_jobs"] == 0
        assert "cohort_receiver_store_memory_bytes" not in told
    finally:
        redis_client.acl_deluser("modest")


def test_gauges__asked_again_at_once__ask_the_store_once(
    metered: Metered, redis_client: redis.Redis
) -> None:
    gauges: StoreGauges = services(metered.http.application).store_gauges
    gauges.collect()
    before = redis_client.info("commandstats")["cmdstat_info"]["calls"]
    for _ in range(5):
        gauges.collect()
    assert redis_client.info("commandstats")["cmdstat_info"]["calls"] == before + 1  # our own


def test_readiness__asked_again_at_once__counts_the_cohorts_once(
    metered: Metered, redis_client: redis.Redis
) -> None:
    def counted() -> int:
        calls: int = redis_client.info("commandstats").get("cmdstat_zcount", {}).get("calls", 0)
        return calls

    metered.http.post(COHORT, json=batch("a"))
    first = metered.http.get("/readyz").json
    before = counted()
    for _ in range(5):
        assert metered.http.get("/readyz").json["cohorts"] == first["cohorts"]
    assert counted() == before


def test_metrics__store_not_there__are_told_all_the_same(make_app: Callable[..., Flask]) -> None:
    app = make_app(
        redis_url="redis://127.0.0.1:1", api_keys=(ApiKey(APP, KEY),), metrics_token="token"
    )
    metered = Metered.__new__(Metered)
    metered._read = caller(app, "token")
    told = metered.now()
    assert told["cohort_receiver_store_up"] == 0
    assert "cohort_receiver_cohorts fresh" not in told
    assert "cohort_receiver_background_failures_total" in told


def fresh_gauges(metered: Metered) -> dict[str, float]:
    """What the store's gauges are at this moment."""
    app = metered.http.application
    gauges = StoreGauges(services(app).store, lambda: None)
    return {
        f"{s.name} {' '.join(s.labels.values())}".strip(): s.value
        for family in gauges.collect()
        for s in family.samples
    }
