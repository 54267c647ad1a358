"""The state of the store's server: its memory, and whether it may evict data."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import redis

from app.store.connection.cluster import ClusterClient
from app.store.errors import store_errors

# By default, a store that saves does so within an hour of a change.
_SAVED_WITHIN_SECONDS = 2 * 3600


class StoreMemory(NamedTuple):
    """Memory of the store; for a cluster, the total of its primaries.

    Attributes:
        used: bytes.
        limit: bytes; 0 for none.
        may_evict: whether it evicts data when it is full, instead of refusing writes.
        evicted: keys evicted since its start.
    """

    used: int
    limit: int
    may_evict: bool
    evicted: int


class ServerInfo:
    """Reads the server's INFO. Raises StoreError."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def ping(self) -> float:
        """Returns the round-trip time in seconds."""
        started = time.perf_counter()
        with store_errors():
            self._client.ping()
        return time.perf_counter() - started

    def memory(self) -> StoreMemory:
        """Memory in use and its limit. Some hosted stores refuse INFO, which raises StoreError."""
        memory, stats = self._info("memory"), self._info("stats")
        return StoreMemory(
            used=sum(int(node["used_memory"]) for node in memory),
            limit=sum(int(node.get("maxmemory", 0)) for node in memory),
            may_evict=any(
                int(node.get("maxmemory", 0))
                and node.get("maxmemory_policy", "noeviction") != "noeviction"
                for node in memory
            ),
            evicted=sum(int(node.get("evicted_keys", 0)) for node in stats),
        )

    def is_persistent(self) -> bool | None:
        """Whether the store keeps its data on disk; None if unknown. For a cluster, all primaries.

        It may take two hours until a store without an append-only file shows that it never saves.
        """
        unknown = False
        for persistence, server in zip(
            self._info("persistence"), self._info("server"), strict=True
        ):
            saved = int(persistence.get("rdb_saves", 0)) > 0
            if int(persistence.get("aof_enabled", 0)) or saved:
                continue
            unsaved = int(persistence.get("rdb_changes_since_last_save", 0)) > 0
            if unsaved and int(server.get("uptime_in_seconds", 0)) > _SAVED_WITHIN_SECONDS:
                return False
            unknown = True
        return None if unknown else True

    def _info(self, section: str) -> list[dict[str, Any]]:
        """One section of INFO, for each primary."""
        with store_errors():
            nodes = [self._client]
            if isinstance(self._client, ClusterClient):
                nodes = self._client.primaries()
            return [node.info(section) for node in nodes]
