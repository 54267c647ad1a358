"""Amplitude's own record, with real workers: the story of a store that lost its data."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import pytest
import redis

from simulator.cohort import Cohort
from simulator.cohort_sync import CohortSync, SyncResult
from simulator.connection import Target
from simulator.upstream import ALWAYS, ServedCohort, SyncInfo, Upstream
from tests.support.cli import flask
from tests.support.effort import THOROUGH, thorough
from tests.support.polling import wait_until
from tests.support.service import ADMIN_KEY, APP, KEY, Service, running
from tests.support.stores import running_store

SIZE = 100_000 if THOROUGH else 3_000
API_KEY, SECRET_KEY = "an-api-key-of-amplitude", "a-secret-key-of-amplitude"
COHORT = "a1b2"
LIST = "/api/3/cohorts"


class Synced:
    """A cohort that the simulator syncs to the service, and serves as Amplitude does."""

    def __init__(self, service: Service, upstream: Upstream) -> None:
        self._upstream = upstream
        self.cohort = Cohort.synthetic("Power users", COHORT, SIZE, churn=0.1, seed=3)
        upstream.cohorts[COHORT] = ServedCohort(
            COHORT, "Power users", anonymous=7, syncs=[SyncInfo("cohort-receiver")]
        )
        self._sync = CohortSync(
            Target(service.url, KEY),
            self.cohort,
            on_plan=lambda *_: upstream.computed(COHORT, sorted(self.members)),
            on_result=self._synced,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._sync.close()

    def _synced(self, result: SyncResult) -> None:
        self._upstream.synced(COHORT, succeeded=result.succeeded)

    @property
    def members(self) -> set[str]:
        return {self.cohort.ids[user] for user in self.cohort.members}

    def sync(self) -> None:
        assert self._sync.sync().succeeded


@contextmanager
def notified() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A receiver of notifications: its address, and what it has received."""
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/hook", received
        server.shutdown()


@pytest.fixture
def store_url() -> Iterator[str]:
    """A store that tests may empty: no other test's service takes that for a loss."""
    with running_store() as url:
        yield url


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream(keys=(API_KEY, SECRET_KEY), job_seconds=0.5, inline_bytes=0) as upstream:
        yield upstream


def settings(store_url: str, upstream: Upstream) -> dict[str, str]:
    return {
        "REDIS_URL": store_url,
        "RATE_LIMIT": "off",
        "ADMIN_API_KEYS": f"{APP}:{ADMIN_KEY}",
        "AMPLITUDE_KEYS": f"{APP}:{API_KEY}:{SECRET_KEY}",
        "AMPLITUDE_URL": upstream.url,
        "WEB_CONCURRENCY": "3",
    }


def get(service: Service, path: str) -> Any:
    reply = service.request("GET", path, Authorization=f"Bearer {ADMIN_KEY}")
    assert reply.status == 200, reply.data
    return reply.json()


