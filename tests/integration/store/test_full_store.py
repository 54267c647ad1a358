"""What makes room works where the store's memory is full."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis

from app.cohorts import Cohort, MembershipChange, Resync, ResyncKind, ResyncState
from app.server.background import Background
from app.settings import Settings
from app.store import FailedRequest, ResyncPlace, Store, StoreFull, connect
from tests.integration.conftest import APP
from tests.integration.store_contents import members, traits
from tests.support.effort import PARTITIONS

ONE, TWO, NEW = "[Amplitude] one: 1", "[Amplitude] two: 2", "[Amplitude] new: 1"
USERS = [f"u{n}" for n in range(900)]
PLACE = ResyncPlace(APP, "1")


@pytest.fixture(params=PARTITIONS)
def store(request: pytest.FixtureRequest, store_url: str, redis_client: redis.Redis) -> Store:
    return Store(connect(Settings(redis_url=store_url)), partitions=request.param)


@pytest.fixture
def make_full(store: Store, redis_client: redis.Redis) -> Iterator[Callable[[], None]]:
    def make_full() -> None:
        redis_client.config_set("maxmemory", 1)
        with pytest.raises(StoreFull):
            say(store, TWO, "late")

    yield make_full
    redis_client.config_set("maxmemory", 0)


def fill(store: Store, *users: str) -> Resync:
    """Begin an import of these users."""
    begun = store.resyncs.open(PLACE, ResyncKind.IMPORT)
    assert begun is not None
    store.resyncs.stage(PLACE, begun, users)
    return begun


def say(store: Store, trait: str, *users: str) -> None:
    change = MembershipChange(Cohort.from_trait(trait), True, list(users))
    store.memberships.apply(APP, [change], source="test")


def test_erase__takes_everything_and_keeps_the_user_out(
    store: Store, make_full: Callable[[], None], redis_client: redis.Redis
) -> None:
    say(store, ONE, *USERS)
    say(store, TWO, "u1")
    make_full()
    erased = store.erasure.erase(APP, "u1", suppress=True)
    assert erased == (2, 1, 1)
    assert store.lookups.user(APP, "u1").traits == {}
    assert store.size_history.of(APP, ["2"])[0][-1].members == 0
    redis_client.config_set("maxmemory", 0)
    say(store, TWO, "u1", "u2")
    assert members(redis_client, APP)["2"] == {"u2"}
    assert store.checker.run([APP]).ok


def test_deletion__goes_on_beside_a_rename_that_has_to_wait(
    store: Store, make_full: Callable[[], None], redis_client: redis.Redis
) -> None:
    say(store, ONE, *USERS)
    say(store, TWO, *USERS[:600])
    say(store, NEW, "u0")
    assert store.jobs.begin_deletion(APP, "2")
    make_full()
    Background(store).work()
    Background(store).work()
    assert store.registry.find(APP, "2") is None
    assert TWO not in {name for names in traits(redis_client, APP).values() for name in names}
    assert {job.cohort_id for job in store.jobs.pending()} == {"1"}
    redis_client.config_set("maxmemory", 0)
    Background(store).work()
    assert store.jobs.pending() == []
    assert traits(redis_client, APP) == {user: {NEW: "true"} for user in USERS}
    assert store.checker.run([APP]).ok


def test_import__that_is_aborted__leaves_nothing(
    store: Store, make_full: Callable[[], None], redis_client: redis.Redis
) -> None:
    say(store, ONE, "u1")
    begun = fill(store, *USERS)
    make_full()
    assert store.resyncs.request_abort(PLACE, begun)
    for _ in store.resyncs.steps(PLACE):
        pass
    assert store.resyncs.find(PLACE) is None
    assert list(redis_client.scan_iter(match="*confirmed*")) == []


def test_import__that_cannot_be_applied__ends(
    store: Store, make_full: Callable[[], None], redis_client: redis.Redis
) -> None:
    """Its file may be what has filled the store."""
    say(store, ONE, "u1")
    begun = fill(store, *USERS)
    assert store.resyncs.request_apply(PLACE, begun)
    make_full()
    with pytest.raises(StoreFull):
        list(store.resyncs.steps(PLACE))
    assert store.resyncs.find(PLACE) is None
    assert list(redis_client.scan_iter(match="*confirmed*")) == []
    assert members(redis_client, APP)["1"] == {"u1"}


def test_quiet_resync__waits_until_failed_requests_can_be_recorded(
    store: Store, make_full: Callable[[], None], redis_client: redis.Redis
) -> None:
    """Members whom they named are not confirmed, and would leave."""
    say(store, ONE, *USERS)
    resync = store.resyncs.open(PLACE, ResyncKind.RESYNC, quiet_ms=0)
    assert resync is not None
    say(store, ONE, *USERS[:600])
    list(store.resyncs.steps(PLACE))  # finds it quiet
    make_full()
    for _ in range(3):
        list(store.resyncs.steps(PLACE))
    redis_client.config_set("maxmemory", 0)
    list(store.resyncs.steps(PLACE))
    store.failed_requests.add(APP, {FailedRequest("1", 7): resync.started_ms + 1})
    list(store.resyncs.steps(PLACE))
    found = store.resyncs.find(PLACE)
    assert found is not None
    assert found.state is ResyncState.OPEN
    assert members(redis_client, APP)["1"] == set(USERS)
