"""Connect to the store with timeouts that suit lookups within a request."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

# A call fails after twice this time: it is tried once more, as an idle connection may have been
# closed.
TIMEOUT_SECONDS = 0.2


def connect(url: str, timeout_seconds: float = TIMEOUT_SECONDS, **options: Any) -> redis.Redis:
    """A ``redis.Redis`` for :class:`CohortReader` and :class:`Follower`.

    Args:
        url: as for ``redis.Redis.from_url``.
        timeout_seconds: for connecting and for each reply. The defaults of ``redis`` are 5 s and
            ten retries.
        options: further ones of ``redis.Redis.from_url``.
    """
    return redis.Redis.from_url(url, **_options(timeout_seconds, Retry(NoBackoff(), 1)), **options)


def connect_async(
    url: str, timeout_seconds: float = TIMEOUT_SECONDS, **options: Any
) -> redis.asyncio.Redis:
    """The same for asyncio, for :class:`AsyncCohortReader` and :class:`AsyncFollower`."""
    retry = AsyncRetry(NoBackoff(), 1)
    return redis.asyncio.Redis.from_url(url, **_options(timeout_seconds, retry), **options)


def _options(timeout_seconds: float, retry: object) -> dict[str, Any]:
    return {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": retry,
    }
