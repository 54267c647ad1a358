"""Polls: what is shown, what is late, and whose count differs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from flask import Flask

from app.auth.audit_trail import COMMAND, Operator
from app.cohorts import (
    Completeness,
    CompletenessState,
    FreshnessState,
    IncompleteReason,
    Upstream,
    VerifiedBy,
)
from app.services import services
from app.settings import AmplitudeKeys
from app.store.upstream import POLL
from app.upstream.reconcile import Order
from simulator.upstream import ALWAYS, SyncInfo
from simulator.upstream import Upstream as Server
from tests.integration.conftest import APP
from tests.integration.upstream.here import Here

COHORT_PATH = "/api/v1/integration/amplitude/cohort"
HOUR = 3600
LIST = "/api/3/cohorts"
COUNT_DIFFERS = IncompleteReason.COUNT_DIFFERS


def synced(hours_ago: float, frequency: Any = "hourly", failed: float | None = None) -> SyncInfo:
    now = time.time()
    return SyncInfo(
        frequency=frequency,
        last_successful=now - hours_ago * HOUR,
        last_failure=None if failed is None else now - failed * HOUR,
    )


def test_poll__of_a_known_cohort__is_shown(here: Here) -> None:
    here.send("a1", 3)
    sync = SyncInfo(frequency="hourly", last_successful=1767225600, last_failure=1767222000)
    here.serve("a1", size=4, last_computed=1767225000, syncs=[sync])
    here.poll()
    assert here.completeness("a1").upstream == Upstream(
        4, 1767225000000, None, "hourly", 1767225600000, 1767222000000
    )
    status = here.parts.store.upstream.poll_status(APP)
    assert status.polled_ms
    assert abs(status.polled_ms - time.time() * 1000) < 60_000
    assert (status.listed, status.absent_total) == (1, 0)


def test_poll__of_a_cohort_that_is_no_longer_listed__removes_the_record(here: Here) -> None:
    here.send("a1", 3)
    served = here.serve("a1", size=3)
    here.poll()
    served.discoverable = False
    here.poll()
    assert here.completeness("a1").upstream is None


def test_poll__after_one_that_listed_nothing__still_knows_the_anonymous(here: Here) -> None:
    """Only an export reveals them, so counts would differ without anything being wrong."""
    here.send("a1", 90)
    served = here.serve("a1", size=100, syncs=[synced(0)])
    here.poll()
    here.parts.store.upstream.count_anonymous(APP, "a1", 10, 0)
    served.discoverable = False
    here.poll()
    served.discoverable = True
    for _ in range(3):
        here.poll()
    found = here.completeness("a1")
    assert found.upstream
    assert found.upstream.anonymous == 10
    assert (found.state, found.reasons) == (CompletenessState.VERIFIED, ())


def test_poll__of_a_synced_cohort_that_never_arrived__reports_it(here: Here) -> None:
    here.send("a1", 3)
    here.serve("a1", size=3, syncs=[synced(0)])
    here.serve("b2", size=7, syncs=[synced(0.5, "daily")])
    here.serve("c3", size=7)  # not synced
    here.serve("d4", size=7, syncs=[synced(0)], archived=True)
    here.poll()
    status = here.parts.store.upstream.poll_status(APP)
    (absent,) = status.absent
    assert (absent["id"], absent["size"], absent["frequency"]) == ("b2", 7, "daily")
    assert status.absent_total == 1
    assert here.completeness("b2") == Completeness()


def test_poll__of_very_many_absent_cohorts__keeps_some(
    here: Here, redis_client: redis.Redis
) -> None:
    for n in range(150):
        here.serve(f"c{n}", syncs=[synced(0)])
    here.poll()
    status = here.parts.store.upstream.poll_status(APP)
    assert (len(status.absent), status.absent_total) == (100, 150)
    for key in redis_client.scan_iter("*upstream*"):
        assert redis_client.ttl(key) > 0, key


def test_poll__that_fails__changes_nothing_and_is_noted(here: Here) -> None:
    here.send("a1", 3)
    here.serve("a1", size=3, syncs=[synced(0)])
    here.poll()
    before = here.completeness("a1")
    here.server.faults["forbidden"] = ALWAYS
    assert here.parts.poller.poll(APP)
    assert here.completeness("a1") == before
    status = here.parts.store.upstream.poll_status(APP)
    assert status.failure == "upstream_forbidden"
    here.server.faults.clear()
    here.poll()
    assert here.parts.store.upstream.poll_status(APP).failure is None


# Lateness


def arrived(here: Here, cohort_id: str, hours_ago: float, redis_client: redis.Redis) -> None:
    """Let a cohort have arrived hourly, the last time some hours ago."""
    here.send(cohort_id, 2)
    key = here.parts.store.keys.freshness(APP, cohort_id)
    last = int((time.time() - hours_ago * HOUR) * 1000)
    redis_client.hset(key, mapping={"last_received": last})
    here.parts.store.freshness.set_cadence(APP, cohort_id, HOUR * 1000)
    here.parts.store.freshness.set_cadence(APP, cohort_id, None)
    starts = [last - n * HOUR * 1000 for n in (4, 3, 2, 1, 0)]
    redis_client.hset(key, "starts", str(starts))
    here.parts.store.freshness.set_cadence(APP, cohort_id, None)


def test_quiet_cohort__whose_sync_succeeds__is_not_late(
    here: Here, redis_client: redis.Redis
) -> None:
    arrived(here, "a1", 5, redis_client)
    assert here.freshness("a1") is FreshnessState.LATE
    here.serve("a1", size=2, syncs=[synced(0.1)])
    here.poll()
    assert here.freshness("a1") is FreshnessState.FRESH
    counts = here.parts.store.freshness_counts()
    assert counts[FreshnessState.LATE] == 0


def test_quiet_cohort__after_a_poll__is_not_late_for_as_long_as_the_poll_is_recent(
    here: Here, redis_client: redis.Redis
) -> None:
    arrived(here, "a1", 5, redis_client)
    here.serve("a1", size=2, syncs=[synced(0.1)])
    here.poll()
    (freshness,) = here.parts.store.freshness.of(APP, ["a1"])
    assert freshness.late_after_ms
    minutes = (freshness.late_after_ms / 1000 - time.time()) / 60
    assert 60 < minutes < 70  # two polls, and five minutes


@pytest.mark.parametrize(
    ("sync", "state"),
    [  # functions: these times are relative to when the test runs
        (lambda: synced(1.4), FreshnessState.FRESH),
        (lambda: synced(1.6), FreshnessState.LATE),
        (lambda: synced(1.6, "daily"), FreshnessState.FRESH),
        (lambda: synced(37, "daily"), FreshnessState.LATE),
        (lambda: synced(0.01, "minute"), FreshnessState.FRESH),
        (lambda: synced(0.2, "minute"), FreshnessState.LATE),
        (lambda: synced(1.6, failed=0.1), FreshnessState.LATE),
        (lambda: SyncInfo(frequency="hourly", last_failure=time.time() - 60), FreshnessState.LATE),
        # Amplitude does not say how often: our own record decides.
        (lambda: synced(9, "weekly"), FreshnessState.FRESH),
        (lambda: SyncInfo(frequency="hourly"), FreshnessState.FRESH),
    ],
)
def test_cohort__that_just_arrived__is_late_if_its_sync_is(
    sync: Callable[[], SyncInfo], state: FreshnessState, here: Here, redis_client: redis.Redis
) -> None:
    arrived(here, "a1", 0, redis_client)
    here.serve("a1", size=2, syncs=[sync()])
    here.poll()
    assert here.freshness("a1") is state


def test_cohort__whose_sync_is_behind__stays_late_when_a_part_arrives(
    here: Here, redis_client: redis.Redis
) -> None:
    arrived(here, "a1", 5, redis_client)
    served = here.serve("a1", size=2, syncs=[synced(5, failed=0.1)])
    here.poll()
    here.send("a1", 1)
    assert here.freshness("a1") is FreshnessState.LATE
    served.syncs = [synced(0.1)]
    here.poll()
    assert here.freshness("a1") is FreshnessState.FRESH


def test_count__while_the_first_sync_arrives__is_not_compared(
    here: Here, redis_client: redis.Redis
) -> None:
    here.send("a1", 2)
    here.serve("a1", size=10, syncs=[SyncInfo(frequency="hourly")])
    for _ in range(3):
        here.poll()
    assert here.reasons("a1") == set()
    key = here.parts.store.keys.freshness(APP, "a1")
    redis_client.hincrby(key, "last_received", -301_000)
    for _ in range(2):
        here.poll()
    assert here.reasons("a1") == {COUNT_DIFFERS}


def test_cohort__that_is_archived__is_not_behind(here: Here, redis_client: redis.Redis) -> None:
    arrived(here, "a1", 0, redis_client)
    here.serve("a1", size=2, archived=True, syncs=[synced(5)])
    here.poll()
    assert here.freshness("a1") is FreshnessState.FRESH
    assert here.parts.store.upstream.poll_status(APP).behind == 0


def test_cohort__with_a_set_cadence__is_late_by_that(here: Here, redis_client: redis.Redis) -> None:
    arrived(here, "a1", 0, redis_client)
    here.parts.store.freshness.set_cadence(APP, "a1", 6 * HOUR * 1000)
    here.serve("a1", size=2, syncs=[synced(3)])
    here.poll()
    assert here.freshness("a1") is FreshnessState.FRESH


def test_cohort__after_the_record_has_aged__is_judged_by_what_arrived(
    here: Here, redis_client: redis.Redis
) -> None:
    arrived(here, "a1", 0, redis_client)
    here.serve("a1", size=2, syncs=[synced(5)])
    here.poll()
    assert here.freshness("a1") is FreshnessState.LATE
    key = here.parts.store.keys.freshness(APP, "a1")
    redis_client.hset(key, "upstream_till", int(time.time() * 1000) - 1)
    here.parts.store.freshness.call(APP, "received", ["a1"])
    assert here.freshness("a1") is FreshnessState.FRESH


def test_cohort__that_is_no_longer_synced__is_judged_by_what_arrived(
    here: Here, redis_client: redis.Redis
) -> None:
    arrived(here, "a1", 5, redis_client)
    served = here.serve("a1", size=2, syncs=[synced(0)])
    here.poll()
    served.syncs = []
    here.poll()
    assert here.freshness("a1") is FreshnessState.LATE


def test_cohort__never_received__is_never_whatever_upstream_says(here: Here) -> None:
    here.http.post("/lists", json={"name": "[Amplitude] A cohort: a1"})
    here.serve("a1", size=2, syncs=[synced(9)])
    here.poll()
    assert here.freshness("a1") is FreshnessState.NEVER


# Counts


def test_count__differing_in_two_polls__is_a_reason_until_it_agrees(here: Here) -> None:
    here.send("a1", 200)
    served = here.serve("a1", size=203, syncs=[synced(0)])
    here.poll()
    assert here.reasons("a1") == set()
    here.poll()
    assert here.reasons("a1") == {COUNT_DIFFERS}
    here.poll()
    (open_reason,) = here.completeness("a1").reasons
    assert open_reason.count == 1
    served.size = 202  # within 1%
    here.poll()
    assert here.completeness("a1").state is CompletenessState.UNVERIFIED


def test_count__differing_on_both_sides_of_a_sync__is_no_reason(here: Here) -> None:
    here.send("a1", 100)
    served = here.serve("a1", size=150, syncs=[synced(0.5)])
    here.poll()
    # It arrived here, whatever Amplitude says.
    here.parts.store.freshness.call(APP, "received", ["a1"])
    here.poll()
    assert here.reasons("a1") == set()
    # Amplitude has synced it, and nothing had changed.
    served.syncs = [synced(0)]
    here.poll()
    assert here.reasons("a1") == set()
    here.poll()
    assert here.reasons("a1") == {COUNT_DIFFERS}


def test_count__newer_than_the_last_sync__waits_for_the_next_one(here: Here) -> None:
    here.send("a1", 100)
    served = here.serve("a1", size=150, syncs=[synced(0.5)], last_computed=time.time())
    for _ in range(3):
        here.poll()
    assert here.reasons("a1") == set()
    served.syncs = [synced(1.6)]  # overdue
    for _ in range(2):
        here.poll()
    assert here.reasons("a1") == {COUNT_DIFFERS}


def test_count__lower_where_only_registered_users_are_accepted__is_no_reason(
    make_here: Callable[..., Here],
) -> None:
    here = make_here(user_policy="known")
    here.parts.store.registered_users.add(APP, [f"user{n}" for n in range(100)])
    here.send("a1", 200)
    served = here.serve("a1", size=200, syncs=[synced(0)])
    for _ in range(3):
        here.poll()
    assert here.reasons("a1") == set()
    served.size = 90
    for _ in range(2):
        here.poll()
    assert here.reasons("a1") == {COUNT_DIFFERS}


def test_count__less_those_who_were_not_registered_at_an_export__verifies_nothing(
    make_here: Callable[..., Here],
) -> None:
    """They may have been registered since, or everybody is accepted now, and they are missing."""
    here = make_here(user_policy="known")
    here.parts.store.registered_users.add(APP, [f"user{n}" for n in range(10)])
    here.send("a1", 20)
    here.serve("a1", user_ids=[f"user{n}" for n in range(20)], syncs=[synced(0)])
    report = here.parts.reconciler.run(Order(Operator(COMMAND, "somebody"), APP, "a1"))
    assert (report.unregistered, report.is_equal) == (10, True)
    here.parts.store.registered_users.add(APP, [f"user{n}" for n in range(20)])
    here.parts.store.completeness.raise_reason(APP, "a1", COUNT_DIFFERS)
    here.parts.store.completeness.clear_reason(APP, "a1", COUNT_DIFFERS)
    here.poll()
    assert here.completeness("a1").state is CompletenessState.UNVERIFIED
    here = make_here()
    for _ in range(2):
        here.poll()
    assert here.reasons("a1") == {COUNT_DIFFERS}


def test_count__that_matches_exactly__verifies(here: Here) -> None:
    here.send("a1", 3)
    here.serve("a1", size=3, syncs=[synced(0)])
    here.poll()
    found = here.completeness("a1")
    assert (found.state, found.verified_by) == (CompletenessState.VERIFIED, VerifiedBy.UPSTREAM)


def test_count__that_matches_less_the_anonymous__verifies(here: Here) -> None:
    here.send("a1", 90)
    here.serve("a1", size=100, syncs=[synced(0)])
    here.poll()
    assert here.completeness("a1").state is CompletenessState.UNVERIFIED
    here.parts.store.upstream.count_anonymous(APP, "a1", 7, 3)
    here.poll()
    found = here.completeness("a1")
    assert found.state is CompletenessState.VERIFIED
    assert found.upstream
    assert found.upstream.anonymous == 7
    assert here.reasons("a1") == set()


def test_count__that_matches_nearly__does_not_verify(here: Here) -> None:
    here.send("a1", 200)
    here.serve("a1", size=201, syncs=[synced(0)])
    here.poll()
    here.poll()
    assert here.completeness("a1").state is CompletenessState.UNVERIFIED


@pytest.mark.parametrize("reason", [r for r in IncompleteReason if r is not COUNT_DIFFERS])
def test_count__that_matches__proves_nothing_after_a_gap(
    reason: IncompleteReason, here: Here
) -> None:
    here.send("a1", 3)
    here.parts.store.completeness.raise_reason(APP, "a1", reason)
    here.serve("a1", size=3, syncs=[synced(0)])
    here.poll()
    assert here.reasons("a1") == {reason}


def test_count__of_a_verified_cohort__that_matches_again__keeps_who_verified_it(
    here: Here,
) -> None:
    here.send("a1", 3)
    here.parts.store.completeness.verify(APP, "a1", VerifiedBy.RESYNC)
    before = here.completeness("a1")
    here.serve("a1", size=3, syncs=[synced(0)])
    here.poll()
    found = here.completeness("a1")
    assert found.verified_by is VerifiedBy.RESYNC
    assert found.verified_at_ms == before.verified_at_ms


# When it polls


def test_work__in_several_processes__polls_once(
    here: Here, make_app: Callable[..., Flask], upstream: Server
) -> None:
    keys = AmplitudeKeys(APP, upstream.api_key, upstream.secret_key)
    others = [make_app(amplitude_keys=(keys,), amplitude_url=upstream.url) for _ in range(3)]
    for app in (here.app, *others, *others):
        services(app).poller.work()
    assert upstream.requests[LIST] == 1


def test_work__again__waits_for_its_turn(here: Here, redis_client: redis.Redis) -> None:
    poller = here.parts.poller
    poller.work()
    poller.work()
    assert here.server.requests[LIST] == 1
    turn = here.parts.store.keys.upstream_lease(APP, f"{POLL}-turn")
    assert 1700 < redis_client.ttl(turn) <= 1800
    assert not redis_client.exists(here.parts.store.keys.upstream_lease(APP, POLL))


def test_work__after_a_crash_during_a_poll__waits_for_its_turn(here: Here) -> None:
    """A process that always crashes must not use up Amplitude's limits."""
    store = here.parts.store
    with store.upstream.lease(APP, POLL) as is_ours:
        assert is_ours
        assert store.upstream.take_turn(APP, POLL, 1800)
    here.parts.poller.work()
    assert here.server.requests[LIST] == 0


def test_work__while_the_store_is_down__raises_nothing(
    make_app: Callable[..., Flask], upstream: Server
) -> None:
    keys = AmplitudeKeys(APP, upstream.api_key, upstream.secret_key)
    app = make_app(
        redis_url="redis://127.0.0.1:1", amplitude_keys=(keys,), amplitude_url=upstream.url
    )
    services(app).poller.work()
    assert not upstream.requests


def test_work__without_keys__asks_nothing(make_app: Callable[..., Flask], upstream: Server) -> None:
    services(make_app()).poller.work()
    assert not upstream.requests


def test_lease__held_by_another__is_refused_until_it_ends(here: Here) -> None:
    upstream = here.parts.store.upstream
    with upstream.lease(APP, POLL) as first:
        assert first
        with upstream.lease(APP, POLL) as second:
            assert not second
    with upstream.lease(APP, POLL) as third:
        assert third
