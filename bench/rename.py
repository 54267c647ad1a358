"""Renaming a large cohort under load, with all workers killed while its users move.

Batches arrive at a fixed rate. Most of them let the same users enter and leave another cohort, in
turn: the store changes all the time and hardly grows, so its size does not distort the comparison.
One in fifty adds new users to the cohort that is renamed.
"""

from __future__ import annotations

import math
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import redis

from bench import generator
from bench.generator import LoadFailed, Result
from bench.plan import CONTESTANTS, SERVICE
from bench.report import Report, Verdict
from bench.requests import (
    APP,
    COHORT_ID,
    TRAIT,
    Size,
    Target,
    batches,
    identify,
    request,
    user_ids,
)
from bench.runner import percentile, progress, start
from bench.servers import Gunicorn, Store, running_store
from simulator import payloads

NEW_TRAIT = payloads.trait_name("Loyal buyers", COHORT_ID)
_OTHER_TRAIT = payloads.trait_name("Other", "other")
_BASE = f"cohorts:{{{APP}}}:"
_BATCH = 1000
_CLIENTS = 16
_LOAD = 0.3  # of the service's capacity
_KILL_AT = 0.6  # of the users have moved
_ONE_IN = 50
_SETTLE_SECONDS = 2.0
_POLL_SECONDS = 0.25
_MAX_MOVE_SECONDS = 900.0
_SAMPLED_USERS = 200

# Counts the hashes that have each field, without sending the hashes.
_COUNT = """
local found = {}
for f = 1, #ARGV do found[f] = 0 end
for i = 1, #KEYS do
  for f = 1, #ARGV do found[f] = found[f] + redis.call('HEXISTS', KEYS[i], ARGV[f]) end
end
return found
"""

_BEFORE, _MOVING, _KILLED, _RESUMED, _AFTER = (
    "before the rename",
    "users move",
    "workers killed and restarted",
    "users move again",
    "after the rename",
)


