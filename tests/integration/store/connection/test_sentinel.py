"""A store behind Sentinels: the service and its commands follow each failover."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask

from app.cohorts import Cohort, MembershipChange
from app.services import services
from app.settings import Settings
from app.store import Store, StoreError, connect
from simulator import payloads
from tests.integration.conftest import APP, caller
from tests.support.effort import thorough
from tests.support.polling import wait_until
from tests.support.sentinels import Sentinels, running_sentinels

TRAIT, COHORT = "[Amplitude] Power users: abc123", "abc123"
PASSWORD = "s3cret"


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Sentinels]:
    with running_sentinels(password=PASSWORD) as sentinels:
        yield sentinels


def enter(store: Store, users: list[str]) -> None:
    change = MembershipChange(Cohort.from_trait(TRAIT), True, users, None)
    store.memberships.apply(APP, [change], source="test")


def test_primary__that_stops__is_left_for_its_successor(
    sentinels: Sentinels, make_app: Callable[..., Flask]
) -> None:
    app = make_app(redis_url=sentinels.url, store_timeout_seconds=0.5, store_wait_replicas=1)
    store, http = services(app).store, caller(app)
    with ThreadPoolExecutor(6) as pool:  # so that several connections are open
        list(pool.map(lambda n: enter(store, [f"before-{n}"]), range(30)))
    # Not killed: it keeps its connections, and does not reply until it is demoted.
    old = sentinels.primary()
    sentinels.stop_one()
    old.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: sentinels.primary() is not old)
    promoted = time.monotonic()

    def works() -> bool:
        reply = http.post(payloads.COHORT_PATH, json=payloads.identify("after", TRAIT, True))
        assert reply.status_code in {200, 503}
        return reply.status_code == 200

    wait_until(works)
    assert time.monotonic() - promoted < 5
    # One connection has noticed; none goes on to the old primary, which does not know yet.
    old.client.connection_pool.disconnect()
    old.process.send_signal(signal.SIGCONT)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: store.lookups.since(APP, COHORT, "after"), range(30)))
    assert None not in found
    members = {member.user_id for member in store.lookups.members(APP, COHORT, limit=100)[0]}
    assert members == {"after", *(f"before-{n}" for n in range(30))}


@thorough
def test_primary__that_is_back_before_it_is_demoted__is_left_for_its_successor(
    make_app: Callable[..., Flask],
) -> None:
    with running_sentinels() as sentinels:
        store = services(make_app(redis_url=sentinels.url, store_timeout_seconds=0.5)).store
        store.registered_users.add("other", ["before"])
        old = sentinels.primary()
        old.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: sentinels.primary() is not old)
        old.client.connection_pool.disconnect()
        old.process.send_signal(signal.SIGCONT)

        def writes_to_the_successor() -> bool:
            store.follow_primary()  # as each worker does every second
            store.registered_users.add("other", ["after"])
            registered = "cohorts:{other}:registered"
            return bool(sentinels.primary().client.sismember(registered, "after"))

        wait_until(writes_to_the_successor, 5)


def test_sentinels__without_their_password__are_reported_as_misconfigured(
    sentinels: Sentinels,
) -> None:
    for url in (sentinels.url.split("?")[0], sentinels.url + "x"):
        with pytest.raises(StoreError) as caught:
            Store(connect(Settings(redis_url=url))).check()
        assert caught.value.reason == "store_misconfigured"
        hosts = sentinels.hosts.split(",")
        assert any(f"{host} - auth" in caught.value.reported for host in hosts)
        assert "redis.client" not in caught.value.reported


def test_sentinels__that_are_down_or_do_not_know_the_service__are_reported_as_unreachable(
    sentinels: Sentinels,
) -> None:
    unknown = sentinels.url.replace("/cohorts/", "/another/")
    for url in (unknown, "redis+sentinel://127.0.0.1:1,127.0.0.1:1/cohorts"):
        with pytest.raises(StoreError) as caught:
            Store(connect(Settings(redis_url=url))).check()
        assert caught.value.reason == "store_unreachable"
        assert "redis.client" not in caught.value.reported
