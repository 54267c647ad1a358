"""How the store itself is: its memory, and whether it may drop data."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import redis

from app.store.connection.cluster import ClusterClient
from app.store.errors import translated


class StoreMemory(NamedTuple):
    """Memory of the store; of a cluster, of all its primaries together.

    Attributes:
        used: bytes.
        limit: bytes; 0 where there is none.
        may_evict: whether it drops data when it is full, instead of refusing writes.
        evicted: keys that it has dropped since its start.
    """

    used: int
    limit: int
    may_evict: bool
    evicted: int


class ServerInfo:
    """Asks the store about itself. Raises StoreError."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def ping(self) -> float:
        """Ask for nothing. Returns the seconds that it took."""
        started = time.perf_counter()
        with translated():
            self._client.ping()
        return time.perf_counter() - started

    def memory(self) -> StoreMemory:
        """What it uses and may use. Hosts that don't let anybody ask are an error."""
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

    def _info(self, section: str) -> list[dict[str, Any]]:
        """One section of the store's report, of each of its nodes."""
        with translated():
            nodes = [self._client]
            if isinstance(self._client, ClusterClient):
                nodes = self._client.primaries()
            return [node.info(section) for node in nodes]
