"""Syncs one cohort to a receiver as Amplitude does, and keeps the truth about it.

    with CohortSync(target, Cohort.synthetic("Power users", "a1b2", 100_000)) as sync:
        results = sync.run(syncs=5)
    compare(sync.truth, reader)

Several cohorts at once are several `CohortSync`, each in a thread of its own; they may share users.

What is known of the sender (Amplitude's documentation) and what is assumed is listed in
`docs/simulator.md`.
"""

from __future__ import annotations

import heapq
import itertools
import random
import re
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

from . import payloads, wire
from .cohort import Cohort
from .encode import Encoder
from .faults import Fault, Misbehaviour
from .stats import Stats, short
from .truth import Truth
from .wire import Reply, Target, Wire

Mode = Literal["property", "single", "list", "webhook"]
MODES: tuple[Mode, ...] = ("property", "single", "list", "webhook")
Kind = Literal["identify", "batch", "create", "add", "remove", "webhook"]

PATHS: dict[Mode, str] = {
    "property": payloads.COHORT_PATH,
    "single": payloads.COHORT_PATH,
    "list": payloads.LISTS_PATH,
    "webhook": payloads.WEBHOOK_PATH,
}

FIRST_WAIT = 1.0
LONGEST_WAIT = 128.0
WEBHOOK_TIMEOUT = 2.0

_SURROGATE = re.compile("[\ud800-\udfff]")

# Behind how many later requests a reordered one may fall.
REORDER_WINDOW = 16


def retry_wait(retry: int) -> float:
    """Return the seconds before a retry; the first is number 0: 1, 2, 4, … 128."""
    return min(FIRST_WAIT * 2.0**retry, LONGEST_WAIT)


@dataclass(slots=True)
class Request:
    """One call to the receiver, sent until it is answered or given up. `users` are indexes into
    the cohort's ids.
    """

    sync: int
    number: int
    kind: Kind
    path: str
    users: Sequence[int]
    member: bool
    computed_time: int = 0
    message_id: str = ""
    attempts: int = 0
    duplicate: bool = False
    late: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """One HTTP request as `on_attempt` gets it. `number` is 0 for the first; `fault` is what was
    done to it.
    """

    sync: int
    request: int
    kind: Kind
    users: int
    number: int
    reply: Reply
    fault: str | None


@dataclass
class SyncResult:
    """What became of one sync. `number` starts at 0."""

    number: int
    entered: int
    left: int
    requests: int = 0
    failed_requests: int = 0
    late_requests: int = 0
    """Requests whose retry is held back until after the next sync."""
    seconds: float = 0.0
    unauthorised: bool = False
    interrupted: bool = False
    problems: list[str] = field(default_factory=list)
    """Why requests failed, with one example of each reason."""

    @property
    def succeeded(self) -> bool:
        """Whether Amplitude would call this sync successful: the next one sends the difference
        from it.
        """
        return not (self.failed_requests or self.unauthorised or self.interrupted)


