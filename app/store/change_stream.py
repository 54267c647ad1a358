"""Reading the change feed: the change streams of all of an app's partitions as one."""

from __future__ import annotations

import heapq
from typing import Any, NamedTuple

import redis

from app.store.connection.calls import Call
from app.store.connection.scripts import call_partitions, load_script
from app.store.errors import translated
from app.store.keys import Keys

# Bytes of users after which a call reads no further changes.
BYTES_PER_CALL = 512 * 1024


class EntryId(NamedTuple):
    """The id of a stream's entry. The store makes them in order, from its clock."""

    ms: int
    number: int

    @classmethod
    def parse(cls, text: bytes | str) -> EntryId:
        """Read it as the store writes it: ``1700000000000-0``."""
        if isinstance(text, bytes):
            text = text.decode()
        ms, _, number = text.partition("-")
        return cls(int(ms), int(number))

    def __str__(self) -> str:
        return f"{self.ms}-{self.number}"


# A place in the feed: for each partition the entry that was read last, or None to begin with the
# oldest one that is held.
Place = tuple[EntryId | None, ...]


class Change(NamedTuple):
    """Users who entered or left a cohort together: one entry of a change stream.

    Attributes:
        users: their ids, as a JSON array.
    """

    partition: int
    id: EntryId
    cohort_id: str
    change: str
    at_ms: int
    users: bytes


class Page(NamedTuple):
    """Some changes, the places before and after them, and whether there are more already.

    Both places are known in every partition, so that whoever goes on from there is told when
    something was lost meanwhile.

    Each partition's changes are in order. There is none between partitions: a page has them by
    their ids, which are times of the store's clock.
    """

    changes: list[Change]
    before: Place
    place: Place
    more: bool


class PlaceLost(Exception):
    """Changes after this place are gone: they left the stream by age or number."""


class ChangeStream:
    """Reads the change feed. Raises StoreError."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._read = load_script(client, "changes.lua")

    def oldest(self) -> Place:
        """The place before all that is held."""
        return (None,) * self._keys.partitions

    def newest(self, app_id: str) -> Place:
        """The place after all that there is."""
        with translated(), self._client.pipeline(transaction=False) as pipeline:
            for partition in range(self._keys.partitions):
                pipeline.get(self._keys.last_change(app_id, partition))
            return tuple(EntryId.parse(last or b"0-0") for last in pipeline.execute())

    def read(self, app_id: str, place: Place, *, limit: int) -> Page:
        """Up to ``limit`` changes after a place, which may come back empty.

        Raises:
            PlaceLost: something between the place and the oldest change held is gone.
        """
        partitions = self._keys.partitions
        if len(place) != partitions:
            raise PlaceLost
        each = -(-limit // partitions), -(-BYTES_PER_CALL // partitions)
        with translated():
            calls = [
                Call(
                    self._keys.changes(app_id, partition),
                    ["" if last is None else str(last), *each],
                )
                for partition, last in enumerate(place)
            ]
            replies = call_partitions(self._read, calls)
        if any(lost for lost, *_ in replies):
            raise PlaceLost
        found = [
            [_change(partition, entry) for entry in entries]
            for partition, (_, _, _, entries, _) in enumerate(replies)
        ]
        shown = list(heapq.merge(*found, key=lambda change: (change.id, change.partition)))
        # Where nothing is left to read that is the end, whatever was erased before it.
        before = [EntryId.parse(start) for *_, start in replies]
        after = before.copy()
        more = len(shown) > limit or any(more for _, _, more, _, _ in replies)
        del shown[limit:]
        for change in shown:
            after[change.partition] = change.id
        return Page(shown, tuple(before), tuple(after), more)


def _change(partition: int, entry: Any) -> Change:
    entry_id, flat = entry
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    return Change(
        partition,
        EntryId.parse(entry_id),
        fields[b"cohort"].decode(),
        fields[b"change"].decode(),
        int(fields[b"at"]),
        fields[b"users"],
    )
