"""Notes what becomes of each request, for the sync history.

A request costs no call to the store for this: it is noted in memory, and every second what was
noted is added to the store. docs/decisions/history.md says why.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import gevent
import structlog
from gevent.lock import RLock

from app.cohorts import Moves, Outcome, RequestRecord
from app.store import Store, StoreError, StoreRefused, SyncBatch, SyncGroup, split_batches
from app.telemetry.request_event import Answered, Listener

# Seconds between two looks at how large the cohorts are that have changed.
SIZES_SECONDS = 3.0
# Requests that are held while the store can't be had. The newest are let go of then: those before
# them show how it began.
MOST_HELD = 20_000
# Notes that are sorted at a stretch: about a millisecond.
NOTES_PER_TURN = 100
# A request for more cohorts is recorded once, not for each cohort.
MAX_COHORTS_LISTED = 8
# Longest wait for the store when the process ends, in seconds.
LAST_FLUSH_SECONDS = 1.0

_NO_MOVES = Moves()


class Note(NamedTuple):
    """What is noted while a request is answered."""

    at: float
    took: float
    status: int
    source: str
    event: Mapping[str, Any]
    outcome: Outcome | None


class Portion(NamedTuple):
    """What one call brings to the store; it may be repeated."""

    id: str
    app_id: str
    batches: list[SyncBatch]
    requests: int


class Recorder:
    """Holds what was noted, until the store has it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._log = structlog.get_logger()
        self._notes: deque[Note] = deque()
        self._portions: deque[Portion] = deque()
        self._held = 0
        self._lost = 0
        self._unknown: Counter[str] = Counter()
        self._changed: dict[str, set[str]] = {}
        self._sizes_due = 0.0
        self._waits = False
        self._lock = RLock()

    def note(self, note: Note) -> None:
        """Note one request."""
        if len(self._notes) + self._held < MOST_HELD:
            self._notes.append(note)
        else:
            self._lost += 1

    def work(self) -> None:
        """Add what was noted to the store. A store that can't be had is waited for."""
        try:
            self.flush(sizes=time.monotonic() >= self._sizes_due)
        except StoreError as error:
            if not self._waits:
                self._log.warning("sync history waits", reason=error.reason)
            self._waits = True
        else:
            if self._waits:
                self._log.warning("sync history goes on", requests_lost=self._lost)
            self._waits, self._lost = False, 0

    def finish(self) -> None:
        """Add what is left, if the store takes it soon: the process ends."""
        try:
            with gevent.Timeout(LAST_FLUSH_SECONDS):
                self.flush()
        except StoreError as error:
            self._log.warning("sync history is cut off", reason=error.reason)
        except gevent.Timeout:
            self._log.warning("sync history is cut off", reason="store_timeout")

    def flush(self, *, sizes: bool = True) -> None:
        """Add what was noted to the store. What it does not take is held. Raises StoreError."""
        with self._lock:
            self._sort_notes()
            while self._portions:
                portion = self._portions[0]
                try:
                    self._store.sync_history.add(portion.app_id, portion.batches, portion.id)
                except StoreError as error:
                    if not isinstance(error, StoreRefused):
                        raise  # it can be had again
                    # It would refuse the same for ever, and all that comes after would wait.
                    self._log.error("sync history refused", requests=portion.requests)
                self._portions.popleft()
                self._held -= portion.requests
            if self._unknown:
                self._store.sync_history.count_unknown(self._unknown)
                self._unknown.clear()
            if sizes:
                self._note_sizes()

    def _note_sizes(self) -> None:
        while self._changed:
            app_id, cohort_ids = next(iter(self._changed.items()))
            noted = sorted(cohort_ids)
            self._store.size_history.note(app_id, noted)
            del self._changed[app_id]
        self._sizes_due = time.monotonic() + SIZES_SECONDS

    def _sort_notes(self) -> None:
        """Make portions of what was noted."""
        groups: dict[SyncGroup, list[SyncBatch]] = {}
        for number in range(1, len(self._notes) + 1):
            self._take(self._notes.popleft(), groups)
            if number % NOTES_PER_TURN == 0:
                gevent.sleep(0)  # requests go before
        apps: dict[str, list[SyncBatch]] = {}
        for group, batches in groups.items():
            apps.setdefault(group.app_id, []).extend(batches)
        for app_id, batches in apps.items():
            for part in split_batches(batches):
                requests = sum(batch.size for batch in part)
                self._portions.append(Portion(secrets.token_hex(8), app_id, part, requests))
                self._held += requests

    def _take(self, note: Note, groups: dict[SyncGroup, list[SyncBatch]]) -> None:
        """Add a note to the batches that it belongs to."""
        event = note.event
        app_id = event.get("app")
        if app_id is None:
            self._unknown[event.get("reason", "")] += 1
            return
        moves = note.outcome.moves if note.outcome else {}
        if moves:
            self._changed.setdefault(app_id, set()).update(moves)
        reasons = event.get("rejected_by", {})
        for group, trait in _groups(app_id, note):
            record = _record(note, group, moves)
            batches = groups.setdefault(group, [])
            if not batches or not batches[-1].takes(record):
                batches.append(SyncBatch(group))
            batches[-1].trait = trait or batches[-1].trait
            batches[-1].add(record, reasons)


def _groups(app_id: str, note: Note) -> Iterator[tuple[SyncGroup, str]]:
    """Which syncs a request belongs to, each with the cohort's trait name."""
    traits = note.outcome.traits if note.outcome else {}
    if len(traits) > MAX_COHORTS_LISTED:
        yield SyncGroup(app_id, ""), ""
    elif traits:
        for cohort_id, trait in traits.items():
            yield SyncGroup(app_id, cohort_id), trait
    else:
        yield SyncGroup(app_id, "", f"{note.source}:{note.event.get('reason', '')}"), ""


def _record(note: Note, group: SyncGroup, moves: Mapping[str, Moves]) -> RequestRecord:
    event, outcome = note.event, note.outcome
    moved = moves.get(group.cohort_id, _NO_MOVES) if group.cohort_id else _sum(moves.values())
    return RequestRecord(
        at_ms=int(note.at * 1000),
        took_ms=round(note.took * 1000, 1),
        status=note.status,
        source=note.source,
        key=event.get("key", ""),
        request_id=event["request_id"],
        accepted=event.get("accepted", 0),
        changed=event.get("changed", 0),
        entered=moved.entered,
        left=moved.left,
        rejected=event.get("rejected", 0),
        repeated=event.get("repeated", False),
        reason=event.get("reason", "") if note.status >= 400 else "",
        detail=event.get("first_error", ""),
        rejections=tuple(outcome.rejections) if outcome else (),
    )


def _sum(moves: Iterable[Moves]) -> Moves:
    """Users who entered and left any of some cohorts."""
    entered = left = 0
    for move in moves:
        entered += move.entered
        left += move.left
    return Moves(entered, left)


def noting(recorder: Recorder) -> Listener:
    """A listener that notes every request to a source."""

    def note(answered: Answered) -> None:
        event, _, outcome, status, seconds = answered
        if source := event.get("source"):
            recorder.note(Note(time.time(), seconds, status, source, event, outcome))

    return note