class CohortSync:
    """Sends one cohort, sync by sync, in one of the four ways; see the module's text.

    - `mode`: `property` (batches), `single` (one identify a request), `list` or `webhook`;
    - `batch_size`: users a request (`single` ignores it); `threads`: requests at a time;
    - `retries`: how often a request is sent again, after 1, 2, 4, … 128 seconds times `time_scale`;
    - `path`: replaces the document's path (for lists: what `/lists` is);
    - `settle`: for calls that carry no time, how long (seconds, not scaled) to wait before the next
      sync after an attempt that was left without an answer, so that the receiver can't still be
      applying it;
    - `stop`: when set, nothing more is sent and the calls return early;
    - `on_plan(sync, entered, left)` before and `on_attempt(Attempt)` after sending, from the
      sending threads; what they raise ends the sync and is raised by it.
    """

    def __init__(
        self,
        target: Target,
        cohort: Cohort,
        *,
        mode: Mode = "property",
        batch_size: int = 1000,
        threads: int = 4,
        retries: int = 8,
        time_scale: float = 1.0,
        seed: int = 0,
        misbehaviour: Misbehaviour | None = None,
        path: str | None = None,
        settle: float = 5.0,
        stop: threading.Event | None = None,
        on_plan: Callable[[int, int, int], None] | None = None,
        on_attempt: Callable[[Attempt], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if batch_size < 1 or threads < 1 or retries < 0 or time_scale < 0:
            raise ValueError("batch_size and threads must be at least 1, the others at least 0")
        self.target = target
        self.cohort = cohort
        self.mode = mode
        self.truth = Truth(cohort.trait, cohort.ids)
        self.stats = Stats()
        self.stop = stop or threading.Event()
        self.list_ids: set[str] = set()
        """Every list id that the receiver has answered with; more than one is a mistake of the
        receiver.
        """
        self._batch_size = 1 if mode == "single" else batch_size
        self._retries = retries
        self._time_scale = time_scale
        self._seed = seed
        self._misbehaviour = misbehaviour or Misbehaviour()
        self._path = (PATHS[mode] if path is None else path).rstrip("/") or "/"
        self._settle = settle
        self._on_plan = on_plan
        self._on_attempt = on_attempt
        self._clock = clock
        self._encoder = Encoder(cohort)
        self._headers = {"User-Agent": wire.WEBHOOK_USER_AGENT} if mode == "webhook" else None
        self._wires = [Wire(target) for _ in range(threads)]
        self._list_path: str | None = None
        self._sync = -1
        self._computed_time = 0
        self._late: list[Request] = []
        self._arrivals = itertools.count(1)
        self._settled_at = 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        for connection in self._wires:
            connection.close()

    @property
    def late_requests(self) -> int:
        """How many late retries are held back now."""
        return len(self._late)

    def run(self, syncs: int, every: float = 0.0) -> list[SyncResult]:
        """Run that many syncs, `every` seconds (times `time_scale`) apart, and send what was held
        back.

        Ends early when `stop` is set or the receiver refuses the key.
        """
        results: list[SyncResult] = []
        for number in range(syncs):
            started = time.monotonic()
            results.append(self.sync())
            if results[-1].unauthorised or results[-1].interrupted:
                return results
            if number + 1 < syncs:
                self.stop.wait(started + every * self._time_scale - time.monotonic())
        if self._late and not self.stop.is_set():
            results.append(self.drain())
        return results

    def sync(self) -> SyncResult:
        """Let the cohort change and send what Amplitude would: everybody at first, later the
        difference.
        """
        self._sync += 1
        self.stats.begin()
        started = time.perf_counter()
        entered, left = self.cohort.advance()
        result = SyncResult(self._sync, len(entered), len(left))
        if self._on_plan:
            self._on_plan(self._sync, len(entered), len(left))
        late = self._take_late()
        if self.mode == "webhook":
            # A webhook says when it was computed, so the late ones may arrive at any moment.
            self._next_computed_time()
            self._send(self._mixed(self._misbehaving(self._plan(entered, left)), late), result)
        else:
            # The others must not cross a newer statement about the same user: which of the two the
            # receiver applied last would be anybody's guess.
            self._wait_until_settled()
            if self.mode == "list" and self._list_path is None:
                self._create_list(result)
            if self.mode != "list" or self._list_path is not None:
                self._send(self._misbehaving(self._plan(entered, left)), result)
            if late:
                self._wait_until_settled()
                self._send(iter(late), result)
        self._finish(result, started)
        if result.succeeded:
            self.cohort.succeeded()
        return result

    def drain(self) -> SyncResult:
        """Send the late retries that are still held back, and nothing else."""
        self.stats.begin()
        started = time.perf_counter()
        late = self._take_late()
        result = SyncResult(self._sync, 0, 0)
        if self.mode != "webhook":
            self._wait_until_settled()
        self._send(iter(late), result)
        self._finish(result, started)
        return result

    def _take_late(self) -> list[Request]:
        # In an order that doesn't depend on which thread was first, so that a run can be repeated.
        late, self._late = sorted(self._late, key=lambda held: (held.sync, held.number)), []
        return late

    def _finish(self, result: SyncResult, started: float) -> None:
        result.seconds = time.perf_counter() - started
        result.late_requests = len(self._late)
        result.interrupted = self.stop.is_set()
        self.stats.end()

    def _next_computed_time(self) -> None:
        """Take the time of this sync in whole seconds: later than the last sync's, never in the
        future.
        """
        computed = max(self._computed_time + 1, int(self._clock()))
        while (ahead := computed - self._clock()) > 0 and not self.stop.wait(min(ahead, 0.1)):
            pass
        self._computed_time = computed

    def _wait_until_settled(self) -> None:
        while (left := self._settled_at - time.monotonic()) > 0:
            if self.stop.wait(left):
                return

    # What to send

    def _plan(self, entered: Sequence[int], left: Sequence[int]) -> Iterator[Request]:
        number = 0
        for member, users in ((True, entered), (False, left)):
            drawn = random.Random(
                f"message {self._seed} {self.cohort.cohort_id} {self._sync} {member}"
            )
            uuid = drawn.getrandbits(64)
            for in_turn, start in enumerate(range(0, len(users), self._batch_size)):
                chunk = array("I", users[start : start + self._batch_size])
                request = Request(self._sync, number, "batch", self._path, chunk, member)
                number += 1
                if self.mode == "single":
                    request.kind = "identify"
                elif self.mode == "list":
                    request.kind = "add" if member else "remove"
                    request.path = f"{self._list_path}/{request.kind}"
                elif self.mode == "webhook":
                    request.kind = "webhook"
                    request.computed_time = self._computed_time
                    request.message_id = payloads.message_id(random.Random(uuid), member, in_turn)
                yield request

    def _misbehaving(self, requests: Iterator[Request]) -> Iterator[Request]:
        """Add duplicates, change the order and choose the late ones, as `Misbehaviour` says."""
        faults = self._misbehaviour
        if not faults:
            yield from requests
            return
        drawn = random.Random(f"plan {self._seed} {self.cohort.cohort_id} {self._sync}")
        behind: list[tuple[int, int, Request]] = []
        for at, request in enumerate(requests):
            late, reorder, duplicate = drawn.random(), drawn.random(), drawn.random()
            places = drawn.randint(1, REORDER_WINDOW)
            request.late = late < faults.late
            if duplicate < faults.duplicate:
                self.stats.fault("duplicate")
                yield self._copy(request)
            if reorder < faults.reorder:
                self.stats.fault("reorder")
                if self.mode == "webhook" and places <= REORDER_WINDOW // 4:
                    request.late = False
                    self._late.append(request)
                else:
                    heapq.heappush(behind, (at + places, at, request))
            else:
                yield request
            while behind and behind[0][0] <= at:
                yield heapq.heappop(behind)[2]
        while behind:
            yield heapq.heappop(behind)[2]

    def _copy(self, request: Request) -> Request:
        return Request(
            request.sync,
            request.number,
            request.kind,
            request.path,
            request.users,
            request.member,
            request.computed_time,
            request.message_id,
            duplicate=True,
        )

    def _mixed(self, requests: Iterator[Request], late: list[Request]) -> Iterator[Request]:
        drawn = random.Random(f"mix {self._seed} {self.cohort.cohort_id} {self._sync}")
        waiting = list(late)
        for request in requests:
            while waiting and drawn.random() < 0.3:
                yield waiting.pop()
            yield request
        yield from waiting

    def _create_list(self, result: SyncResult) -> None:
        self._send(iter([Request(self._sync, -1, "create", self._path, (), True)]), result)

    def _encode(self, request: Request) -> bytes:
        kind, users, member = request.kind, request.users, request.member
        if kind == "batch":
            return self._encoder.batch(users, member)
        if kind == "identify":
            return self._encoder.identify(users[0], member)
        if kind == "create":
            return self._encoder.list_create()
        if kind == "webhook":
            return self._encoder.webhook(users, member, request.computed_time, request.message_id)
        return self._encoder.list_users(users)

    # Sending

    def _send(self, requests: Iterator[Request], result: SyncResult) -> None:
        """Send all of them on all threads; return when each is answered, given up or held back."""
        queue = _Queue(requests, self.stop)
        threads = [
            threading.Thread(target=self._work, args=(connection, queue, result), daemon=True)
            for connection in self._wires
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if queue.failure is not None:
            raise queue.failure

    def _work(self, connection: Wire, queue: _Queue, result: SyncResult) -> None:
        try:
            while (request := queue.take()) is not None:
                self._attempt(connection, queue, request, result)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            queue.fail(error)

    def _attempt(
        self, connection: Wire, queue: _Queue, request: Request, result: SyncResult
    ) -> None:
        fault = self._draw_fault(request)
        body = self._encode(request)
        if fault == "cut":
            reply = connection.post_half(request.path, body, self._headers)
        elif fault == "slow":
            seconds = self._misbehaviour.slow_seconds
            reply = connection.post_slowly(request.path, body, seconds, self._headers)
        else:
            reply = connection.post(request.path, body, self._headers)
        number = request.attempts
        request.attempts += 1
        self._note_truth(request, reply)
        if request.kind == "create" and reply.ok:
            self._note_list_id(reply, result)
        self.stats.attempted(len(request.users), number > 0, reply, fault)
        if self._on_attempt:
            users = len(request.users)
            self._on_attempt(
                Attempt(request.sync, request.number, request.kind, users, number, reply, fault)
            )
        with self._lock:
            result.requests += 1
        if request.duplicate:
            queue.done()  # nobody waits for its answer
        elif request.late:
            request.late = False
            self.stats.fault("late")
            with self._lock:
                self._late.append(request)
            queue.done()
        elif reply.ok and fault != "drop-reply":
            self._delivered(request, reply, result)
            queue.done()
        elif not is_retried(reply, fault):
            self._refused(request, reply, queue, result)
        elif number < self._retries:
            queue.again(request, retry_wait(number) * self._time_scale)
        else:
            self._gave_up(
                result, f"{request.kind} still failing after {number} retries", str(reply)
            )
            queue.done()

    def _draw_fault(self, request: Request) -> Fault | None:
        if not self._misbehaviour or request.duplicate:
            return None
        of_request = f"{self.cohort.cohort_id} {request.sync} {request.number}"
        seed = f"{self._seed} {of_request} {request.attempts}"
        if request.late:
            return "drop-reply" if random.Random(seed).random() < 0.5 else "cut"
        return self._misbehaviour.on_attempt(seed, self._retries - request.attempts)

    def _note_truth(self, request: Request, reply: Reply) -> None:
        if not request.users:
            return
        order = request.computed_time or next(self._arrivals)
        partly = reply.ok and rejected(reply) > 0
        if reply.ok and not partly:
            self.truth.acknowledged(request.users, request.member, order)
        elif partly or (reply.status or 0) >= 500 or reply.error in (wire.TIMEOUT, wire.CLOSED):
            self.truth.uncertain(request.users, request.member, order)
        if reply.error in (wire.TIMEOUT, wire.CLOSED) or reply.status in (502, 504):
            self._settled_at = max(self._settled_at, time.monotonic() + self._settle)

    def _note_list_id(self, reply: Reply, result: SyncResult) -> None:
        found = list_id(reply.json())
        if found is None:
            return
        self.list_ids.add(found)
        if self._list_path is None:
            self._list_path = f"{self._path}/{quote(found, safe='')}"
        elif len(self.list_ids) > 1:
            self._gave_up(result, "more than one list was made", str(sorted(self.list_ids)))

    def _delivered(self, request: Request, reply: Reply, result: SyncResult) -> None:
        if request.kind == "create" and self._list_path is None:
            self._gave_up(result, "no list id in the answer", short(reply.body))
            return
        turned_away = rejected(reply)
        self.stats.count(
            users_delivered=len(request.users) - turned_away, users_rejected=turned_away
        )

    def _refused(self, request: Request, reply: Reply, queue: _Queue, result: SyncResult) -> None:
        if reply.status == 404 and request.kind in ("identify", "batch"):
            # "404: Invalid User ID": these users don't exist there. The rest of the sync isn't lost
            # for it.
            self.stats.count(users_rejected=len(request.users))
        else:
            what = f"{request.kind} refused with {reply.status}"
            self._gave_up(result, what, short(reply.body))
        if reply.status in (401, 403) and not self.stats.users_delivered:
            result.unauthorised = True
            queue.abort()
        queue.done()

    def _gave_up(self, result: SyncResult, what: str, detail: str) -> None:
        self.stats.count(gave_up=1)
        with self._lock:
            result.failed_requests += 1
            # One example of each: answers differ in request ids and times.
            if not any(known.startswith(what) for known in result.problems):
                result.problems.append(f"{what}: {detail}")


class _Queue:
    """Hands requests to the threads: retries that are due first, then fresh ones."""

    def __init__(self, fresh: Iterable[Request], stop: threading.Event) -> None:
        self.failure: BaseException | None = None
        self._fresh = iter(fresh)
        self._exhausted = False
        self._stop = stop
        self._aborted = False
        self._retries: list[tuple[float, int, Request]] = []
        self._tie = itertools.count()
        self._open = 0
        self._changed = threading.Condition()

    def take(self) -> Request | None:
        """Return the next request when there is one, None when there will be no more."""
        with self._changed:
            while not (self._aborted or self._stop.is_set()):
                now = time.monotonic()
                if self._retries and self._retries[0][0] <= now:
                    return heapq.heappop(self._retries)[2]
                if not self._exhausted:
                    request = next(self._fresh, None)
                    if request is not None:
                        self._open += 1
                        return request
                    self._exhausted = True
                if self._open == 0:
                    self._changed.notify_all()
                    return None
                wait = self._retries[0][0] - now if self._retries else 0.2
                self._changed.wait(min(wait, 0.2))  # to notice `stop`, which notifies nobody here
            return None

    def again(self, request: Request, wait: float) -> None:
        """Hand the request out once more, after `wait` seconds."""
        with self._changed:
            heapq.heappush(self._retries, (time.monotonic() + wait, next(self._tie), request))
            self._changed.notify()

    def done(self) -> None:
        """Note that a request which was taken needs no more attention."""
        with self._changed:
            self._open -= 1
            if self._open == 0:
                self._changed.notify_all()

    def abort(self) -> None:
        """Hand out nothing more."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Hand out nothing more, since a thread has failed."""
        self.failure = self.failure or error
        self.abort()


def is_retried(reply: Reply, fault: str | None = None) -> bool:
    """Return whether Amplitude sends the request again: no answer, 429 or 5xx."""
    if fault == "drop-reply" or reply.status is None:
        return True
    return reply.status == 429 or reply.status >= 500


def list_id(answer: Any) -> str | None:
    """Return the list's id from the answer to a list creation, or None.

    The document doesn't say where it is. Looked at: `list_id`, `listId`, `id`, at the top level and
    inside `response`; the first two are known from receivers in production.
    """
    if not isinstance(answer, dict):
        return None
    for place in (answer, answer.get("response")):
        if isinstance(place, dict):
            for name in ("list_id", "listId", "id"):
                value = place.get(name)
                if isinstance(value, bool) or not isinstance(value, str | int):
                    continue
                # A lone surrogate can't be sent back in a path.
                if (text := str(value)) and not _SURROGATE.search(text):
                    return text
    return None


def rejected(reply: Reply) -> int:
    """Return how many users a receiver says it has not taken although it answered 2xx."""
    if b"rejected" not in reply.body:
        return 0
    answer = reply.json()
    value = answer.get("rejected") if isinstance(answer, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
