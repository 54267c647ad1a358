"""Sync a cohort to a receiver as Amplitude does, and track the state it should end up in.

    with CohortSync(target, Cohort.synthetic("Power users", "a1b2", 100_000)) as sync:
        results = sync.run(syncs=5)
    compare(sync.expected, reader)

To sync several cohorts at once, run one `CohortSync` per thread; they may share users.

`docs/simulator.md` lists which behaviour Amplitude documents and which is assumed.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

from . import payloads
from .cohort import Cohort
from .connection import CLOSED, TIMEOUT, WEBHOOK_USER_AGENT, Connection, Reply, Target
from .encode import Encoder
from .expected_state import ExpectedState
from .faults import Fault, FaultRates
from .replies import excerpt, is_retried, list_id, rejected_users, retry_wait
from .request_queue import Request, RequestKind, RequestQueue
from .stats import Stats

Mode = Literal["property", "single", "list", "webhook"]
MODES: tuple[Mode, ...] = ("property", "single", "list", "webhook")

PATHS: dict[Mode, str] = {
    "property": payloads.COHORT_PATH,
    "single": payloads.COHORT_PATH,
    "list": payloads.LISTS_PATH,
    "webhook": payloads.WEBHOOK_PATH,
}

WEBHOOK_TIMEOUT_SECONDS = 2.0

# How many later requests a reordered one may fall behind.
REORDER_WINDOW = 16


@dataclass(frozen=True, slots=True)
class Attempt:
    """One HTTP request, as passed to `on_attempt`.

    `request` is its number within the sync, `number` that of the attempt (0 for the first).
    `fault` is the fault injected into it.
    """

    sync: int
    request: int
    kind: RequestKind
    users: int
    number: int
    reply: Reply
    fault: Fault | None


@dataclass
class SyncResult:
    """The outcome of one sync. `number` starts at 0.

    `late_only`: it is not a sync, but the late retries that were sent after the last one.
    """

    number: int
    entered: int
    left: int
    late_only: bool = False
    requests: int = 0
    failed_requests: int = 0
    late_requests: int = 0
    """Requests held back: webhooks until the next sync, retries of others until after it."""
    seconds: float = 0.0
    unauthorised: bool = False
    interrupted: bool = False
    problems: list[str] = field(default_factory=list)
    """Why requests failed: one example of each reason."""

    @property
    def succeeded(self) -> bool:
        """Whether Amplitude would count this sync as successful and send the next one as a diff."""
        return not (self.failed_requests or self.unauthorised or self.interrupted)


class CohortSync:
    """Syncs one cohort in one of four modes.

    - `mode`: `property` (batches), `single` (one identify per request), `list` or `webhook`;
    - `batch_size`: users per request (ignored by `single`); `threads`: concurrent requests;
    - `retries`: retries per request, after 1, 2, 4, … 128 seconds times `time_scale`;
    - `path`: replaces the documented path (`/lists`, for lists);
    - `settle`: seconds, not scaled, to wait before the next sync after a timeout, a lost
      connection, a 502 or a 504, as the receiver may still be applying the request; webhooks, which
      carry a time, don't wait;
    - `stop`: once set, nothing more is sent and all calls return early;
    - `on_plan(sync, entered, left)` is called before each sync, `on_result(SyncResult)` after it,
      and `on_attempt(Attempt)` after each HTTP request, by the sending thread. An exception from
      any of them ends the sync.
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
        faults: FaultRates | None = None,
        path: str | None = None,
        settle: float = 5.0,
        stop: threading.Event | None = None,
        on_plan: Callable[[int, int, int], None] | None = None,
        on_attempt: Callable[[Attempt], None] | None = None,
        on_result: Callable[[SyncResult], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if batch_size < 1 or threads < 1 or retries < 0 or time_scale < 0:
            raise ValueError(
                "batch_size and threads must be at least 1, retries and time_scale at least 0"
            )
        self.target = target
        self.cohort = cohort
        self.mode = mode
        self.expected = ExpectedState(cohort.trait, cohort.ids)
        self.stats = Stats()
        self.stop = stop or threading.Event()
        self.list_ids: set[str] = set()
        """Every list id that the receiver has returned; a correct receiver returns one."""
        self._batch_size = 1 if mode == "single" else batch_size
        self._retries = retries
        self._time_scale = time_scale
        self._seed = seed
        self._faults = faults or FaultRates()
        self._path = (PATHS[mode] if path is None else path).rstrip("/") or "/"
        self._settle = settle
        self._on_plan = on_plan
        self._on_attempt = on_attempt
        self._on_result = on_result
        self._clock = clock
        self._encoder = Encoder(cohort)
        self._headers = {"User-Agent": WEBHOOK_USER_AGENT} if mode == "webhook" else None
        self._connections = [Connection(target) for _ in range(threads)]
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
        for connection in self._connections:
            connection.close()

    @property
    def late_requests(self) -> int:
        """How many requests are held back now."""
        return len(self._late)

    def run(self, syncs: int, every: float = 0.0) -> list[SyncResult]:
        """Run `syncs` syncs, `every` seconds (times `time_scale`) apart, then send late retries.

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
        """Change the cohort and send it: in full until a sync succeeds, then as a diff."""
        self._sync += 1
        self.stats.start()
        started = time.perf_counter()
        entered, left = self.cohort.advance()
        result = SyncResult(self._sync, len(entered), len(left))
        if self._on_plan:
            self._on_plan(self._sync, len(entered), len(left))
        late = self._take_late()
        if self.mode == "webhook":
            # Webhooks carry the time they were computed at, so late ones may arrive at any moment.
            self._advance_computed_time()
            self._send(
                self._interleave(self._inject_faults(self._plan(entered, left)), late), result
            )
        else:
            # Without a time, an old update must not overlap with a newer one about the same user:
            # which of them the receiver applied last would be unknown.
            self._wait_until_settled()
            if self.mode == "list" and self._list_path is None:
                self._create_list(result)
            if self.mode != "list" or self._list_path is not None:
                self._send(self._inject_faults(self._plan(entered, left)), result)
            if late:
                self._wait_until_settled()
                self._send(iter(late), result)
        self._complete(result, started)
        if result.succeeded:
            self.cohort.mark_synced()
        if self._on_result:
            self._on_result(result)
        return result

    def drain(self) -> SyncResult:
        """Send the requests that are still held back, and nothing else."""
        self.stats.start()
        started = time.perf_counter()
        late = self._take_late()
        result = SyncResult(self._sync, 0, 0, late_only=True)
        if self.mode != "webhook":
            self._wait_until_settled()
        self._send(iter(late), result)
        self._complete(result, started)
        return result

    def _take_late(self) -> list[Request]:
        # Sorted, so that the order doesn't depend on the threads and a run can be repeated.
        late, self._late = sorted(self._late, key=lambda held: (held.sync, held.number)), []
        return late

    def _complete(self, result: SyncResult, started: float) -> None:
        result.seconds = time.perf_counter() - started
        result.late_requests = len(self._late)
        result.interrupted = self.stop.is_set()
        self.stats.stop()

    def _advance_computed_time(self) -> None:
        """Set this sync's time, in whole seconds: after the last sync's, never in the future."""
        computed = max(self._computed_time + 1, int(self._clock()))
        while (ahead := computed - self._clock()) > 0 and not self.stop.wait(min(ahead, 0.1)):
            pass
        self._computed_time = computed

    def _wait_until_settled(self) -> None:
        while (left := self._settled_at - time.monotonic()) > 0:
            if self.stop.wait(left):
                return

    # Planning

    def _plan(self, entered: Sequence[int], left: Sequence[int]) -> Iterator[Request]:
        number = 0
        for member, users in ((True, entered), (False, left)):
            rng = random.Random(
                f"message {self._seed} {self.cohort.cohort_id} {self._sync} {member}"
            )
            id_seed = rng.getrandbits(64)
            for chunk_number, start in enumerate(range(0, len(users), self._batch_size)):
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
                    request.message_id = payloads.message_id(
                        random.Random(id_seed), member, chunk_number
                    )
                yield request

    def _inject_faults(self, requests: Iterator[Request]) -> Iterator[Request]:
        """Duplicate, reorder and delay requests at the rates of `faults`."""
        faults = self._faults
        if not faults:
            yield from requests
            return
        rng = random.Random(f"plan {self._seed} {self.cohort.cohort_id} {self._sync}")
        held_back: list[tuple[int, int, Request]] = []
        for position, request in enumerate(requests):
            late, reorder, duplicate = rng.random(), rng.random(), rng.random()
            distance = rng.randint(1, REORDER_WINDOW)
            request.late = late < faults.late
            if duplicate < faults.duplicate:
                self.stats.count_fault("duplicate")
                yield replace(request, duplicate=True, late=False)
            if reorder < faults.reorder:
                self.stats.count_fault("reorder")
                if self.mode == "webhook" and distance <= REORDER_WINDOW // 4:
                    request.late = False
                    self._late.append(request)
                else:
                    heapq.heappush(held_back, (position + distance, position, request))
            else:
                yield request
            while held_back and held_back[0][0] <= position:
                yield heapq.heappop(held_back)[2]
        while held_back:
            yield heapq.heappop(held_back)[2]

    def _interleave(self, requests: Iterator[Request], late: list[Request]) -> Iterator[Request]:
        rng = random.Random(f"mix {self._seed} {self.cohort.cohort_id} {self._sync}")
        for request in requests:
            while late and rng.random() < 0.3:
                yield late.pop()
            yield request
        yield from late

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
        """Send all requests on all threads; return when every one of them is finished."""
        queue = RequestQueue(requests, self.stop)
        threads = [
            threading.Thread(target=self._work, args=(connection, queue, result), daemon=True)
            for connection in self._connections
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if queue.error is not None:
            raise queue.error

    def _work(self, connection: Connection, queue: RequestQueue, result: SyncResult) -> None:
        try:
            while (request := queue.take()) is not None:
                self._attempt(connection, queue, request, result)
        except BaseException as error:  # noqa: BLE001 - raised again by `_send`
            queue.abort(error)

    def _attempt(
        self, connection: Connection, queue: RequestQueue, request: Request, result: SyncResult
    ) -> None:
        fault = self._draw_fault(request)
        reply = self._post(connection, request, fault)
        number = request.attempts
        request.attempts += 1
        self._record_expectation(request, reply)
        if request.kind == "create" and reply.ok:
            self._record_list_id(reply, result)
        users = len(request.users)
        self.stats.record_attempt(users, number > 0, reply, fault)
        if self._on_attempt:
            self._on_attempt(
                Attempt(request.sync, request.number, request.kind, users, number, reply, fault)
            )
        with self._lock:
            result.requests += 1
        if request.duplicate:
            queue.finish()  # only the original request is retried
        elif request.late:
            request.late = False
            self.stats.count_fault("late")
            with self._lock:
                self._late.append(request)
            queue.finish()
        elif reply.ok and fault != "drop-reply":
            self._record_delivery(request, reply, result)
            queue.finish()
        elif fault != "drop-reply" and not is_retried(reply):
            self._record_refusal(request, reply, queue, result)
            queue.finish()
        elif number < self._retries:
            queue.retry(request, retry_wait(number) * self._time_scale)
        else:
            self._give_up(
                result, f"{request.kind} still failing after {number} retries", str(reply)
            )
            queue.finish()

    def _post(self, connection: Connection, request: Request, fault: Fault | None) -> Reply:
        body = self._encode(request)
        if fault == "cut":
            return connection.post_truncated(request.path, body, self._headers)
        if fault == "slow":
            seconds = self._faults.slow_seconds
            return connection.post_slowly(request.path, body, seconds, self._headers)
        return connection.post(request.path, body, self._headers)

    def _draw_fault(self, request: Request) -> Fault | None:
        if not self._faults or request.duplicate:
            return None
        request_id = f"{self.cohort.cohort_id} {request.sync} {request.number}"
        seed = f"{self._seed} {request_id} {request.attempts}"
        if request.late:
            return "drop-reply" if random.Random(seed).random() < 0.5 else "cut"
        return self._faults.draw(seed, self._retries - request.attempts)

    def _record_expectation(self, request: Request, reply: Reply) -> None:
        if not request.users:
            return
        order = request.computed_time or next(self._arrivals)
        partly = reply.ok and rejected_users(reply) > 0
        if reply.ok and not partly:
            self.expected.acknowledge(request.users, request.member, order)
        elif partly or (reply.status or 0) >= 500 or reply.error in (TIMEOUT, CLOSED):
            self.expected.mark_uncertain(request.users, request.member, order)
        if reply.error in (TIMEOUT, CLOSED) or reply.status in (502, 504):
            self._settled_at = max(self._settled_at, time.monotonic() + self._settle)

    def _record_list_id(self, reply: Reply, result: SyncResult) -> None:
        found = list_id(reply.json())
        if found is None:
            return
        self.list_ids.add(found)
        if self._list_path is None:
            self._list_path = f"{self._path}/{quote(found, safe='')}"
        elif len(self.list_ids) > 1:
            self._give_up(result, "more than one list was created", str(sorted(self.list_ids)))

    def _record_delivery(self, request: Request, reply: Reply, result: SyncResult) -> None:
        if request.kind == "create" and self._list_path is None:
            self._give_up(result, "no list id in the reply", excerpt(reply.body))
            return
        rejected = rejected_users(reply)
        changed = len(request.users) - rejected
        self.stats.add(changes_acknowledged=changed, changes_rejected=rejected)

    def _record_refusal(
        self, request: Request, reply: Reply, queue: RequestQueue, result: SyncResult
    ) -> None:
        if reply.status == 404 and request.kind in ("identify", "batch"):
            # "404: Invalid User ID": the receiver doesn't know these users. The sync goes on.
            self.stats.add(changes_rejected=len(request.users))
        else:
            reason = f"{request.kind} refused with {reply.status}"
            self._give_up(result, reason, excerpt(reply.body))
        if reply.status in (401, 403) and not self.stats.changes_acknowledged:
            result.unauthorised = True
            queue.abort()

    def _give_up(self, result: SyncResult, reason: str, detail: str) -> None:
        self.stats.add(gave_up=1)
        with self._lock:
            result.failed_requests += 1
            # Details differ in request ids and times, so one example per reason.
            if not any(problem.startswith(reason) for problem in result.problems):
                result.problems.append(f"{reason}: {detail}")
