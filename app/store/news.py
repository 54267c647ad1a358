"""What to notify about, once: cohorts that became incomplete, verified or late, and losses."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
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


class Lateness(NamedTuple):
    """Cohorts that have become late; that are no longer late; and that were deleted while late."""

    late: list[str]
    arriving: list[str]
    gone: list[str]


class News:
    """Reads what nobody was notified of yet, and records notifications. Raises StoreError."""

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

    def transitions(self, app_id: str, partition: int) -> list[Transition]:
        """The next transitions of a partition. The first time, those before now are passed over."""
        stream = self._keys.transitions(app_id, partition)
        with store_errors():
            position = self._position(app_id, partition, "transitions")
            if position is None:
                last: Any = self._client.xrevrange(stream, count=1)
                self.passed_over(app_id, partition, last[0][0].decode() if last else "0-0")
                return []
            found: Any = self._client.xrange(stream, f"({position}", count=TRANSITIONS_AT_ONCE)
        return [_transition(entry_id, entry) for entry_id, entry in found]

    def passed_over(self, app_id: str, partition: int, transition_id: str) -> None:
        """Record that transitions up to this one need no more notification."""
        self._call(app_id, partition, "transitions", transition_id)

    def lateness(self, app_id: str, partition: int) -> Lateness:
        """Cohorts of a home partition whose lateness has changed."""
        stream = self._keys.changes(app_id, partition)
        with store_errors():
            found = self._lateness(keys=[stream], args=[COHORTS_AT_ONCE])
        return Lateness(*([cohort_id.decode() for cohort_id in ids] for ids in found))

    def note_lateness(self, app_id: str, partition: int, lateness: Lateness) -> None:
        """Record that notifications about lateness were sent."""
        for what, cohort_ids in lateness._asdict().items():
            if cohort_ids:
                self._call(app_id, partition, what, *cohort_ids)

    def last_loss_ms(self, app_id: str) -> int | None:
        """When the last loss that was notified was found; None if none was."""
        home = self._keys.partition(app_id)
        with store_errors():
            found = self._position(app_id, home, "loss")
        return None if found is None else int(found)

    def note_loss(self, app_id: str, at_ms: int) -> None:
        """Record that a notification about a loss was sent."""
        self._call(app_id, self._keys.partition(app_id), "loss", str(at_ms))

    def _position(self, app_id: str, partition: int, what: str) -> str | None:
        found: Any = self._client.hget(self._keys.notified(app_id, partition), what)
        return None if found is None else str(found.decode())

    def _call(self, app_id: str, partition: int, *args: str) -> None:
        with store_errors():
            self._notified(keys=[self._keys.changes(app_id, partition)], args=list(args))


def _transition(entry_id: bytes, entry: dict[bytes, bytes]) -> Transition:
    cohort, before, after, raised, cleared = (
        entry.get(name, b"").decode() for name in (b"cohort", b"from", b"to", b"raised", b"cleared")
    )
    reasons = tuple(filter(None, cleared.split(",")))
    return Transition(entry_id.decode(), cohort, before, after, raised, reasons)


def changed_cohorts(transitions: Sequence[Transition]) -> dict[tuple[str, str], list[str]]:
    """The cohorts of transitions that matter, by what happened and the reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for transition in transitions:
        if transition.after == "incomplete" and transition.raised:
            what = ("incomplete", transition.raised)
        elif transition.before == "incomplete" and transition.after in ("verified", "unverified"):
            what = (transition.after, "")
        else:
            continue
        found.setdefault(what, []).append(transition.cohort_id)
    return found
