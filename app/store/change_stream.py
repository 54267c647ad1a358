"""Read the change feed: the change streams of all partitions of an app as one."""

from __future__ import annotations

import heapq
from typing import Any, NamedTuple

import redis

from app.store.connection.calls import Call
from app.store.connection.scripts import call_partitions, load_script
from app.store.errors import store_errors
from app.store.keys import Keys
from app.store.tuning import DEFAULT, Tuning


class EntryId(NamedTuple):
    """The id of a stream entry. The store assigns them in order, from its clock."""

    ms: int
    number: int

    @classmethod
    def parse(cls, text: bytes | str) -> EntryId:
        """Parse the store's format, such as ``1700000000000-0``."""
        if isinstance(text, bytes):
            text = text.decode()
        ms, _, number = text.partition("-")
        return cls(int(ms), int(number))

    def __str__(self) -> str:
        return f"{self.ms}-{self.number}"


# For each partition, the entry read last; None to start with the oldest one.
FeedPosition = tuple[EntryId | None, ...]


class ChangeEntry(NamedTuple):
    """An entry of a change stream: users who entered or left a cohort in one step.

    Attributes:
        change: ``entered`` or ``left``.
        users: their ids, as a JSON array.
    """

    partition: int
    id: EntryId
    cohort_id: str
    change: str
    at_ms: int
    users: bytes


class ChangePage(NamedTuple):
    """Some entries, the positions before and after them, and whether there are more.

    Both positions have an entry id for every partition, so that a reader who continues from there
    notices lost entries. Entries are in order within a partition; across partitions they are
    sorted by id, that is, by the clocks of the nodes.
    """

    changes: list[ChangeEntry]
    before: FeedPosition
    after: FeedPosition
    more: bool


class PositionLost(Exception):
    """Entries after this position were trimmed, or the store was emptied or restored."""


class ChangeStream:
    """Reads the change feed. Raises StoreError."""

    def __init__(self, client: redis.Redis, keys: Keys, tuning: Tuning = DEFAULT) -> None:
        self._client = client
        self._keys = keys
        self._bytes_per_call = tuning.change_bytes_per_call
        self._read = load_script(client, "changes.lua")

    def oldest(self) -> FeedPosition:
        """The position before the oldest entry."""
        return (None,) * self._keys.partitions

    def newest(self, app_id: str) -> FeedPosition:
        """The position after the newest entry."""
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for partition in range(self._keys.partitions):
                pipeline.get(self._keys.last_change(app_id, partition))
            return tuple(EntryId.parse(last or b"0-0") for last in pipeline.execute())

    def read(self, app_id: str, position: FeedPosition, *, limit: int) -> ChangePage:
        """Up to ``limit`` entries after a position; there may be none.

        Raises:
            PositionLost: entries after the position are gone, or the position itself is: the store
                was emptied or restored.
        """
        partitions = self._keys.partitions
        if len(position) != partitions:
            raise PositionLost
        limits = -(-limit // partitions), -(-self._bytes_per_call // partitions)
        with store_errors():
            calls = [
                Call(
                    self._keys.changes(app_id, partition),
                    ["" if last is None else str(last), *limits],
                )
                for partition, last in enumerate(position)
            ]
            replies = call_partitions(self._read, calls)
        if any(lost for lost, *_ in replies):
            raise PositionLost
        found = [
            [_change(partition, entry) for entry in entries]
            for partition, (_, _, _, entries, _) in enumerate(replies)
        ]
        changes = list(heapq.merge(*found, key=lambda change: (change.id, change.partition)))
        # If no entry follows the position, the script returns the stream's newest id: any entries
        # in between were erased.
        before = [EntryId.parse(start) for *_, start in replies]
        after = before.copy()
        more = len(changes) > limit or any(more for _, _, more, _, _ in replies)
        del changes[limit:]
        for change in changes:
            after[change.partition] = change.id
        return ChangePage(changes, tuple(before), tuple(after), more)


def _change(partition: int, entry: Any) -> ChangeEntry:
    entry_id, flat = entry
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    return ChangeEntry(
        partition,
        EntryId.parse(entry_id),
        fields[b"cohort"].decode(),
        fields[b"change"].decode(),
        int(fields[b"at"]),
        fields[b"users"],
    )
