"""The audit trail: what operators have done, by whichever way."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson
import redis

from app.store.errors import translated
from app.store.hold import Hold
from app.store.keys import Keys

# The oldest entries go first. About 2 MB; the log has the same lines for as long as it is kept.
KEPT = 10_000


class AuditTrail:
    """Keeps the latest admin actions. Raises StoreError."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._name = keys.audit()
        self._hold = Hold(client, keys)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add an entry. It must name no user and no key.

        Raises:
            StoreHeld: neither the entry nor the action would be in a copy that is being made.
        """
        self._hold.check()
        with translated(), self._client.pipeline(transaction=False) as pipeline:
            pipeline.rpush(self._name, orjson.dumps(entry))
            pipeline.ltrim(self._name, -KEPT, -1)
            pipeline.execute()

    def all(self) -> list[dict[str, Any]]:
        """All entries that are kept, the oldest first."""
        with translated():
            found: Any = self._client.lrange(self._name, 0, -1)
        entries = []
        for line in found:
            # What somebody else wrote must not hide the rest.
            with suppress(ValueError):
                entry = orjson.loads(line)
                if isinstance(entry, dict):
                    entries.append(entry)
        return entries
