"""Record requests for the sync history.

Requests are buffered in memory and written to the store every second, so that none of them waits
for it. docs/decisions/history.md has the reasons.
"""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import gevent
import structlog
from gevent.lock import RLock

from app.cohorts import Moves, RequestRecord
from app.store import (
    Attempts,
    Store,
    StoreError,
    StoreRefused,
    SyncBatch,
    SyncGroup,
    Tuning,
    split_batches,
)
from app.telemetry.request_event import FinishedRequest, Listener

# Interval at which the sizes of changed cohorts are recorded.
SIZES_SECONDS = 3.0
# Grouping this many takes about a millisecond; then waiting requests get a turn.
REQUESTS_PER_TURN = 100
# A request for more cohorts is recorded once, not for each cohort.
MAX_COHORTS_LISTED = 8
# Longest wait for the store when the process ends.
LAST_FLUSH_SECONDS = 1.0

_NO_MOVES = Moves()


class Write(NamedTuple):
    """One call to the store; its id makes it safe to repeat."""

    id: str
    batches: list[SyncBatch]
    requests: int


class SyncRecorder:
    """Buffers finished requests until the store has recorded them."""

    def __init__(self, store: Store, tuning: Tuning) -> None:
        self._monotonic = tuning.monotonic
        # How far the store's clock is ahead of the monotonic one.
        self._ahead: float | None = None
        self._max_buffered = tuning.history_buffered
        self._store = store
        self._log = structlog.get_logger()
        # Each with the time at which it finished, on the monotonic clock.
        self._finished: deque[tuple[float, FinishedRequest]] = deque()
        # By app, oldest first: one app's part of the store may be unavailable while others are not.
        self._writes: dict[str, deque[Write]] = {}
        self._waiting: Counter[str] = Counter()
        self._dropped = 0
        self._unknown: Counter[str] = Counter()
        self._changed: dict[str, set[str]] = {}
        self._sizes_due = 0.0
        self._is_paused = False
        self._lock = RLock()

    def record(self, request: FinishedRequest) -> None:
        """Buffer a request."""
        full = len(self._finished) + self._waiting.total() >= self._max_buffered
        if not full or self._make_room(request.event.get("app")):
            self._finished.append((self._monotonic(), request))
        else:
            self._dropped += 1

    def _make_room(self, app_id: str | None) -> bool:
        """Drop the latest requests of the app with the most buffered, unless it is this app."""
        if app_id is None or not self._waiting:
            return False
        largest, waiting = self._waiting.most_common(1)[0]
        # The first write may be on its way to the store.
        if waiting <= self._waiting[app_id] or len(self._writes[largest]) < 2:
            return False
        dropped = self._writes[largest].pop().requests
        self._waiting[largest] -= dropped
        self._dropped += dropped
        return True

    def work(self) -> None:
        """Flush; while the store is unavailable, leave it to the next call."""
        try:
            self.flush(sizes=self._monotonic() >= self._sizes_due)
        except StoreError as error:
            if not self._is_paused:
                self._log.warning("sync history paused", **error.log_fields)
            self._is_paused = True
        else:
            if self._is_paused:
                self._log.warning("sync history resumed", requests_dropped=self._dropped)
            self._is_paused, self._dropped = False, 0

    def finish(self) -> None:
        """Flush before the process ends, within :data:`LAST_FLUSH_SECONDS`."""
        try:
            with gevent.Timeout(LAST_FLUSH_SECONDS):
                self.flush()
        except StoreError as error:
            self._log.warning("sync history incomplete", **error.log_fields)
        except gevent.Timeout:
            self._log.warning("sync history incomplete", reason="store_timeout")

    def flush(self, *, sizes: bool = True) -> None:
        """Write what is buffered to the store; what cannot be written stays buffered.

        Args:
            sizes: also record the sizes of the cohorts that changed.

        Raises:
            StoreError: the store is unavailable.
        """
        with self._lock:
            self._prepare_writes()
            attempts = Attempts()
            for app_id in list(self._writes):
                with attempts.one():
                    self._write(app_id)
            if self._unknown:
                with attempts.one():
                    self._store.sync_history.count_unknown_callers(self._unknown)
                    self._unknown.clear()
            if sizes:
                for app_id in list(self._changed):
                    with attempts.one():
                        self._record_sizes(app_id)
                self._sizes_due = self._monotonic() + SIZES_SECONDS
            attempts.raise_first()

    def _write(self, app_id: str) -> None:
        writes = self._writes[app_id]
        while writes:
            write = writes[0]
            try:
                self._store.sync_history.add(app_id, write.batches, write.id)
            except StoreRefused:
                # Repeating it would fail again, and block all later writes.
                self._log.error("sync history refused", requests=write.requests)
            writes.popleft()
            self._waiting[app_id] -= write.requests
        del self._writes[app_id], self._waiting[app_id]

    def _record_sizes(self, app_id: str) -> None:
        recorded = sorted(self._changed[app_id])
        self._store.size_history.record(app_id, recorded)
        del self._changed[app_id]

    def _prepare_writes(self) -> None:
        """Group the buffered requests into as few writes as possible."""
        if not self._finished:
            return
        # Times are the store's, as this process's clock may be wrong or change.
        try:
            self._ahead = self._store.now() - self._monotonic()
        except StoreError:
            if self._ahead is None:  # otherwise the last known offset is good enough
                raise
        now = self._ahead + self._monotonic()
        groups: dict[SyncGroup, list[SyncBatch]] = {}
        for number in range(1, len(self._finished) + 1):
            finished_at, request = self._finished.popleft()
            self._group(self._ahead + finished_at, request, groups)
            if number % REQUESTS_PER_TURN == 0:
                gevent.sleep(1e-6)  # not 0: gevent would not poll for new input first
        apps: dict[str, list[SyncBatch]] = {}
        for group, batches in groups.items():
            for batch in batches:
                batch.now_ms = int(now * 1000)
            apps.setdefault(group.app_id, []).extend(batches)
        for app_id, batches in apps.items():
            for part in split_batches(batches):
                requests = sum(batch.size for batch in part)
                write = Write(secrets.token_hex(8), part, requests)
                self._writes.setdefault(app_id, deque()).append(write)
                self._waiting[app_id] += requests

    def _group(
        self, at: float, request: FinishedRequest, groups: dict[SyncGroup, list[SyncBatch]]
    ) -> None:
        """Add a request to the batch of each sync that it is part of."""
        event, outcome = request.event, request.outcome
        app_id = event.get("app")
        if app_id is None or "source" not in event:
            self._unknown[event.get("reason", "")] += 1
            return
        moves = outcome.moves if outcome else {}
        if moves:
            self._changed.setdefault(app_id, set()).update(moves)
        reasons = event.get("rejected_by", {})
        for group, trait in _groups(app_id, request):
            record = _record(at, request, group, moves)
            batches = groups.setdefault(group, [])
            if not batches or not batches[-1].has_room_for(record):
                batches.append(SyncBatch(group))
            batches[-1].trait = trait or batches[-1].trait
            batches[-1].add(record, reasons)
            if outcome and outcome.left_out:
                batches[-1].leave_out(outcome.left_out)


