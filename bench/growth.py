"""``python -m bench growth``: what becomes of speed and latency while a store grows large.

One cohort grows to ten million users; then one user enters ten thousand cohorts, each of that one
user. At the end each kind of call is made on it, and the store is asked how long its commands took
it: none may hold up its other clients for more than 10 ms, however large the cohort is.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import quote, urlencode

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
# Commands are killed after this: by then they have done each of their steps many times.
_COMMAND_SECONDS = 60.0
# Of a script that ran so often meanwhile, one call in a hundred is left out: it waited for a core.
_OFTEN = 100
_ONE_USER = "one-user-of-many-cohorts"


@dataclass(frozen=True)
class Point:
    """What was measured while the cohort grew to ``users``."""

    users: int
    users_per_second: float
    p50_ms: float
    p99_ms: float
    store_mb: float


@dataclass(frozen=True)
class Held:
    """How long a call's commands took the store, in ms: what is judged, and the very longest."""

    judged: float
    longest: float


@dataclass
class Outcome:
    """The points; and for each kind of call, how long its commands took the store."""

    points: list[Point] = field(default_factory=list)
    cohorts: int = 0
    cohorts_per_second: float = 0.0
    calls: dict[str, Held] = field(default_factory=dict)
    slow_commands: list[tuple[str, float]] = field(default_factory=list)
    latency_growing: str = ""
    latency_of_calls: str = ""

    @property
    def passed(self) -> bool:
        return all(held.judged <= BLOCKS_MS for held in self.calls.values())

    def text(self) -> str:
        """In Markdown."""
        shown = self.points[:: max(1, len(self.points) // 8)]
        if self.points[-1] not in shown:
            shown.append(self.points[-1])
        most = max(held.judged for held in self.calls.values())
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
                "| call, with all that stored | longest store command, ms | of all times |",
                "|:--|--:|--:|",
                *(
                    f"| {name} | {held.judged:.2f} | {held.longest:.2f} |"
                    for name, held in self.calls.items()
                ),
                "",
                f"By the store's slow log. A call is made {_REPEATS} times, if it can be, and the "
                "best one judged: what is slow by itself is slow each time. Of a script that ran "
                f"{_OFTEN} times or more meanwhile, as background steps do, the slowest hundredth "
                "is left out: there it waited for a core. The last column leaves nothing out. The "
                f"store's latency monitor during all these calls: {self.latency_of_calls}. While "
                "the cohort grew, with all cores busy, the slow log had "
                f"{len(self.slow_commands)} commands of more than {BLOCKS_MS:.0f} ms (the longest: "
                f"{slowest}), and the latency monitor: {self.latency_growing}.",
                "",
                "```",
                f"{'pass' if self.passed else 'MISS'}  longest store command of any call"
                f"{most:>20.2f} ms  <= {BLOCKS_MS:.0f} ms",
                "```",
            ]
        )


