"""Record with each cohort the users who were left out, and the requests that failed permanently.

A request that is refused (4xx) has failed permanently. If it failed because of an error of this
service or its store (5xx), a rate limit or a timeout, Amplitude retries it for some minutes: it has
failed permanently if no process has seen the same request succeed by then. Like the sync history,
all of this is buffered, so that no request waits for it, and written when the store is available.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict, deque
from contextlib import suppress
from typing import NamedTuple

import gevent
import structlog

from app.store import FailedRequest, Store, StoreError, StoreRefused, Tuning
from app.telemetry.request_event import FinishedRequest, Listener

# Amplitude retries a request eight times; the longest pause before a retry is over two minutes.
RETRIED_SECONDS = 300.0
# How long a process decides about an app's failures after it last handled a request of the app.
LOOKED_AFTER_SECONDS = 1800.0
SETTLE_SECONDS = 5.0
# How often a process looks for unsettled failures in apps whose requests it does not handle.
LOOK_SECONDS = 60.0
# A request for more cohorts is not recorded.
MAX_COHORTS = 100
# The users left out by a request for more cohorts are not counted: the number for each cohort
# is unknown.
MAX_COHORTS_LEFT_OUT = 8
REQUESTS_PER_TURN = 200
# Longest wait for the store when the process ends.
LAST_FLUSH_SECONDS = 1.0
# Statuses after which a sender retries the request, as it does after any 5xx.
RETRIED = frozenset((408, 429))
# Users are left out for these reasons, and cohorts are complete without them.
LEFT_OUT = ("invalid_user_id", "unknown_user")
_NOBODY: dict[str, int] = {}
# A cohort that is being deleted accepts nothing, as intended.
_NO_FAILURE = frozenset((*LEFT_OUT, "cohort_being_deleted", "suppressed_user"))


class _Sent(NamedTuple):
    """What is recorded of a finished request.

    Attributes:
        at: when it ended, on the monotonic clock; for a failed one, when it began.
    """

    at: float
    app_id: str
    cohort_ids: tuple[str, ...]
    content: int
    status: int
    reason: str
    left_out: dict[str, int]

    @property
    def has_failed(self) -> bool:
        """Whether its users are missing unless a retry succeeds."""
        return self.status >= 400 and self.reason not in _NO_FAILURE


class _Refused(NamedTuple):
    """Requests that failed permanently, and when the last of them began, in ms since the epoch."""

    requests: int
    last_ms: int


class SyncProblems:
    """Buffers what finished requests say about cohorts until the store has recorded it."""

    def __init__(self, store: Store, tuning: Tuning) -> None:
        self._store = store
        self._monotonic = tuning.monotonic
        # How far the store's clock is ahead of the monotonic one. All processes compare times by
        # the store's clock: this process's may be wrong, or change.
        self._ahead: float | None = None
        self._max_buffered = tuning.history_buffered
        self._log = structlog.get_logger()
        self._max_succeeded = tuning.successes_remembered
        self._sent: deque[_Sent] = deque()
        self._left_out: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._refused: dict[tuple[str, str], _Refused] = {}
        self._failed: defaultdict[str, dict[FailedRequest, int]] = defaultdict(dict)
        self._succeeded: dict[tuple[str, FailedRequest], float] = {}
        self._apps: dict[str, float] = {}
        self._settle_at = 0.0
        self._look_at = -math.inf
        self._settled: dict[str, int] = {}

    def record(self, request: FinishedRequest) -> None:
        """Buffer a request, if it names cohorts."""
        event, outcome = request.event, request.outcome
        if (
            outcome is None
            or len(outcome.traits) > MAX_COHORTS
            or "app" not in event
            or len(self._sent) >= self._max_buffered
        ):
            return
        left_out = _NOBODY
        rejected = event.get("rejected_by")
        if rejected and len(outcome.traits) <= MAX_COHORTS_LEFT_OUT:
            left_out = {reason: rejected[reason] for reason in LEFT_OUT if reason in rejected}
        self._sent.append(
            _Sent(
                self._monotonic() - (request.seconds if request.status >= 400 else 0),
                event["app"],
                (*outcome.traits, *outcome.unverified),
                outcome.content,
                request.status,
                event.get("reason", ""),
                left_out,
            )
        )

    def work(self) -> None:
        """Write what is buffered, and decide about earlier failures; if the store fails, later."""
        try:
            self._ahead = self._store.now() - self._monotonic()
        except StoreError:
            if self._ahead is None:  # otherwise the last known offset is good enough
                return
        self._sort()
        self._flush()
        self._decide()

    def finish(self) -> None:
        """Write what is buffered before the process ends, within LAST_FLUSH_SECONDS."""
        with gevent.Timeout(LAST_FLUSH_SECONDS, False):  # type: ignore[arg-type]
            self.work()
        failed = (sent.app_id for sent in self._sent if sent.has_failed)
        for app_id in sorted({*failed, *self._failed, *(app_id for app_id, _ in self._refused)}):
            self._log_refused(app_id)

    def _sort(self) -> None:
        for number in range(1, len(self._sent) + 1):
            self._sort_one(self._sent.popleft())
            if number % REQUESTS_PER_TURN == 0:
                gevent.sleep(1e-6)  # not 0: gevent would not poll for new input first
        while len(self._succeeded) > self._max_succeeded:
            del self._succeeded[next(iter(self._succeeded))]

    def _sort_one(self, sent: _Sent) -> None:
        app_id, at = sent.app_id, sent.at
        self._apps[app_id] = at
        for cohort_id in sent.cohort_ids:
            if sent.left_out and self._has_room():
                self._left_out[app_id, cohort_id].update(sent.left_out)
            request = FailedRequest(cohort_id, sent.content)
            if sent.status < 400:
                for key in (request, FailedRequest(cohort_id, 0)):
                    self._succeeded.pop((app_id, key), None)  # the newest are at the end
                    self._succeeded[app_id, key] = at
            elif not sent.has_failed or not self._has_room():
                continue
            elif sent.status >= 500 or sent.status in RETRIED:
                if len(self._failed[app_id]) < self._max_buffered:
                    self._failed[app_id][request] = self._store_ms(at)
            else:
                self._add_refused(app_id, cohort_id, self._store_ms(at))

    def _add_refused(self, app_id: str, cohort_id: str, at_ms: int) -> None:
        requests, last_ms = self._refused.get((app_id, cohort_id), (0, 0))
        self._refused[app_id, cohort_id] = _Refused(requests + 1, max(last_ms, at_ms))

    def _store_ms(self, at: float) -> int:
        """Convert a time of the monotonic clock to the store's time, in ms since the epoch."""
        assert self._ahead is not None, "`work` has read it"
        return int((self._ahead + at) * 1000)

    def _has_room(self) -> bool:
        return len(self._left_out) + len(self._refused) < self._max_buffered

    def _flush(self) -> None:
        """Write what is buffered. An unavailable partition does not delay the others."""
        unavailable: set[tuple[str, int]] = set()
        for key in dict.fromkeys((*self._left_out, *self._refused)):
            app_id, cohort_id = key
            place = app_id, self._store.keys.partition(cohort_id)
            if place in unavailable:
                continue
            try:
                self._flush_cohort(app_id, cohort_id)
            except StoreRefused:
                self._log_refused(app_id)
                self._left_out.pop(key, None)
                self._refused.pop(key, None)
            except StoreError:
                unavailable.add(place)
        for app_id, failed in list(self._failed.items()):
            try:
                self._store.failed_requests.add(app_id, failed)
            except StoreRefused:
                self._log_refused(app_id)
            except StoreError:
                continue
            del self._failed[app_id]

    def _flush_cohort(self, app_id: str, cohort_id: str) -> None:
        completeness, key = self._store.completeness, (app_id, cohort_id)
        if counts := self._left_out.get(key):
            while counts:
                reason, users = next(iter(counts.items()))
                completeness.leave_out(app_id, cohort_id, {reason: users})
                del counts[reason]
            del self._left_out[key]
        if refused := self._refused.get(key):
            completeness.add_failed(app_id, cohort_id, *refused)
            del self._refused[key]

    def _log_refused(self, app_id: str) -> None:
        # What was to be written is dropped: repeating it would fail again, and block what follows.
        self._log.error("sync problems not recorded", app=app_id)

    def _decide(self) -> None:
        """Forget failures whose retry succeeded; record the others as permanent once time is up."""
        now = self._monotonic()
        if now >= self._look_at:
            self._look_after_others(now)
            self._look_at = now + LOOK_SECONDS
        settle = time.monotonic() >= self._settle_at
        for app_id, at in list(self._apps.items()):
            if now - at > LOOKED_AFTER_SECONDS:
                del self._apps[app_id]
                self._settled.pop(app_id, None)
                continue
            self._decide_about(app_id, now, settle=settle)
        if settle:
            self._settle_at = time.monotonic() + SETTLE_SECONDS

    def _look_after_others(self, now: float) -> None:
        """Also decide about apps whose requests this process has not handled lately."""
        with suppress(StoreError):
            for app_id in self._store.apps():
                if app_id not in self._apps:
                    self._decide_about(app_id, now, settle=True)

    def _decide_about(self, app_id: str, now: float, *, settle: bool) -> None:
        try:
            self._settle(app_id, now, settle=settle)
        except StoreRefused:
            self._log_refused(app_id)
        except StoreError:
            pass  # the next call tries again

    def _settle(self, app_id: str, now: float, *, settle: bool) -> None:
        failed = self._store.failed_requests.all(app_id)
        good = {one for one, at_ms in failed.items() if self._is_good(app_id, one, at_ms)}
        if good:
            self._store.failed_requests.take(app_id, good)
        # A time far in the future was written while the store's clock was wrong.
        first, last = (self._store_ms(now + s) for s in (-RETRIED_SECONDS, RETRIED_SECONDS))
        final = [
            one for one, at_ms in failed.items() if not first <= at_ms <= last and one not in good
        ]
        if final:
            for one in self._store.failed_requests.take(app_id, final):
                self._add_refused(app_id, one.cohort_id, failed[one])
            self._flush()  # at once: if this process is killed, what it has taken is lost
        if settle:
            open_ids = {one.cohort_id for one in failed}
            start = self._settled.get(app_id, 0)
            self._settled[app_id] = self._store.completeness.settle_failed(app_id, open_ids, start)

    def _is_good(self, app_id: str, failed: FailedRequest, at_ms: int) -> bool:
        """Whether this process has seen the request succeed since its failure began.

        If the sender stopped waiting, its retry may succeed before the first attempt fails. A
        success before the attempt began belongs to an earlier, equal request: the same request is
        sent again when a user enters again, or a full sync is repeated.
        """
        succeeded = self._succeeded.get((app_id, failed))
        return succeeded is not None and self._store_ms(succeeded) > at_ms


def record_problems(problems: SyncProblems) -> Listener:
    """A listener that passes on every request for one of the sources (app/web/ingest)."""

    def record(request: FinishedRequest) -> None:
        if "source" in request.event:
            problems.record(request)

    return record
