"""The sync history of a real service: nothing that was answered is missing from it.

What the tests before sent may come into the history only now: each test has a cohort or an app of
its own.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import redis

from simulator import payloads
from tests.support.effort import thorough
from tests.support.polling import wait_until
from tests.support.service import ADMIN_KEY, KEY, Service, running

TRAIT = "[Amplitude] Buyers: b1"


def own_app(name: str) -> dict[str, str]:
    """Settings of a service whose keys belong to an app that no other test has."""
    return {"API_KEYS": f"{name}:{KEY}", "ADMIN_API_KEYS": f"{name}:{ADMIN_KEY}"}


def syncs(service: Service, query: str = "") -> list[dict[str, Any]]:
    reply = service.request("GET", f"/api/v1/syncs{query}", api_key=ADMIN_KEY)
    assert reply.status == 200, reply.data
    found: list[dict[str, Any]] = reply.json()["syncs"]
    return found


def test_sync__over_all_workers__is_one_line_within_seconds(
    service: Service, redis_client: redis.Redis
) -> None:
    for n in range(40):
        body = payloads.batch([f"u{n}", f"v{n}"], "[Amplitude] Over all workers: w1", True)
        assert service.post(body).status == 200
    wait_until(lambda: [sync["requests"] for sync in syncs(service, "?cohort=w1")] == [40])
    (sync,) = syncs(service, "?cohort=w1")
    assert (sync["entered"], sync["accepted"], sync["failed"]) == (80, 80, 0)
    path = "/api/v1/cohorts/w1/sizes"
    wait_until(
        lambda: (
            service.request("GET", path, api_key=ADMIN_KEY).json()["sizes"][-1:]
            and service.request("GET", path, api_key=ADMIN_KEY).json()["sizes"][-1]["members"] == 80
        )
    )


@thorough
def test_sigterm__last_requests__are_in_the_history(
    store_url: str, redis_client: redis.Redis
) -> None:
    env = own_app("ends") | {"REDIS_URL": store_url, "WEB_CONCURRENCY": "2"}
    with running(env) as service:
        for n in range(20):
            assert service.post(payloads.batch([f"u{n}"], TRAIT, True)).status == 200
        assert service.stop() == 0
    (sync,) = redis_client.zrange("cohorts:{ends}:syncs", 0, -1)
    assert redis_client.hget(f"cohorts:{{ends}}:sync:{sync}", "requests") == "20"


@thorough
def test_store__away_meanwhile__history_tells_of_it_afterwards(
    store_url: str, redis_client: redis.Redis
) -> None:
    env = own_app("away") | {"REDIS_URL": store_url, "STORE_TIMEOUT_SECONDS": "0.3"}
    with running(env) as service:
        body = payloads.batch(["u1"], TRAIT, True)
        assert service.post(body).status == 200
        store = int(redis_client.info("server")["process_id"])
        os.kill(store, signal.SIGSTOP)
        try:
            refused = service.post(body)
            assert refused.status == 503
        finally:
            os.kill(store, signal.SIGCONT)
        wait_until(lambda: service.post(body).status == 200)
        wait_until(lambda: any(sync["failed"] for sync in syncs(service)))
        # Those that were refused before the store answered again may make a second line.
        failures = [sync["failures"] for sync in syncs(service) if sync["failed"]]
        assert set().union(*failures) <= {"store_timeout", "store_unreachable"}
        assert all(failures)
