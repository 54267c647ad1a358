"""Put writes on hold, so that none is lost while a store is copied or moved.

Every script of ``load_script`` that writes checks its partition's flag in its atomic step. A call
that arrives late, from a worker that was suspended or over a slow network, is refused like any
other.
docs/decisions/moving.md has the reasons.
"""

from __future__ import annotations

from typing import Any

import redis

from app.store.connection.calls import Call
from app.store.connection.scripts import LONGEST_HOLD_MS, call_partitions, register_fenced
from app.store.errors import StoreError, StoreHeld, store_errors
from app.store.keys import Keys

# The value of the flags while an operator holds the store. A copy's own hold has a random one.
HELD = b"held"
# Allowed when memory is full, as the store may have to be moved to a larger one.
_SET = "#!lua flags=allow-oom\nreturn redis.call('SET', KEYS[1], unpack(ARGV))"
_UNSET = "#!lua flags=allow-oom\nreturn redis.call('UNLINK', KEYS[1])"
# ARGV[1]: the flag's value; ARGV[2]: ms from now, or '' to leave its end as it is. Returns 0 if the
# flag was lost. A late renewal must not make a later hold by an operator expire.
_RENEW = f"""#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if redis.call('PTTL', KEYS[1]) > {LONGEST_HOLD_MS} then return 0 end
if ARGV[2] ~= '' then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
"""
# The value of the global flag until the flags of all partitions are set.
_BEGUN = b"begun"


class HoldLost(StoreError):
    detail = "The hold ended too early: something may have been written since."


class Hold:
    """The flags of a store: one for each partition of each app, and a global one.

    Raises StoreError.
    """

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._set_flag = register_fenced(client, _SET)
        self._unset_flag = register_fenced(client, _UNSET)
        self._renew_flag = register_fenced(client, _RENEW)

    def check(self) -> None:
        """Raise StoreHeld during a hold; to be called before writes that are not scripts."""
        self._check(self._keys.hold())

    def check_partition(self, app_id: str, partition: int) -> None:
        """As :meth:`check`, for writes to one partition of a registered app, on its node alone."""
        self._check(self._keys.partition_hold(app_id, partition))

    def _check(self, flag: str) -> None:
        with store_errors():
            left_ms: Any = self._client.pttl(flag)
        if -1 <= left_ms <= LONGEST_HOLD_MS:  # -1: until the release; -2: there is none
            raise StoreHeld()

    def value(self) -> bytes | None:
        """The value of the global flag, which identifies the hold; None if there is none."""
        with store_errors():
            found: Any = self._client.get(self._keys.hold())
        return None if found is None else bytes(found)

    def is_of_copy(self) -> bool:
        """Whether a copy holds the store.

        Its hold ends with the copy, or soon after the copy is killed.
        """
        return self.value() not in (None, HELD, _BEGUN)

    def begin(self, value: bytes = HELD, ttl_ms: int | None = None) -> list[str]:
        """Refuse writes from now on, for ``ttl_ms`` or until the release. Returns all app ids.

        Other apps write nothing: an app registers, then checks the global flag, and that flag is
        set before the registered apps are read.
        """
        with store_errors():
            self._set([self._keys.hold()], _BEGUN, ttl_ms)
            apps: Any = self._client.smembers(self._keys.apps())
            app_ids = sorted(app_id.decode() for app_id in apps)
            self._set(self._flags(app_ids), value, ttl_ms)
            self._set([self._keys.hold()], value, ttl_ms)
        return app_ids

    def renew(self, app_ids: list[str], value: bytes, ttl_ms: int | None) -> None:
        """Extend the hold.

        Raises:
            HoldLost: some flags are missing or have another value, or were ignored because the
                server's clock was ahead when they were set.
        """
        args = [value, "" if ttl_ms is None else ttl_ms]
        flags = [self._keys.hold(), *self._flags(app_ids)]
        with store_errors():
            kept = call_partitions(self._renew_flag, [Call(flag, args) for flag in flags])
        if not all(kept):
            raise HoldLost()

    def release(self) -> None:
        """Accept writes again."""
        with store_errors():
            apps: Any = self._client.smembers(self._keys.apps())
            flags = self._flags(app_id.decode() for app_id in apps)
            call_partitions(self._unset_flag, [Call(flag, []) for flag in flags])
            call_partitions(self._unset_flag, [Call(self._keys.hold(), [])])

    def _set(self, flags: list[str], value: bytes, ttl_ms: int | None) -> None:
        options = [] if ttl_ms is None else ["PX", ttl_ms]
        call_partitions(self._set_flag, [Call(flag, [value, *options]) for flag in flags])

    def _flags(self, app_ids: Any) -> list[str]:
        partitions = range(self._keys.partitions)
        return [self._keys.partition_hold(app_id, p) for app_id in app_ids for p in partitions]
