"""What the service does while another server becomes the primary."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from threading import Event

import pytest
import redis
from flask import Flask

from app.cohorts import Cohort, MembershipChange
from app.services import services
from app.settings import Settings
from app.store import Store, StoreError, connect, wait_for
from simulator import payloads
from tests.integration.conftest import APP, caller
from tests.support.clusters import Cluster, Node, running_cluster, running_server
from tests.support.polling import wait_until
from tests.support.proxy import Proxy

TRAIT, COHORT = "[Amplitude] Power users: abc123", "abc123"


def enter(store: Store, users: list[str]) -> int:
    change = MembershipChange(Cohort.from_trait(TRAIT), True, users, None)
    return store.memberships.apply(APP, [change], source="test").changed


@pytest.fixture
def pair() -> Iterator[tuple[Node, Node]]:
    """A primary and its replica."""
    with running_server() as primary, running_server() as replica:
        replica.client.replicaof("127.0.0.1", primary.port)
        wait_until(lambda: replica.client.info("replication")["master_link_status"] == "up")
        yield primary, replica


def swap(primary: Node, replica: Node) -> None:
    """Make the replica the primary, and the primary its replica. Connections stay open."""
    replica.client.replicaof("no", "one")
    primary.client.replicaof("127.0.0.1", replica.port)


@pytest.mark.parametrize("settings", [{}, {"store_wait_replicas": 1}], ids=["plain", "waiting"])
def test_primary__demoted_behind_the_same_address__is_left_at_once(
    pair: tuple[Node, Node], make_app: Callable[..., Flask], settings: dict[str, object]
) -> None:
    primary, replica = pair
    with closing(Proxy(("127.0.0.1", primary.port))) as address:
        app = make_app(redis_url=f"redis://127.0.0.1:{address.port}/0", **settings)
        store, http = services(app).store, caller(app)
        with ThreadPoolExecutor(6) as pool:  # so that several connections are open
            list(pool.map(lambda n: enter(store, [f"before-{n}"]), range(60)))
        swap(primary, replica)
        address.switch(("127.0.0.1", replica.port))
        switched = time.monotonic()

        def works() -> bool:
            body = payloads.identify("after", TRAIT, True)
            return http.post(payloads.COHORT_PATH, json=body).status_code == 200

        wait_until(works)
        assert time.monotonic() - switched < 5
        # No connection is left that would read from the demoted server.
        replica.client.config_resetstat()
        primary.client.replicaof("no", "one")
        primary.client.flushall()
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda _: store.lookups.since(APP, COHORT, "after"), range(60)))
        assert None not in found


def test_connections__have_a_name_in_the_stores_list(
    store: Store, redis_client: redis.Redis
) -> None:
    enter(store, ["u"])
    assert "cohort-receiver" in {client["name"] for client in redis_client.client_list()}


def test_script__that_the_server_lacks__is_sent_with_the_call(
    store: Store, redis_client: redis.Redis
) -> None:
    """Not loaded first: the next command may reach another server."""
    enter(store, ["one"])
    redis_client.script_flush()
    redis_client.config_resetstat()
    assert enter(store, ["two"]) == 1
    stats = redis_client.info("commandstats")
    assert "cmdstat_script|load" not in stats
    assert stats["cmdstat_eval"]["calls"] >= 1


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster(3, 1) as cluster:
        yield cluster


@pytest.mark.parametrize("replicas", [0, 1], ids=["plain", "waiting"])
def test_failover__planned_on_a_cluster__is_reported_as_what_it_is(
    cluster: Cluster, replicas: int
) -> None:
    settings = Settings(redis_url=cluster.url, store_cluster=True, store_wait_replicas=replicas)
    store = Store(connect(settings), partitions=12, wait=wait_for(settings))
    reasons: set[str] = set()
    acknowledged: set[str] = set()
    stop = Event()

    def send(client: int) -> None:
        number = 0
        while not stop.is_set():
            users = [f"{replicas}-{client}-{number}-{n}" for n in range(4)]
            try:
                enter(store, users)
                store.lookups.members(APP, COHORT, limit=2)
                acknowledged.update(users)
                number += 1
            except StoreError as error:
                reasons.add(error.reason)

    with ThreadPoolExecutor(8) as pool, ExitStack() as stack:
        stack.callback(stop.set)
        senders = [pool.submit(send, n) for n in range(8)]
        for node in cluster.nodes:
            if node.client.info("replication")["role"] == "slave":
                cluster.promote(node)
        cluster.wait_until_healthy()
        wait_until(lambda: acknowledged)
        stop.set()
        for sender in senders:
            sender.result()
    assert reasons <= {
        "store_loading",
        "store_unreachable",
        "store_timeout",
        "store_not_replicated",
    }
    users = [user for page in store.lookups.users(APP, acknowledged) for user in page]
    assert {user.id for user in users if user.memberships} == acknowledged != set()
