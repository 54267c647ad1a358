"""The requests of one sync, and the queue that hands them to the sending threads."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

RequestKind = Literal["identify", "batch", "create", "add", "remove", "webhook"]

# How often a waiting thread checks `stop`, which doesn't notify the condition.
STOP_CHECK_SECONDS = 0.2


@dataclass(slots=True)
class Request:
    """One call to the receiver, repeated until it is delivered, refused or given up.

    `users` are indexes into the cohort's ids.
    """

    sync: int
    number: int
    kind: RequestKind
    path: str
    users: Sequence[int]
    member: bool
    computed_time: int = 0
    message_id: str = ""
    attempts: int = 0
    duplicate: bool = False
    late: bool = False


class RequestQueue:
    """Hands out retries that are due, then new requests. Thread-safe."""

    def __init__(self, requests: Iterable[Request], stop: threading.Event) -> None:
        self.error: BaseException | None = None
        self._requests = iter(requests)
        self._exhausted = False
        self._stop = stop
        self._aborted = False
        self._retries: list[tuple[float, int, Request]] = []
        self._tie_breaker = itertools.count()
        self._unfinished = 0
        self._changed = threading.Condition()

    def take(self) -> Request | None:
        """Block until a request is due and return it; None once the queue is finished."""
        with self._changed:
            while not (self._aborted or self._stop.is_set()):
                now = time.monotonic()
                if self._retries and self._retries[0][0] <= now:
                    return heapq.heappop(self._retries)[2]
                if not self._exhausted:
                    request = next(self._requests, None)
                    if request is not None:
                        self._unfinished += 1
                        return request
                    self._exhausted = True
                if self._unfinished == 0:
                    self._changed.notify_all()
                    return None
                wait = self._retries[0][0] - now if self._retries else STOP_CHECK_SECONDS
                self._changed.wait(min(wait, STOP_CHECK_SECONDS))
            return None

    def retry(self, request: Request, wait: float) -> None:
        """Schedule the request again in `wait` seconds."""
        with self._changed:
            due = time.monotonic() + wait
            heapq.heappush(self._retries, (due, next(self._tie_breaker), request))
            self._changed.notify()

    def finish(self) -> None:
        """Mark a request as finished: delivered, refused, given up or held back."""
        with self._changed:
            self._unfinished -= 1
            if self._unfinished == 0:
                self._changed.notify_all()

    def abort(self, error: BaseException | None = None) -> None:
        """Hand out nothing more; keep the first `error`."""
        with self._changed:
            self.error = self.error or error
            self._aborted = True
            self._changed.notify_all()
