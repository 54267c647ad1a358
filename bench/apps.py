"""``python -m bench apps``: what a noisy app does to a quiet one on the same service.

One app floods the service with what costs most, from many clients that never pause. Meanwhile the
other one sends single identifies at a steady rate. Latency counts from the moment when a request
was due.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, islice
from multiprocessing.connection import Connection

from bench import docs, servers, traffic
from bench import load as generator
from bench.measure import percentile

QUIET, NOISY = "quiet", "noisy"
QUIET_KEY, NOISY_KEY = "quiet-key", "noisy-key"
SECONDS, CLIENTS = 4.0, 64
_BATCH = 1000
_RATE, _QUIET_CLIENTS = 25.0, 64
# Until the flood is in full course.
_SETTLE_SECONDS = 1.0
# The quiet app's p99, however noisy another one is.
BOUND_MS = 250.0


def _keyed(request: bytes, key: str) -> bytes:
    """A request with another key than the benchmark's."""
    head, rest = request.split(b"Authorization: Basic ", 1)
    return head + f"api_key: {key}\r\n".encode() + rest.split(b"\r\n", 1)[1]


def _batches(start: int = 0) -> Iterator[bytes]:
    ids = traffic.user_ids(1 << 62, start)
    while True:
        body = traffic.identify(list(islice(ids, _BATCH)))
        yield _keyed(traffic.request(traffic.IDENTIFY.path, body), NOISY_KEY)


def _singles(key: str) -> Iterator[bytes]:
    for user in traffic.user_ids(1 << 62):
        yield _keyed(traffic.request(traffic.IDENTIFY.path, traffic.identify([user])), key)


def _pages() -> Iterator[bytes]:
    path = f"/api/v1/cohorts/{traffic.COHORT_ID}/members?limit=10000"
    head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\napi_key: {NOISY_KEY}\r\n\r\n"
    while True:
        yield head.encode()


FLOODS: dict[str, Callable[[], Iterator[bytes]]] = {
    "batches of 1,000": _batches,
    "single identifies": lambda: _singles(NOISY_KEY),
    "pages of 10,000 members": _pages,
}


@dataclass(frozen=True)
class Row:
    """What the quiet app got. ``noise`` is what the other one did, and how often a second."""

    noise: str
    noisy_per_second: float
    answered: int
    p50_ms: float
    p99_ms: float
    longest_ms: float

    def __str__(self) -> str:
        times = " | ".join(f"{ms:.1f}" for ms in (self.p50_ms, self.p99_ms, self.longest_ms))
        return f"| {self.noise} | {self.noisy_per_second:,.0f} | {self.answered} | {times} |"


def measure(noise: str | None, seconds: float, clients: int) -> Row:
    """Measure with one kind of noise, or none, on a fresh service and store."""
    with ExitStack() as stack:
        store = stack.enter_context(servers.running_store())
        service = stack.enter_context(
            servers.running_service(
                store.url,
                servers.NO_LIMIT,
                ADMIN_API_KEYS=f"{QUIET}:{QUIET_KEY},{NOISY}:{NOISY_KEY}",
            )
        )
        fill = islice(_batches(1 << 40), 30)
        generator.run(service.address, fill, clients=4, seconds=20)
        quiet = _singles(QUIET_KEY)
        generator.run(service.address, islice(quiet, 100), clients=4, seconds=10)  # warm up
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        if noise:
            flood = multiprocessing.get_context("spawn").Process(
                target=_flood, args=(service.address, noise, seconds, clients, theirs), daemon=True
            )
            flood.start()
            stack.callback(flood.join, 30)
            if not ours.poll(servers.START_SECONDS):
                raise generator.LoadFailed("the flood did not begin")
            ours.recv()
        generator.run(
            service.address,
            islice(quiet, 10_000),
            clients=_QUIET_CLIENTS,
            seconds=_SETTLE_SECONDS,
            rate=_RATE,
        )
        done = generator.run(
            service.address,
            quiet,
            clients=_QUIET_CLIENTS,
            seconds=seconds,
            rate=_RATE,
            drain_seconds=60.0,
        )
        noisy = 0.0
        if noise:
            ours.send("enough")
            noisy = ours.recv()
    times = [second * 1000 for second in done.latencies]
    return Row(
        noise or "none", noisy, len(times), percentile(times, 50), percentile(times, 99), max(times)
    )


def _flood(
    address: tuple[str, int], noise: str, seconds: float, clients: int, commands: Connection
) -> None:
    """What the noisy process does until it is told that it is enough, or for a minute."""
    requests = FLOODS[noise]()
    begun = count()

    def goes_on() -> bool:
        if next(begun) == 2 * clients:
            commands.send("in full course")
        return not commands.poll()

    done = generator.run(
        address, requests, clients=clients, seconds=60.0, drain_seconds=60.0, goes_on=goes_on
    )
    commands.send(done.answered / done.seconds)


def text(rows: list[Row]) -> str:
    """The table, in Markdown."""
    return "\n".join(
        [
            "| noise | a second | the quiet app's answers | p50 ms | p99 ms | longest ms |",
            "|:--|--:|--:|--:|--:|--:|",
            *map(str, rows),
        ]
    )


def main(arguments: list[str]) -> int:
    """Run it. Returns the exit code: 1 when a noisy app takes the quiet one's turns."""
    parser = argparse.ArgumentParser(prog="python -m bench apps", description=__doc__)
    parser.add_argument("--clients", type=int, default=CLIENTS, help="of the noisy app")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--write-docs", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    rows = [measure(noise, options.seconds, options.clients) for noise in (None, *FLOODS)]
    print(text(rows))
    if options.write_docs:
        docs.write("apps", text(rows))
    return 0 if all(row.p99_ms <= BOUND_MS for row in rows) else 1
