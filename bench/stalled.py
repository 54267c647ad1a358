"""``python -m bench stalled``: what clients that stall in the middle of a request do to the others.

The service runs on each kind of gunicorn's workers in turn. Some clients send the beginning of a
request and nothing more; meanwhile another one sends single identifies, one after the other.
"""

from __future__ import annotations

import argparse
import socket
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import count

from bench import docs, servers, traffic
from bench import load as generator
from bench.measure import percentile

# Each kind of worker, with its options. Two workers of each.
KINDS: dict[str, tuple[str, ...]] = {
    "gevent": (),
    "gthread, 8 threads": ("--worker-class", "gthread", "--threads", "8"),
    "sync": ("--worker-class", "sync"),
}
STALLED = 100
SECONDS = 5.0
# Until the workers have taken on what the stalled clients sent.
_SETTLE_SECONDS = 1.0


@dataclass(frozen=True)
class Row:
    """One kind of worker: requests that a client got answered, and their latencies in ms."""

    kind: str
    stalled: int
    answered: int
    p50_ms: float | None
    p99_ms: float | None

    def __str__(self) -> str:
        p50, p99 = ("none" if x is None else f"{x:.1f}" for x in (self.p50_ms, self.p99_ms))
        return f"| {self.kind} | {self.stalled} | {self.answered} | {p50} | {p99} |"


def measure(kind: str, stalled: int, seconds: float) -> Row:
    """Measure one kind of worker, with a fresh service and store."""
    with ExitStack() as stack:
        store = stack.enter_context(servers.running_store())
        service = stack.enter_context(
            servers.running_service(store.url, servers.NO_LIMIT, *KINDS[kind])
        )
        ids = count()

        def requests(number: int) -> list[bytes]:
            users = [list(traffic.user_ids(1, next(ids))) for _ in range(number)]
            return [traffic.request(traffic.IDENTIFY.path, traffic.identify(u)) for u in users]

        generator.run(service.address, requests(200), clients=4, seconds=10)  # warm up
        beginning = requests(1)[0][:-20]
        for _ in range(stalled):
            client = stack.enter_context(socket.create_connection(service.address, 5))
            client.sendall(beginning)
        time.sleep(_SETTLE_SECONDS)
        done = generator.run(
            service.address,
            requests(int(seconds * 2000)),
            clients=1,
            seconds=seconds,
            drain_seconds=0.0,
        )
        # A store that is told to stop must not wait for a service that is stuck.
        with suppress(OSError):
            service.workers.terminate()
    times = done.latencies
    return Row(
        kind,
        stalled,
        done.answered,
        percentile(times, 50) * 1000 if times else None,
        percentile(times, 99) * 1000 if times else None,
    )


def text(rows: list[Row]) -> str:
    """The table, in Markdown."""
    return "\n".join(
        [
            "| workers | stalled clients | answers to another client in 5 s | p50 ms | p99 ms |",
            "|:--|--:|--:|--:|--:|",
            *map(str, rows),
        ]
    )


def main(arguments: list[str]) -> int:
    """Run it. Returns the exit code: 1 when stalled clients stop the service as it is deployed."""
    parser = argparse.ArgumentParser(prog="python -m bench stalled", description=__doc__)
    parser.add_argument("--stalled", type=int, default=STALLED)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--write-docs", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    rows = [
        measure(kind, stalled, options.seconds)
        for kind in KINDS
        for stalled in (0, options.stalled)
    ]
    print(text(rows))
    if options.write_docs:
        docs.write("stalled", text(rows))
    return 0 if all(row.answered for row in rows if row.kind == "gevent") else 1