def run(size: Size, root: Path) -> Report:
    """Rename a cohort of ``size.renamed`` members on the checkout in ``root``."""
    contestant = replace(CONTESTANTS[SERVICE], root=root)
    with running_store() as store, start(contestant, store) as service:
        assert isinstance(service, Gunicorn)
        target = Target(service.address, size)
        members = size.renamed
        _fill(target, members // 10)  # warm up
        store.empty()
        capacity = _fill(target, members) / _BATCH
        return _Rename(size, store, service, capacity * _LOAD).report()


def _fill(target: Target, members: int) -> float:
    """Add members as fast as possible. Returns how many per second."""
    result = generator.run(
        target.address, batches(_BATCH, target, limit=members), clients=4, seconds=600
    )
    return members / result.seconds


class _Rename:
    """The load runs in this thread; a second one watches the move and causes what happens."""

    def __init__(self, size: Size, store: Store, service: Gunicorn, rate: float) -> None:
        self._members, self._seconds = size.renamed, 10 * size.seconds
        self._store, self._service, self._rate = store, service, rate
        self._client: Any = store.client
        self._trait = TRAIT
        self._over = threading.Event()
        self._added = 0
        self._times: dict[str, float] = {}
        self._problem = ""

    def report(self) -> Report:
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        result = generator.run(
            self._service.address,
            self._requests(),
            clients=_CLIENTS,
            seconds=_MAX_MOVE_SECONDS + 3 * self._seconds,
            rate=self._rate,
            max_retries=1000,
            running=lambda: not self._over.is_set(),
        )
        watcher.join(30)
        if result.unanswered or self._problem:
            raise LoadFailed(f"{result.unanswered} unanswered. {self._problem}")
        return self._judge(result)

    def _requests(self) -> Iterator[bytes]:
        others = [list(user_ids(_BATCH, self._members + _BATCH * n)) for n in range(100)]
        new = user_ids(1 << 62, self._members + 100 * _BATCH)
        turns = (
            identify(users, (_OTHER_TRAIT,), member)
            for member in cycle((True, False))
            for users in others
        )
        for number in count():
            if number % _ONE_IN:
                body = next(turns)
            else:
                self._added += _BATCH
                body = identify(list(islice(new, _BATCH)), (self._trait,))
            yield request("POST", payloads.COHORT_PATH, body)

    def _watch(self) -> None:
        try:
            self._mark("begin")
            time.sleep(_SETTLE_SECONDS + self._seconds)
            self._trait = NEW_TRAIT
            self._mark("renamed")
            while self._moved() < _KILL_AT:
                self._wait()
            for worker in self._service.master.children():
                os.kill(worker.pid, signal.SIGKILL)
            self._mark("killed")
            while self._client.scard(f"{_BASE}jobs"):
                self._wait()
            self._mark("moved")
            time.sleep(_SETTLE_SECONDS + self._seconds)
            self._mark("end")
        except (TimeoutError, redis.RedisError) as error:
            self._problem = repr(error)
        finally:
            self._over.set()

    def _mark(self, name: str) -> None:
        self._times[name] = time.perf_counter()
        progress(name)

    def _wait(self) -> None:
        time.sleep(_POLL_SECONDS)
        if time.perf_counter() > self._times["renamed"] + _MAX_MOVE_SECONDS:
            raise TimeoutError("the move takes too long")

    def _moved(self) -> float:
        """The part of the users that has the new name, from a sample."""
        numbers = random.choices(range(self._members), k=_SAMPLED_USERS)
        with self._client.pipeline(transaction=False) as pipeline:
            for number in numbers:
                pipeline.hexists(f"{_BASE}user:{next(user_ids(1, number))}", NEW_TRAIT)
            return float(sum(pipeline.execute()) / len(numbers))

    def _judge(self, result: Result) -> Report:
        phases = self._phases(result)
        without = [x for name in (_BEFORE, _AFTER) for x in phases[name][1]]
        moving = phases[_MOVING][1]
        # A move so short that no request fell into it proves nothing.
        ratio = percentile(moving, 99) / percentile(without, 99) if moving else math.nan
        expected = self._members + self._added
        members = self._client.zcard(f"{_BASE}cohort:{COHORT_ID}:members")
        with_new, with_old = self._count()
        lines = [
            f"A cohort of {self._members:,} members; {self._rate * _BATCH:,.0f} users/s in batches "
            f"of {_BATCH:,}, {_LOAD:.0%} of the capacity.",
            "",
            "| phase | seconds | requests | p50 ms | p99 ms | longest ms |",
            "|:--|--:|--:|--:|--:|--:|",
        ]
        for name, (seconds, latencies) in phases.items():
            if latencies:
                cells = [f"{percentile(latencies, n) * 1000:.1f}" for n in (50, 99, 100)]
                lines.append(f"| {name} | {seconds:.1f} | {len(latencies)} | {' | '.join(cells)} |")
        seconds = self._times["moved"] - self._times["renamed"]
        lines += [
            "",
            f"The move took {seconds:.1f} s; {result.retries} requests were sent again. At the end "
            f"{with_new:,} of {expected:,} users had the new name, and {with_old:,} the old one.",
        ]
        lost = abs(expected - with_new) + abs(expected - members)
        return Report(
            "\n".join(lines),
            [
                Verdict("p99 while users move / p99 otherwise", ratio, at_most=2),
                Verdict("users with the old name at the end", with_old, at_most=0),
                Verdict("users lost or misplaced", lost, at_most=0),
            ],
        )

    def _phases(self, result: Result) -> dict[str, tuple[float, list[float]]]:
        """The length of each phase, and the latencies of requests that were due in it."""
        times = self._times
        requests = sorted(zip(result.starts, result.latencies, strict=True))
        # After the kill, requests are late for as long as there is a queue. The phase ends when
        # for a second none took longer than the slowest hundredth before.
        usual = percentile([took for at, took in requests if at < times["renamed"]], 99)
        recovered = times["killed"]
        for at, took in requests:
            if at > recovered + 1:
                break
            if at >= recovered and took > usual:
                recovered = at
        recovered = min(recovered + 1, times["moved"])
        spans = {
            _BEFORE: (times["begin"] + _SETTLE_SECONDS, times["renamed"]),
            _MOVING: (times["renamed"], times["killed"]),
            _KILLED: (times["killed"], recovered),
            _RESUMED: (recovered, times["moved"]),
            _AFTER: (times["moved"] + _SETTLE_SECONDS, times["end"]),
        }
        return {
            name: (end - begin, [took for at, took in requests if begin <= at < end])
            for name, (begin, end) in spans.items()
        }

    def _count(self) -> tuple[int, int]:
        """How many user hashes have the new name, and how many the old one."""
        script = self._client.register_script(_COUNT)
        with_new = with_old = cursor = 0
        while True:
            cursor, keys = self._client.scan(cursor, match=f"{_BASE}user:*", count=2000)
            if keys:
                new, old = script(keys=keys, args=[NEW_TRAIT, TRAIT])
                with_new, with_old = with_new + new, with_old + old
            if not cursor:
                return with_new, with_old
