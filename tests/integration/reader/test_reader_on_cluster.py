"""The reader on a cluster: lookups, freshness, and a follower that is idle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from flask import Flask

from app import create_app
from app.settings import ApiKey, Settings
from cohort_reader import AsyncCohortReader, AsyncFollower, CohortReader, Follower, FreshnessState
from tests.integration.conftest import APP, KEY, caller
from tests.integration.reader.blocking import Blocking, Loop
from tests.integration.reader.conftest import COHORT, TRAIT, Service
from tests.integration.reader.test_follow import Heard, following
from tests.integration.store.maintenance.test_copy import rights
from tests.support.clusters import Cluster, running_cluster
from tests.support.polling import wait_until

ACL = Path(__file__).resolve().parents[3] / "docs" / "acl" / "follower.acl"
PASSWORD = "a-password-of-the-store"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster with the follower's user, and the rights that its page gives it besides."""
    with running_cluster(3, 0) as cluster:
        for node in cluster.nodes:
            _, user, *own = ACL.read_text().replace("PASSWORD", PASSWORD).split()
            own += rights("scaling.md", "+readonly")
            node.client.execute_command("ACL", "SETUSER", user, *own)
        yield cluster


@pytest.fixture
def service(cluster: Cluster) -> Service:
    for node in cluster.masters:
        node.client.flushall()
        node.client.acl_log_reset()
    settings = Settings(
        redis_url=cluster.url,
        store_cluster=True,
        store_partitions=6,
        api_keys=(ApiKey(APP, KEY),),
        rate_limit=None,
    )
    app: Flask = create_app(settings)
    return Service(caller(app), 6)


@pytest.fixture
def connect(cluster: Cluster, loop: Loop | None) -> Iterator[Callable[[], Any]]:
    """Make an application's client of the test's kind."""
    clients: list[Any] = []

    def connect() -> Any:
        options: Any = {"host": "127.0.0.1", "port": cluster.nodes[-1].port}
        options |= {"username": "cohort-follower", "password": PASSWORD}
        if loop is None:
            clients.append(redis.RedisCluster(**options))
        else:
            clients.append(loop.make(lambda: redis.asyncio.RedisCluster(**options)))
        return clients[-1]

    yield connect
    refused = [(row["reason"], row["object"]) for n in cluster.nodes for row in n.client.acl_log()]
    assert refused == []
    for client in clients:
        if loop is None:
            client.close()
        else:
            loop.run(client.aclose())


def test_reader__on_a_cluster__answers_every_question(
    service: Service, connect: Callable[[], Any], loop: Loop | None
) -> None:
    users = [f"u{number}" for number in range(20)]
    service.push(users)
    reader: Any = (
        CohortReader(connect(), app=APP, strict=True)
        if loop is None
        else Blocking(AsyncCohortReader(connect(), app=APP, strict=True), loop)
    )
    assert reader.freshness(COHORT).state is FreshnessState.FRESH
    assert reader.are_members([*users, "other"], COHORT) == {
        **dict.fromkeys(users, True),
        "other": False,
    }
    assert reader.is_member("u1", COHORT)
    assert reader.member_count(COHORT) == 20
    assert set(reader.members(COHORT)) == set(users)
    assert reader.traits("u3") == {TRAIT: True}
    assert reader.completeness(COHORT).state == "unverified"
    assert reader.exists(COHORT)
    assert reader.cohort_ids() == [COHORT]


def test_run__idle_on_a_cluster__waits_for_the_next_change(
    service: Service, connect: Callable[[], Any], loop: Loop | None
) -> None:
    service.push("a")
    client = connect()
    follower: Any = (
        Follower(client, "mail", app=APP, start="all")
        if loop is None
        else Blocking(loop.make(lambda: AsyncFollower(client, "mail", app=APP, start="all")), loop)
    )
    heard = Heard()

    def fail_for_bad(change: Any) -> None:
        heard(change)
        if "bad" in change.user_ids:
            raise ValueError

    polls = 0
    core = getattr(follower, "_wrapped", follower)
    poll = core._poll

    def counted(handler: Any) -> Any:
        nonlocal polls
        polls += 1
        return poll(handler)

    core._poll = counted
    with following((follower, fail_for_bad)):
        wait_until(lambda: heard.users() == ["a"])
        before = polls
        wait_until(lambda: polls >= before + 3)  # idle
        service.push(["b", "bad"])
        wait_until(lambda: {"b", "bad"} <= set(heard.users()))
    assert not any(lag.lost for lag in follower.lag())
