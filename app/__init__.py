"""Cohort Receiver: takes Amplitude's behavioural cohorts and keeps them in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.settings import Settings

if TYPE_CHECKING:
    from flask import Flask


def create_app(settings: Settings | None = None) -> Flask:
    """Build the service from ``settings``, by default those of the environment.

    Raises:
        BadSettings: with one line for each setting that is wrong.
    """
    # Imported here so that gunicorn's master, which reads the settings, loads none of it: the
    # workers must import what uses sockets and locks after gevent has replaced these.
    from werkzeug.middleware.proxy_fix import ProxyFix

    from app import cli, errors, web
    from app.auth import authenticate
    from app.auth.keyring import KeyRing
    from app.auth.sessions import Sessions
    from app.server.background import Background
    from app.server.flask_app import Service
    from app.store import HistoryLimits, Rates, Store, connect, wait_for
    from app.telemetry import logs, sentry, sync_recorder
    from app.telemetry.metrics.meter import Meter
    from app.telemetry.metrics.store_gauges import StoreGauges

    settings = settings or Settings.from_environ()
    settings.check_store()
    logs.configure(settings.log_level)
    sentry.configure(settings.sentry_dsn)

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
        ),
        wait=wait_for(settings),
    )
    rates = Rates(client, store.keys)
    meter = Meter()
    ring = KeyRing(settings, store.api_keys)

    app = Service(__name__, static_folder=None)
    app.url_map.strict_slashes = False
    app.extensions["settings"] = settings
    app.extensions["store"] = store
    app.extensions["recorder"] = sync_recorder.Recorder(store)
    app.extensions["keyring"] = ring
    app.extensions["reporting"] = sentry
    chores = [meter.flush, app.extensions["recorder"].work, ring.refresh, ring.write_uses]
    app.extensions["background"] = Background(store, meter.background_failed, chores)
    if settings.proxy_hops:
        hops = settings.proxy_hops
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops)  # type: ignore[method-assign]

    web.security_headers.init_app(app)
    listeners = [web.metrics.counting(meter)]
    if store.history.is_kept:
        listeners.append(sync_recorder.noting(app.extensions["recorder"]))
    web.request_log.init_app(app, listeners)
    errors.init_app(app)
    if settings.require_https:
        web.security_headers.require_https(app)
    authenticate.init_app(app, settings, ring, rates)
    app.extensions["sessions"] = Sessions(store, ring)
    web.fair_queue.init_app(app, settings)
    web.init_app(app)
    web.metrics.init_app(app, meter, StoreGauges(store, ring.first_expiry))
    cli.init_app(app)
    return app
