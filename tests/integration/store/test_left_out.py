"""The ids of users who were left out: bounded, for a week."""

from __future__ import annotations

import time
from collections.abc import Callable

import redis
from flask import Flask

from app.cohorts import RequestRecord
from app.services import services
from app.store import SyncBatch, SyncGroup
from tests.integration.conftest import APP


def test_users_left_out__are_bounded_and_expire(
    make_app: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    history = services(make_app(history_left_out_users=3)).store.sync_history
    for n in range(105):
        one = SyncBatch(SyncGroup(APP, f"c{n}"), "")
        one.add(
            RequestRecord(time.time_ns() // 1_000_000, 1, 200, "list", "key", "id", rejected=5), {}
        )
        one.leave_out(f"user-{n}-{i}" for i in range(5))
        history.add(APP, [one], str(n))
        history.add(APP, [one], str(n))  # a repeated call
    keys = redis_client.keys("*:sync:*:left-out")
    assert len(keys) == 100
    assert {redis_client.hlen(key) for key in keys} == {3}
    assert all(redis_client.ttl(key) > 0 for key in redis_client.keys("*left-out"))
    ids = [sync.id for sync in history.syncs(APP, limit=200).syncs]
    assert len(history.left_out(APP, ids[0])) == 3
    assert history.left_out(APP, ids[-1]) == []
