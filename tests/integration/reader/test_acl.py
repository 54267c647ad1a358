"""The store's users for applications: the reader and the follower are refused nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from flask import Flask
from redis.exceptions import NoPermissionError

from cohort_reader import CohortReader, Follower, FreshnessState
from tests.integration.conftest import caller
from tests.integration.reader.conftest import COHORT, TRAIT, Clients, Service
from tests.integration.reader.test_follow import Heard, following, lost, poll_until, trim
from tests.support.polling import wait_until
from tests.support.stores import socket_url, start_store, store_folder

ACL = Path(__file__).resolve().parents[3] / "docs" / "acl"
PASSWORD = "a-password-of-the-store"


@pytest.fixture(scope="module")
def store_socket() -> Iterator[Path]:
    """The socket of a store with these users; its default user may do everything."""
    with store_folder() as folder:
        users = "".join((ACL / f"{name}.acl").read_text() for name in ("reader", "follower"))
        (folder / "users.acl").write_text(users.replace("PASSWORD", PASSWORD))
        server = start_store(folder, "--aclfile", "users.acl")
        try:
            yield folder / "socket"
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture
def everything(store_socket: Path) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(socket_url(store_socket.parent), decode_responses=True) as client:
        client.flushall()
        client.script_flush()
        client.acl_log_reset()
        client.config_resetstat()
        yield client


@pytest.fixture
def sender(store_socket: Path, everything: redis.Redis, make_app: Callable[..., Flask]) -> Service:
    return Service(caller(make_app(redis_url=socket_url(store_socket.parent))), 1)


def use(reader: CohortReader) -> None:
    """Ask every question."""
    assert reader.is_member("a", COHORT)
    assert reader.are_members(["a", "b"], COHORT) == {"a": True, "b": False}
    assert reader.membership("a", COHORT)
    assert reader.memberships(["a"], COHORT)["a"]
    assert reader.member_since("a", COHORT)
    assert reader.traits("a") == {TRAIT: True}
    assert reader.cohorts("a") == {COHORT}
    assert reader.profile("a").cohorts == {COHORT}
    assert reader.member_count(COHORT) == 1
    assert list(reader.members(COHORT)) == ["a"]
    assert reader.freshness(COHORT).state is FreshnessState.FRESH
    assert reader.exists(COHORT)
    assert reader.cohort_ids() == [COHORT]


@pytest.mark.parametrize("user", ["cohort-reader", "cohort-follower"])
def test_reader__as_its_own_user__is_refused_nothing(
    sender: Service,
    make_reader: Callable[..., CohortReader],
    connect_client: Clients,
    store_socket: Path,
    everything: redis.Redis,
    user: str,
) -> None:
    sender.push("a")
    client = connect_client(f"unix://{user}:{PASSWORD}@{store_socket}")
    use(make_reader(client, strict=True))
    assert [(entry["reason"], entry["object"]) for entry in everything.acl_log()] == []


def test_follower__as_its_own_user__is_refused_nothing_and_has_no_right_that_it_does_not_use(
    sender: Service,
    make: Callable[..., Follower],
    make_reader: Callable[..., CohortReader],
    connect_client: Clients,
    store_socket: Path,
    everything: redis.Redis,
) -> None:
    sender.push("bad")

    def client() -> Any:
        return connect_client(f"unix://cohort-follower:{PASSWORD}@{store_socket}")

    def fail(change: object) -> None:
        raise ValueError

    for ordered in (True, False):
        options = {"group": f"g{ordered}", "ordered": ordered, "retry_seconds": 0}
        follower = make(client(), max_deliveries=2, handler_seconds=0.1, **options)
        poll_until(follower, fail, follower.failed_changes)
        follower.remove_failed(follower.failed_changes()[0])
        for member in (False, True):
            sender.push("a", not member)
            sender.push("a", member)
        trim(everything, 1)
        follower.poll(Heard())
        assert lost(follower)
        follower.acknowledge_loss()
        heard = Heard()
        with following((follower, heard)):
            sender.push(f"new{ordered}")
            wait_until(lambda heard=heard: heard.changes)
    assert [(entry["reason"], entry["object"]) for entry in everything.acl_log()] == []

    own = (ACL / "follower.acl").read_text().replace((ACL / "reader.acl").read_text(), "")
    granted = set(re.findall(r" \+(\S+)", own))
    of_the_reader = set(re.findall(r" \+(\S+)", (ACL / "reader.acl").read_text()))
    used = {
        name.removeprefix("cmdstat_")
        for name, stat in everything.info("commandstats").items()
        if stat["calls"]
    }
    assert granted - of_the_reader - used == set()


@pytest.mark.parametrize(
    "command",
    [
        "HSET cohorts:{shop}:user:ann n true",
        "XTRIM cohorts:{shop}:changes MAXLEN 0",
        "SET cohorts:{shop}:changes:last 1-1",
        "XADD cohorts:{shop}:other * a b",
        "HGETALL cohorts:{shop}:cohort:c1:state",
        "SMEMBERS cohorts:{shop}:suppressed",
        "HGETALL cohorts:keys",
        "GET cohorts:session-secret",
        "FLUSHALL",
    ],
)
def test_follower__as_its_own_user__may_not(store_socket: Path, command: str) -> None:
    address = f"unix://cohort-follower:{PASSWORD}@{store_socket}"
    with redis.Redis.from_url(address) as client, pytest.raises(NoPermissionError):
        client.execute_command(*command.split())
