"""A store is moved by the commands of docs/moving.md, while a sender keeps sending."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from simulator import payloads
from tests.support.cli import FLASK, environment, flask
from tests.support.clusters import Node, running_cluster, running_server
from tests.support.effort import thorough
from tests.support.load import COHORT_ID, TRAIT
from tests.support.polling import wait_until
from tests.support.service import ADMIN_KEY, APP, ROOT, Service, running

PAGE = (ROOT / "docs" / "moving.md").read_text()
PARTITIONS = 12
# Stands in for the store's own command line client where that is not installed.
CLIENT = f"""#!{sys.executable}
import sys, redis
_, _, url, *words = sys.argv
client = redis.Redis.from_url(url, decode_responses=True)
client.response_callbacks.clear()
print(client.execute_command(*words) or "")
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the page's commands find their programs."""
    programs = {"cohort-receiver": f'#!/bin/sh\nexec {sys.executable} -m app "$@"\n'}
    if not shutil.which("redis-cli"):
        programs["redis-cli"] = CLIENT
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}:{tmp_path}"


def steps(section: str) -> Iterator[str]:
    """The commands of each step of a section of the page."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    for indent, commands in re.findall(r"^( *)```sh\n(.*?)^ *```", text, re.M | re.S):
        yield re.sub(rf"^{indent}", "", commands, flags=re.M)


def run(commands: str, path: str, **env: str) -> str:
    done = subprocess.run(
        ["bash", "-ec", commands],
        cwd=ROOT,
        env={**environment(None), "PATH": path, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def enter(service: Service, users: list[str]) -> tuple[int, str]:
    """Status and reason of a call that brings users."""
    reply = service.post(payloads.batch(users, TRAIT, True))
    if reply.status == 503:
        assert int(reply.headers["Retry-After"]) > 0
    return reply.status, reply.json().get("reason", "")


def is_read(service: Service, user: str) -> bool:
    reply = service.request("GET", f"/api/v1/users/{user}", api_key=ADMIN_KEY)
    return reply.status == 200 and reply.json()["traits"] == {TRAIT: True}


def settings(url: str, **further: str) -> dict[str, str]:
    return {
        "REDIS_URL": url,
        "RATE_LIMIT": "off",
        "WEB_CONCURRENCY": "2",
        "ADMIN_API_KEYS": f"{APP}:{ADMIN_KEY}",
        **further,
    }


@thorough
def test_move__by_replication__loses_nothing(path: str) -> None:
    replicate, hold, detach, release = steps("The same number of partitions")
    with running_server() as old, running_server() as new:
        env = {"OLD": old.url, "NEW": new.url, "OLD_HOST": "127.0.0.1", "OLD_PORT": str(old.port)}
        with running(settings(old.url)) as service:
            assert enter(service, ["before"]) == (200, "")
            run(replicate, path, **env)
            assert enter(service, ["during"]) == (200, "")
            run(hold, path, **env)
            assert enter(service, ["refused"]) == (503, "store_held")
            assert is_read(service, "during")
            run(detach, path, **env)
        with running(settings(new.url)) as service:
            assert enter(service, ["refused"]) == (503, "store_held")
            assert is_read(service, "during")
            run(release, path, **env)
            stream = f"cohorts:{{{APP}}}:changes"
            assert new.client.xrange(stream) == old.client.xrange(stream)
            assert enter(service, ["refused"]) == (200, "")
            members = new.client.zrange(f"cohorts:{{{APP}}}:cohort:{COHORT_ID}:members", 0, -1)
            assert sorted(members) == ["before", "during", "refused"]
        forgotten = flask(old.url, "users", "register", "-", input="late")
        assert "store_held" in forgotten.stderr


@thorough
def test_move__by_copy_to_a_cluster__killed_and_repeated__loses_nothing(path: str) -> None:
    (copy,) = steps("Another number of partitions")
    users = payloads.user_ids(4000)
    with running_server() as old, running_cluster(3, 0) as cluster, cluster.client() as client:
        env = {"OLD": old.url, "NEW": cluster.url}
        with running(settings(old.url)) as service:
            assert enter(service, users) == (200, "")
            kill_a_copy(old, cluster.url, client)
            assert enter(service, ["between"]) == (503, "store_held")
            # rather than wait until the hold expires
            assert flask(old.url, "store", "release").returncode == 0
            assert enter(service, ["between"]) == (200, "")
            printed = run(copy, path, **env)
            assert "Both stores agree." in printed
            assert enter(service, ["refused"]) == (503, "store_held")
            assert is_read(service, "between")
        there = {"STORE_CLUSTER": "true", "STORE_PARTITIONS": str(PARTITIONS)}
        with running(settings(cluster.url, **there)) as service:
            assert service.post(payloads.batch(users, TRAIT, True)).json()["changed"] == 0
            assert enter(service, ["refused"]) == (200, "")
            assert members(client) == {*users, "between", "refused"}


def kill_a_copy(source: Node, target: str, client: redis.RedisCluster) -> None:
    """Kill a copy in the middle of its work."""
    words = ("store", "copy", "--to", target, "--partitions", str(PARTITIONS), "--cluster")
    for _ in range(5):
        copying = subprocess.Popen([*FLASK, *words], cwd=ROOT, env=environment(source.url))
        wait_until(lambda: source.client.get("cohorts:hold") not in (None, "begun"))
        copying.send_signal(signal.SIGKILL)
        copying.wait()
        if client.get("cohorts:layout") == "0":
            return
        client.flushall()
    pytest.fail("it was never killed in the middle")


def members(client: redis.RedisCluster) -> set[str]:
    found: set[str] = set()
    for partition in range(PARTITIONS):
        key = f"cohorts:{{{APP}:{partition}}}:cohort:{COHORT_ID}:members"
        found.update(client.zrange(key, 0, -1))
    return found
