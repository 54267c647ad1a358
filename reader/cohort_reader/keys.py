"""The keys of one app, and helpers for redis-py."""

from __future__ import annotations

import hashlib
import re
from typing import Any
from zlib import crc32

import redis
from redis import exceptions

# The store is unavailable now, but may be back later.
UNAVAILABLE_ERRORS = (
    exceptions.ConnectionError,  # including "loading": the store is reading its data
    exceptions.TimeoutError,
    exceptions.MasterDownError,
    exceptions.ReadOnlyError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    exceptions.OutOfMemoryError,
)

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def cohort_id_from_trait(trait: str) -> str:
    """The cohort id in a trait name: what follows the last colon, trimmed.

    If nothing does, it is derived from a hash of the whole name.
    """
    _, colon, tail = trait.rpartition(":")
    cohort_id = tail.strip() if colon else ""
    return cohort_id or "name-" + hashlib.sha256(trait.encode()).hexdigest()[:24]


def checked_name(name: str) -> str:
    """Return ``name``. Raises ValueError if it can't be part of a key."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} must be 1 to 64 of A-Z a-z 0-9 _ . -")
    return name


def text(raw: Any) -> str:
    """Return a reply as a string, whether or not the client decodes replies."""
    return raw.decode() if isinstance(raw, bytes) else str(raw)


class Keys:
    """Builds the keys of one app. The number of partitions is read from the store."""

    def __init__(self, client: redis.Redis, app: str, prefix: str) -> None:
        self._client = client
        self._app = checked_name(app)
        self._prefix = checked_name(prefix)
        self._partition_prefixes: list[str] = []

    def partition_count(self) -> int | None:
        """The number of partitions; None until the receiver has stored something."""
        if not self._partition_prefixes:
            found: Any = self._client.get(f"{self._prefix}:layout")
            if not found:
                return None
            self._partition_prefixes = self._build_prefixes(int(found))
        return len(self._partition_prefixes)

    def forget_partitions(self) -> None:
        """Read the number of partitions again, after the store has lost its data."""
        self._partition_prefixes = []

    def partition_prefixes(self) -> list[str]:
        """The common prefix of all keys in each partition."""
        if not self._partition_prefixes and self.partition_count() is None:
            return self._build_prefixes(1)
        return self._partition_prefixes

    def prefix_for(self, name: str) -> str:
        """The key prefix of a user's partition, or of a cohort's home partition."""
        prefixes = self.partition_prefixes()
        return prefixes[crc32(name.encode()) % len(prefixes)] if len(prefixes) > 1 else prefixes[0]

    def _build_prefixes(self, count: int) -> list[str]:
        tags = [self._app] if count == 1 else [f"{self._app}:{number}" for number in range(count)]
        return [f"{self._prefix}:{{{tag}}}:" for tag in tags]
