"""What a lookup with the Python reader costs, beside the client's bare call.

Both run in this process, in turn, on the same connection and the same key. CPU is this process's:
the store's is the same for both. Then the store is stopped with SIGSTOP, as a store that hangs.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from statistics import median

import redis

from bench.report import Report, Verdict
from bench.requests import Size
from bench.servers import ROOT, Store, running_store

sys.path.insert(0, str(ROOT / "reader"))

from cohort_reader import (
    AsyncCohortReader,
    CohortReader,
    connect,
    connect_async,
)

KEY = "cohorts:{default}:cohort:abc123:members"
MAX_RATIO = 1.15
MAX_HIT_US = 5.0
MAX_OUTAGE_SECONDS = 3.0
MAX_RETURN_SECONDS = 2.0
_ROUNDS = 15
# By round, CPU µs of bare calls, lookups and cache hits; seconds of the outage, and of coming back.
Measured = tuple[list[float], list[float], list[float], float, float]
_HANGING_LOOKUPS = 1000


def run(size: Size, root: Path) -> Report:
    """Measure both kinds of reader. Only this checkout's can be, as the package is imported."""
    if root != ROOT:
        return Report("The reader of another checkout can't be measured in this process.", [])
    calls = max(300, size.users // 50)
    lines = ["| | CPU µs |", "|:--|--:|"]
    verdicts: list[Verdict] = []
    with running_store() as store:
        store.client.set("cohorts:layout", 1)
        store.client.zadd(KEY, {"alice": 1767225600000})
        for kind, measured in (
            ("threads", _blocking(store, calls)),
            ("asyncio", asyncio.run(_asynchronous(store, calls))),
        ):
            bare, lookup, hit, outage, back = measured
            lines += [
                f"| {kind}: bare call of the client | {median(bare):.1f} |",
                f"| {kind}: lookup with the reader | {median(lookup):.1f} |",
                f"| {kind}: lookup answered by the cache | {median(hit):.2f} |",
            ]
            ratio = median(one / other for one, other in zip(lookup, bare, strict=True))
            name = f"{kind}: a store that hangs, {_HANGING_LOOKUPS:,} lookups with a default, s"
            verdicts += [
                Verdict(f"{kind}: CPU of a lookup, reader / bare", ratio, at_most=MAX_RATIO),
                Verdict(f"{kind}: CPU of a cache hit, µs", median(hit), at_most=MAX_HIT_US),
                Verdict(name, outage, at_most=MAX_OUTAGE_SECONDS),
                Verdict(f"{kind}: right again after, s", back, at_most=MAX_RETURN_SECONDS),
            ]
    return Report("\n".join(lines), verdicts)


def _blocking(store: Store, calls: int) -> Measured:
    with connect(store.url) as client:
        reader = CohortReader(client)
        cached = CohortReader(client, cache_entries=10, cache_seconds=3600)

        def cpu_us(call: Callable[[], object]) -> float:
            began = time.process_time()
            for _ in range(calls):
                call()
            return (time.process_time() - began) / calls * 1e6

        rows: list[tuple[float, ...]] = []
        for _ in range(_ROUNDS):
            rows.append(
                (
                    cpu_us(lambda: client.zscore(KEY, "alice")),
                    cpu_us(lambda: reader.is_member("alice", "abc123")),
                    cpu_us(lambda: cached.is_member("alice", "abc123")),
                )
            )

        def ask(_: object) -> bool:
            return reader.is_member("alice", "abc123", default=False)

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(ask, range(64)))
            with _Hanging(store) as hanging:
                began = time.monotonic()
                list(threads.map(ask, range(_HANGING_LOOKUPS)))
                outage = time.monotonic() - began
            while not ask(None):
                time.sleep(0.005)
            back = time.monotonic() - hanging.ended_at
    bare, lookup, hit = (list(column) for column in zip(*rows, strict=True))
    return bare, lookup, hit, outage, back


async def _asynchronous(store: Store, calls: int) -> Measured:
    client_context: AbstractAsyncContextManager[redis.asyncio.Redis] = connect_async(store.url)
    async with client_context as client:
        reader = AsyncCohortReader(client)
        cached = AsyncCohortReader(client, cache_entries=10, cache_seconds=3600)

        async def cpu_us(call: Callable[[], Awaitable[object]]) -> float:
            began = time.process_time()
            for _ in range(calls):
                await call()
            return (time.process_time() - began) / calls * 1e6

        rows: list[tuple[float, ...]] = []
        for _ in range(_ROUNDS):
            rows.append(
                (
                    await cpu_us(lambda: client.zscore(KEY, "alice")),
                    await cpu_us(lambda: reader.is_member("alice", "abc123")),
                    await cpu_us(lambda: cached.is_member("alice", "abc123")),
                )
            )

        async def ask_all() -> list[bool]:
            lookups = (
                reader.is_member("alice", "abc123", default=False) for _ in range(_HANGING_LOOKUPS)
            )
            return await asyncio.gather(*lookups)

        await ask_all()
        with _Hanging(store) as hanging:
            began = time.monotonic()
            await ask_all()
            outage = time.monotonic() - began
        while not await reader.is_member("alice", "abc123", default=False):
            await asyncio.sleep(0.005)
        back = time.monotonic() - hanging.ended_at
    bare, lookup, hit = (list(column) for column in zip(*rows, strict=True))
    return bare, lookup, hit, outage, back


class _Hanging(AbstractContextManager["_Hanging"]):
    """Stops the store for the duration of a block."""

    def __init__(self, store: Store) -> None:
        self._processes = store.processes
        self.ended_at = 0.0

    def __enter__(self) -> _Hanging:
        for process in self._processes:
            process.send_signal(signal.SIGSTOP)
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGCONT)
        self.ended_at = time.monotonic()
