"""Bounds, pauses and clocks of the store's callers. Not settings: only tests change them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """The bounds, pauses and clocks of one process.

    Attributes:
        now: the clock, in seconds since the epoch.
        monotonic: the clock that measures durations, in seconds.
        store_now: the store's clock, in seconds since the epoch; None to ask the store.
        waited_seconds: a request that waited for less than this before it reached the store counts
            as if it had arrived just then.
        layout_check_seconds: how long a check of the stored layout is valid. Short, as the store
            may lose its data or be replaced at any time.
        freshness_noted_seconds: an arrival this soon after a noted one is not noted.
        arrivals_remembered: cohorts whose last noted arrival a process keeps.
        cohorts_per_call: summaries in one script call: about 2 ms of the store's time.
        cohorts_examined: for one page sorted by id; a filter may match few of them.
        cohorts_sorted: an app with more cohorts can only list them by id; any other order needs
            all of them.
        change_bytes_per_call: bytes of user ids that one page of changes holds.
        rates_remembered: names whose counts a process keeps.
        rates_retry_seconds: a counter that was unavailable is tried again after this long.
        jobs_listed: the most jobs of a partition that a process lists at once; there may be
            thousands.
        history_buffered: requests buffered for the sync history while the store is unavailable.
            When full, the latest ones of the app with the most are dropped: the oldest show how the
            outage began.
        successes_remembered: requests that succeeded, to recognise retries: some seconds' worth.
        marks_per_round: partitions that a process compares every second with what it remembers.
        last_read_trusted_seconds: while API keys, or the secret of sessions, can't be read from the
            store, those that were read last stay valid for this long.
        session_renewed_seconds: a session in use is given a new cookie after this long.
    """

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    store_now: Callable[[], float] | None = None
    waited_seconds: float = 0.25
    layout_check_seconds: float = 1.0
    freshness_noted_seconds: float = 1.0
    arrivals_remembered: int = 10_000
    cohorts_per_call: int = 250
    cohorts_examined: int = 10_000
    cohorts_sorted: int = 100_000
    change_bytes_per_call: int = 512 * 1024
    rates_remembered: int = 10_000
    rates_retry_seconds: float = 5.0
    jobs_listed: int = 500
    history_buffered: int = 20_000
    successes_remembered: int = 20_000
    marks_per_round: int = 64
    last_read_trusted_seconds: float = 3600.0
    session_renewed_seconds: float = 900.0


DEFAULT = Tuning()