def completeness(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = get(service, f"/api/v1/cohorts/{COHORT}")["completeness"]
    return found


def members(client: redis.Redis) -> set[str]:
    return set(client.zrange(f"cohorts:{{{APP}}}:cohort:{COHORT}:members", 0, -1))


def changes(client: redis.Redis) -> list[Any]:
    return client.xrange(f"cohorts:{{{APP}}}:changes")


def test_store_that_lost_its_data__is_made_whole_by_a_reconcile(
    store_url: str, redis_client: redis.Redis, upstream: Upstream
) -> None:
    with notified() as (address, notifications):
        env = settings(store_url, upstream) | {"NOTIFY_URL": address}
        with running(env) as service, Synced(service, upstream) as synced:
            synced.sync()
            assert members(redis_client) == synced.members
            # One of three workers asks Amplitude, once.
            wait_until(lambda: upstream.requests[LIST] == 1)
            marked = f"cohorts:{{{APP}}}:mark"
            wait_until(lambda: redis_client.exists(marked))
            redis_client.flushall()
            synced.sync()
            wait_until(lambda: completeness(service)["state"] == "incomplete")
            reasons = [reason["reason"] for reason in completeness(service)["reasons"]]
            assert reasons == ["store_lost"]
            wait_until(lambda: notifications)
            before = members(redis_client)
            missing = synced.members - before
            assert missing
            done = changes(redis_client)

            applied = flask(store_url, "cohorts", "reconcile", COHORT, "--apply", **env)
            assert applied.returncode == 0, applied.stderr
            assert f"{len(missing)} users entered, 0 left" in applied.stdout
            found = completeness(service)
            assert (found["state"], found["verifiedBy"]) == ("verified", "reconcile")
            assert found["upstream"]["size"] == SIZE + 7
            assert found["upstream"]["anonymous"] == 7
            # The store and Amplitude agree user by user; the stream has who entered, and only them.
            assert members(redis_client) == synced.members
            entries = changes(redis_client)[len(done) :]
            entered = [json.loads(entry["users"]) for _, entry in entries]
            assert sorted(itertools.chain(*entered)) == sorted(missing)
            wait_until(lambda: len(notifications) >= 2)

            # Later differences go on from there.
            synced.sync()
            assert members(redis_client) == synced.members
            assert completeness(service)["state"] == "verified"
            pages = [get_text(service, path) for path in ("/metrics", "/readyz", "/openapi.json")]
        said = [*pages, service.output(), applied.stdout, applied.stderr, str(notifications)]
        assert upstream.leaks == []
        assert not [text for text in said if API_KEY in text or SECRET_KEY in text]
        assert "cohort_receiver_upstream_exports 1.0" in pages[0]


def get_text(service: Service, path: str) -> str:
    return service.request("GET", path, Authorization=f"Bearer {ADMIN_KEY}").data.decode()


@thorough
def test_reconcile__over_http__finishes_in_the_background(
    store_url: str, redis_client: redis.Redis, upstream: Upstream
) -> None:
    with (
        running(settings(store_url, upstream)) as service,
        Synced(service, upstream) as synced,
    ):
        synced.sync()
        traits = {f"[Amplitude] Power users: {COHORT}": True}
        stale = [
            {"type": "identify", "userId": user, "traits": traits} for user in ("stale1", "stale2")
        ]
        assert service.post({"batch": stale}).status == 200
        path = f"/api/v1/cohorts/{COHORT}/reconcile"
        begun = service.request("POST", path, {"apply": True}, Authorization=f"Bearer {ADMIN_KEY}")
        assert begun.status == 202, begun.data
        again = service.request("POST", path, {}, Authorization=f"Bearer {ADMIN_KEY}")
        assert (again.status, again.json()["reason"]) == (409, "reconcile_running")
        # What arrives after the export began stays.
        wait_until(lambda: upstream.exports)
        assert service.post({"batch": stale[:1]}).status == 200
        wait_until(lambda: get(service, path)["state"] != "running")
        report = get(service, path)
        assert (report["state"], report["missing"], report["extra"]) == ("done", 0, 2)
        assert members(redis_client) == {*synced.members, "stale1"}


@thorough
def test_ingest__while_amplitude_fails__goes_on(
    store_url: str, redis_client: redis.Redis, upstream: Upstream
) -> None:
    upstream.faults["forbidden"] = ALWAYS
    with (
        running(settings(store_url, upstream) | {"LOG_LEVEL": "debug"}) as service,
        Synced(service, upstream) as synced,
    ):
        wait_until(lambda: upstream.requests[LIST])
        synced.sync()
        assert members(redis_client) == synced.members
        wait_until(lambda: "upstream_forbidden" in service.output())
        metrics = get_text(service, "/metrics")
        said = service.output()
    assert SECRET_KEY not in said
    assert API_KEY not in said
    assert "cohort_receiver_upstream_poll_timestamp_seconds 0.0" in metrics
