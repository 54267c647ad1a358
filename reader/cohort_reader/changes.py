"""Membership changes, as the entries of a change stream hold them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from cohort_reader.keys import text


@dataclass(frozen=True, slots=True)
class MembershipChange:
    """Users who entered or left a cohort together, in one step of the receiver.

    Attributes:
        id: the entry's id, unique within its partition.
        version: increases with every change of a user; compare it as text. Store it with what you
            derive from a change, to recognise repeated and older changes.
        partition: the partition's number.
        cohort_id: the cohort.
        entered: True if they entered, False if they left.
        at_ms: when, in ms since the epoch: the sender's time, or else that of arrival.
        user_ids: the users, about a thousand at most.
        deliveries: how often it was delivered, including this time. If more than 1, it may have
            been handled before.
    """

    id: str
    version: str
    partition: int
    cohort_id: str
    entered: bool
    at_ms: int
    user_ids: tuple[str, ...]
    deliveries: int = 1


@dataclass(frozen=True, slots=True)
class FailedChange:
    """A change that was given up. ``id`` identifies it in the stream of failed changes."""

    id: str
    change: MembershipChange
    error: str


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a group is behind in one partition.

    Attributes:
        undelivered: entries not delivered yet; None if the store can't tell.
        pending: entries delivered but not acknowledged yet.
        lost: whether entries left the stream before they were handled, because the group was behind
            for longer than entries are kept, or because the group is gone, for example after the
            store lost its data. Stays set until :meth:`Follower.acknowledge_loss`. Entries erased
            with their users count as lost if the stream holds nothing older: the two can't be told
            apart.
    """

    partition: int
    undelivered: int | None
    pending: int
    lost: bool


class StreamEntry(NamedTuple):
    """One entry of a change stream, and how often it was delivered."""

    id: str
    fields: Mapping[str, str]
    deliveries: int


def to_change(partition: int, entry: StreamEntry) -> MembershipChange:
    """Convert an entry of a change stream."""
    milliseconds, _, sequence = entry.id.partition("-")
    return MembershipChange(
        id=entry.id,
        version=f"{milliseconds:0>20}-{sequence:0>20}",
        partition=partition,
        cohort_id=entry.fields["cohort"],
        entered=entry.fields["change"] == "entered",
        at_ms=int(entry.fields["at"]),
        user_ids=tuple(json.loads(entry.fields["users"])),
        deliveries=entry.deliveries,
    )


def decode_entries(reply: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """The ids and fields of stream entries, whether or not the client decodes replies."""
    for entry_id, fields in reply:
        yield text(entry_id), {text(name): text(value) for name, value in fields.items()}


def decode_script_entries(reply: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """The same for the reply of a script, in which fields are a flat list."""
    for entry_id, flat in reply:
        parts = [text(part) for part in flat]
        yield text(entry_id), dict(zip(parts[::2], parts[1::2], strict=True))
