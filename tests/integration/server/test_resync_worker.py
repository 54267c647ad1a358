"""The background work on resyncs."""

from __future__ import annotations

import threading

import pytest
import redis

from app.cohorts import ResyncKind, ResyncState
from app.server.resync_worker import ResyncWorker
from app.settings import Settings
from app.store import ResyncPlace, Store, connect
from tests.integration.store.test_resyncs import APP, PLACE, found, make_due, opened, say
from tests.integration.store_contents import members

USERS = [f"u{n}" for n in range(3000)]


def test_work__of_several_processes__finishes_what_was_left(
    store: Store, store_url: str, redis_client: redis.Redis
) -> None:
    say(store, True, *USERS)
    opened(store)
    say(store, True, *USERS[:2000])
    assert store.resyncs.request_finish(PLACE, found(store), force=False) is None
    make_due(redis_client)
    others = [Store(connect(Settings(redis_url=store_url))) for _ in range(3)]
    threads = [threading.Thread(target=ResyncWorker(other).work) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = found(store)
    assert (done.state, done.removed, done.members) == (ResyncState.FINISHED, 1000, 2000)
    assert members(redis_client, APP) == {"1": set(USERS[:2000])}


def test_work__on_several_cohorts__takes_turns(store: Store, redis_client: redis.Redis) -> None:
    other = ResyncPlace(APP, "2")
    say(store, True, *USERS)
    say(store, True, *USERS[:10], trait="[Amplitude] two: 2")
    assert store.resyncs.open(other, ResyncKind.RESYNC, quiet_ms=0)
    opened(store)
    say(store, True, *USERS[:10], trait="[Amplitude] two: 2")
    assert store.resyncs.request_finish(PLACE, found(store), force=True) is None
    for _ in range(2):  # it is quiet at two looks
        for key in redis_client.scan_iter(match="*:resyncs"):
            redis_client.zadd(key, {"1": 0, "2": 0})
        ResyncWorker(store).work()
    finished = store.resyncs.find(other)
    assert finished is not None
    assert finished.is_finished
    assert found(store).is_finished


def test_work__on_a_broken_resync__does_not_stop_the_others(
    store: Store, redis_client: redis.Redis
) -> None:
    other = ResyncPlace(APP, "2")
    for trait in ("[Amplitude] one: 1", "[Amplitude] two: 2"):
        say(store, True, *USERS[:10], trait=trait)
    opened(store)
    assert store.resyncs.open(other, ResyncKind.RESYNC)
    resync = store.resyncs.find(other)
    assert resync is not None
    assert store.resyncs.request_finish(other, resync, force=True) is None
    for key in redis_client.scan_iter(match="*:resyncs"):
        redis_client.zadd(key, {"1": 0, "2": 0})
    redis_client.hdel(store.keys.cohort(APP, 0, "1", "resync"), "kind")
    with pytest.raises(KeyError):  # it is reported, in the end
        ResyncWorker(store).work()
    resync = store.resyncs.find(other)
    assert resync is not None
    assert resync.is_finished


def test_work__while_the_store_is_away__goes_on_later(store: Store) -> None:
    ResyncWorker(Store(connect(Settings(redis_url="redis://127.0.0.1:1")))).work()
