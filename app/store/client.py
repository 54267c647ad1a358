"""The connection to the store."""

from __future__ import annotations

import ssl

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.settings import Settings
from app.store.pool import make_pool


def connect(settings: Settings) -> redis.Redis:
    """A client for the store of ``settings``. Connects on first use.

    Hosted stores allow few connections, so whoever finds none free waits in turn.
    """
    assert settings.redis_url, "checked at boot"
    options: dict[str, object] = {}
    if settings.redis_url.startswith("rediss://") and not settings.redis_tls_verify:
        options = {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False}
    pool = make_pool(
        settings.redis_url,
        max_connections=settings.store_connections,
        timeout=settings.store_timeout_seconds,
        socket_timeout=settings.store_timeout_seconds,
        socket_connect_timeout=settings.store_timeout_seconds,
        # Once, at once: a pooled connection may have died since its last use. All that is sent
        # may be repeated. A time-out is not retried: the caller has waited long enough.
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        **options,
    )
    return redis.Redis.from_pool(pool)
