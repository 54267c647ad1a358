"""Rate limits, counted in the store so that all workers and processes count together."""

from __future__ import annotations

import math
import time

from limits import RateLimitItem
from limits.storage import RedisStorage
from limits.strategies import FixedWindowRateLimiter
from redis import Redis

from app.store.errors import translated
from app.store.keys import Keys


class Rates:
    """Counts requests by name. Raises StoreError where the store can't be asked."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        storage = RedisStorage(
            "redis://", connection_pool=client.connection_pool, key_prefix=keys.rates()
        )
        self._limiter = FixedWindowRateLimiter(storage)

    def hit(self, limit: RateLimitItem | None, *names: str) -> int | None:
        """Count one request.

        Returns:
            None if it is within the limit, else the whole seconds until it is worth trying again.
        """
        if limit is None:
            return None
        with translated():
            if self._limiter.hit(limit, *names):
                return None
            reset = self._limiter.get_window_stats(limit, *names).reset_time
        return max(1, math.ceil(reset - time.time()))
