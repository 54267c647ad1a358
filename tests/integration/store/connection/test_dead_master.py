"""A cluster that has lost a master without a replica: what needs only the others continues."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count

import pytest
from flask import Flask, Response, request
from limits import parse

from app.auth.keyring import ADMIN, INGEST, Caller, make_key
from app.services import services
from app.store import Store, StoreError, Tuning
from simulator import payloads
from tests.integration.conftest import APP, caller
from tests.support.clusters import Cluster, Node, running_cluster
from tests.support.effort import THOROUGH

PARTITIONS = 12


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster(3, 0, "--cluster-require-full-coverage", "no") as cluster:
        yield cluster


@pytest.fixture
def redis_client(cluster: Cluster) -> None:
    for node in cluster.nodes:
        node.client.flushall()


@pytest.fixture
def store_url(cluster: Cluster) -> str:
    return cluster.url


class Alive:
    """Users and a cohort that need no node that is down."""

    def __init__(self, cluster: Cluster, store: Store, dead: Node) -> None:
        keys = store.keys
        living = [
            n for n in range(PARTITIONS) if cluster.master_of(keys.changes(APP, n)) is not dead
        ]
        users = (user for n in count() if keys.partition(user := f"user-{n}") in living)
        self.users = [next(users) for _ in range(6)]
        cohorts = (cohort for n in count() if keys.partition(cohort := f"c{n}") in living)
        self.cohort = next(cohorts)


# Each key that no partition has, such as the layout, the keys or a rate counter, is on one of them.
@pytest.mark.parametrize("master", range(3) if THOROUGH else [0])
def test_calls__that_need_other_nodes__continue_whichever_shared_keys_are_unavailable(
    cluster: Cluster, make_app: Callable[..., Flask], master: int
) -> None:
    app = make_app(
        Tuning(layout_check_seconds=0.0),  # everything is checked with every request
        store_cluster=True,
        store_partitions=PARTITIONS,
        rate_limit=parse("90/hour"),
        app_rate_limit=parse("95/hour"),
    )
    parts, dead = services(app), cluster.masters[master]
    alive = Alive(cluster, parts.store, dead)
    keys = parts.store.keys
    # Its history needs a node that is not down.
    other = next(
        name
        for n in count()
        if cluster.master_of(keys.history(name := f"app-{n}", "syncs")) is not dead
    )
    ingest, stored = make_key(APP, INGEST)
    ingest_other, stored_other = make_key(other, INGEST)
    admin, stored_admin = make_key(APP, ADMIN)
    parts.store.api_keys.create(stored)
    parts.store.api_keys.create(stored_other)
    parts.store.api_keys.create(stored_admin)
    sender, reader = caller(app, ingest), caller(app, admin)
    sender_of_other = caller(app, ingest_other)

    def call() -> None:
        parts.keyring.refresh()
        for user in alive.users:
            body = payloads.identify(user, f"n: {alive.cohort}", True)
            reply = sender.post(payloads.COHORT_PATH, json=body)
            assert reply.status_code == 200, reply.text
            path = f"/api/v1/cohorts/{alive.cohort}/members/{user}"
            assert reader.get(path).json["member"] is True
            assert app.test_client().get("/readyz").status_code == 200
        assert sender_of_other.post(payloads.COHORT_PATH, json={}).status_code == 400
        with suppress(StoreError):  # what is on the node that is down waits
            parts.sync_recorder.flush()
        assert parts.store.jobs.pending() == []
        with app.test_request_context("/login"):
            parts.sessions.set_cookie(
                parts.sessions.open(Caller(APP, ADMIN, "k")), request, Response()
            )

    def recorded() -> int:
        return sum(sync.requests for sync in parts.store.sync_history.syncs(other).syncs)

    call()
    assert recorded() == 1
    dead.kill()
    try:
        parts.sessions._secret_due = 0.0
        call()
        assert recorded() == 2
    finally:
        dead.start()
        cluster.wait_until_healthy()
    for key in (stored, stored_admin, stored_other):  # what the node had is lost
        parts.store.api_keys.create(key)
    call()
