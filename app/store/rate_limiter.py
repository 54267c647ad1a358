"""Rate limits, counted in the store for all workers and processes."""

from __future__ import annotations

import math
import time
from typing import TypeVar

from limits import RateLimitItem
from limits.storage import RedisStorage
from limits.strategies import FixedWindowRateLimiter
from redis import Redis

from app.store.connection.cluster import ClusterClient
from app.store.errors import store_errors
from app.store.keys import Keys
from app.store.tuning import DEFAULT, Tuning

# A worker counts 1/50 of a limit in advance, up to 100 requests.
_SHARE, _MAX_AHEAD = 50, 100

_Name = tuple[RateLimitItem, tuple[str, ...]]
_Value = TypeVar("_Value")


class _ClusterStorage(RedisStorage):
    """Uses our client; the library's storage for clusters creates its own and connects at once."""

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
    """Counts requests by name. Raises StoreError.

    With a large limit, a worker counts some requests in advance and then accepts them without a
    store call: with 1,000 a second, one call for 20 requests. So a worker may withhold up to 2% of
    a limit from the others, or carry it into the next window. Limits below 100 are counted one by
    one.
    """

    def __init__(self, client: Redis, keys: Keys, tuning: Tuning = DEFAULT) -> None:
        self._max_remembered = tuning.rates_remembered
        self._limiter = FixedWindowRateLimiter(_storage(client, keys.rates()))
        # Requests counted in advance: (limit, names) → end of the window, requests left.
        self._ahead: dict[_Name, tuple[float, int]] = {}
        # Until when requests are refused without asking the store.
        self._over: dict[_Name, float] = {}

    def hit(self, limit: RateLimitItem | None, *names: str) -> int | None:
        """Count one request.

        Returns:
            None if it is within the limit, else the whole seconds until the limit is reset.
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
        cost = max(1, min(limit.amount // _SHARE, _MAX_AHEAD))
        with store_errors():
            if self._limiter.hit(limit, *names, cost=cost):
                if cost > 1:
                    self._remember(self._ahead, name, (asked + limit.get_expiry(), cost - 1))
                return None
            reset = self._limiter.get_window_stats(limit, *names).reset_time
        self._remember(self._over, name, reset)
        return _seconds(reset - time.time())

    def _remember(self, known: dict[_Name, _Value], name: _Name, value: _Value) -> None:
        """Cache a value. A full cache is emptied, which costs nothing but store calls."""
        if name not in known and len(known) >= self._max_remembered:
            known.clear()
        known[name] = value


def _seconds(left: float) -> int:
    return max(1, math.ceil(left))
