"""The valid API keys: those in the environment and those created with ``keys create``.

The latter are read from the store every second, so that authenticating a request costs no store
call. While the store is unavailable, the keys that were read last stay valid for an hour.
docs/decisions/keys.md explains how keys are stored.
"""

from __future__ import annotations

import hmac
import math
import secrets
import time
from hashlib import sha256
from typing import NamedTuple

import structlog

from app.errors import ExpiredKey, InvalidCredentials, Problem, RevokedKey
from app.settings import Settings
from app.store import ApiKeys, StoredKey, StoreError, Tuning

INGEST, READ, ADMIN = "ingest", "read", "admin"
SCOPES = (INGEST, READ, ADMIN)
METRICS = "metrics"  # of METRICS_TOKEN, which opens /metrics and nothing else
# For each scope that a view requires, the scopes that grant it.
_GRANTED_BY = {INGEST: {INGEST, ADMIN}, READ: {READ, ADMIN}, METRICS: {METRICS, READ, ADMIN}}
# The same in words, to follow "a key with".
NEEDED = {
    INGEST: "scope ingest or admin",
    READ: "scope read or admin",
    ADMIN: "scope admin",
    METRICS: "scope read or admin, or METRICS_TOKEN",
}

# Interval at which the times of last use are written to the store.
USES_SECONDS = 30.0
_DAY_MS = 24 * 3600 * 1000


class Caller(NamedTuple):
    """The owner of a valid key. ``label`` names the key in logs, where the key must not appear."""

    app_id: str
    scope: str
    label: str

    def may(self, scope: str) -> bool:
        return self.scope in _GRANTED_BY.get(scope, {ADMIN})


class _Entry(NamedTuple):
    digest: bytes
    caller: Caller
    expires_ms: int | None = None
    revoked_ms: int | None = None

    def holds(self, now_ms: int) -> bool:
        """Whether the key is valid."""
        return self.revoked_ms is None and (self.expires_ms is None or self.expires_ms > now_ms)


class KeyRing:
    """The valid keys. Holds their digests only."""

    def __init__(self, settings: Settings, stored: ApiKeys, tuning: Tuning) -> None:
        self._stored = stored
        self._now, self._monotonic = tuning.now, tuning.monotonic
        self._fixed = {entry.digest: entry for entry in _of_environment(settings)}
        self._fixed_callers = {entry.caller for entry in self._fixed.values()}
        self._entries = dict(self._fixed)
        self._trusted_seconds = tuning.last_read_trusted_seconds
        self._read_at = -math.inf  # by the monotonic clock
        self._failing = False
        # By label, in ms since the epoch: uses not yet written, and the last known use of each key.
        self._uses: dict[str, int] = {}
        self._last_used: dict[str, int] = {}
        self._uses_written = self._monotonic()
        self._log = structlog.get_logger()

    def find(self, key: str) -> Caller | None:
        """The owner of a key; None if the key is not valid.

        Raises:
            StoreError: the store's keys, which may include this one, have not been read lately.
        """
        entry = self._entry(key)
        if (entry is None or entry.digest not in self._fixed) and self._is_outdated():
            self._load()
            entry = self._entry(key)
        now = int(self._now() * 1000)
        if entry is None or not entry.holds(now):
            return None
        self._uses[entry.caller.label] = now
        return entry.caller

    def holds(self, caller: Caller) -> bool:
        """Whether the key of a caller is still valid. Raises StoreError as :meth:`find` does."""
        if caller not in self._fixed_callers and self._is_outdated():
            self._load()
        now = int(self._now() * 1000)
        for entry in self._entries.values():
            if entry.caller == caller and entry.holds(now):
                self._uses[caller.label] = now
                return True
        return False

    def refusal(self, key: str) -> tuple[Problem, Caller | None]:
        """Why a key is not valid, and its former owner, if known."""
        entry = self._entry(key)
        if entry is not None and entry.revoked_ms is not None:
            return RevokedKey(), entry.caller
        if entry is not None and entry.expires_ms is not None:
            return ExpiredKey(), entry.caller
        return InvalidCredentials(), None

    def _entry(self, key: str) -> _Entry | None:
        # No timing attack: the time of the lookup depends on digests, which nobody can choose.
        digest = _digest(key)
        entry = self._entries.get(digest)
        return entry if entry and hmac.compare_digest(entry.digest, digest) else None

    def refresh(self) -> None:
        """Read the store's keys again. If that fails, the keys that were read last stay valid."""
        try:
            self._load()
            self._failing = False
        except StoreError as error:
            if not self._failing:
                self._log.warning("cannot read keys from the store", **error.log_fields)
            self._failing = True

    def _load(self) -> None:
        entries = {}
        for key in self._stored.all():
            caller = Caller(key.app_id, key.scope, key.id)
            digest = bytes.fromhex(key.digest)
            entries[digest] = _Entry(digest, caller, key.expires_ms, key.revoked_ms)
        self._entries = {**entries, **self._fixed}
        self._read_at = self._monotonic()

    def _is_outdated(self) -> bool:
        return self._monotonic() - self._read_at > self._trusted_seconds

    def write_uses(self) -> None:
        """Write the times of last use if that is due. What could not be written is kept."""
        if self._monotonic() - self._uses_written < USES_SECONDS:
            return
        self._uses_written = self._monotonic()
        uses, self._uses = self._uses, {}
        try:
            if uses:
                self._stored.note_used(uses)
            self._last_used = self._stored.used()
        except StoreError:
            self._uses = {**uses, **self._uses}

    def first_expiry(self) -> float | None:
        """When the first of the keys used in the last day expires, in s since the epoch.

        None if none of them expires.
        """
        now = int(self._now() * 1000)
        used = {**self._last_used, **self._uses}
        ends = [
            entry.expires_ms / 1000
            for entry in self._entries.values()
            if entry.expires_ms is not None
            and entry.revoked_ms is None
            and now - used.get(entry.caller.label, 0) < _DAY_MS
        ]
        return min(ends, default=None)


def environment_keys(settings: Settings) -> list[Caller]:
    """The owners of the environment's keys."""
    return [entry.caller for entry in _of_environment(settings)]


def _of_environment(settings: Settings) -> list[_Entry]:
    found = []
    for scope, keys in (
        (INGEST, settings.api_keys),
        (READ, settings.read_api_keys),
        (ADMIN, settings.admin_api_keys),
    ):
        for key in keys:
            digest = _digest(key.key)
            found.append(_Entry(digest, Caller(key.app_id, scope, _label(scope, digest))))
    if settings.metrics_token:
        found.append(_Entry(_digest(settings.metrics_token), Caller("-", METRICS, METRICS)))
    return found


def make_key(
    app_id: str, scope: str, label: str = "", expires_ms: int | None = None
) -> tuple[str, StoredKey]:
    """A new random key, and its record for the store."""
    key = f"cr_{secrets.token_hex(32)}"
    digest = _digest(key)
    stored = StoredKey(
        id=_label(label or scope, digest),
        digest=digest.hex(),
        app_id=app_id,
        scope=scope,
        created_ms=time.time_ns() // 1_000_000,
        expires_ms=expires_ms,
    )
    return key, stored


def _label(name: str, digest: bytes) -> str:
    return f"{name}-{digest.hex()[:8]}"


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
