"""``python -m bench growth``: what becomes of speed and latency while a store grows large.

One cohort grows to ten million users; then one user enters ten thousand cohorts, each of that one
user. At the end each kind of call is made on it, and the store is asked how long its commands took
it: none may hold up its other clients for more than 10 ms, however large the cohort is.
"""

from __future__ import annotations

import argparse
import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import quote

from bench import docs, servers, traffic
from bench import load as generator
from bench.measure import percentile, tell_stderr
from bench.servers import Gunicorn, RunningStore
from simulator import payloads

USERS, COHORTS, POINTS = 10_000_000, 10_000, 40
CLIENTS, BATCH = 4, 1000
BLOCKS_MS = 10.0
PICTURE = docs.PAGE.parent / "pictures" / "growth.svg"
_ADMIN = "benchmark-admin-key"
_SLOW_ENTRIES = 10_000
_REPEATS = 3
# To log the commands within a script too would be most of its time.
_LOGGED_US = 100
_BACKGROUND_SECONDS = 4.0
_ONE_USER = "one-user-of-many-cohorts"


@dataclass(frozen=True)
class Point:
    """What was measured while the cohort grew to ``users``."""

    users: int
    users_per_second: float
    p50_ms: float
    p99_ms: float
    store_mb: float


@dataclass
class Outcome:
    """The points; and for each kind of call, the longest time of one store command, in ms."""

    points: list[Point] = field(default_factory=list)
    cohorts: int = 0
    cohorts_per_second: float = 0.0
    calls: dict[str, float] = field(default_factory=dict)
    slow_commands: list[tuple[str, float]] = field(default_factory=list)
    latency: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(ms <= BLOCKS_MS for ms in self.calls.values())

    def text(self) -> str:
        """In Markdown."""
        shown = self.points[:: max(1, len(self.points) // 8)]
        if self.points[-1] not in shown:
            shown.append(self.points[-1])
        slow = sorted(self.slow_commands, key=lambda entry: -entry[1])[:5]
        slowest = "; ".join(f"`{name}` {ms:.0f} ms" for name, ms in slow) or "none"
        return "\n".join(
            [
                "| users in the cohort | users/s | p50 ms | p99 ms | store MB |",
                "|--:|--:|--:|--:|--:|",
                *(
                    f"| {p.users:,} | {p.users_per_second:,.0f} | {p.p50_ms:.1f} | {p.p99_ms:.1f} "
                    f"| {p.store_mb:,.0f} |"
                    for p in shown
                ),
                "",
                f"Then one user entered {self.cohorts:,} cohorts, one call for each: "
                f"{self.cohorts_per_second:,.0f} a second.",
                "",
                "| call, with all that stored | longest store command, ms |",
                "|:--|--:|",
                *(f"| {name} | {ms:.2f} |" for name, ms in self.calls.items()),
                "",
                f"The least of {_REPEATS} times, by the store's slow log: what is slow by itself "
                "is slow each time; of background steps their median. While it grew, with all "
                "cores busy, the slow log had "
                f"{len(self.slow_commands)} commands of more than {BLOCKS_MS:.0f} ms (the longest: "
                f"{slowest}); these times include waiting for a core. Its latency monitor: "
                f"{', '.join(self.latency) or 'nothing'}.",
                "",
                "```",
                f"{'pass' if self.passed else 'MISS'}  longest store command of any call"
                f"{max(self.calls.values()):>20.2f} ms  <= {BLOCKS_MS:.0f} ms",
                "```",
            ]
        )


class _Run:
    def __init__(self, store: RunningStore, service: Gunicorn) -> None:
        self._store, self._service = store, service
        self.outcome = Outcome()

    def grow(self, users: int, points: int) -> None:
        each = max(BATCH, users // points)
        ids = traffic.user_ids(users)
        reached = 0
        while reached < users:
            bodies = self._portion(ids, each)
            done = generator.run(self._service.address, bodies, clients=CLIENTS, seconds=600)
            if done.unanswered or done.answered != len(bodies):
                raise generator.LoadFailed("not all requests were answered")
            reached += done.answered * BATCH
            times = [second * 1000 for second in done.latencies]
            self.outcome.points.append(
                Point(
                    reached,
                    done.answered * BATCH / done.seconds,
                    percentile(times, 50),
                    percentile(times, 99),
                    self._store.used_memory() / 1e6,
                )
            )
            tell_stderr(f"{reached:,} users")

    def _portion(self, ids: Iterator[str], count: int) -> list[bytes]:
        parts = (list(islice(ids, BATCH)) for _ in range(count // BATCH))
        return [
            traffic.request(traffic.IDENTIFY.path, traffic.identify(part)) for part in parts if part
        ]

    def enter_cohorts(self, count: int) -> None:
        requests = (
            traffic.request(
                traffic.IDENTIFY.path,
                traffic.identify([_ONE_USER], payloads.trait_name(f"Cohort {n}", f"c{n}")),
            )
            for n in range(count)
        )
        done = generator.run(self._service.address, requests, clients=CLIENTS, seconds=600)
        self.outcome.cohorts = done.answered
        self.outcome.cohorts_per_second = done.answered / done.seconds

    def read_slow_log(self) -> None:
        for entry in self._store.client.slowlog_get(_SLOW_ENTRIES):
            name = entry["command"].split(b" ", 1)[0].decode().lower()
            self.outcome.slow_commands.append((name, entry["duration"] / 1000))
        latest: Any = self._store.client.execute_command("LATENCY", "LATEST")  # type: ignore[no-untyped-call]
        self.outcome.latency = [f"{event[0].decode()} {event[3]} ms" for event in latest]

    def make_each_call(self) -> None:
        cohort, user = f"/api/v1/cohorts/{traffic.COHORT_ID}", next(traffic.user_ids(1))
        erased = traffic.user_ids(_REPEATS)
        middle = self._call("GET", f"{cohort}/members?limit=10000")["next"]
        members = list(traffic.user_ids(BATCH))
        batch = json.loads(traffic.identify(members))
        leaving = json.loads(traffic.identify(members, member=False))
        calls: dict[str, Callable[[], Any]] = {
            "a batch of 1,000 that changes nothing": lambda: self._call(
                "POST", traffic.IDENTIFY.path, batch
            ),
            "1,000 users leave": lambda: self._call("POST", traffic.IDENTIFY.path, leaving),
            "1,000 users enter again": lambda: self._call("POST", traffic.IDENTIFY.path, batch),
            "a user": lambda: self._call("GET", f"/api/v1/users/{user}"),
            "the user of many cohorts": lambda: self._call("GET", f"/api/v1/users/{_ONE_USER}"),
            "is this user in it": lambda: self._call("GET", f"{cohort}/members/{user}"),
            "10,000 members": lambda: self._call("GET", f"{cohort}/members?limit=10000"),
            "10,000 members from the middle": lambda: self._call(
                "GET", f"{cohort}/members?limit=10000&cursor={quote(middle)}"
            ),
            "who entered since": lambda: self._call("GET", f"{cohort}/members?entered_since=1"),
            "the cohort": lambda: self._call("GET", cohort),
            "all cohorts, by members": lambda: self._call("GET", "/api/v1/cohorts?sort=-members"),
            "changes": lambda: self._call("GET", "/api/v1/changes?limit=1000"),
            "a user is erased": lambda: self._call("DELETE", f"/api/v1/users/{next(erased)}"),
        }
        for name, call in calls.items():
            tell_stderr(name)
            self.outcome.calls[name] = min(self._longest(call) for _ in range(_REPEATS))
        tell_stderr("the user of many cohorts is erased")
        self.outcome.calls["a step of erasing the user of many cohorts"] = self._step(
            lambda: self._call("DELETE", f"/api/v1/users/{_ONE_USER}")
        )
        tell_stderr("a rename begins")
        renamed = payloads.trait_name("Renamed", traffic.COHORT_ID)
        self.outcome.calls["a step of a rename"] = self._step(
            lambda: self._and_wait("POST", "/lists", payloads.list_create(renamed))
        )
        tell_stderr("a deletion begins")
        self.outcome.calls["a step of a deletion"] = self._step(
            lambda: self._and_wait("DELETE", cohort)
        )

    def _and_wait(self, method: str, path: str, body: Any = None) -> None:
        self._call(method, path, body)
        self._store.client.blpop(["bench:nothing"], timeout=_BACKGROUND_SECONDS)

    def _longest(self, call: Callable[[], Any]) -> float:
        """ms of the store's longest command meanwhile."""
        return max(self._times(call), default=_LOGGED_US / 1000)

    def _times(self, call: Callable[[], Any]) -> list[float]:
        """ms of each of the store's commands meanwhile."""
        self._store.client.config_set("slowlog-log-slower-than", _LOGGED_US)
        self._store.client.slowlog_reset()
        call()
        entries = self._store.client.slowlog_get(_SLOW_ENTRIES)
        return [entry["duration"] / 1000 for entry in entries]

    def _step(self, call: Callable[[], Any]) -> float:
        """ms of the middle one of the scripts that ran meanwhile for a while."""
        self._store.client.config_set("slowlog-log-slower-than", _LOGGED_US)
        self._store.client.slowlog_reset()
        call()
        entries = self._store.client.slowlog_get(_SLOW_ENTRIES)
        scripts = [e["duration"] / 1000 for e in entries if e["command"].startswith(b"EVALSHA")]
        return percentile(scripts, 50) if scripts else _LOGGED_US / 1000

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection(*self._service.address, timeout=120)
        headers = {"api_key": _ADMIN, "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body)
        try:
            connection.request(method, path, data, headers)
            reply = connection.getresponse()
            said = reply.read()
        finally:
            connection.close()
        if reply.status not in (200, 202):
            raise generator.LoadFailed(f"{method} {path}: {reply.status} {said[:300]!r}")
        return json.loads(said)


def run(users: int, cohorts: int, points: int) -> Outcome:
    """Run it, on a service and a store of its own."""
    with ExitStack() as stack:
        store = stack.enter_context(servers.running_store())
        store.client.config_set("slowlog-max-len", _SLOW_ENTRIES)
        store.client.config_set("slowlog-log-slower-than", int(BLOCKS_MS * 1000))
        store.client.config_set("latency-monitor-threshold", int(BLOCKS_MS))
        service = stack.enter_context(
            servers.running_service(
                store.url,
                servers.NO_LIMIT,
                ADMIN_API_KEYS=f"{servers.APP_ID}:{_ADMIN}",
                STORE_TIMEOUT_SECONDS="30",
            )
        )
        going = _Run(store, service)
        going.grow(users, points)
        going.enter_cohorts(cohorts)
        going.read_slow_log()
        going.make_each_call()
        return going.outcome


def picture(points: list[Point]) -> str:
    """Three curves over the number of users, as SVG."""
    width, height, left, top = 640, 150, 90, 30
    most = points[-1].users
    curves: list[tuple[str, list[list[float]]]] = [
        ("users/s", [[p.users_per_second for p in points]]),
        (
            "latency of a batch of 1,000, ms: p50 and p99",
            [[p.p50_ms for p in points], [p.p99_ms for p in points]],
        ),
        ("store memory, MB", [[p.store_mb for p in points]]),
    ]
    parts = []
    for number, (title, lines) in enumerate(curves):
        y = top + number * (height + 50)
        peak = max(max(line) for line in lines) or 1.0
        parts.append(f'<text x="{left}" y="{y - 8}">{title}</text>')
        parts.append(f'<path class="axis" d="M{left} {y}v{height}h{width}"/>')
        parts.append(f'<text class="end" x="{left - 6}" y="{y + 10}">{peak:,.0f}</text>')
        parts.append(f'<text class="end" x="{left - 6}" y="{y + height}">0</text>')
        for n, line in enumerate(lines):
            places = " ".join(
                f"{left + p.users / most * width:.1f},{y + height - value / peak * height:.1f}"
                for p, value in zip(points, line, strict=True)
            )
            parts.append(f'<polyline class="line{n}" points="{places}"/>')
    bottom = top + len(curves) * (height + 50)
    parts.append(f'<text class="end" x="{left + width}" y="{bottom - 30}">{most:,} users</text>')
    style = (
        "text{font:13px sans-serif;fill:#333}.end{text-anchor:end}.axis{fill:none;stroke:#999}"
        "polyline{fill:none;stroke-width:2}.line0{stroke:#1f6feb}.line1{stroke:#d29922}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {bottom}" '
        f'role="img"><title>Speed, latency and memory while a cohort grows</title>'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>'
        + "".join(f"\n{part}" for part in parts)
        + "\n</svg>\n"
    )


def main(arguments: list[str]) -> int:
    """Run it. Returns the exit code: 1 when a call holds up the store for too long."""
    parser = argparse.ArgumentParser(prog="python -m bench growth", description=__doc__)
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--cohorts", type=int, default=COHORTS)
    parser.add_argument("--points", type=int, default=POINTS)
    parser.add_argument("--write-docs", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    outcome = run(options.users, options.cohorts, options.points)
    tell_stderr("")
    print(outcome.text())
    if options.write_docs:
        docs.write("growth", outcome.text())
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_text(picture(outcome.points))
    return 0 if outcome.passed else 1
