"""A store that loses its data, under a running service and between two runs of ``make run``."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from simulator import payloads
from tests.support.effort import thorough
from tests.support.polling import wait_until
from tests.support.service import APP, KEY, Service, running
from tests.support.stores import running_store
from tests.system.test_make_run import make_run

TRAIT, COHORT = "[Amplitude] Power users: abc123", "abc123"
READ_KEY = "a-key-that-reads"


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """An empty folder with a short path, so that a socket can be in it."""
    path = Path(tempfile.mkdtemp(prefix="run-"))
    yield path
    shutil.rmtree(path)


def warnings(service: Service) -> list[str]:
    reply = service.request("GET", "/readyz")
    assert reply.status == 200
    return list(json.loads(reply.data)["warnings"])


def completeness(service: Service, key: str = READ_KEY) -> Any:
    reply = service.request("GET", f"/api/v1/cohorts/{COHORT}", api_key=key)
    assert reply.status == 200, reply.data
    return json.loads(reply.data)["completeness"]


def enter(service: Service, user: str, key: str = KEY) -> None:
    assert service.post(payloads.identify(user, TRAIT, True), api_key=key).status == 200


@thorough
def test_store_emptied_under_a_running_service__and_what_is_no_loss() -> None:
    with (
        running_store() as store_url,
        redis.Redis.from_url(store_url, decode_responses=True) as client,
        running(
            {
                "REDIS_URL": store_url,
                "WEB_CONCURRENCY": "2",
                "READ_API_KEYS": f"{APP}:{READ_KEY}",
            }
        ) as service,
    ):
        mark = f"cohorts:{{{APP}}}:mark"
        client.flushall()
        enter(service, "alice")
        wait_until(lambda: int(client.hget(mark, "position") or 0) >= 2)  # both workers

        # The workers are suspended, while those of another machine go on.
        workers = psutil.Process(service.process.pid).children()
        for worker in workers:
            worker.send_signal(signal.SIGSTOP)
        position = int(client.hget(mark, "position") or 0)
        for number in range(position + 1, position + 401):
            client.hset(mark, mapping={"position": number, str(number % 256): "another"})
        for worker in workers:
            worker.send_signal(signal.SIGCONT)
        enter(service, "bob")
        wait_until(lambda: int(client.hget(mark, "position") or 0) >= position + 401)
        assert warnings(service) == []
        assert completeness(service)["state"] == "unverified"

        client.flushall()
        wait_until(lambda: warnings(service) == ["store_lost"])
        enter(service, "carol")
        wait_until(lambda: completeness(service)["state"] == "incomplete")
        (reason,) = completeness(service)["reasons"]
        assert (reason["reason"], reason["count"]) == ("store_lost", 1)
        losses = [e for e in service.events() if e.get("event") == "store lost data"]
        assert [e["level"] for e in losses] == ["error"]  # one of the two workers found it


@thorough
def test_make_run__notices_a_loss_between_two_runs_but_no_restart(data_dir: Path) -> None:
    marks = data_dir / "store-marks.json"
    with make_run(data_dir) as service:
        key = (data_dir / "ingest-key").read_text().strip()
        admin = (data_dir / "admin-key").read_text().strip()
        enter(service, "alice", key)
        wait_until(marks.exists)
        service.stop()
    with make_run(data_dir) as service:
        enter(service, "bob", key)
        assert warnings(service) == []
        assert completeness(service, admin)["state"] == "unverified"
        service.stop()
    shutil.rmtree(data_dir / "store")
    with make_run(data_dir) as service:
        wait_until(lambda: warnings(service) == ["store_lost"])
        enter(service, "carol", key)
        wait_until(lambda: completeness(service, admin)["state"] == "incomplete")
        service.stop()
