"""``python -m bench cluster``: how the work spreads over masters, and what waiting costs.

The store's atomic step is called directly, as ``store alone`` does. All masters and the callers
share the machine's cores, so users/s can't grow with the masters here. What tells is the CPU that
each master uses for a user: that is what bounds it on a machine of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import psutil

from app.cohorts import Cohort, MembershipChange
from app.settings import Settings
from app.store import Store, connect, wait_for
from bench import docs
from bench.servers import APP_ID, cpu_seconds, machine_cpu_seconds
from bench.traffic import TRAIT
from tests.cluster import Node, running_cluster, running_server

_DURABLE = (
    "--appendonly",
    "yes",
    "--appendfsync",
    "everysec",
    "--auto-aof-rewrite-percentage",
    "0",
)
# Prepared before the clock starts.
_MOST_USERS_PER_SECOND = 250_000


@dataclass(frozen=True)
class Setup:
    """One store to be measured: masters, replicas of each, and what a write waits for."""

    masters: int  # 0 for a single store that is no cluster
    replicas: int = 0
    partitions: int = 12
    wait: str = "no"


SETUPS = (
    Setup(0, partitions=1),
    Setup(0),
    Setup(1),
    Setup(2),
    Setup(3),
    Setup(3, replicas=1),
    Setup(3, replicas=1, wait="WAIT 1"),
    Setup(3, replicas=1, wait="WAITAOF 1 1"),
)


@dataclass
class Measured:
    """What one load has taken."""

    users: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    masters: list[float] = field(default_factory=list)  # CPU seconds of each
    replicas: float = 0.0  # CPU seconds of all
    callers: float = 0.0
    others: float = 0.0


def main(arguments: list[str]) -> int:
    """Measure and print. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench cluster", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    parser.add_argument("--callers", type=int, default=3, help="threads with a call in flight")
    parser.add_argument("--write-docs", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    rows = []
    for setup in SETUPS:
        print(f"{_name(setup)} …", file=sys.stderr)
        rows.append((setup, *_measure(setup, options.seconds, options.callers)))
    text = _tables(rows)
    print(text)
    if options.write_docs:
        docs.write("cluster", text)
    return 0


def _measure(setup: Setup, seconds: float, callers: int) -> tuple[Measured, Measured]:
    """Batches of 1,000 new users, then single ones."""
    with ExitStack() as stack:
        masters: Sequence[Node]
        replicas: Sequence[Node] = ()
        if setup.masters:
            cluster = stack.enter_context(running_cluster(setup.masters, setup.replicas, *_DURABLE))
            url, masters = cluster.url, cluster.masters
            replicas = cluster.nodes[setup.masters :]
        else:
            masters = [stack.enter_context(running_server(*_DURABLE))]
            url = masters[0].url
        settings = Settings(
            redis_url=url,
            store_cluster=bool(setup.masters),
            store_partitions=setup.partitions,
            store_wait_replicas=0 if setup.wait == "no" else 1,
            store_wait_fsync=setup.wait.startswith("WAITAOF"),
        )
        store = Store(connect(settings), partitions=setup.partitions, wait=wait_for(settings))
        loads = [_load(store, masters, replicas, batch, seconds, callers) for batch in (1000, 1)]
        return loads[0], loads[1]


def _load(
    store: Store,
    masters: Sequence[Node],
    replicas: Sequence[Node],
    batch: int,
    seconds: float,
    callers: int,
) -> Measured:
    cohort = Cohort.from_trait(TRAIT)
    count = int(_MOST_USERS_PER_SECOND * seconds) if batch > 1 else int(20_000 * seconds)
    ids = [f"user-{batch:04}-{number:014}" for number in range(count)]
    calls = iter(
        [MembershipChange(cohort, True, ids[start : start + batch], None)]
        for start in range(0, count, batch)
    )
    store.check()
    measured = Measured()
    lock = threading.Lock()
    until = time.perf_counter() + seconds

    def work() -> None:
        while True:
            with lock:
                changes = next(calls, None)
            started = time.perf_counter()
            if changes is None or started >= until:
                return
            store.apply(APP_ID, changes, way="identify")
            with lock:
                measured.latencies.append(time.perf_counter() - started)
                measured.users += batch

    nodes = [[psutil.Process(node.process.pid) for node in some] for some in (masters, replicas)]
    before = [[cpu_seconds(process) for process in some] for some in nodes]
    machine, own = machine_cpu_seconds(), time.process_time()
    started = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    measured.seconds = time.perf_counter() - started
    measured.callers = time.process_time() - own
    used = [
        [cpu_seconds(process) - was for process, was in zip(some, were, strict=True)]
        for some, were in zip(nodes, before, strict=True)
    ]
    measured.masters, measured.replicas = used[0], sum(used[1])
    ours = sum(measured.masters) + measured.replicas + measured.callers
    measured.others = (machine_cpu_seconds() - machine - ours) / measured.seconds
    return measured


def _name(setup: Setup) -> str:
    if not setup.masters:
        return "single store"
    masters = f"{setup.masters} master{'s' * (setup.masters > 1)}"
    return masters + (f", {setup.replicas} replica each" if setup.replicas else "")


def _tables(rows: Sequence[tuple[Setup, Measured, Measured]]) -> str:
    lines = [
        "Batches of 1,000 new users:",
        "",
        "| store | partitions | waits | users/s | p50 ms | CPU of each master, s per million users "
        "| masters together | replicas | callers | others |",
        "|:--|--:|:--|--:|--:|:--|--:|--:|--:|--:|",
    ]
    for setup, batches, _ in rows:
        lines.append(_row(setup, batches))
    lines += ["", "Single users:", "", *lines[2:4]]
    for setup, _, singles in rows:
        lines.append(_row(setup, singles))
    lines += ["", "Others: cores that other programs used meanwhile."]
    return "\n".join(lines)


def _row(setup: Setup, load: Measured) -> str:
    million = load.users / 1e6
    each = " + ".join(f"{seconds / million:.1f}" for seconds in load.masters)
    return (
        f"| {_name(setup)} | {setup.partitions} | {setup.wait} | {load.users / load.seconds:,.0f} "
        f"| {statistics.median(load.latencies) * 1000:.1f} | {each} "
        f"| {sum(load.masters) / million:.1f} | {load.replicas / million:.1f} "
        f"| {load.callers / million:.1f} | {load.others:.2f} |"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