def _groups(app_id: str, request: FinishedRequest) -> Iterator[tuple[SyncGroup, str]]:
    """The syncs that a request is part of, each with the cohort's trait name."""
    event, outcome = request.event, request.outcome
    traits = outcome.traits if outcome else {}
    if len(traits) > MAX_COHORTS_LISTED:
        yield SyncGroup(app_id, ""), ""
    elif traits:
        for cohort_id, trait in traits.items():
            yield SyncGroup(app_id, cohort_id), trait
    else:
        yield SyncGroup(app_id, "", f"{event['source']}:{event.get('reason', '')}"), ""


def _record(
    at: float, request: FinishedRequest, group: SyncGroup, moves: Mapping[str, Moves]
) -> RequestRecord:
    event, outcome = request.event, request.outcome
    moved = moves.get(group.cohort_id, _NO_MOVES) if group.cohort_id else _sum(moves.values())
    return RequestRecord(
        at_ms=int(at * 1000),
        took_ms=round(request.seconds * 1000, 1),
        status=request.status,
        source=event["source"],
        key=event.get("key", ""),
        request_id=event["request_id"],
        accepted=event.get("accepted", 0),
        changed=event.get("changed", 0),
        entered=moved.entered,
        left=moved.left,
        # Suppressed users are skipped as intended: no problem of the sync.
        rejected=event.get("rejected", 0) - event.get("rejected_by", {}).get("suppressed_user", 0),
        repeated=event.get("repeated", False),
        reason=event.get("reason", "") if request.status >= 400 else "",
        detail=event.get("first_error", ""),
        rejections=tuple(outcome.rejections) if outcome else (),
        unknown_cohort=_unknown_cohort(request),
    )


def _unknown_cohort(request: FinishedRequest) -> str:
    """The id in a refused request that names no known cohort; "" after other failures."""
    refused = request.outcome is None and 400 <= request.status < 500
    return request.event.get("cohorts", [""])[0] if refused else ""


def _sum(moves: Iterable[Moves]) -> Moves:
    """Users who entered and left any of some cohorts."""
    entered = left = 0
    for move in moves:
        entered += move.entered
        left += move.left
    return Moves(entered, left)


def record_requests(recorder: SyncRecorder) -> Listener:
    """A listener that records every request for one of the sources (app/web/ingest).

    It also records requests of known callers to a wrong path or method: they may have been meant
    for a source.
    """

    def record(request: FinishedRequest) -> None:
        event = request.event
        if "source" in event or (not request.blueprint and "app" in event and "reason" in event):
            recorder.record(request)

    return record
