"""Rate limits, counted in the store so that all workers and processes count together."""

from __future__ import annotations

import math
import time
from typing import TypeVar

from limits import RateLimitItem
from limits.storage import RedisStorage
from limits.strategies import FixedWindowRateLimiter
from redis import Redis

from app.store.connection.cluster import ClusterClient
from app.store.errors import translated
from app.store.keys import Keys
from app.store.tuning import DEFAULT, Tuning

# A worker counts this part of a limit in advance, at most so many requests at once.
_SHARE, _MOST = 50, 100

_Name = tuple[RateLimitItem, tuple[str, ...]]
_Value = TypeVar("_Value")


class _ClusterStorage(RedisStorage):
    """The library's own for clusters makes a client of its own, and connects at once."""

    def __init__(self, client: ClusterClient, key_prefix: str) -> None:
        super(RedisStorage, self).__init__("redis://")
        self.target_server = "redis"
        self.dependency = self.dependencies["redis"].module
        self.key_prefix = key_prefix
        self.storage = client
        self.initialize_storage("")


def _storage(client: Redis, key_prefix: str) -> RedisStorage:
    if isinstance(client, ClusterClient):
        return _ClusterStorage(client, key_prefix)
    return RedisStorage("redis://", connection_pool=client.connection_pool, key_prefix=key_prefix)


class RateLimiter:
    """Counts requests by name. Raises StoreError where the store can't be asked.

    Of a large limit, some requests are counted in advance and then let through without asking the
    store again, so that a limit of 1,000 a second costs a store call every twentieth time. So a
    worker may hold up to 2% of a limit back from the others, or carry that into the next window.
    Limits below 100 are counted one by one.
    """

    def __init__(self, client: Redis, keys: Keys, tuning: Tuning = DEFAULT) -> None:
        self._most = tuning.rates_remembered
        self._limiter = FixedWindowRateLimiter(_storage(client, keys.rates()))
        # What was counted in advance: (limit, names) → end of the window, requests left.
        self._ahead: dict[_Name, tuple[float, int]] = {}
        # What was refused: until when it is, without asking the store again.
        self._over: dict[_Name, float] = {}

    def hit(self, limit: RateLimitItem | None, *names: str) -> int | None:
        """Count one request.

        Returns:
            None if it is within the limit, else the whole seconds until it is worth trying again.
        """
        if limit is None:
            return None
        name = limit, names
        asked = time.time()
        ends, left = self._ahead.get(name, (0.0, 0))
        if left and asked < ends:
            self._ahead[name] = ends, left - 1
            return None
        if asked < self._over.get(name, 0.0):
            return _seconds(self._over[name] - asked)
        cost = max(1, min(limit.amount // _SHARE, _MOST))
        with translated():
            if self._limiter.hit(limit, *names, cost=cost):
                if cost > 1:
                    self._remember(self._ahead, name, (asked + limit.get_expiry(), cost - 1))
                return None
            reset = self._limiter.get_window_stats(limit, *names).reset_time
        self._remember(self._over, name, reset)
        return _seconds(reset - time.time())

    def _remember(self, known: dict[_Name, _Value], name: _Name, value: _Value) -> None:
        """Keep a value; when there are too many, forget all, which are then counted anew."""
        if name not in known and len(known) >= self._most:
            known.clear()
        known[name] = value


def _seconds(left: float) -> int:
    return max(1, math.ceil(left))
