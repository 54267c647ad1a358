"""Counters and latencies of a run.

A *membership change* is one user who enters the cohort or leaves it. In one sync each user changes
at most once, but over several syncs there are more changes than users.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .connection import TIMEOUT, Reply
from .faults import Fault
from .replies import excerpt


def percentile(sorted_values: Sequence[float], share: float) -> float | None:
    """Return the percentile by nearest rank; `share` is between 0 and 1. None for no values."""
    if not sorted_values:
        return None
    rank = -(-len(sorted_values) * round(share * 1000) // 1000)
    return sorted_values[max(rank, 1) - 1]


@dataclass(frozen=True)
class Latencies:
    """Seconds from request to complete reply, for attempts without an injected fault.

    `over_1s` and `over_2s` include timeouts.
    """

    count: int
    p50: float | None
    p99: float | None
    longest: float | None
    over_1s: int
    over_2s: int


@dataclass
class Stats:
    """Counters and latencies of requests and replies. Thread-safe."""

    requests: int = 0
    """HTTP requests, including retries and duplicates."""
    retries: int = 0
    gave_up: int = 0
    """Failed requests: retries exhausted, refused (404s to identifies excepted), or no list id."""
    changes_sent: int = 0
    """Membership changes in all HTTP requests, including retries and duplicates."""
    changes_acknowledged: int = 0
    """Membership changes in acknowledged requests, each request counted once."""
    changes_rejected: int = 0
    """Membership changes that the receiver rejected: 404, or `rejected` in its reply."""
    statuses: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    last_problem: str = ""
    started: float | None = None
    ended: float | None = None
    _latencies: array[float] = field(default_factory=lambda: array("d"), repr=False)
    _timeouts: array[float] = field(default_factory=lambda: array("d"), repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def record_attempt(self, changes: int, retry: bool, reply: Reply, fault: Fault | None) -> None:
        """Count one HTTP request and its reply."""
        with self._lock:
            self.requests += 1
            self.retries += retry
            self.changes_sent += changes
            if fault:
                self.faults[fault] += 1
            if reply.status is not None:
                self.statuses[reply.status] += 1
                if fault is None:
                    self._latencies.append(reply.seconds)
                if not reply.ok:
                    self.last_problem = f"{reply.status} {excerpt(reply.body)}".strip()
            elif reply.error and not fault:
                self.errors[reply.error] += 1
                if reply.error == TIMEOUT:
                    self._timeouts.append(reply.seconds)
                self.last_problem = str(reply)

    def add(self, **amounts: int) -> None:
        """Add to the named counters."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)

    def count_fault(self, kind: str) -> None:
        """Count a fault of a whole request: duplicated, reordered or late."""
        with self._lock:
            self.faults[kind] += 1

    def start(self) -> None:
        """Start the clock, or resume it."""
        if self.started is None:
            self.started = time.perf_counter()
        self.ended = None

    def stop(self) -> None:
        """Stop the clock."""
        self.ended = time.perf_counter()

    @property
    def changes_done(self) -> int:
        """Membership changes acknowledged or rejected."""
        return self.changes_acknowledged + self.changes_rejected

    @property
    def throttled(self) -> int:
        """How many requests got a 429."""
        return self.statuses[429]

    @property
    def seconds(self) -> float:
        """Wall time since the first sync started, until now or until the last one ended."""
        if self.started is None:
            return 0.0
        return (self.ended or time.perf_counter()) - self.started

    @property
    def changes_per_second(self) -> float:
        """Acknowledged membership changes per second."""
        return self.changes_acknowledged / max(self.seconds, 1e-9)

    def latencies(self, last: int | None = None) -> Latencies:
        """Return the latencies of all replies, or of the `last` ones."""
        with self._lock:
            values = sorted(self._latencies if last is None else self._latencies[-last:])
            waited = [*values, *self._timeouts]
        return Latencies(
            count=len(values),
            p50=percentile(values, 0.5),
            p99=percentile(values, 0.99),
            longest=values[-1] if values else None,
            over_1s=sum(value > 1 for value in waited),
            over_2s=sum(value > 2 for value in waited),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all counters and latencies as JSON types; times in seconds."""
        latencies = self.latencies()
        with self._lock:
            return {
                "seconds": round(self.seconds, 3),
                "requests": self.requests,
                "retries": self.retries,
                "requests_given_up": self.gave_up,
                "throttled": self.throttled,
                "statuses": {str(code): count for code, count in sorted(self.statuses.items())},
                "errors": dict(sorted(self.errors.items())),
                "faults": dict(sorted(self.faults.items())),
                "changes_sent": self.changes_sent,
                "changes_acknowledged": self.changes_acknowledged,
                "changes_rejected": self.changes_rejected,
                "changes_per_second": round(self.changes_per_second),
                "latency_p50": latencies.p50,
                "latency_p99": latencies.p99,
                "latency_max": latencies.longest,
                "replies_over_1s": latencies.over_1s,
                "replies_over_2s": latencies.over_2s,
            }
