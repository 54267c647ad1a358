"""Rate limits, counted in the store for all workers and processes."""

from __future__ import annotations

import math
import time
from threading import Lock

import structlog
from limits import RateLimitItem
from redis import Redis

from app.store.connection.calls import Call
from app.store.connection.scripts import call_partitions, register
from app.store.errors import StoreError, store_errors
from app.store.keys import Keys
from app.store.tuning import DEFAULT, Tuning

# A worker counts 1/50 of a limit in advance, up to 100 requests.
_SHARE, _MAX_AHEAD = 50, 100
_LOG_SECONDS = 60.0

# KEYS[1]: the counter. ARGV: requests to count, length of the window in ms. Returns the requests of
# the window so far, and the ms until it ends. A window is never longer than its length, even if the
# server's clock was set back.
#
# As there is no `#!lua` line, the cluster client adds no guard against migrating slots, which a
# single key does not need. Registered without the check for a hold: limits apply during one too.
_COUNT = """
local count = redis.call('INCRBY', KEYS[1], ARGV[1])
local left = redis.call('PTTL', KEYS[1])
if left < 0 or left > tonumber(ARGV[2]) then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    left = tonumber(ARGV[2])
end
return {count, left}
"""


class _Counter:
    """What this process knows about the current window of one name.

    Attributes:
        left: requests that are counted but have not arrived yet.
        ends: when the window ends, by the monotonic clock.
        is_used_up: the store has none beyond those in ``left``.
        is_alone: the store does not count; ``left`` is what remains of this process's own window.
        retry_at: when to ask the store again, by the monotonic clock.
        lock: held during a store call. Requests that wait for it share what that call counted.
        waiting: requests that wait for the lock.
    """

    __slots__ = ("ends", "is_alone", "is_used_up", "left", "lock", "retry_at", "waiting")

    def __init__(self) -> None:
        self.left = 0
        self.ends = self.retry_at = -math.inf
        self.is_used_up = self.is_alone = False
        self.waiting = 0
        self.lock = Lock()

    def wait_for_lock(self) -> None:
        self.waiting += 1
        try:
            self.lock.acquire()
        finally:
            self.waiting -= 1

    def is_known(self, now: float) -> bool:
        """Whether a request can be decided without the store."""
        if self.is_alone:
            return now < self.retry_at
        return now < self.ends and (self.left > 0 or self.is_used_up)

    def take(self, now: float, limit: RateLimitItem) -> int | None:
        """Take one of the requests left. None if there was one, else the seconds to wait."""
        if self.is_alone and now >= self.ends:
            self.left, self.ends = limit.amount, now + limit.get_expiry()
        if self.left > 0:
            self.left -= 1
            return None
        return max(1, math.ceil(self.ends - now))


class RateLimiter:
    """Counts requests by name.

    With a large limit, a worker counts some requests in advance and then accepts them without a
    store call: with 1,000 a second, one call for 20 requests. So a worker may withhold up to 2% of
    a limit from the others. Limits below 100 are counted one by one, or together for requests that
    arrive together.

    A name whose counter is unavailable is counted by each process alone: a limit that cannot be
    counted must not stop calls that need another part of the store, or only read.
    """

    def __init__(self, client: Redis, keys: Keys, tuning: Tuning = DEFAULT) -> None:
        self._max_remembered = tuning.rates_remembered
        self._retry_seconds = tuning.rates_retry_seconds
        self._prefix = keys.rates()
        self._count = register(client, _COUNT)
        self._counters: dict[tuple[RateLimitItem, tuple[str, ...]], _Counter] = {}
        self._logged = -math.inf

    def hit(self, limit: RateLimitItem | None, *names: str) -> int | None:
        """Count one request.

        Returns:
            None if it is within the limit, else the whole seconds until the limit is reset.
        """
        if limit is None:
            return None
        counter = self._counters.get((limit, names)) or self._remember(limit, names)
        if counter.is_known(now := time.monotonic()):
            return counter.take(now, limit)
        if not counter.lock.acquire(blocking=False):
            if counter.is_alone:  # do not wait for the request that asks the store again
                return counter.take(time.monotonic(), limit)
            counter.wait_for_lock()
        try:
            if not counter.is_known(time.monotonic()):
                self._ask(counter, limit, names)
            return counter.take(time.monotonic(), limit)
        finally:
            counter.lock.release()

    def _ask(self, counter: _Counter, limit: RateLimitItem, names: tuple[str, ...]) -> None:
        """Count in the store; if that fails, alone for a while."""
        ahead = min(limit.amount // _SHARE, _MAX_AHEAD)
        wanted = max(1, ahead, min(1 + counter.waiting, limit.amount))
        key = f"{self._prefix}:{limit.key_for(*names)}"
        asked = time.monotonic()
        try:
            with store_errors():
                call = Call(key, [wanted, limit.get_expiry() * 1000])
                ((count, left_ms),) = call_partitions(self._count, [call])
        except StoreError as error:
            if not counter.is_alone:
                counter.is_alone, counter.ends = True, -math.inf
            counter.retry_at = time.monotonic() + self._retry_seconds
            self._log(error)
            return
        counter.left = max(0, min(wanted, limit.amount - count + wanted))
        counter.is_used_up = counter.left < wanted
        counter.ends = asked + left_ms / 1000
        counter.is_alone = False

    def _remember(self, limit: RateLimitItem, names: tuple[str, ...]) -> _Counter:
        """A new counter. At the maximum, all are dropped, with what they counted in advance."""
        if len(self._counters) >= self._max_remembered:
            self._counters.clear()
        return self._counters.setdefault((limit, names), _Counter())

    def _log(self, error: StoreError) -> None:
        now = time.monotonic()
        if now - self._logged >= _LOG_SECONDS:
            self._logged = now
            structlog.get_logger().warning(
                "rate limits are counted by each worker alone", **error.log_fields
            )
