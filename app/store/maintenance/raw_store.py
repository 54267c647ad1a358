"""Read and write a store's keys and values unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import redis

from app.settings import Settings
from app.store.connection.calls import Call
from app.store.connection.client import connect
from app.store.connection.cluster import ClusterClient
from app.store.connection.scripts import call_partitions, load_script
from app.store.keys import Keys
from app.store.maintenance.key_names import KeyName, parse

_KEYS_PER_SCAN = 1000
# Elements of a large value in one command: less than 1 ms of the store's time.
_ELEMENTS = 1000
# Users with more traits than this are read and written one by one.
_SMALL = 50


class Value(NamedTuple):
    """The content of a key; the type is ``none`` for a missing key."""

    type: bytes
    content: Any


_READ: dict[bytes, Callable[[Any, bytes], Any]] = {
    b"string": lambda pipeline, key: pipeline.get(key),
    b"hash": lambda pipeline, key: pipeline.hgetall(key),
    b"list": lambda pipeline, key: pipeline.lrange(key, 0, -1),
    b"zset": lambda pipeline, key: pipeline.zrange(key, 0, -1, withscores=True),
}


class RawStore:
    """Accesses the store of the settings. Raises the client library's errors."""

    def __init__(self, settings: Settings) -> None:
        self.client: Any = connect(settings)
        self.keys = Keys(settings.key_prefix, settings.store_partitions)
        self._read_hashes = load_script(self.client, "read_hashes.lua", "maintenance")
        self._write_hashes = load_script(self.client, "write_hashes.lua", "maintenance")

    def size(self) -> int:
        """The number of keys, including those of other prefixes."""
        return sum(int(node.dbsize()) for node in self._nodes())

    def walk(self) -> Iterator[list[KeyName]]:
        """All keys with the prefix, some at a time."""
        for node in self._nodes():
            cursor = None
            while cursor != 0:
                scanned: Any = node.scan(
                    cursor or 0, match=f"{self.keys.prefix}:*", count=_KEYS_PER_SCAN
                )
                cursor, found = scanned
                yield [parse(key, self.keys.prefix) for key in found]

    def types(self, names: Sequence[KeyName]) -> list[bytes]:
        """The types of keys. Users, which are nearly all of them, are assumed to be hashes."""
        others = [name for name in names if name.what != "user"]
        with self.client.pipeline(transaction=False) as pipeline:
            for name in others:
                pipeline.type(name.key)
            found = iter(pipeline.execute() if others else ())
        return [b"hash" if name.what == "user" else next(found) for name in names]

    def values(self, names: Sequence[KeyName]) -> list[Value]:
        """The values of WHOLE or global keys."""
        found = self._small_users(names)
        others = [name for name in names if name not in found]
        keys = [name.in_store(self.keys) for name in others]
        with self.client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.type(key)
            types = pipeline.execute()
            for key, kind in zip(keys, types, strict=True):
                if kind in _READ:
                    _READ[kind](pipeline, key)
            contents = iter(pipeline.execute())
        for name, kind in zip(others, types, strict=True):
            found[name] = Value(kind, next(contents) if kind in _READ else None)
        return [found[name] for name in names]

    def _small_users(self, names: Sequence[KeyName]) -> dict[KeyName, Value]:
        """The values of users with few traits, with one script call for each partition.

        That takes a third of the time of a pipeline, and nearly all users have few.
        """
        parts: dict[str, list[KeyName]] = {}
        for name in names:
            if name.what == "user":
                parts.setdefault(name.stream(self.keys), []).append(name)
        calls = [
            Call(stream, [_SMALL, *(u.rest for u in users)]) for stream, users in parts.items()
        ]
        found = {}
        for users, rows in zip(
            parts.values(), call_partitions(self._read_hashes, calls), strict=True
        ):
            for name, row in zip(users, rows, strict=True):
                if row is not None:
                    found[name] = Value(b"hash", dict(zip(row[::2], row[1::2], strict=True)))
        return found

    def write(self, values: Mapping[KeyName, Value]) -> None:
        """Replace WHOLE or global keys."""
        small: dict[str, list[Any]] = {}
        with self.client.pipeline(transaction=False) as pipeline:
            for name, value in values.items():
                if name.what == "user" and len(value.content) <= _SMALL:
                    args = small.setdefault(name.stream(self.keys), [])
                    args += name.rest, 2 * len(value.content)
                    for pair in value.content.items():
                        args += pair
                else:
                    key = name.in_store(self.keys)
                    pipeline.unlink(key)
                    _write(pipeline, key, value)
            pipeline.execute()
        call_partitions(self._write_hashes, [Call(stream, args) for stream, args in small.items()])

    def pages(self, name: KeyName) -> Iterator[list[tuple[bytes, float]]]:
        """The elements of a set or sorted set, some at a time, with their scores (1 in a set)."""
        cursor = None
        while cursor != 0:
            if name.is_set:
                cursor, found = self.client.sscan(name.key, cursor or 0, count=_ELEMENTS)
                yield [(element, 1) for element in found]
            else:
                cursor, found = self.client.zscan(name.key, cursor or 0, count=_ELEMENTS)
                yield found

    def elements(self, name: KeyName) -> int:
        """The number of elements of a set or sorted set, over all partitions."""
        with self.client.pipeline(transaction=False) as pipeline:
            for partition in range(self.keys.partitions):
                key = name.in_partition(self.keys, partition)
                if name.is_set:
                    pipeline.scard(key)
                else:
                    pipeline.zcard(key)
            sizes = pipeline.execute(raise_on_error=False)
        # A key of a wrong type has no elements.
        return sum(size for size in sizes if isinstance(size, int))

    def _nodes(self) -> list[redis.Redis]:
        """A client of each primary."""
        if isinstance(self.client, ClusterClient):
            return self.client.primaries()
        return [self.client]


def in_parts(items: Sequence[Any], size: int) -> Iterator[Any]:
    """The items, ``size`` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _write(pipeline: Any, key: bytes, value: Value) -> None:
    if value.type == b"string":
        pipeline.set(key, value.content)
    elif value.type == b"hash":
        for part in in_parts(list(value.content.items()), _ELEMENTS):
            pipeline.hset(key, mapping=dict(part))
    elif value.type == b"list":
        for part in in_parts(value.content, _ELEMENTS):
            pipeline.rpush(key, *part)
    elif value.type == b"zset":
        for part in in_parts(value.content, _ELEMENTS):
            pipeline.zadd(key, dict(part))
