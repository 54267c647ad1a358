"""Another program has written under the prefix: a script that fails has changed nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from app.cohorts import Cohort, MembershipChange, RequestRecord, ResyncKind
from app.store import Job, ResyncPlace, Store, StoreError, SyncBatch, SyncGroup
from tests.integration.conftest import APP
from tests.support.effort import some

BASE = f"cohorts:{{{APP}}}:"
COHORT, TRAIT, NEW = "1", "[Amplitude] n: 1", "[Amplitude] new: 1"
OF_COHORT = ("members", "left", "seen", "seen-before", "state", "freshness", "sizes")
OF_RESYNC = ("confirmed", "confirmed-of", "resync")
KEYS = [
    *(f"cohort:{COHORT}:{part}" for part in (*OF_COHORT, *OF_RESYNC)),
    *("changes", "changes:last", "cohorts", "jobs", "registered", "suppressed", "erased", "due"),
    *("deleted", "resyncs", "completeness:verified", "completeness:incomplete", "mark"),
]


def say(store: Store, member: bool, *users: str, trait: str = TRAIT, ago: int = 0) -> None:
    at_ms = time.time_ns() // 1_000_000 - ago if ago else None
    change = MembershipChange(Cohort.from_trait(trait), member, list(users), at_ms)
    store.memberships.apply(APP, [change], source="test")


def delete(store: Store, *actions: str) -> None:
    for action in actions:
        arguments = (500, 1000) if action == "step" else ("id", "home")
        store.jobs._deletions._call(action, Job(APP, 0, COHORT), *arguments)  # type: ignore[arg-type]


CALLS: dict[str, Callable[[Store], Any]] = {
    "enter": lambda store: say(store, True, "new"),
    "enter a new cohort": lambda store: say(store, True, "in", trait="Another: 2"),
    "leave": lambda store: say(store, False, "in"),
    "repeat": lambda store: say(store, True, "in"),
    "repeat out": lambda store: say(store, False, "out"),
    "leave at a time": lambda store: say(store, False, "in", ago=1),
    "repeat at a time": lambda store: say(store, True, "in", ago=1),
    "rename": lambda store: say(store, True, "in", trait=NEW),
    "begin a deletion": lambda store: delete(store, "begin"),
    "delete": lambda store: delete(store, "step"),
    "end a deletion": lambda store: delete(store, "end"),
    "erase": lambda store: store.erasure._erase(
        keys=[store.keys.changes(APP, 0)], args=["in", "suppress", 250, TRAIT, COHORT]
    ),
    "erase whose hash is lost": lambda store: store.erasure._erase_memberships(
        keys=[store.keys.changes(APP, 0)], args=["in", "2", COHORT]
    ),
    "set a cadence": lambda store: store.freshness.set_cadence(APP, COHORT, 1000),
    "move": lambda store: store.jobs.step(Job(APP, 0, COHORT)),
    "open a resync": lambda store: resync(store, "open", "a", ResyncKind.RESYNC, ""),
    "mark for a resync": lambda store: resync(store, "mark", "a", 1000),
    "add to an import": lambda store: resync(store, "stage", "a", 1000, "new"),
    "finish a resync": lambda store: resync(store, "finish", "a", 1, 1000),
    "end a resync": lambda store: resync(store, "clear", "a"),
    "remove who was not confirmed": lambda store: store.memberships.remove_unconfirmed(
        APP, COHORT, 0, "a", ["in"]
    ),
}


def resync(store: Store, *args: Any) -> None:
    action, *others = args
    store.resyncs._in_partition(action, ResyncPlace(APP, COHORT), 0, *others)


def open_resync(store: Store) -> None:
    CALLS["open a resync"](store)
    CALLS["mark for a resync"](store)
    # As if no call had carried a time yet.
    store._client.hdel(store.keys.cohort(APP, 0, COHORT, "state"), "timed")


def lose_hash(store: Store) -> None:
    say(store, True, "in", trait="Another: 2")
    store._client.unlink(store.keys.user(APP, "in"))


PREPARATIONS: dict[str, Callable[[Store], Any]] = {
    "erase whose hash is lost": lose_hash,
    "delete": lambda store: delete(store, "begin"),
    "end a deletion": lambda store: delete(store, "begin", "step", "step", "step"),
    "move": CALLS["rename"],
    "mark for a resync": CALLS["open a resync"],
    "add to an import": open_resync,
    "finish a resync": open_resync,
    "end a resync": open_resync,
    "remove who was not confirmed": open_resync,
}


@pytest.mark.parametrize("name", some(CALLS))
def test_call__with_any_key_of_another_type__is_whole_or_changes_nothing(
    name: str, store: Store, redis_client: redis.Redis
) -> None:
    for key in KEYS:
        redis_client.flushall()
        say(store, True, "in", "out")
        say(store, False, "out")
        say(store, True, "in", ago=5000)
        store.registered_users.add(APP, ["in"])
        PREPARATIONS.get(name, lambda store: None)(store)
        redis_client.unlink(BASE + key)
        redis_client.rpush(BASE + key, "of another program")
        failed = False
        before = contents(redis_client)
        try:
            CALLS[name](store)
        except (StoreError, redis.RedisError):
            failed = True
        if failed:
            assert changed(before, contents(redis_client)) == set(), (name, key)


def contents(client: redis.Redis) -> dict[str, Any]:
    """All keys but those that are written by calls of their own."""
    return {
        key: client.dump(key)
        for key in client.scan_iter()
        if not key.endswith((":freshness", ":sizes", ":mark"))
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


HISTORY_KEYS = ("history", "open", "syncs", "problems", "left-out", f"cohort:{COHORT}:syncs")
OF_SYNC = ("sync:1", "sync:1:requests", "sync:1:problems", "sync:1:left-out")


@pytest.mark.parametrize("begun", [False, True], ids=["a new sync", "an open sync"])
def test_history__with_any_key_of_another_type__is_added_whole_or_not_at_all(
    begun: bool, store: Store, redis_client: redis.Redis
) -> None:
    now = time.time_ns() // 1_000_000
    batches = []
    for cohort, rejected in ((COHORT, 0), ("2", 1)):
        batch = SyncBatch(SyncGroup(APP, cohort), now_ms=now)
        record = RequestRecord(now, 1, 200, "list", "key", "id", rejected=rejected)
        batch.add(record, {"unknown_user": rejected} if rejected else {})
        batch.leave_out(["a"] * rejected)
        batches.append(batch)
    for key in (*HISTORY_KEYS, *OF_SYNC):
        redis_client.flushall()
        store.sync_history.add(APP, batches[: int(begun)], "before")
        redis_client.unlink(BASE + key)
        redis_client.set(BASE + key, "of another program")
        before = contents(redis_client)
        with pytest.raises((StoreError, redis.RedisError)):
            store.sync_history.add(APP, batches, "portion")
        assert changed(before, contents(redis_client)) == set(), key
        if not begun:  # the refused call is not taken for the first of two
            redis_client.unlink(BASE + key)
            store.sync_history.add(APP, batches, "portion")
            assert len(store.sync_history.syncs(APP).syncs) == 2, key
