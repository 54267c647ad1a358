"""``python -m bench rename``: what renaming a large cohort does to ingest, and whether it is whole.

A cohort is filled. Then batches arrive at a steady rate. Most let the same users enter and leave
another cohort, turn by turn: the store changes all the time and hardly grows, so that its size is
no part of what is compared. Few bring new users to this cohort. In the middle of the load it
arrives under a new name; when a part of its users has been moved, every worker of the service is
killed. The load goes on until the move is done.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, cycle, islice
from operator import attrgetter

import redis

from bench import docs, servers, traffic
from bench import load as generator
from bench.load import Load, LoadFailed
from bench.measure import percentile
from bench.report import Bar, shown
from bench.servers import APP_ID, NO_LIMIT, Gunicorn, RunningStore
from simulator import payloads

OLD, NEW = traffic.TRAIT, payloads.trait_name("Loyal buyers", traffic.COHORT_ID)
OTHER = payloads.trait_name("Other", "other")
_BASE = f"cohorts:{{{APP_ID}}}:"
_ONE_IN = 50  # of the requests is for the cohort
_OTHERS = 100_000  # users who enter and leave the other cohort
_FILL = 100_000  # users that are made ready at a time
_SAMPLE = 200  # users that are asked for to see how far the move is
_LOOK_SECONDS = 0.25
_MOST_MOVE_SECONDS = 900.0

# Counts the hashes that have the fields, without sending the hashes to the client.
_COUNT = """
local found = {}
for f = 1, #ARGV do found[f] = 0 end
for i = 1, #KEYS do
  for f = 1, #ARGV do found[f] = found[f] + redis.call('HEXISTS', KEYS[i], ARGV[f]) end
