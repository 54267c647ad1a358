"""API keys created with the CLI. Of each key, only the digest is stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
import redis

from app.store.connection.scripts import load_script, register_fenced
from app.store.errors import store_errors
from app.store.keys import Keys

# In one step: a key must never be stored without its expiry, nor an expiry be left without a key.
_CREATE = """#!lua
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], ARGV[1] .. ':expires', ARGV[3]) end
return 1
"""
# Fenced, so that a call that arrives late does not replace an expiry that was set since.
_SET_EXPIRY = """#!lua flags=allow-oom
if ARGV[2] == '' then return redis.call('HDEL', KEYS[1], ARGV[1]) end
return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
"""
# How long an expired or revoked key is kept, so that its users get the reason.
REMEMBERED_MS = 90 * 24 * 3600 * 1000
# How long last uses are kept. They are all that is left of a key removed from the environment.
USES_REMEMBERED_MS = 366 * 24 * 3600 * 1000


@dataclass(frozen=True)
class StoredKey:
    """One key. Times are ms since the epoch.

    Attributes:
        id: its name in lists and logs; the key cannot be derived from it.
        digest: SHA-256 of the key, in hexadecimal digits.
        expires_ms: when it expires, if ever.
        revoked_ms: when it was revoked, if it was.
    """

    id: str
    digest: str
    app_id: str
    scope: str
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None

    def ended_ms(self) -> int | None:
        """When it stopped, or will stop, being accepted; None for never."""
        ends = [ms for ms in (self.expires_ms, self.revoked_ms) if ms is not None]
        return min(ends, default=None)

    def in_force(self) -> bool:
        """Whether it is accepted now."""
        return self.status() == "active"

    def status(self) -> str:
        """``active``, ``expired`` or ``revoked``."""
        if self.revoked_ms is not None:
            return "revoked"
        expired = self.expires_ms is not None and self.expires_ms <= _now_ms()
        return "expired" if expired else "active"


class ApiKeys:
    """Stores API keys. Raises StoreError.

    They are in one hash, so that one command reads all of them. Whatever can change has a field of
    its own, so that two operators at the same time don't undo each other's changes.

    Args:
        now: the store's time, in seconds since the epoch.
    """

    def __init__(self, client: redis.Redis, keys: Keys, now: Callable[[], float]) -> None:
        self._client = client
        self._now = now
        self._name, self._used_name = keys.api_keys(), keys.api_keys_used()
        self._revoke = load_script(client, "revoke.lua")
        self._create = register_fenced(client, _CREATE)
        self._set_expiry = register_fenced(client, _SET_EXPIRY)

    def all(self) -> list[StoredKey]:
        """All keys in order of creation, including expired and revoked ones."""
        with store_errors():
            fields: dict[Any, Any] = self._client.hgetall(self._name)
        found = []
        for name in fields:
            # Skip invalid entries, so that the other keys keep working.
            with suppress(KeyError, TypeError, ValueError):
                if b":" not in name:
                    found.append(_stored_key(name.decode(), fields))
        return sorted(found, key=lambda key: (key.created_ms, key.id))

    def create(self, key: StoredKey) -> bool:
        """Store a key. False if its id is taken."""
        record = {
            "digest": key.digest,
            "app_id": key.app_id,
            "scope": key.scope,
            "created_ms": key.created_ms,
        }
        self.forget_ended()
        expires = "" if key.expires_ms is None else key.expires_ms
        with store_errors():
            args = [key.id, orjson.dumps(record), expires]
            return bool(self._create(keys=[self._name], args=args))

    def expire(self, key_id: str, at_ms: int | None) -> None:
        """Set when a key expires; None for never."""
        with store_errors():
            args = [f"{key_id}:expires", "" if at_ms is None else at_ms]
            self._set_expiry(keys=[self._name], args=args)

    def revoke(self, key_id: str) -> None:
        """Revoke a key permanently."""
        with store_errors():
            self._revoke(keys=[self._name], args=[f"{key_id}:revoked", _now_ms()])

    def note_used(self, used: Mapping[str, int]) -> None:
        """Record when keys were last used, in ms since the epoch. Earlier times are ignored.

        A time in the future is from a process whose clock is wrong, and counts as the present.
        """
        latest = int(self._now() * 1000)
        times = {key_id: min(ms, latest) for key_id, ms in used.items()}
        with store_errors():
            self._client.zadd(self._used_name, times, gt=True)

    def used(self) -> dict[str, int]:
        """When each key was last used, in ms since the epoch; also keys from the environment."""
        with store_errors():
            found: Any = self._client.zrange(self._used_name, 0, -1, withscores=True)
        return {key_id.decode(): int(ms) for key_id, ms in found}

    def forget_ended(self) -> None:
        """Remove keys that ended long ago, and the last uses of those unused for very long."""
        now_ms = int(self._now() * 1000)
        for key in self.all():
            ended = key.ended_ms()
            if ended is not None and ended < now_ms - REMEMBERED_MS:
                with store_errors():
                    fields = (key.id, f"{key.id}:expires", f"{key.id}:revoked")
                    self._client.hdel(self._name, *fields)
                    self._client.zrem(self._used_name, key.id)
        with store_errors():
            unused: Any = self._client.zrange(
                self._used_name, "-inf", now_ms - USES_REMEMBERED_MS, byscore=True
            )
            if unused:
                self._client.zrem(self._used_name, *unused)


def _stored_key(key_id: str, fields: Mapping[bytes, bytes]) -> StoredKey:
    """A key from the fields of the hash. Ignores fields that a later version may add."""
    record = orjson.loads(fields[key_id.encode()])
    expires, revoked = (fields.get(f"{key_id}:{end}".encode()) for end in ("expires", "revoked"))
    bytes.fromhex(record["digest"])
    return StoredKey(
        id=key_id,
        digest=record["digest"],
        app_id=record["app_id"],
        scope=record["scope"],
        created_ms=int(record["created_ms"]),
        expires_ms=int(expires) if expires else None,
        revoked_ms=int(revoked) if revoked else None,
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
