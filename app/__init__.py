"""Cohort Receiver: receives Amplitude's behavioural cohorts and stores them in Redis."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from app.settings import Settings

__version__ = "0.1.0"

if TYPE_CHECKING:
    from flask import Flask

    from app.store import Tuning


def create_app(settings: Settings | None = None, tuning: Tuning | None = None) -> Flask:
    """Build the service from ``settings``, by default those of the environment.

    Raises:
        BadSettings: with one line for each setting that is wrong.
    """
    # Imported here because gunicorn's master imports this package to read the settings. Whatever
    # uses sockets or locks must be imported by workers, after gevent has patched the standard
    # library.
    from werkzeug.middleware.proxy_fix import ProxyFix

    from app import cli, errors, web
    from app.auth import authenticate
    from app.server.flask_app import ServiceApp
    from app.services import EXTENSION, build
    from app.telemetry import logs, sentry
    from app.telemetry.metrics.multiprocess_dir import VARIABLE
    from app.telemetry.sync_problems import record_problems
    from app.telemetry.sync_recorder import record_requests

    settings = settings or Settings.from_environ()
    settings.check_store()
    logs.configure(settings.log_level, settings.log_format)
    sentry.configure(settings.sentry_dsn)

    app = ServiceApp(__name__, static_folder=None)
    app.url_map.strict_slashes = False
    parts = app.extensions[EXTENSION] = build(settings, tuning)
    if hops := settings.proxy_hops:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops)  # type: ignore[method-assign]

    web.security_headers.init_app(app)
    listeners = [web.metrics.count_requests(parts.meter), record_problems(parts.sync_problems)]
    if parts.store.sync_history.is_kept:
        listeners.append(record_requests(parts.sync_recorder))
    web.request_log.init_app(app, web.SOURCES, listeners)
    errors.init_app(app)
    if settings.require_https:
        web.security_headers.require_https(app)
    authenticate.init_app(app, settings, parts.keyring, parts.rates)
    web.fair_queue.init_app(app, parts.fair_queue)
    web.init_app(app)
    cli.init_app(app)
    if os.environ.get(VARIABLE):  # set in gunicorn's workers, whose metrics are scraped
        web.metrics.declare_series(app)
    return app
