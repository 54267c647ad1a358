"""Remove what is older than its limit, also for apps that have stopped sending.

Requests remove old data only as they add to it, and only some at a time.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import redis

from app.store.connection.scripts import load_script
from app.store.errors import store_errors
from app.store.keys import Keys
from app.store.sync_history import SyncHistory

# How long a process that looks through a partition keeps the others from doing the same. A little
# less than the pause after which each tries again.
_LEASE_MS = 50_000


class Retention:
    """Removes old entries of change streams and of the sync history. Raises StoreError."""

    def __init__(
        self, client: redis.Redis, keys: Keys, changes_max_age_ms: int, sync_history: SyncHistory
    ) -> None:
        self._client = client
        self._keys = keys
        self._max_age_ms = changes_max_age_ms
        self._sync_history = sync_history
        self._age = load_script(client, "age.lua")
        self._lease = load_script(client, "lease.lua")

    def steps(self, app_id: str, partition: int) -> Iterator[None]:
        """Remove what is too old in a partition; each step is a call of about a millisecond.

        Does nothing if a process did the same a moment ago.
        """
        if not self._begin(app_id, partition):
            return
        stream = self._keys.changes(app_id, partition)
        for one in (stream, *given_up(self._client, stream)):
            more = True
            while more:
                yield
                with store_errors():
                    more = bool(self._age(keys=[one], args=[self._max_age_ms]))
        if partition == self._keys.partition(app_id):
            yield
            while self._sync_history.trim(app_id):
                yield

    def _begin(self, app_id: str, partition: int) -> bool:
        key = self._keys.looked_through(app_id, partition)
        with store_errors():
            return bool(self._lease(keys=[key], args=[secrets.token_hex(8), _LEASE_MS]))


def given_up(client: redis.Redis, stream: str) -> list[str]:
    """The streams in which groups of the Python follower keep entries that they gave up."""
    with store_errors():
        if not client.exists(stream):
            return []
        groups: Any = client.xinfo_groups(stream)
    # Other programs' groups, whose names are not always text, have no such stream.
    return [f"{stream}:{group['name'].decode(errors='replace')}:failed" for group in groups]
