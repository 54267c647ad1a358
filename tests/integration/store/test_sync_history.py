"""What the sync history returns of what was added to it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import redis
from flask import Flask

from app.cohorts import Cohort, MembershipChange, RequestRecord, Sync
from app.services import services
from app.store import Store, SyncBatch, SyncGroup
from app.store.sync_history import SyncHistory
from tests.integration.conftest import APP

NOW = time.time_ns() // 1_000_000
CLEAN = RequestRecord(NOW, 1.5, 200, "list", "a-key", "an-id")
FAILED = CLEAN._replace(status=404, reason="unknown_cohort")
TWO_DAYS = 2 * 86_400


def add(history: SyncHistory, *batches: SyncBatch) -> None:
    history.add(APP, batches, str(time.perf_counter_ns()))


def of_cohort(cohort_id: str, *records: RequestRecord) -> SyncBatch:
    batch = SyncBatch(SyncGroup(APP, cohort_id), f"[Amplitude] n: {cohort_id}")
    for record in records:
        batch.add(record, {"unknown_user": record.rejected} if record.rejected else {})
    return batch


@pytest.fixture
def history(store: Store) -> SyncHistory:
    return store.sync_history


def test_sync__holds_the_sums_of_its_requests(history: SyncHistory) -> None:
    entered = CLEAN._replace(accepted=7, changed=5, entered=3, left=2, repeated=True)
    rejected = CLEAN._replace(at_ms=NOW + 10, took_ms=2.5, accepted=1, rejected=2)
    add(history, of_cohort("1", entered, rejected, FAILED._replace(at_ms=NOW + 20)))
    (sync,) = history.syncs(APP).syncs
    assert sync == Sync(
        id=sync.id,
        cohort_id="1",
        trait="[Amplitude] n: 1",
        began_ms=NOW,
        last_ms=NOW + 20,
        requests=3,
        failed=1,
        repeated=1,
        accepted=8,
        changed=5,
        entered=3,
        left=2,
        rejected=2,
        took_ms=5.5,
        slowest_ms=2.5,
        reasons={"unknown_user": 2},
        failures={"unknown_cohort": 1},
        sources={"list": 3},
        keys={"a-key": 3},
        kept=1,
        kept_problems=2,
    )
    assert history.sync(APP, sync.id) == sync


def test_sync__of_requests_that_did_nothing__has_no_sums(history: SyncHistory) -> None:
    batch = SyncBatch(SyncGroup(APP, "1"))
    batch.add(CLEAN._replace(took_ms=0), {})
    add(history, batch)
    (sync,) = history.syncs(APP).syncs
    expected = Sync(sync.id, "1", "", NOW, NOW, 1, sources={"list": 1}, keys={"a-key": 1}, kept=1)
    assert sync == expected


def test_page__ends_where_the_next_one_begins(history: SyncHistory) -> None:
    add(history, *(of_cohort(str(n), CLEAN) for n in range(51)))
    page = history.syncs(APP)
    assert [sync.cohort_id for sync in page.syncs] == [str(n) for n in range(50, 0, -1)]
    rest = history.syncs(APP, before=page.after, limit=1)
    assert ([sync.cohort_id for sync in rest.syncs], rest.after) == (["0"], None)


def test_requests__of_a_sync__come_in_pages(history: SyncHistory) -> None:
    add(history, of_cohort("1", *(CLEAN._replace(accepted=n) for n in range(52))))
    (sync,) = history.syncs(APP).syncs
    assert [one.accepted for one in history.requests(APP, sync.id)] == list(range(50))
    found = history.requests(APP, sync.id, skip=49, limit=2)
    assert [one.accepted for one in found] == [49, 50]


def test_latest_syncs__are_of_the_cohorts_that_have_syncs(history: SyncHistory) -> None:
    add(history, of_cohort("1", CLEAN), of_cohort("2", CLEAN))
    add(history, of_cohort("1", CLEAN._replace(at_ms=NOW + 3_600_000)))
    last, two, _ = history.syncs(APP).syncs
    assert history.latest_ids(APP, ["1", "2", "3"]) == {"1": last.id, "2": two.id}
    assert history.latest_of(APP, ["1", "2", "3"]) == [last, two]


def test_first_problems__are_those_of_the_first_five_failed_requests(history: SyncHistory) -> None:
    named = ["", "b", "a", "b", "", "c"]
    problems = of_cohort(
        "1", *(FAILED._replace(unknown_cohort=name, reason=str(n)) for n, name in enumerate(named))
    )
    detailed = of_cohort("2", FAILED, FAILED._replace(detail="one"), FAILED._replace(detail="two"))
    add(history, of_cohort("0", CLEAN), problems, detailed)
    two, one, zero = syncs = history.syncs(APP).syncs
    found = history.first_problems(APP, syncs)
    assert zero.id not in found
    assert found[one.id] == ("", ["b", "a"])
    assert found[two.id].detail == "one"
    assert history.first_details(APP, syncs) == {one.id: "", two.id: "one"}


@pytest.mark.parametrize(("requests", "kept"), [(0, False), (1, True)])
def test_history__without_any_requests_to_keep__is_off(
    make_app: Callable[..., Flask], requests: int, kept: bool
) -> None:
    assert services(make_app(history_max_requests=requests)).store.sync_history.is_kept is kept


def test_users_left_out__are_found_by_hash_until_erased_or_turned_off(
    make_app: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    history = services(make_app()).store.sync_history
    batch = of_cohort("1", CLEAN)
    batch.leave_out(["bob", "ann"])
    bob, _ = batch.left_out
    add(history, batch, of_cohort("2", CLEAN))
    _, sync = history.syncs(APP).syncs
    assert history.left_out(APP, sync.id) == ["ann", "bob"]
    assert history.left_out_by_hash(APP, bob) == "bob"
    assert history.left_out_by_hash(APP, "0" * 12) is None
    history.erase(APP, "bob")
    assert history.left_out(APP, sync.id) == ["ann"]
    off = services(make_app(history_left_out_users=0)).store.sync_history
    assert off.left_out(APP, sync.id) == []
    assert off.left_out_by_hash(APP, bob) is None
    off.trim(APP)
    assert redis_client.keys("*left-out*") == []


def test_unknown_callers__are_kept_for_two_days(
    history: SyncHistory, redis_client: redis.Redis
) -> None:
    history.count_unknown_callers({"not_found": 2})
    history.count_unknown_callers({"not_found": 3})
    assert history.unknown_callers() == {"not_found": 5}
    (key,) = redis_client.keys("cohorts:*callers*")
    assert TWO_DAYS - 60 < redis_client.ttl(key) <= TWO_DAYS
    (name,) = redis_client.hkeys(key)
    hour = int(name.partition(":")[0])
    kept = {f"{hour + ahead}:kept" for ahead in (1, 0, -47)}
    others = {f"{hour + ahead}:other" for ahead in (2, -48)}
    redis_client.hset(key, mapping=dict.fromkeys(kept | others, 1))
    history.forget_unknown_callers()
    assert set(redis_client.hkeys(key)) == kept | {name}
    assert history.unknown_callers() == {"not_found": 5, "kept": 1}


def test_sizes__of_more_cohorts_than_one_call_takes__are_all_recorded(store: Store) -> None:
    ids = [str(n) for n in range(201)]
    cohorts = (Cohort.from_trait(f"n: {cohort_id}") for cohort_id in ids)
    changes = [MembershipChange(cohort, True, ["ann"]) for cohort in cohorts]
    store.memberships.apply(APP, changes, source="test")
    store.size_history.record(APP, ids)
    found = store.size_history.of(APP, ids)
    assert [[size.members for size in sizes] for sizes in found] == [[1]] * 201
