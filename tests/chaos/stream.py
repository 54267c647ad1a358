"""Read the service's change stream incrementally and count its transitions."""

from __future__ import annotations

import json
import threading
from collections import defaultdict

import redis


class Stream:
    """The change streams of all partitions; safe to use from many threads."""

    def __init__(self, url: str) -> None:
        self.transitions = 0
        self.repeated = 0
        """Transitions equal to the user's previous one."""
        self._last: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._at: dict[str, str] = {}
        self._client = redis.Redis.from_url(url, decode_responses=True)
        self._lock = threading.Lock()

    def entered(self, cohort: str) -> set[str]:
        """Read new entries, and return the users who are in the cohort according to the stream.

        Raises `redis.RedisError`; after that, a repeated call counts nothing twice.
        """
        with self._lock:
            for stream in self._client.scan_iter(match="cohorts:*:changes", count=10_000):
                after = self._at.get(stream)
                for at, entry in self._client.xrange(stream, min=f"({after}" if after else "-"):
                    self._count(entry)
                    self._at[stream] = at
            return {u for u, change in self._last[cohort].items() if change == "entered"}

    def close(self) -> None:
        self._client.close()

    def _count(self, entry: dict[str, str]) -> None:
        last, change = self._last[entry["cohort"]], entry["change"]
        for user in json.loads(entry["users"]):
            self.transitions += 1
            self.repeated += last.get(user, "left") == change
            last[user] = change
