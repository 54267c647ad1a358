"""Every alert fires in a real Prometheus, for the cause that its runbook names.

The rules are as in ops/alerts.yml, but without `for`: expressions and ranges are the same, so a
burst must be seen at once. `promtool test rules` checks how long each alert waits.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import redis

from simulator import payloads
from simulator.upstream import ServedCohort, SyncInfo, Upstream
from tests.support.cli import flask
from tests.support.effort import thorough
from tests.support.polling import wait_until
from tests.support.prometheus import RULES, TOKEN, Prometheus, running_prometheus, without_waiting
from tests.support.service import ADMIN_KEY, APP, Service, running
from tests.support.stores import socket_url, start_store, store_folder

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
LIBFAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


class Watched:
    """A service, its store, and a Prometheus that watches both."""

    def __init__(self, folder: Path, options: tuple[str, ...]) -> None:
        self.url = socket_url(folder)
        self.client = redis.Redis.from_url(self.url, decode_responses=True)
        self.service: Service
        self.prometheus: Prometheus
        self._start = partial(start_store, folder, *options)
        self.store = self._start()

    def start(self) -> None:
        self.store = self._start()

    def stop(self) -> None:
        self.store.kill()
        self.store.wait(30)

    def send(self, cohort_id: str, *users: str) -> int:
        """Let users enter a cohort; returns the status."""
        return self.service.post(payloads.batch(users, f"n: {cohort_id}", True)).status

    def is_quiet(self) -> None:
        """Wait until no alert fires."""
        wait_until(lambda: not self.prometheus.alerts())

    def fires(self, *alerts: str) -> None:
        """Wait until some alerts fire."""
        with suppress(AssertionError):
            wait_until(lambda: self.prometheus.alerts() >= set(alerts))
        assert self.prometheus.alerts() >= set(alerts)


@contextmanager
def watched(*options: str, **settings: str) -> Iterator[Watched]:
    """Run the three, with one user in the cohort b1, and wait until the metrics say so.

    Args:
        options: of the store.
    """
    with store_folder() as folder:
        here = Watched(folder, options)
        env = {
            "REDIS_URL": here.url,
            "METRICS_TOKEN": TOKEN,
            "ADMIN_API_KEYS": f"{APP}:{ADMIN_KEY}",
            **settings,
        }
        try:
            rules = without_waiting(RULES.read_text())
            with (
                running(env) as here.service,
                running_prometheus(here.service, rules) as here.prometheus,
            ):
                assert here.send("b1", "first") == 200
                users = "sum(cohort_receiver_users_accepted_total)"
                wait_until(lambda: here.prometheus.value(users) == 1)
                wait_until(lambda: here.prometheus.value("cohort_receiver_cohorts") == 1)
                (group,) = here.prometheus.ask("rules")["groups"]
                assert {rule["health"] for rule in group["rules"]} == {"ok"}
                yield here
        finally:
            here.client.close()
            here.stop()


@thorough
def test_alerts__about_calls__fire() -> None:
    with watched(AUTH_FAILURE_RATE_LIMIT="20/minute") as here:
        service = here.service
        here.is_quiet()
        for _ in range(30):
            service.post({}, api_key="nobody")
        here.fires("CallersRefused", "CallersThrottled")

        for _ in range(10):
            assert service.post(b"{").status == 400
        here.fires("PayloadsRefused")

        assert here.send("b1", "ann", "", " ") == 200
        here.fires("UsersRejected")

        state = f"cohorts:{{{APP}}}:cohort:broken:state"
        here.client.hset(state, mapping={"trait": "x", "named": "no time"})
        assert service.post({"userIds": ["ann"]}, "/lists/broken/add").status == 500
        here.fires("UnexpectedError")
        here.client.delete(state)

        words = ("keys", "create", "--json", "--app-id", APP, "--expires", "1h")
        key = json.loads(flask(here.url, *words).stdout)["key"]
        wait_until(lambda: service.post({}, api_key=key).status == 400)
        here.fires("KeyExpiresSoon")

        # Some calls take more than a second.
        here.store.send_signal(signal.SIGSTOP)
        senders = [threading.Thread(target=here.send, args=("b1", f"s{n}")) for n in range(8)]
        for sender in senders:
            sender.start()
        time.sleep(1.5)
        here.store.send_signal(signal.SIGCONT)
        for sender in senders:
            sender.join()
        here.fires("IngestSlow")

        assert flask(here.url, "store", "hold").returncode == 0
        for _ in range(10):
            assert here.send("b1", "ann") == 503
        here.fires("CallsFail")


@thorough
def test_alerts__about_cohorts__fire_and_lead_to_the_cohort() -> None:
    with watched() as here:
        service = here.service
        here.is_quiet()
        assert service.post({"userIds": 7}, "/lists/b1/add").status == 400
        here.fires("CohortsSyncFailed")

        assert here.send("b2", "ann", "bob") == 200
        deleted = service.request("DELETE", "/api/v1/cohorts/b2", **ADMIN)
        assert deleted.status in (200, 202), deleted.data
        # An arrival within a second of another, before the deletion, is not recorded.
        wait_until(
            lambda: (
                here.send("b2", "cid") == 200 and "CohortsDeletedHere" in here.prometheus.alerts()
            )
        )

        # As an hour after a cohort should have arrived.
        assert here.send("b3", "ann") == 200
        due = time.time_ns() // 1_000_000 - 3_600_000
        here.client.zadd(f"cohorts:{{{APP}}}:due", {"b3": due})
        here.fires("CohortsLate")

        found = here.prometheus.ask("alerts")["alerts"]
        pages = {one["annotations"].get("dashboard") for one in found} - {None}
        assert pages == {"/?reason=sync_failed", "/?reason=deleted_here", "/?freshness=late"}


@thorough
def test_alerts__about_the_store__fire() -> None:
    with watched() as here:
        client = here.client
        here.is_quiet()
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory", int(used * 1.1))
        here.fires("StoreNearlyFull")
        client.config_set("maxmemory-policy", "allkeys-lru")
        here.fires("StoreMayDropData")
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 0)

        client.config_set("min-replicas-to-write", 1)
        here.fires("StoreReadOnly")
        client.config_set("min-replicas-to-write", 0)

        # While the store is full, renames wait.
        users = [f"user-{n}" for n in range(10_000)]
        assert here.send("b4", *users) == 200
        assert here.service.post(payloads.batch(["first"], "renamed: b4", True)).status == 200
        client.config_set("maxmemory", 1)
        assert here.send("b1", "ann") == 503
        here.fires("StoreFull", "JobsStuck")
        client.config_set("maxmemory", 0)

        here.stop()
        here.fires("StoreDown")
        here.start()
        wait_until(lambda: here.prometheus.value("cohort_receiver_store_up") == 1)
        assert here.service.stop() == 0
        here.fires("ServiceDown")


@thorough
def test_alerts__about_lost_data__fire() -> None:
    with watched() as here:
        here.is_quiet()
        mark = f"cohorts:{{{APP}}}:mark"
        wait_until(lambda: here.client.exists(mark))
        here.client.flushall()
        assert here.send("b1", "ann") == 200
        here.fires("StoreLostData", "CohortsStoreLost")
        acknowledged = flask(here.url, "store", "acknowledge-loss", "--intended")
        assert acknowledged.returncode == 0, acknowledged.stderr
        here.is_quiet()

        here.client.save()
        position = here.client.hget(mark, "position")
        assert here.send("b1", "bob") == 200
        wait_until(lambda: here.client.hget(mark, "position") != position)
        here.stop()  # its last snapshot is older
        here.start()
        here.fires("StoreLostData", "CohortsStoreSetBack")


@thorough
def test_alerts__about_amplitudes_own_record__fire() -> None:
    keys, now = ("an-api-key", "a-secret-key"), time.time()
    with Upstream(keys=keys) as upstream:
        for cohort_id, age in (("b1", 60), ("b2", 86_400)):
            sync = SyncInfo(frequency="hourly", last_successful=now - age)
            upstream.cohorts[cohort_id] = ServedCohort(
                cohort_id, "n", size=50, syncs=[sync], last_computed=now - 2 * 86_400
            )
        settings = {
            # The second app's keys are wrong, so its record is never read.
            "AMPLITUDE_KEYS": f"{APP}:{':'.join(keys)},other:wrong:keys",
            "AMPLITUDE_URL": upstream.url,
        }
        with watched(**settings) as here:
            assert here.send("b2", "ann") == 200
            here.fires("UpstreamNotRead")
            for _ in range(2):  # a poll each
                read = flask(here.url, "cohorts", "upstream", "--app-id", APP, **settings)
                assert read.returncode == 0, read.stderr
            here.fires("CohortsCountDiffers", "SyncsBehind")


@thorough
def test_alert__about_a_store_without_a_disk__fires_once_it_has_run_for_hours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not LIBFAKETIME.exists():
        pytest.skip("libfaketime is missing; Debian has it in the package faketime")
    with store_folder() as folder:
        offset = folder / "offset"
        offset.write_text("+0")
        monkeypatch.setenv("LD_PRELOAD", str(LIBFAKETIME))
        monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(offset))
        monkeypatch.setenv("FAKETIME_CACHE_DURATION", "1")
        with watched() as here:
            monkeypatch.delenv("LD_PRELOAD")
            here.is_quiet()
            offset.write_text("+3h")
            here.fires("StoreNotPersistent")
