"""Replacing the members of a large cohort: ingest during a resync, its end, and an import."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import redis

from bench import beside, generator
from bench.plan import CONTESTANTS, SERVICE, SERVICE_ENVIRONMENT
from bench.report import Report, Verdict
from bench.requests import ADMIN_KEY, COHORT_ID, Size, Target, batches, user_ids
from bench.runner import progress, start
from bench.servers import Gunicorn, Store, running_store

_PATH = f"/api/v1/cohorts/{COHORT_ID}"
# Of the members, how many leave.
_LEAVING = 10
# Users who are not members yet.
_ELSEWHERE = 1 << 41
_CHANGING = 1 << 42
_LOGGED_US = 1000


def run(size: Size, root: Path) -> Report:
    """Replace the ``size.members`` members of a cohort, on the checkout in ``root``."""
    contestant = replace(CONTESTANTS[SERVICE], root=root, environment=SERVICE_ENVIRONMENT)
    with running_store() as store, start(contestant, store) as service:
        assert isinstance(service, Gunicorn)
        return _Replacement(size, store, service).measure()


class _Replacement:
    def __init__(self, size: Size, store: Store, service: Gunicorn) -> None:
        self._size, self._service = size, service
        self._client: Any = redis.Redis.from_url(store.url)
        self._members = size.members
        self._everybody = list(batches(1000, self._target(), limit=size.members))
        # Users who enter, then the same ones, who leave.
        self._difference = [
            one
            for member in (True, False)
            for one in batches(
                1000, self._target(), first=_CHANGING, member=member, limit=size.members // 5
            )
        ]

    def measure(self) -> Report:
        self._send(self._everybody)
        changes, changes_during, repeats, repeats_during = [], [], [], []
        for number in range(self._size.rounds):
            progress(f"ingest, round {number + 1}")
            changes.append(self._send(self._difference))
            repeats.append(self._send(self._everybody))
            self._call("POST", "/resync")
            changes_during.append(self._send(self._difference))
            repeats_during.append(self._send(self._everybody))
            self._call("DELETE", "/resync")
        finished, beside_rate, blocked_ms = self._finish(median(repeats_during) / 2)
        imported, grown = self._import()
        ratio = median(b / a for a, b in zip(changes, changes_during, strict=True))
        lines = [
            "| | |",
            "|:--|--:|",
            f"| members | {self._members:,} |",
            f"| users who enter, then leave, users/s | {median(changes):,.0f} |",
            f"| the same during a resync, users/s | {median(changes_during):,.0f} |",
            f"| the same full sync again, users/s | {median(repeats):,.0f} |",
            f"| the same during a resync, users/s | {median(repeats_during):,.0f} |",
            f"| finishing, a tenth leaves, s | {finished:.1f} |",
            f"| ingest beside it, users/s | {beside_rate:,.0f} |",
            f"| its longest store command, ms | {blocked_ms:.1f} |",
            f"| import into a new cohort, rows/s | {imported:,.0f} |",
            f"| growth of resident memory, all processes, MB | +{grown:.0f} |",
        ]
        verdicts = [
            Verdict("ingest during a resync / usual", ratio, at_least=0.9),
            Verdict("seconds to finish a resync, beside half of the ingest", finished, at_most=60),
            Verdict("longest store command while it finishes, ms", blocked_ms, at_most=10),
            Verdict("import, rows per second", imported, at_least=50_000),
            Verdict("resident memory during an import, MB", grown, at_most=50),
        ]
        return Report("\n".join(lines), verdicts)

    def _finish(self, users_per_second: float) -> tuple[float, float, float]:
        """The seconds it takes, the rate of ingest beside it, and the longest store command."""
        progress("finishing")
        self._call("POST", "/resync")
        staying = self._everybody[: -(-len(self._everybody) * (_LEAVING - 1) // _LEAVING)]
        self._send(staying)
        self._client.config_set("slowlog-log-slower-than", _LOGGED_US)
        self._client.config_set("slowlog-max-len", 10_000)
        rate = users_per_second / 1000
        with beside.flood(
            beside.noisy_batches, 4, self._target(), self._service, rate=rate
        ) as others:
            self._client.slowlog_reset()
            began = time.monotonic()
            while self._call("POST", "/resync/finish")["state"] != "finished":
                time.sleep(0.1)
            seconds = time.monotonic() - began
            beside_rate = 1000 * others(generator.Result())["flood_per_second"]
        # The flood is another app's: how long its commands take is what other groups measure.
        slow = [
            entry["duration"] / 1000
            for entry in self._client.slowlog_get(10_000)
            if b"{bench}" in entry["command"]
        ]
        left = self._client.zcard(f"cohorts:{{bench}}:cohort:{COHORT_ID}:members")
        expected = 1000 * len(staying)
        if left != expected:
            raise generator.LoadFailed(f"{left} members are left, not {expected}")
        return seconds, beside_rate, max(slow, default=0.0)

    def _import(self) -> tuple[float, float]:
        """Rows per second, and MB by which the service's memory grew."""
        progress("importing")
        rows = self._members
        text = b'"amplitude_id","user_id"\n' + b"".join(
            f'"{n}","{user}"\n'.encode() for n, user in enumerate(user_ids(rows, _ELSEWHERE))
        )
        with beside.memory_samples(self._target(), self._service) as finish:
            began = time.monotonic()
            path = "/api/v1/cohorts/imported/members?name=Imported"
            reply = self._request("PUT", path, text, "text/csv")
            seconds = time.monotonic() - began
            grown = finish(generator.Result())["memory_mb"]
        if reply["added"] != rows:
            raise generator.LoadFailed(f"{reply['added']} of {rows} rows were added")
        return rows / seconds, grown

    def _target(self) -> Target:
        return Target(self._service.address, self._size)

    def _send(self, requests: list[bytes]) -> float:
        """Send requests of a thousand users each. Returns the users per second."""
        result = generator.run(self._service.address, requests, clients=4, seconds=600)
        if result.answered != len(requests):
            raise generator.LoadFailed("not all requests were answered")
        return result.answered * 1000 / result.seconds

    def _call(self, method: str, path: str) -> dict[str, Any]:
        return self._request(method, _PATH + path, b"{}", "application/json")

    def _request(self, method: str, path: str, body: bytes, content_type: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection(*self._service.address, timeout=120)
        headers = {"api_key": ADMIN_KEY, "Content-Type": content_type}
        try:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            content = reply.read()
        finally:
            connection.close()
        if reply.status not in (200, 202):
            raise generator.LoadFailed(f"{method} {path}: {reply.status} {content[:300]!r}")
        return dict(json.loads(content))
