"""The example worker, as people start it: processes of its own that are killed at work."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from simulator import payloads
from tests.integration.reader.conftest import COHORT, Service
from tests.support.effort import THOROUGH
from tests.support.polling import DEADLINE, wait_until

READER = Path(__file__).resolve().parents[3] / "reader"

Start = Callable[[], subprocess.Popen[bytes]]

# What differs is the number of partitions: the worker's classes are the blocking ones.
with_partitions = pytest.mark.parametrize(
    "kind", ["blocking", "asyncio"] if THOROUGH else ["asyncio"], indirect=True
)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "members.sqlite"


@pytest.fixture
def start(service: Service, store_url: str, database: Path) -> Iterator[Start]:
    """Start a worker, and wait until it follows."""
    workers: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        env = {"PYTHONPATH": str(READER), "REDIS_URL": store_url, "COHORT_APP": service.app}
        command = [sys.executable, str(READER / "examples" / "worker.py"), str(database)]
        worker = subprocess.Popen(command, env=env, stderr=subprocess.PIPE)
        workers.append(worker)
        assert worker.stderr
        assert worker.stderr.readline() == b"INFO following\n"
        return worker

    yield start
    for worker in workers:
        worker.kill()
        worker.wait(DEADLINE)
        assert worker.stderr
        worker.stderr.close()


def members(database: Path) -> set[str]:
    """The members that the worker has stored."""
    query = "SELECT user_id FROM membership WHERE cohort_id = ? AND member"
    with closing(sqlite3.connect(database, timeout=DEADLINE)) as connection:
        try:
            return {user_id for (user_id,) in connection.execute(query, [COHORT])}
        except sqlite3.OperationalError:  # no table yet
            return set()


def pending(client: redis.Redis, service: Service) -> int:
    """Entries that are not done yet."""
    return sum(group["pending"] + (group["lag"] or 0) for group in groups(client, service))


def given(client: redis.Redis, service: Service) -> int:
    """Entries that a worker has been given, and has not done yet."""
    return sum(group["pending"] for group in groups(client, service))


def groups(client: redis.Redis, service: Service) -> list[dict[str, Any]]:
    keys = client.scan_iter(match=f"cohorts:{{{service.app}*:changes")
    return [group for key in keys for group in client.xinfo_groups(key)]


@with_partitions
def test_worker__keeps_the_members_of_a_cohort(
    service: Service, start: Start, database: Path, redis_client: redis.Redis
) -> None:
    users = payloads.user_ids(1500)
    service.push(users[:1000])
    workers = [start(), start()]
    service.push(users[1000:])
    service.push(users[:200], False)
    wait_until(lambda: members(database) == set(users[200:]))
    wait_until(lambda: pending(redis_client, service) == 0)
    for worker, number in zip(workers, (signal.SIGTERM, signal.SIGINT), strict=True):
        worker.send_signal(number)
        assert worker.wait(DEADLINE) == 0


@with_partitions
def test_worker__killed_at_work__is_replaced_without_a_gap(
    service: Service, start: Start, database: Path, redis_client: redis.Redis
) -> None:
    users = payloads.user_ids(120)
    for user_id in users[:60]:
        service.push(user_id)
    first = start()
    wait_until(lambda: members(database) == set(users[:60]))
    wait_until(lambda: pending(redis_client, service) == 0)
    with closing(sqlite3.connect(database, timeout=DEADLINE)) as held:
        held.execute("BEGIN IMMEDIATE")  # what it is given now, it can't write
        for user_id in users[60:]:
            service.push(user_id)
        wait_until(lambda: given(redis_client, service) > 0)
        first.kill()
        first.wait(DEADLINE)
    assert pending(redis_client, service) > 0
    forget_who_died(redis_client, service)
    start()
    for user_id in users[::3]:
        service.push(user_id, False)
    wanted = set(users) - set(users[::3])
    wait_until(lambda: members(database) == wanted)
    wait_until(lambda: pending(redis_client, service) == 0)
    assert members(database) == wanted


def forget_who_died(client: redis.Redis, service: Service) -> None:
    """Let the time pass, in the store, after which others take over."""
    for key in list(client.scan_iter(match=f"cohorts:{{{service.app}*:changes")):
        client.delete(f"{key}:members:lease")
        for entry in client.xpending_range(key, "members", "-", "+", 10_000):
            client.xclaim(
                key,
                "members",
                entry["consumer"],
                0,
                [entry["message_id"]],
                idle=10**6,
                justid=True,
            )


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [([], {"REDIS_URL": "redis://127.0.0.1:1"}), (["a", "b"], {}), (["members.sqlite"], {})],
    ids=["no argument", "two arguments", "no address"],
)
def test_worker__started_wrongly__says_how_in_one_line(
    arguments: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, str(READER / "examples" / "worker.py"), *arguments]
    done = subprocess.run(
        command,
        env={"PYTHONPATH": str(READER), **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "usage: REDIS_URL=redis://… python worker.py DATABASE\n"
