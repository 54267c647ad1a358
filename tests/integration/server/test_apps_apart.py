"""Periodic work on several apps: one whose partition refuses writes does not stop the others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import redis
from flask import Flask

from app.cohorts import CompletenessState, ResyncKind
from app.server.background import Background
from app.server.resync_worker import ResyncWorker
from app.services import Services, services
from app.settings import ApiKey
from app.store import LossKind, ResyncPlace, Store, Tuning
from app.store.errors import StoreError
from app.telemetry.notifications import Notification, Notifier
from simulator.payloads import COHORT_PATH, identify
from tests.integration.conftest import caller
from tests.integration.store.test_resyncs import make_due

# In the order in which they are worked on.
HELD, OTHER = "a", "b"
TRAIT = "[Amplitude] one: 1"


class Two:
    """A service with two apps. Every script that writes to the first one's partition fails."""

    def __init__(self, app: Flask, client: redis.Redis) -> None:
        self.services: Services = services(app)
        self.store: Store = self.services.store
        self._callers = {app_id: caller(app, f"key-of-{app_id}") for app_id in (HELD, OTHER)}
        self.client = client

    def send(self, app_id: str, user: str = "u", **changes: Any) -> int:
        body = {**identify(user, TRAIT, True), **changes}
        return self._callers[app_id].post(COHORT_PATH, json=body).status_code

    def hold(self) -> None:
        self.client.set(self.store.keys.partition_hold(HELD, 0), "held")

    def release(self) -> None:
        self.client.delete(self.store.keys.partition_hold(HELD, 0))

    def flush(self) -> None:
        with suppress(StoreError):
            self.services.sync_recorder.flush()

    def requests(self, app_id: str) -> int:
        return sum(sync.requests for sync in self.store.sync_history.syncs(app_id).syncs)

    def state(self, app_id: str) -> CompletenessState:
        return self.store.completeness.of(app_id, ["1"])[0].state


@pytest.fixture
def two(make_app: Callable[..., Flask], redis_client: redis.Redis) -> Two:
    keys = tuple(ApiKey(app_id, f"key-of-{app_id}") for app_id in (HELD, OTHER))
    two = Two(make_app(Tuning(history_buffered=10), api_keys=keys), redis_client)
    assert [two.send(HELD), two.send(OTHER)] == [200, 200]
    two.flush()
    two.hold()
    return two


def test_history__of_the_others__is_written_and_has_room(two: Two) -> None:
    for _ in range(30):
        assert two.send(HELD) == 503
        two.flush()
    for _ in range(12):
        assert two.send(OTHER) == 200
        two.flush()
    assert two.requests(OTHER) == 13
    two.release()
    two.flush()
    assert 1 + 5 <= two.requests(HELD) <= 1 + 10  # the oldest


def test_completeness__of_the_others__is_recorded(two: Two) -> None:
    for app_id in (HELD, OTHER):
        assert two.send(app_id, type="track") == 400
    two.services.sync_problems.work()
    assert two.state(OTHER) is CompletenessState.INCOMPLETE
    two.release()
    two.services.sync_problems.work()
    assert two.state(HELD) is CompletenessState.INCOMPLETE


def test_loss__of_the_others__is_noticed(two: Two) -> None:
    two.release()
    two.services.store_watch.work()
    two.hold()
    for key in two.client.scan_iter(f"cohorts:{{{OTHER}}}:*"):
        two.client.delete(key)
    two.services.store_watch.work()
    assert [(loss.app_id, loss.kind) for loss in two.store.unacknowledged_losses()] == [
        (OTHER, LossKind.LOST)
    ]


def test_resync__of_the_others__is_finished(two: Two) -> None:
    place, resyncs = ResyncPlace(OTHER, "1"), two.store.resyncs
    assert resyncs.open(place, ResyncKind.RESYNC, quiet_ms=0)
    assert two.send(OTHER) == 200
    assert resyncs.request_finish(place, resyncs.find(place), force=False) is None  # type: ignore[arg-type]
    make_due(two.client)
    two.client.set(two.store.keys.resyncs(HELD, 0), "not a sorted set")
    ResyncWorker(two.store).work()
    done = resyncs.find(place)
    assert done is not None
    assert done.is_finished


def test_notifications__of_the_others__are_sent(two: Two) -> None:
    sent: list[Notification] = []

    class Sender:
        def send(self, notification: Notification) -> None:
            sent.append(notification)

    for _ in range(2):
        notifier = Notifier(two.store, Sender(), None)  # type: ignore[arg-type]
        notifier.work()
        assert two.send(OTHER, type="track") == 400
        two.services.sync_problems.work()
    assert [one.data["app"] for one in sent] == [OTHER]


def test_old_data__of_all_apps__is_removed_whatever_keys_of_no_app_are(two: Two) -> None:
    keys = two.store.keys
    for key in (keys.api_keys(), keys.unknown_callers()):
        two.client.set(key, "another type, or on a node that is down")
    Background(two.store).remove_old()
    assert two.client.exists(keys.looked_through(OTHER, 0))
