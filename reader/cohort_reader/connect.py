"""Connect to the store with timeouts that suit lookups within a request."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from cohort_reader.sentinel import is_sentinel, sentinel_arguments

# A call fails after twice this time: it is tried once more, as an idle connection may have been
# closed.
TIMEOUT_SECONDS = 0.2


class _BehindSentinels(redis.Redis):
    """Closes the connections to the Sentinels too."""

    def close(self) -> None:
        super().close()
        pool: Any = self.connection_pool
        for sentinel in pool.sentinel_manager.sentinels:
            sentinel.close()


class _AsyncBehindSentinels(redis.asyncio.Redis):
    """The same for asyncio."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        pool: Any = self.connection_pool
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose()


def connect(url: str, timeout_seconds: float = TIMEOUT_SECONDS, **options: Any) -> redis.Redis:
    """A ``redis.Redis`` for :class:`CohortReader` and :class:`Follower`.

    Args:
        url: as for ``redis.Redis.from_url``; or of a store behind Sentinels, as for the service:
            ``redis+sentinel://host:port,host:port/service/db``.
        timeout_seconds: for connecting and for each reply. The defaults of ``redis`` 8 are 5 s
            and ten retries.
        options: further options of ``redis.Redis.from_url``.

    Raises:
        ValueError: the URL has another form.
    """
    options = dict(**_options(timeout_seconds, Retry(NoBackoff(), 1)), **options)
    if is_sentinel(url):
        arguments, service = sentinel_arguments(url, options)
        sentinel = Sentinel(**arguments)  # type: ignore[no-untyped-call]
        client: redis.Redis = sentinel.master_for(service, _BehindSentinels)  # type: ignore[no-untyped-call]
        return client
    return redis.Redis.from_url(url, **options)


def connect_async(
    url: str, timeout_seconds: float = TIMEOUT_SECONDS, **options: Any
) -> redis.asyncio.Redis:
    """The same for asyncio, for :class:`AsyncCohortReader` and :class:`AsyncFollower`."""
    options = dict(**_options(timeout_seconds, AsyncRetry(NoBackoff(), 1)), **options)
    if is_sentinel(url):
        arguments, service = sentinel_arguments(url, options)
        sentinel = AsyncSentinel(**arguments)  # type: ignore[no-untyped-call]
        client: redis.asyncio.Redis = sentinel.master_for(service, _AsyncBehindSentinels)
        return client
    return redis.asyncio.Redis.from_url(url, **options)


def _options(timeout_seconds: float, retry: object) -> dict[str, Any]:
    return {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": retry,
    }
