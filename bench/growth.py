"""A cohort that grows to ten million users, and how long calls then block the store.

Then one user enters very many cohorts. At the end each kind of call, page and command is made, and
the store's slow log is read: no command may block other clients for more than 10 ms, however large
the cohort is.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis

from bench import generator
from bench.plan import CONTESTANTS, SERVICE, SERVICE_ENVIRONMENT
from bench.report import Report, Verdict
from bench.requests import (
    ADMIN_KEY,
    COHORT_ID,
    Size,
    Target,
    batches,
    identify,
    pages,
    request,
    user_ids,
)
from bench.runner import percentile, progress, start
from bench.servers import Gunicorn, Store, running_store
from simulator import payloads

MAX_BLOCKED_MS = 10.0
_POINTS = 10
_BATCH = 1000
_REPEATS = 3
_SLOW_LOG_ENTRIES = 10_000
# Logging shorter commands would take most of the time of scripts.
_LOGGED_US = 100
# A command is stopped after this; by then it has done each of its steps many times.
_COMMAND_SECONDS = 60.0
# Of a script that ran this often, as background steps do, the slowest hundredth waited for a core.
_OFTEN = 100
_BUSY_USER = "user-of-many-cohorts"
_PAGES = ("/", f"/cohort?id={COHORT_ID}", "/syncs", "/health")


def run(size: Size, root: Path) -> Report:
    """Grow a cohort to ``size.grown`` members on the checkout in ``root``."""
    contestant = replace(
        CONTESTANTS[SERVICE],
        root=root,
        environment={**SERVICE_ENVIRONMENT, "STORE_TIMEOUT_SECONDS": "30"},
    )
    with running_store() as store, start(contestant, store) as service:
        assert isinstance(service, Gunicorn)
        growth = _Growth(size, store, service, root)
        growth_table = growth.grow()
        growth.enter_cohorts()
        blocked = growth.call_everything()
    lines = [
        *growth_table,
        "",
        f"Then one user entered {size.cohorts:,} cohorts.",
        "",
        "| call, with everything stored | longest store command, ms | including outliers |",
        "|:--|--:|--:|",
        *(f"| {name} | {judged:.2f} | {longest:.2f} |" for name, (judged, longest) in blocked),
        "",
        f"From the store's slow log. Where a call can be repeated, the best of {_REPEATS} counts: "
        "what is slow by itself is slow each time. Of a script that ran "
        f"{_OFTEN} times or more, the slowest hundredth is left out, which waited for a core; the "
        "last column includes it.",
    ]
    worst = max(judged for _, (judged, _) in blocked)
    verdict = Verdict("longest store command of any call, ms", worst, at_most=MAX_BLOCKED_MS)
    return Report("\n".join(lines), [verdict])


class _Growth:
    def __init__(self, size: Size, store: Store, service: Gunicorn, root: Path) -> None:
        self._size, self._store, self._service, self._root = size, store, service, root
        self._background_seconds = min(4.0, 3 * size.seconds)
        # Arguments in the slow log need not be text.
        self._client: Any = redis.Redis.from_url(store.url)

    def grow(self) -> list[str]:
        lines = ["| members | users/s | p50 ms | p99 ms | store MB |", "|--:|--:|--:|--:|--:|"]
        each = self._size.grown // _POINTS
        for start_at in range(0, self._size.grown, each):
            target = Target(self._service.address, self._size, start_at)
            # A list: making the requests is no part of what is measured.
            requests = list(batches(_BATCH, target, limit=each))
            result = generator.run(target.address, requests, clients=4, seconds=600)
            if result.answered != len(requests):
                raise generator.LoadFailed("not all requests were answered")
            p50, p99 = (percentile(result.latencies, n) * 1000 for n in (50, 99))
            lines.append(
                f"| {start_at + each:,} | {each / result.seconds:,.0f} | {p50:.1f} | {p99:.1f} "
                f"| {self._store.used_memory() / 1e6:,.0f} |"
            )
            progress(f"{start_at + each:,} members")
        return lines

    def enter_cohorts(self) -> None:
        traits = (payloads.trait_name(f"Cohort {n}", f"c{n}") for n in range(self._size.cohorts))
        requests = (
            request("POST", payloads.COHORT_PATH, identify([_BUSY_USER], (trait,)))
            for trait in traits
        )
        generator.run(self._service.address, requests, clients=4, seconds=600)

    def call_everything(self) -> list[tuple[str, tuple[float, float]]]:
        """How long each kind of call blocked the store, in ms: what is judged, and the longest."""
        cohort = f"/api/v1/cohorts/{COHORT_ID}"
        users = list(user_ids(_BATCH))
        entering, leaving = identify(users), identify(users, member=False)
        middle = quote(self._get(f"{cohort}/members?limit=10000")["next"])
        to_erase = iter(users)
        new_name = payloads.list_create(payloads.trait_name("Renamed", COHORT_ID))
        renamed = json.dumps(new_name).encode()
        calls: dict[str, Callable[[], object]] = {
            "a batch of 1,000 that changes nothing": lambda: self._ingest(entering),
            "1,000 users leave": lambda: self._ingest(leaving),
            "1,000 users enter again": lambda: self._ingest(entering),
            "a user": lambda: self._get(f"/api/v1/users/{users[0]}"),
            "the user of many cohorts": lambda: self._get(f"/api/v1/users/{_BUSY_USER}"),
            "whether a user is a member": lambda: self._get(f"{cohort}/members/{users[0]}"),
            "10,000 members": lambda: self._get(f"{cohort}/members?limit=10000"),
            "10,000 members from the middle": lambda: self._get(
                f"{cohort}/members?limit=10000&cursor={middle}"
            ),
            "who entered since": lambda: self._get(f"{cohort}/members?entered_since=1"),
            "the cohort": lambda: self._get(cohort),
            "all cohorts, by members": lambda: self._get("/api/v1/cohorts?sort=-members"),
            "changes": lambda: self._get("/api/v1/changes?limit=1000"),
            "part of an export": lambda: self._call(
                "GET", f"{cohort}/members.ndjson", max_bytes=20 << 20
            ),
            **{f"page {path}": lambda path=path: self._page(path) for path in _PAGES},  # type: ignore[misc]
            "`store check`": lambda: self._command("check"),
            "a user is erased": lambda: self._call("DELETE", f"/api/v1/users/{next(to_erase)}"),
        }
        found = [(name, self._blocked(name, call, _REPEATS)) for name, call in calls.items()]

        def once(name: str, call: Callable[[], object]) -> None:
            found.append((name, self._blocked(name, call, 1)))

        with running_store() as other:
            copy = ("copy", "--to", other.url, "--partitions", "2")
            once("`store copy`", lambda: self._command(*copy))
        once(
            "the user of many cohorts is erased",
            lambda: self._call("DELETE", f"/api/v1/users/{_BUSY_USER}"),
        )
        once("a rename", lambda: self._in_background("POST", payloads.LISTS_PATH, renamed))
        once("a deletion", lambda: self._in_background("DELETE", cohort))
        return found

    def _blocked(self, name: str, call: Callable[[], object], repeats: int) -> tuple[float, float]:
        progress(name)
        times = [self._slowest_commands(call) for _ in range(repeats)]
        return min(judged for judged, _ in times), max(longest for _, longest in times)

    def _slowest_commands(self, call: Callable[[], object]) -> tuple[float, float]:
        self._client.config_set("slowlog-max-len", _SLOW_LOG_ENTRIES)
        self._client.config_set("slowlog-log-slower-than", _LOGGED_US)
        self._client.slowlog_reset()
        call()
        kinds: dict[bytes, list[float]] = defaultdict(lambda: [_LOGGED_US / 1000])
        for entry in self._client.slowlog_get(_SLOW_LOG_ENTRIES):
            words = entry["command"].split(b" ", 2)
            is_script = words[0].upper().startswith(b"EVALSHA")  # its name comes second
            kinds[b" ".join(words[: 1 + is_script])].append(entry["duration"] / 1000)
        kinds[b"none"]
        judged = max(percentile(ms, 99) if len(ms) > _OFTEN else max(ms) for ms in kinds.values())
        return judged, max(map(max, kinds.values()))

    def _ingest(self, body: bytes) -> None:
        self._call("POST", payloads.COHORT_PATH, body)

    def _get(self, path: str) -> Any:
        return json.loads(self._call("GET", path))

    def _page(self, path: str) -> None:
        target = Target(self._service.address, self._size)
        generator.run(target.address, [next(pages(path, "", target))], clients=1, seconds=60)

    def _in_background(self, method: str, path: str, body: bytes = b"") -> None:
        """Make a call that starts work in the background, and wait for a while."""
        self._call(method, path, body)
        self._client.blpop(["bench:nothing"], timeout=self._background_seconds)

    def _call(
        self, method: str, path: str, body: bytes = b"", max_bytes: int | None = None
    ) -> bytes:
        connection = http.client.HTTPConnection(*self._service.address, timeout=120)
        headers = {"api_key": ADMIN_KEY, "Content-Type": "application/json"}
        try:
            connection.request(method, path, body or None, headers)
            reply = connection.getresponse()
            content = reply.read(max_bytes)
        finally:
            connection.close()
        if reply.status not in (200, 202):
            raise generator.LoadFailed(f"{method} {path}: {reply.status} {content[:300]!r}")
        return content

    def _command(self, *words: str) -> None:
        """Run ``store …``, to its end or for a while."""
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [sys.executable, "-m", "flask", "--app", "wsgi", "store", *words],
                cwd=self._root,
                env={**SERVICE_ENVIRONMENT, "REDIS_URL": self._store.url},
                check=True,
                capture_output=True,
                timeout=_COMMAND_SECONDS,
            )
