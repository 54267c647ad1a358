"""The audit trail: what operators have done in the API, the dashboard or the CLI."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson
import redis

from app.store.errors import store_errors
from app.store.hold import Hold
from app.store.keys import Keys

# About 2 MB. The log, which may be kept for longer, has the entries of the API and the dashboard.
KEPT = 10_000


class AuditTrail:
    """Stores the latest admin actions. Raises StoreError."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._name = keys.audit()
        self._hold = Hold(client, keys)

    def add(self, entry: Mapping[str, Any], *, despite_hold: bool = False) -> None:
        """Add an entry, which must not contain user ids or keys.

        Raises:
            StoreHeld: writes are on hold; a copy in progress would miss the entry.
        """
        if not despite_hold:
            self._hold.check()
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            pipeline.rpush(self._name, orjson.dumps(entry))
            pipeline.ltrim(self._name, -KEPT, -1)
            pipeline.execute()

    def all(self) -> list[dict[str, Any]]:
        """All stored entries, oldest first."""
        with store_errors():
            found: Any = self._client.lrange(self._name, 0, -1)
        entries = []
        for line in found:
            # Skip invalid entries, so that the others can be read.
            with suppress(ValueError):
                entry = orjson.loads(line)
                if isinstance(entry, dict):
                    entries.append(entry)
        return entries
