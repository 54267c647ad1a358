"""The story of completeness, over real sockets: a lost store, and the command that mends it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import redis

from simulator.cohort import Cohort
from simulator.cohort_sync import CohortSync
from simulator.connection import Target
from simulator.upstream import ServedCohort, SyncInfo, Upstream
from tests.support.cli import flask
from tests.support.effort import THOROUGH
from tests.support.polling import wait_until
from tests.support.service import ADMIN_KEY, APP, KEY, Service, running
from tests.support.stores import running_store

USERS = 100_000 if THOROUGH else 10_000
COHORT = "abc123"
PATH = f"/api/v1/cohorts/{COHORT}"
AUTHORISED = {"Authorization": f"Bearer {ADMIN_KEY}"}


@contextmanager
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that collects notifications."""
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def completeness(service: Service) -> dict[str, Any]:
    found = service.request("GET", PATH, **AUTHORISED)
    return dict(found.json().get("completeness", {}))


def reasons(service: Service) -> list[str]:
    return [open["reason"] for open in completeness(service).get("reasons", [])]


def sync(cohort_sync: CohortSync, served: ServedCohort, upstream: Upstream) -> None:
    """One sync, and Amplitude's record of it."""
    assert cohort_sync.sync().succeeded
    upstream.computed(COHORT, [cohort_sync.cohort.ids[n] for n in cohort_sync.cohort.members])
    upstream.synced(COHORT, succeeded=True)


def test_store__emptied_between_syncs__is_noticed_notified_and_reconciled() -> None:
    cohort = Cohort.synthetic("Power users", COHORT, USERS, churn=0.01)
    served = ServedCohort(COHORT, "Power users", anonymous=7, syncs=[SyncInfo()])
    with (
        running_store() as store_url,
        redis.Redis.from_url(store_url, decode_responses=True) as client,
        Upstream([served], job_seconds=0.2) as upstream,
        receiver() as (notify_url, notified),
    ):
        settings = {
            "REDIS_URL": store_url,
            "ADMIN_API_KEYS": f"{APP}:{ADMIN_KEY}",
            "NOTIFY_URL": notify_url,
            "AMPLITUDE_KEYS": f"{APP}:{upstream.api_key}:{upstream.secret_key}",
            "AMPLITUDE_URL": upstream.url,
            "WEB_CONCURRENCY": "2",
        }
        with (
            running(settings) as service,
            CohortSync(Target(service.url, key=KEY), cohort, settle=0) as cohort_sync,
        ):
            sync(cohort_sync, served, upstream)
            assert completeness(service)["state"] == "unverified"
            wait_until(lambda: client.exists(f"cohorts:{{{APP}}}:mark"))

            client.flushall()
            wait_until(lambda: client.exists(f"cohorts:{{{APP}}}:loss"))
            sync(cohort_sync, served, upstream)
            wait_until(lambda: "store_lost" in reasons(service))
            assert completeness(service)["state"] == "incomplete"
            assert service.request("GET", PATH, **AUTHORISED).json()["members"] < USERS
            wait_until(lambda: any(one["type"] == "store.lost" for one in notified))

            done = flask(
                store_url, *("cohorts", "reconcile", COHORT, "--apply", "--json"), **settings
            )
            assert done.returncode == 0, done.stderr
            found = completeness(service)
            assert (found["state"], found["verifiedBy"]) == ("verified", "reconcile")
            wait_until(lambda: any(one["type"] == "cohort.verified" for one in notified))

            expected = {cohort.ids[number] for number in cohort.members}
            assert (
                set(client.zrange(f"cohorts:{{{APP}}}:cohort:{COHORT}:members", 0, -1)) == expected
            )
            entered = {
                user
                for _, entry in client.xrange(f"cohorts:{{{APP}}}:changes")
                if entry["change"] == "entered"
                for user in json.loads(entry["users"])
            }
            assert entered == expected
            hashes = [
                client.hgetall(f"cohorts:{{{APP}}}:user:{user}") for user in list(expected)[:50]
            ]
            assert all(one == {cohort.trait: "true"} for one in hashes)

            # Another difference, and it is still whole.
            sync(cohort_sync, served, upstream)
            assert completeness(service)["state"] == "verified"
            assert upstream.leaks == []
