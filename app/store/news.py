"""What to notify about, once: cohorts that became incomplete, verified or late, and losses."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import redis

from app.store.connection.scripts import load_script
from app.store.errors import store_errors
from app.store.keys import Keys

TRANSITIONS_AT_ONCE = 200
# About 1 ms of the store's time.
COHORTS_AT_ONCE = 1000
# Longer than one notification may take, retries included.
LEASE_MS = 120_000


class Transition(NamedTuple):
    """A change of a cohort's completeness.

    Attributes:
        before, after: the states.
        raised: the reason that was raised, or empty.
        cleared: the reasons that were cleared.
    """

    id: str
    cohort_id: str
    before: str
    after: str
    raised: str
    cleared: tuple[str, ...]


class Batch(NamedTuple):
    """The next transitions of a partition. Notifications were sent about none or some of them.

    Attributes:
        sent: how many notifications.
    """

    transitions: list[Transition]
    sent: int = 0


class Lateness(NamedTuple):
    """Cohorts that have become late; that are no longer late; and that were deleted while late."""

    late: list[str]
    arriving: list[str]
    gone: list[str]


class News:
    """Finds what to notify about, and records what was sent. Raises StoreError."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._notified = load_script(client, "notified.lua")
        self._lateness = load_script(client, "lateness.lua")
        self._lease = load_script(client, "lease.lua")
        self._token = secrets.token_hex(8)

    def lease(self, app_id: str) -> bool:
        """Acquire or renew the lease of an app's notifications."""
        key = self._keys.notifier_lease(app_id)
        with store_errors():
            return bool(self._lease(keys=[key], args=[self._token, LEASE_MS]))

    def begin(self, app_id: str, partition: int, since_ms: int) -> None:
        """Pass over the transitions before a time, unless the partition has a position already."""
        with store_errors():
            if self._positions(app_id, partition, "transitions") == [None]:
                self._call(app_id, partition, "transitions", f"{since_ms}-0")

    def batch(self, app_id: str, partition: int) -> Batch:
        """The next transitions of a partition. The first time, those before now are passed over.

        A batch stays the same until notifications about all of it were sent, unless its first
        transitions are trimmed; then none counts as sent.
        """
        stream = self._keys.transitions(app_id, partition)
        with store_errors():
            position, begun, first = self._positions(
                *(app_id, partition), "transitions", "sent", "first"
            )
            if position is None:
                last: Any = self._client.xrevrange(stream, count=1)
                self.passed_over(app_id, partition, last[0][0].decode() if last else "0-0")
                return Batch([])
            until, _, sent = (begun or "+ 0").partition(" ")
            after = f"({position}"
            found: Any = self._client.xrange(stream, after, until, count=TRANSITIONS_AT_ONCE)
            if begun and not found:  # the stream has expired or was trimmed
                self.passed_over(app_id, partition, position)
                return self.batch(app_id, partition)
        transitions = [_transition(entry_id, entry) for entry_id, entry in found]
        # If the first ones were trimmed, it is unknown which notifications were sent.
        is_trimmed = begun and transitions[0].id != first
        return Batch(transitions, 0 if is_trimmed else int(sent))

    def note_sent(self, app_id: str, partition: int, batch: Batch, sent: int) -> None:
        """Record how many notifications about a batch were sent."""
        first, last = batch.transitions[0].id, batch.transitions[-1].id
        self._call(app_id, partition, "sent", f"{last} {sent}", first)

    def passed_over(self, app_id: str, partition: int, transition_id: str) -> None:
        """Record that transitions up to this one need no more notification."""
        self._call(app_id, partition, "transitions", transition_id)

    def lateness(self, app_id: str, partition: int) -> Iterator[Lateness]:
        """Cohorts of a home partition whose lateness has changed, some at a time."""
        stream, skipped = self._keys.changes(app_id, partition), 0
        looked_at = COHORTS_AT_ONCE
        while looked_at == COHORTS_AT_ONCE:
            with store_errors():
                *lists, looked_at = self._lateness(keys=[stream], args=[COHORTS_AT_ONCE, skipped])
            skipped += looked_at
            yield Lateness(*([cohort_id.decode() for cohort_id in ids] for ids in lists))

    def note_lateness(
        self, app_id: str, partition: int, what: str, cohort_ids: Sequence[str]
    ) -> None:
        """Record that notifications about some of a :class:`Lateness` were sent.

        Args:
            what: the name of its attribute.
        """
        self._call(app_id, partition, what, *cohort_ids)

    def last_loss_ms(self, app_id: str) -> int | None:
        """When the loss in the last notification was found; None if there was none."""
        home = self._keys.partition(app_id)
        with store_errors():
            (found,) = self._positions(app_id, home, "loss")
        return None if found is None else int(found)

    def note_loss(self, app_id: str, at_ms: int) -> None:
        """Record that a notification about a loss was sent."""
        self._call(app_id, self._keys.partition(app_id), "loss", str(at_ms))

    def _positions(self, app_id: str, partition: int, *fields: str) -> list[str | None]:
        found: Any = self._client.hmget(self._keys.notified(app_id, partition), *fields)
        return [None if value is None else str(value.decode()) for value in found]

    def _call(self, app_id: str, partition: int, *args: str) -> None:
        with store_errors():
            self._notified(keys=[self._keys.changes(app_id, partition)], args=list(args))


def _transition(entry_id: bytes, entry: dict[bytes, bytes]) -> Transition:
    cohort, before, after, raised, cleared = (
        entry.get(name, b"").decode() for name in (b"cohort", b"from", b"to", b"raised", b"cleared")
    )
    reasons = tuple(filter(None, cleared.split(",")))
    return Transition(entry_id.decode(), cohort, before, after, raised, reasons)


def changed_cohorts(transitions: Sequence[Transition]) -> list[tuple[str, str, list[str]]]:
    """The transitions that matter: what happened, the reason, and the cohorts.

    Cohorts to which the same happened are together, unless that would change the order of what
    happened to one of them.
    """
    groups: list[tuple[str, str, list[str]]] = []
    # The position of the last group of each kind, and of the last one that each cohort is in.
    last_of: dict[tuple[str, str], int] = {}
    last_with: dict[str, int] = {}
    for transition in transitions:
        if transition.after == "incomplete" and transition.raised:
            kind = ("incomplete", transition.raised)
        elif transition.before == "incomplete" and transition.after in ("verified", "unverified"):
            kind = (transition.after, "")
        else:
            continue
        at = last_of.get(kind, -1)
        if at <= last_with.get(transition.cohort_id, -1):
            at = last_of[kind] = len(groups)
            groups.append((*kind, []))
        groups[at][2].append(transition.cohort_id)
        last_with[transition.cohort_id] = at
    return groups
