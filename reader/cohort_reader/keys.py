"""The keys of one app, and helpers for redis-py."""

from __future__ import annotations

import hashlib
import inspect
import re
from typing import Any
from zlib import crc32

from cohort_reader.errors import StoreUnavailable
from cohort_reader.steps import Steps

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


def text(raw: Any, errors: str = "strict") -> str:
    """Return a reply as a string, whether or not the client decodes replies."""
    return raw.decode(errors=errors) if isinstance(raw, bytes) else str(raw)


def group_name(group: Any) -> str:
    """The name of a consumer group, from XINFO. Those of other programs are not always text."""
    return text(group["name"], "replace")


def check_client(client: Any, user: str, *, is_async: bool) -> None:
    """Raise TypeError unless ``client`` is a client of the kind that the class ``user`` needs."""
    execute = getattr(client, "execute_command", None)
    if execute and inspect.iscoroutinefunction(execute) is is_async:
        return
    kind = "redis.asyncio.Redis" if is_async else "redis.Redis"
    found = f"{type(client).__module__}.{type(client).__qualname__}".removeprefix("builtins.")
    if execute:
        advice = f"use {user.removeprefix('Async') if is_async else f'Async{user}'}"
    else:
        advice = f"pass {'connect_async' if is_async else 'connect'}(url)"
    raise TypeError(f"{user} needs a {kind}, but got a {found}; {advice}")


class Keys:
    """Builds the keys of one app. The number of partitions is read from the store."""

    def __init__(self, client: Any, app: str, prefix: str) -> None:
        self._client = client
        self.app = checked_name(app)
        self.prefix = checked_name(prefix)
        self.layout = f"{prefix}:layout"
        # The common prefix of all keys in each partition; empty while unknown.
        self.known_prefixes: list[str] = []

    def load_partitions(self) -> Steps[int | None]:
        """Read the number of partitions; None until the receiver has stored something.

        Raises:
            StoreUnavailable: the store holds an unfinished copy.
        """
        found = yield self._client.get(self.layout)
        if found is not None and int(found) == 0:
            raise StoreUnavailable(f"{self.layout} is 0: the store holds an unfinished copy")
        self.known_prefixes = self._build_prefixes(int(found)) if found else []
        return int(found) if found else None

    def forget_partitions(self) -> None:
        """Forget the number of partitions, as the store may have lost its data."""
        self.known_prefixes = []

    def partition_prefixes(self) -> Steps[list[str]]:
        """The common prefix of all keys in each partition; [] until something was received."""
        if not self.known_prefixes:
            count = yield from self.load_partitions()
            return self._build_prefixes(count) if count else []
        return self.known_prefixes

    def assumed_prefixes(self) -> list[str]:
        """The prefixes to use while the number of partitions is unknown: those of one partition."""
        return self._build_prefixes(1)

    def _build_prefixes(self, count: int) -> list[str]:
        tags = [self.app] if count == 1 else [f"{self.app}:{number}" for number in range(count)]
        return [f"{self.prefix}:{{{tag}}}:" for tag in tags]


def prefix_for(name: str, prefixes: list[str]) -> str:
    """The key prefix of a user's partition, or of a cohort's home partition."""
    return prefixes[0] if len(prefixes) == 1 else prefixes[crc32(name.encode()) % len(prefixes)]
