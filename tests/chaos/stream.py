"""What the service's change stream has told, read on while it grows."""

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
        """Transitions that say of a user what the one before has said."""
        self._last: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._at: dict[str, str] = {}
        self._client = redis.Redis.from_url(url, decode_responses=True)
        self._lock = threading.Lock()

    def entered(self, cohort: str) -> set[str]:
        """Read on, and return the users who are in the cohort by what was told so far.

        Raises `redis.RedisError`; nothing is counted twice when it is called again.
        """
        with self._lock:
            for stream in self._client.scan_iter(match="cohorts:*:changes", count=10_000):
                after = self._at.get(stream)
                for at, entry in self._client.xrange(stream, min=f"({after}" if after else "-"):
                    self._note(entry)
                    self._at[stream] = at
            return {u for u, change in self._last[cohort].items() if change == "entered"}

    def close(self) -> None:
        self._client.close()

    def _note(self, entry: dict[str, str]) -> None:
        last, change = self._last[entry["cohort"]], entry["change"]
        for user in json.loads(entry["users"]):
            self.transitions += 1
            self.repeated += last.get(user, "left") == change
            last[user] = change
