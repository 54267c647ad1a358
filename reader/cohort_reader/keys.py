"""The names of the keys, and what their values mean."""

from __future__ import annotations

import hashlib
import re
from typing import Any
from zlib import crc32

import redis
from redis import exceptions

# What says that the store can't be had now, and may be had later.
UNAVAILABLE = (
    exceptions.ConnectionError,  # also: it is still loading its data
    exceptions.TimeoutError,
    exceptions.MasterDownError,
    exceptions.ReadOnlyError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    exceptions.OutOfMemoryError,
)

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def cohort_id_of(trait: str) -> str:
    """The id of the cohort that a trait name stands for: what follows the last colon, trimmed.

    A name with nothing there stands for a cohort whose id is made from the whole name.
    """
    _, colon, tail = trait.rpartition(":")
    cohort_id = tail.strip() if colon else ""
    return cohort_id or "name-" + hashlib.sha256(trait.encode()).hexdigest()[:24]


def checked_name(name: str) -> str:
    """``name`` itself. Raises ValueError where it can't be a part of a key."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} must be 1 to 64 of A-Z a-z 0-9 _ . -")
    return name


def text(raw: Any) -> str:
    """A reply as a string, whatever ``decode_responses`` is."""
    return raw.decode() if isinstance(raw, bytes) else str(raw)


class Keys:
    """Builds the key names of one app. The store itself tells how many partitions there are."""

    def __init__(self, client: redis.Redis, app: str, prefix: str) -> None:
        self._client = client
        self._app = checked_name(app)
        self._prefix = checked_name(prefix)
        self._bases: list[str] = []

    def partitions(self) -> int | None:
        """The number of partitions; None as long as nothing was ever received."""
        if not self._bases:
            found: Any = self._client.get(f"{self._prefix}:layout")
            if not found:
                return None
            self._bases = self._bases_of(int(found))
        return len(self._bases)

    def forget_partitions(self) -> None:
        """Ask the store again at the next use: its data were lost."""
        self._bases = []

    def bases(self) -> list[str]:
        """What all keys of each partition begin with."""
        if not self._bases and self.partitions() is None:
            return self._bases_of(1)
        return self._bases

    def base_of(self, name: str) -> str:
        """What the keys begin with in a user's partition, or in a cohort's home partition."""
        bases = self.bases()
        return bases[crc32(name.encode()) % len(bases)] if len(bases) > 1 else bases[0]

    def _bases_of(self, count: int) -> list[str]:
        tags = [self._app] if count == 1 else [f"{self._app}:{number}" for number in range(count)]
        return [f"{self._prefix}:{{{tag}}}:" for tag in tags]