end
return found
"""


@dataclass(frozen=True)
class Plan:
    """What the run does.

    Attributes:
        members: of the cohort, when it is renamed.
        share: requests a second, as a part of those that the service can do.
        seconds: how long the load is measured before the rename, and again after it.
        settle_seconds: left out first, as what came before may still be passing.
        kill_at: the part of the users that is moved when the workers are killed.
    """

    members: int = 1_000_000
    batch: int = 1000
    clients: int = 16
    share: float = 0.3
    seconds: float = 20.0
    settle_seconds: float = 2.0
    kill_at: float = 0.6


@dataclass
class Phase:
    """A part of the load: its latencies in seconds, by when the requests were due."""

    name: str
    begin: float
    end: float
    latencies: Sequence[float] = ()


@dataclass
class Outcome:
    """What a run has shown. ``users`` counts the hashes with each of the two names."""

    plan: Plan
    capacity: float
    rate: float
    phases: list[Phase]
    move_seconds: float
    longest_after_kill: float
    repeated: int
    expected: int
    members: int
    with_new: int
    with_old: int

    def bars(self) -> list[Bar]:
        """What must hold."""
        without = [x for p in self.phases if p.name in _WITHOUT for x in p.latencies]
        during = [x for p in self.phases if p.name == _MOVING for x in p.latencies]
        # Of a move so short that no request fell into it, nothing can be said.
        times = percentile(during, 99) / percentile(without, 99) if during else math.nan
        lost = abs(self.expected - self.with_new) + abs(self.expected - self.members)
        return [
            Bar("p99 while users are moved / p99 without", times, 2, False, "x"),
            Bar("users with the old name at the end", self.with_old, 0, False),
            Bar("users lost, or not where they belong", lost, 0, False),
        ]

    def text(self) -> str:
        """Everything, for people. The table is Markdown."""
        plan = self.plan
        lines = [
            f"A cohort of {plan.members:,} members. Capacity {self.capacity:,.0f} users/s, "
            f"load {self.rate * plan.batch:,.0f} users/s in batches of {plan.batch:,}.",
            "",
            "| phase | seconds | requests | p50 ms | p99 ms | longest ms |",
            "|:--|--:|--:|--:|--:|--:|",
        ]
        for phase in filter(attrgetter("latencies"), self.phases):
            p50, p99, most = (percentile(phase.latencies, n) * 1000 for n in (50, 99, 100))
            lines.append(
                f"| {phase.name} | {phase.end - phase.begin:.1f} | {len(phase.latencies):,} "
                f"| {p50:.1f} | {p99:.1f} | {most:.1f} |"
            )
        lines += [
            "",
            f"The move took {self.move_seconds:.1f} s, with all workers killed in the middle. "
            f"{self.repeated} requests were sent again, the longest wait then was "
            f"{self.longest_after_kill:.1f} s. At the end {self.with_new:,} of {self.expected:,} "
            f"users had the new name, and {self.with_old:,} the old one.",
            "",
            *shown(self.bars()),
        ]
        return "\n".join(lines)


_BEFORE, _MOVING, _KILLED, _RESUMED, _AFTER = (
    "before the rename",
    "users are moved",
    "workers killed and started again",
    "users are moved, again",
    "after the rename",
)
_WITHOUT = (_BEFORE, _AFTER)


def run(plan: Plan) -> Outcome:
    """Do it once."""
    with ExitStack() as stack:
        store = stack.enter_context(servers.running_store())
        service = stack.enter_context(servers.running_service(store.url, NO_LIMIT))
        _fill(service, plan.members // 10)  # warm up
        store.empty()
        capacity = _fill(service, plan.members)
        return _Run(plan, store, service, capacity).outcome()


def _fill(service: Gunicorn, members: int) -> float:
    """Bring ``members`` into the cohort, as fast as it goes. Returns users a second."""
    seconds = 0.0
    for start in range(0, members, _FILL):
        ids = list(traffic.user_ids(min(_FILL, members - start), start))
        chunks = (ids[i : i + 1000] for i in range(0, len(ids), 1000))
        requests = [traffic.request(traffic.IDENTIFY.path, traffic.identify(c)) for c in chunks]
        seconds += generator.run(service.address, requests, clients=4, seconds=120).seconds
    return members / seconds


class _Run:
    """The load in this thread; a second thread watches the move and sets off what happens."""

    def __init__(self, plan: Plan, store: RunningStore, service: Gunicorn, capacity: float) -> None:
        self._plan, self._store, self._service, self._capacity = plan, store, service, capacity
        self._trait = OLD
        self._over = threading.Event()
        self._sent = 0  # requests for the cohort
        self._marks: dict[str, float] = {}
        self._problem = ""

    def outcome(self) -> Outcome:
        plan = self._plan
        rate = self._capacity * plan.share / plan.batch
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        done = generator.run(
            self._service.address,
            self._requests(),
            clients=plan.clients,
            seconds=_MOST_MOVE_SECONDS + 3 * plan.seconds,
            rate=rate,
            most_repeats=1000,
            goes_on=lambda: not self._over.is_set(),
        )
        watcher.join(30)
        if done.unanswered or self._problem:
            raise LoadFailed(
                f"{done.unanswered} requests not answered. {self._problem}\n{self._service.log()}"
            )
        with_new, with_old = self._count()
        phases = self._phases(done)
        killed = next(p for p in phases if p.name == _KILLED)
        return Outcome(
            plan=plan,
            capacity=self._capacity,
            rate=rate,
            phases=phases,
            move_seconds=self._marks["moved"] - self._marks["renamed"],
            longest_after_kill=max(killed.latencies, default=0.0),
            repeated=done.repeated,
            expected=plan.members + self._sent * plan.batch,
            members=self._store.client.zcard(f"{_BASE}cohort:{traffic.COHORT_ID}:members"),
            with_new=with_new,
            with_old=with_old,
        )

    def _requests(self) -> Iterator[bytes]:
        batch = self._plan.batch
        new = traffic.user_ids(1 << 62, self._plan.members + _OTHERS)
        others = list(traffic.user_ids(_OTHERS, self._plan.members))
        parts = [others[start : start + batch] for start in range(0, _OTHERS, batch)]
        turns = (
            traffic.request(traffic.IDENTIFY.path, traffic.identify(part, OTHER, member))
            for member in cycle((True, False))
            for part in parts
        )
        for number in count():
            if number % _ONE_IN:
                yield next(turns)
            else:
                self._sent += 1
                body = traffic.identify(list(islice(new, batch)), self._trait)
                yield traffic.request(traffic.IDENTIFY.path, body)

    def _watch(self) -> None:
        """What happens beside the load, each thing at its time."""
        plan, marks = self._plan, self._marks
        try:
            self._mark("begin")
            time.sleep(plan.settle_seconds + plan.seconds)
            self._trait = NEW
            self._mark("renamed")
            while self._moved() < plan.kill_at:
                self._wait()
            for worker in self._service.workers.children():
                os.kill(worker.pid, signal.SIGKILL)
            self._mark("killed")
            while self._moving():
                self._wait()
            self._mark("moved")
            time.sleep(plan.settle_seconds + plan.seconds)
            marks["end"] = time.perf_counter()
        except (TimeoutError, redis.RedisError) as error:
            self._problem = repr(error)
        finally:
            self._over.set()

    def _mark(self, name: str) -> None:
        self._marks[name] = time.perf_counter()
        if sys.stderr.isatty():
            print(f"\r\033[K{name}", end="", file=sys.stderr, flush=True)

    def _wait(self) -> None:
        time.sleep(_LOOK_SECONDS)
        if time.perf_counter() > self._marks["renamed"] + _MOST_MOVE_SECONDS:
            raise TimeoutError("the move takes too long")

    def _moved(self) -> float:
        """The part of the users that has the new name, by a sample."""
        numbers = random.sample(range(self._plan.members), min(_SAMPLE, self._plan.members))
        with self._store.client.pipeline(transaction=False) as pipeline:
            for number in numbers:
                (user_id,) = traffic.user_ids(1, number)
                pipeline.hexists(f"{_BASE}user:{user_id}", NEW)
            return float(sum(pipeline.execute()) / len(numbers))

    def _moving(self) -> bool:
        return bool(self._store.client.scard(f"{_BASE}jobs"))

    def _phases(self, done: Load) -> list[Phase]:
        marks = self._marks
        # The killed workers' phase ends when ingest is as quick again as its slowest was before.
        latencies = sorted(zip(done.moments, done.latencies, strict=True))
        usual = percentile([x for at, x in latencies if at < marks["renamed"]], 99)
        slow = [at for at, x in latencies if marks["killed"] <= at < marks["moved"] and x > usual]
        # Requests are answered late for as long as there is a queue: a gap of a second ends it.
        recovered = marks["killed"]
        for at in slow:
            if at - recovered > 1:
                break
            recovered = at
        recovered = min(recovered + 1, marks["moved"])
        phases = [
            Phase(_BEFORE, marks["begin"] + self._plan.settle_seconds, marks["renamed"]),
            Phase(_MOVING, marks["renamed"], marks["killed"]),
            Phase(_KILLED, marks["killed"], recovered),
            Phase(_RESUMED, recovered, marks["moved"]),
            Phase(_AFTER, marks["moved"] + self._plan.settle_seconds, marks["end"]),
        ]
        for phase in phases:
            phase.latencies = [x for at, x in latencies if phase.begin <= at < phase.end]
        return phases

    def _count(self) -> tuple[int, int]:
        """How many of all user hashes have the new name, and how many the old one."""
        script = self._store.client.register_script(_COUNT)
        with_new = with_old = cursor = 0
        while True:
            cursor, keys = self._store.client.scan(cursor, match=f"{_BASE}user:*", count=2000)
            if keys:
                new, old = script(keys=keys, args=[NEW, OLD])
                with_new, with_old = with_new + new, with_old + old
            if not cursor:
                return with_new, with_old


def main(arguments: list[str]) -> int:
    """Run it. Returns the exit code: 1 when a bar is missed."""
    plan = Plan()
    parser = argparse.ArgumentParser(prog="python -m bench rename", description=__doc__)
    parser.add_argument("--members", type=int, default=plan.members)
    parser.add_argument("--batch", type=int, default=plan.batch, help="users a request")
    parser.add_argument("--share", type=float, default=plan.share, help="of the capacity")
    parser.add_argument("--seconds", type=float, default=plan.seconds, help="before, and after")
    parser.add_argument("--write-docs", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    outcome = run(
        Plan(
            members=options.members,
            batch=options.batch,
            share=options.share,
            seconds=options.seconds,
        )
    )
    return docs.tell("rename", outcome.text(), outcome.bars(), options)
