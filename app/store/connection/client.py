"""Create the client of the store from the settings."""

from __future__ import annotations

import ssl
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.settings import Settings
from app.store.connection.calls import Wait
from app.store.connection.cluster import ClusterClient
from app.store.connection.pool import DEMOTED, Client, make_pool

CLIENT_NAME = "cohort-receiver"  # in CLIENT LIST


def connect(settings: Settings) -> redis.Redis:
    """A client of the store. Connects on first use.

    Hosted stores allow few connections, so calls queue for a free one.
    """
    assert settings.redis_url, "check_store has checked it"
    tls_options: dict[str, Any] = {}
    if settings.redis_url.startswith("rediss") and not settings.redis_tls_verify:
        tls_options = {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False}
    options = {
        "client_name": CLIENT_NAME,
        "socket_timeout": settings.store_timeout_seconds,
        "socket_connect_timeout": settings.store_timeout_seconds,
    }
    if settings.store_cluster:
        cluster = ClusterClient(
            settings.redis_url,
            connections=settings.store_connections,
            timeout=settings.store_timeout_seconds,
            **tls_options,
            **options,
        )
        return cast(redis.Redis, cluster)  # it has the same commands
    pool = make_pool(
        settings.redis_url,
        max_connections=settings.store_connections,
        timeout=settings.store_timeout_seconds,
        tls_options=tls_options,
        # One immediate retry on a new connection: since its last use, the pooled one may have died,
        # or its server may have been demoted. All commands are safe to repeat. Timeouts are not
        # retried: the caller has waited long enough.
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError, *DEMOTED)),
        **options,
    )
    return Client.from_pool(pool)


def wait_for(settings: Settings) -> Wait:
    """What a write waits for before the request gets its reply."""
    # Shorter than the connection's timeout, so that the store can report how many acknowledged.
    timeout_ms = int(settings.store_timeout_seconds * 500)
    return Wait(settings.store_wait_replicas, settings.store_wait_fsync, timeout_ms)
