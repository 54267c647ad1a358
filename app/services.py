"""The services that requests share. ``create_app`` builds them; ``services()`` returns them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flask import current_app

if TYPE_CHECKING:
    from flask import Flask

    from app.auth.keyring import KeyRing
    from app.auth.sessions import Sessions
    from app.server.background import Background
    from app.server.store_watch import StoreWatch
    from app.settings import Settings
    from app.store import RateLimiter, Store, Tuning
    from app.telemetry.metrics.meter import Meter
    from app.telemetry.metrics.store_gauges import StoreGauges
    from app.telemetry.notifications import Notifier
    from app.telemetry.sync_problems import SyncProblems
    from app.telemetry.sync_recorder import SyncRecorder
    from app.upstream.client import Client
    from app.upstream.poller import Poller
    from app.upstream.reconcile import Reconciler
    from app.web.api.change_stream import Feed
    from app.web.http.fair_queue import FairQueue

EXTENSION = "cohort_receiver"


@dataclass(frozen=True)
class Services:
    """One of each, shared by all requests of a process."""

    settings: Settings
    store: Store
    rates: RateLimiter
    keyring: KeyRing
    sessions: Sessions
    meter: Meter
    store_gauges: StoreGauges
    sync_recorder: SyncRecorder
    notifier: Notifier
    sync_problems: SyncProblems
    store_watch: StoreWatch
    fair_queue: FairQueue
    change_feed: Feed
    poller: Poller
    reconciler: Reconciler
    background: Background

    def readable_store(self) -> Store:
        """The store, after a check that it is laid out as configured.

        Raises:
            StoreError: it is unavailable, or was written with another number of partitions.
        """
        self.store.check_readable()
        return self.store

    def checked_store(self) -> Store:
        """The store, after :meth:`Store.check`."""
        self.store.check()
        return self.store


def build(settings: Settings, tuning: Tuning | None = None) -> Services:
    """Build the services for these settings. Connects to nothing yet."""
    from app.auth.keyring import KeyRing
    from app.auth.sessions import Sessions
    from app.server.background import Background
    from app.server.resync_worker import ResyncWorker
    from app.server.store_watch import MarksFile, StoreWatch
    from app.store import HistoryLimits, RateLimiter, Store, Tuning, connect, wait_for
    from app.telemetry.metrics.meter import Meter
    from app.telemetry.metrics.store_gauges import StoreGauges
    from app.telemetry.notifications import Notifier, Sender
    from app.telemetry.sync_problems import SyncProblems
    from app.telemetry.sync_recorder import SyncRecorder
    from app.upstream.poller import Poller
    from app.upstream.reconcile import Reconciler
    from app.web.api.change_stream import Feed
    from app.web.http.fair_queue import FairQueue

    tuning = tuning or Tuning()
    client = connect(settings)
    store = Store(
        client,
        prefix=settings.key_prefix,
        partitions=settings.store_partitions,
        changes_max_entries=settings.changes_max_entries,
        changes_max_age_hours=settings.changes_max_age_hours,
        history=HistoryLimits(
            settings.history_max_requests,
            settings.history_max_syncs,
            settings.history_max_age_hours,
            settings.history_left_out_users,
        ),
        wait=wait_for(settings),
        known_only=settings.user_policy == "known",
        tuning=tuning,
    )
    keyring = KeyRing(settings, store.api_keys, tuning)
    sessions = Sessions(store, keyring, tuning)
    meter, recorder = Meter(), SyncRecorder(store, tuning)
    problems = SyncProblems(store, tuning)
    watch = StoreWatch(store, tuning, MarksFile.from_settings(settings))
    resyncs = ResyncWorker(store)
    amplitude = _amplitude_clients(settings)
    poller = Poller(
        store,
        amplitude,
        minutes=settings.amplitude_poll_minutes,
        known_only=settings.user_policy == "known",
        failed=meter.upstream_failed,
        tuning=tuning,
    )
    sender = Sender(settings.notify_url, settings.notify_secret) if settings.notify_url else None
    notifier = Notifier(store, sender, settings.public_url)
    every_second = [
        *(meter.flush, recorder.work, problems.work, watch.work),
        *(resyncs.work, notifier.work),
        *(keyring.refresh, keyring.write_uses, sessions.prepare, poller.work),
        store.follow_primary,
    ]
    return Services(
        settings=settings,
        store=store,
        rates=RateLimiter(client, store.keys, tuning),
        keyring=keyring,
        sessions=sessions,
        meter=meter,
        store_gauges=StoreGauges(store, keyring.first_expiry, list(amplitude)),
        sync_recorder=recorder,
        notifier=notifier,
        sync_problems=problems,
        store_watch=watch,
        fair_queue=FairQueue(settings.store_connections, settings.app_concurrency),
        change_feed=Feed(
            store.change_stream,
            heartbeat_seconds=settings.stream_heartbeat_seconds,
            max_followers=settings.max_followers,
        ),
        poller=poller,
        reconciler=Reconciler(
            store,
            amplitude,
            exports_most=settings.amplitude_exports_per_month,
            known_only=settings.user_policy == "known",
            tuning=tuning,
        ),
        background=Background(store, meter.background_failed, every_second),
    )


def _amplitude_clients(settings: Settings) -> dict[str, Client]:
    """Clients of Amplitude's API, by app id."""
    if not settings.amplitude_keys:
        return {}
    from app.upstream.client import URLS, Client  # slow to import, and optional

    return {
        keys.app_id: Client(
            settings.amplitude_url or URLS[settings.amplitude_region],
            keys.api_key,
            keys.secret_key,
            target=settings.amplitude_target,
        )
        for keys in settings.amplitude_keys
    }


def services(app: Flask | None = None) -> Services:
    """The services of an application, by default of the current one."""
    # Each use of one of Flask's proxies looks up the application again.
    found: Any = app or current_app._get_current_object()  # type: ignore[attr-defined]
    parts: Services = found.extensions[EXTENSION]
    return parts
