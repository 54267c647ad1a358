"""``python -m bench pages``: how long the dashboard's pages take, with much to show.

The store holds many cohorts, each with a size over time, and a full sync history. One browser asks
for each page, one after the other. What is told is the time until the whole page is there.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlencode

import urllib3

from app.cohorts import Cohort, MembershipChange, RequestRecord
from app.settings import ApiKey, Settings
from app.store import Batch, Group, HistoryLimits, Store, connect, in_calls
from bench import docs, servers, traffic
from bench.measure import percentile, tell_stderr
from bench.report import Bar, shown
from bench.servers import APP_ID

READ_KEY = "bench-read-key"
BOUND_MS = 200.0
_COHORTS_PER_CALL = 100
_USERS = 1000  # in all, of which some are in each cohort


@dataclass(frozen=True)
class Plan:
    """What there is to show, and how often each page is asked for."""

    cohorts: int = 10_000
    requests: int = 100_000
    requests_per_sync: int = 40
    repeat: int = 15


@dataclass(frozen=True)
class Page:
    """One page: how long it took each time, in ms, and its size in bytes."""

    name: str
    took_ms: list[float]
    size: int


@dataclass(frozen=True)
class Results:
    """What was measured."""

    plan: Plan
    pages: list[Page]
    bytes_per_request: float

    def bars(self) -> list[Bar]:
        """The median of each page."""
        return [
            Bar(f"page: {page.name}", percentile(page.took_ms, 50), BOUND_MS, False, " ms")
            for page in self.pages
        ]

    def text(self) -> str:
        """As Markdown."""
        rows = [
            f"| {page.name} | {percentile(page.took_ms, 50):.0f} | {max(page.took_ms):.0f} "
            f"| {page.size / 1000:.0f} |"
            for page in self.pages
        ]
        return "\n".join(
            [
                f"{self.plan.cohorts:,} cohorts, and a sync history of {self.plan.requests:,} "
                f"requests, which takes {self.bytes_per_request:.0f} bytes of the store's memory "
                f"for each, syncs of {self.plan.requests_per_sync} requests included.",
                "",
                "| page | p50 ms | longest ms | kB |",
                "|:--|--:|--:|--:|",
                *rows,
                "",
                *shown(self.bars()),
            ]
        )


def measure(plan: Plan, tell: Callable[[str], None]) -> Results:
    """Run the plan. ``tell`` gets a line now and then, for whoever waits."""
    with servers.running_store() as store:
        tell("filling the store")
        before = store.used_memory()
        _fill_history(store.url, plan)
        per_request = (store.used_memory() - before) / plan.requests
        _fill_cohorts(store.url, plan)
        keys = f"{APP_ID}:{READ_KEY}"
        with servers.running_service(store.url, servers.NO_LIMIT, READ_API_KEYS=keys) as service:
            host, port = service.address
            http = urllib3.PoolManager()
            browser = _Browser(http, f"http://{host}:{port}")
            paths = {
                "cohorts": "/",
                "cohorts, second page": browser.following("/"),
                "cohorts with 9 in their name": "/?name=9&sort=id",
                "cohorts by name": "/?sort=name",
                "cohorts, the largest first": "/?sort=-members",
                "late cohorts": "/?freshness=late",
                "cohorts, a name that none has": "/?name=nobody",
                "one cohort": f"/cohort?{urlencode({'id': _cohort(1).id})}",
                "syncs": "/syncs",
                "syncs, second page": browser.following("/syncs"),
                "syncs with problems": "/syncs?problems=true",
                "one sync": browser.first_link("/syncs", "/sync"),
                "one user": "/users?id=u1",
                "health": "/health",
            }
            tell("asking for the pages")
            pages = [browser.page(name, path, plan.repeat) for name, path in paths.items()]
    return Results(plan, pages, per_request)


class _Browser:
    """Asks for pages, logged in."""

    def __init__(self, http: urllib3.PoolManager, url: str) -> None:
        self._http, self._url = http, url
        reply = http.request(
            "POST", f"{url}/login", fields={"key": READ_KEY}, encode_multipart=False, redirect=False
        )
        self._headers = {"Cookie": reply.headers["Set-Cookie"].partition(";")[0]}

    def get(self, path: str) -> str:
        reply = self._http.request("GET", self._url + path, headers=self._headers, redirect=False)
        if reply.status != 200:
            raise RuntimeError(f"{path} was answered with {reply.status}")
        return reply.data.decode()

    def following(self, path: str) -> str:
        """Where a list goes on."""
        return self._found(path, r'href="([^"]+)" rel="next"')

    def first_link(self, path: str, target: str) -> str:
        """The first link of a page that leads to another one."""
        return self._found(path, rf'href="({target}\?[^"]+)"')

    def _found(self, path: str, pattern: str) -> str:
        found = re.search(pattern, self.get(path))
        if not found:
            raise RuntimeError(f"{path} has no such link: {pattern}")
        return found[1].replace("&amp;", "&")

    def page(self, name: str, path: str, repeat: int) -> Page:
        """How long a page takes."""
        took = []
        size = len(self.get(path))
        for _ in range(repeat):
            began = time.perf_counter()
            self.get(path)
            took.append((time.perf_counter() - began) * 1000)
        return Page(name, took, size)


def _cohort(number: int) -> Cohort:
    return Cohort.from_trait(f"[Amplitude] Cohort {number * 7919 % 10_007}: c{number:05}")


def _store(store_url: str, plan: Plan) -> Store:
    settings = Settings(redis_url=store_url, api_keys=(ApiKey(APP_ID, traffic.KEY),))
    return Store(connect(settings), history=HistoryLimits(plan.requests, plan.requests))


def _fill_cohorts(store_url: str, plan: Plan) -> None:
    store, dice = _store(store_url, plan), random.Random(1)
    users = [f"u{n}" for n in range(_USERS)]
    for start in range(0, plan.cohorts, _COHORTS_PER_CALL):
        cohorts = [_cohort(n) for n in range(start, min(start + _COHORTS_PER_CALL, plan.cohorts))]
        changes = [
            MembershipChange(cohort, True, dice.sample(users, dice.randrange(1, 9)))
            for cohort in cohorts
        ]
        store.apply(APP_ID, changes, way="identify")
        store.sizes.note(APP_ID, [cohort.id for cohort in cohorts])


def _fill_history(store_url: str, plan: Plan) -> None:
    """Requests of syncs that began a minute apart, of one cohort after the other."""
    store, dice = _store(store_url, plan), random.Random(2)
    now = time.time_ns() // 1_000_000
    syncs = plan.requests // plan.requests_per_sync
    batches = []
    for number in range(syncs):
        cohort = _cohort(number % plan.cohorts)
        batch = Batch(Group(APP_ID, cohort.id), cohort.trait)
        for place in range(plan.requests_per_sync):
            at = now - (syncs - number) * 60_000 + place * 500
            batch.add(*_request(at, dice))
        batches.append(batch)
    for number, portion in enumerate(in_calls(batches)):
        store.history.add(APP_ID, portion, f"bench-{number}")


def _request(at_ms: int, dice: random.Random) -> tuple[RequestRecord, dict[str, int]]:
    changed = dice.randrange(1000)
    record = RequestRecord(
        at_ms=at_ms,
        took_ms=round(dice.uniform(5, 60), 1),
        status=200,
        way="list",
        key="ingest-0a1b2c3d",
        request_id=dice.randbytes(16).hex(),
        accepted=1000,
        changed=changed,
        entered=changed,
    )
    if dice.random() > 0.02:
        return record, {}
    return record._replace(accepted=998, rejected=2), {"suppressed_user": 2}


def main(arguments: list[str]) -> int:
    """Run it. Returns the exit code: 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench pages", description=__doc__)
    parser.add_argument("--write-docs", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    results = measure(Plan(), tell_stderr)
    return docs.tell("pages", results.text(), results.bars(), options)