class _Run:
    def __init__(self, store: RunningStore, service: Gunicorn, background_seconds: float) -> None:
        self._store, self._service = store, service
        self._background_seconds = background_seconds
        self.outcome = Outcome()
        self._cookie = ""

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
        self.outcome.latency_growing = self._latency()

    def _latency(self) -> str:
        """What the latency monitor has seen since this was asked, at most for each event."""
        execute: Callable[..., Any] = self._store.client.execute_command
        latest = execute("LATENCY", "LATEST")
        execute("LATENCY", "RESET")
        return ", ".join(f"{event[0].decode()} {event[3]} ms" for event in latest) or "nothing"

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
            "a part of an export": lambda: self._read(f"{cohort}/members.ndjson", 20 << 20),
            **{
                f"the page {page}": lambda page=page: self._read(page, 1 << 30)  # type: ignore[misc]
                for page in ("/", f"/cohort?id={traffic.COHORT_ID}", "/syncs", "/health")
            },
            "a user is erased": lambda: self._call("DELETE", f"/api/v1/users/{next(erased)}"),
        }
        for name, call in calls.items():
            self._judge(name, call)
        self._judge("`store check`", lambda: self._command("check"), 1)
        with servers.running_store() as other:
            self._judge(
                "`store copy`",
                lambda: self._command("copy", "--to", other.url, "--partitions", "1"),
                1,
            )
        self._judge(
            "erasing the user of many cohorts",
            lambda: self._call("DELETE", f"/api/v1/users/{_ONE_USER}"),
            1,
        )
        names = (payloads.trait_name(f"Renamed {n}", traffic.COHORT_ID) for n in range(_REPEATS))
        self._judge(
            "a rename", lambda: self._and_wait("POST", "/lists", payloads.list_create(next(names)))
        )
        self._judge("a deletion", lambda: self._and_wait("DELETE", cohort), 1)
        self.outcome.latency_of_calls = self._latency()

    def _judge(self, name: str, call: Callable[[], Any], repeats: int = _REPEATS) -> None:
        tell_stderr(name)
        times = [self._held(call) for _ in range(repeats)]
        judged = min(held.judged for held in times)
        self.outcome.calls[name] = Held(judged, max(held.longest for held in times))

    def _and_wait(self, method: str, path: str, body: Any = None) -> None:
        self._call(method, path, body)
        self._store.client.blpop(["bench:nothing"], timeout=self._background_seconds)

    def _held(self, call: Callable[[], Any]) -> Held:
        """How long the store's commands took it meanwhile."""
        self._store.client.config_set("slowlog-log-slower-than", _LOGGED_US)
        self._store.client.slowlog_reset()
        call()
        kinds: dict[bytes, list[float]] = defaultdict(list)
        for entry in self._store.client.slowlog_get(_SLOW_ENTRIES):
            kind = b" ".join(entry["command"].split(b" ", 2)[:2])  # a script's name comes second
            kinds[kind if kind.startswith(b"EVALSHA") else kind.split()[0]].append(
                entry["duration"] / 1000
            )
        judged = (percentile(ms, 99) if len(ms) >= _OFTEN else max(ms) for ms in kinds.values())
        longest = max(map(max, kinds.values()), default=_LOGGED_US / 1000)
        return Held(max(judged, default=_LOGGED_US / 1000), longest)

    def _command(self, *words: str) -> None:
        """Run ``store …`` to its end, or for a while."""
        environment = {
            **os.environ,
            "REDIS_URL": self._store.url,
            "API_KEYS": f"{servers.APP_ID}:{traffic.KEY}",
        }
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [sys.executable, "-m", "flask", "--app", "wsgi", "store", *words],
                cwd=servers.ROOT,
                env=environment,
                check=True,
                capture_output=True,
                timeout=_COMMAND_SECONDS,
            )

    def _read(self, path: str, most: int) -> None:
        """Get so many bytes at most, as somebody who is logged in or by key."""
        connection = http.client.HTTPConnection(*self._service.address, timeout=120)
        try:
            if not self._cookie:
                form = {"Content-Type": "application/x-www-form-urlencoded"}
                connection.request("POST", "/login", urlencode({"key": _ADMIN}), form)
                reply = connection.getresponse()
                reply.read()
                self._cookie = (reply.headers["Set-Cookie"] or "").partition(";")[0]
            connection.request("GET", path, headers={"api_key": _ADMIN, "Cookie": self._cookie})
            reply = connection.getresponse()
            reply.read(most)
        finally:
            connection.close()
        if reply.status != 200:
            raise generator.LoadFailed(f"GET {path}: {reply.status}")

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


def run(
    users: int, cohorts: int, points: int, background_seconds: float = _BACKGROUND_SECONDS
) -> Outcome:
    """Run it, on a service and a store of its own; background work is watched for so long."""
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
        going = _Run(store, service, background_seconds)
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
