"""``python -m bench reads``: reading over HTTP, beside a bare Flask and the store's own HGETALL.

One user; 1,000 users in one call; a whole cohort; and what followers of the change feed cost
ingest.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import redis

from app.cohorts import Cohort, MembershipChange
from app.settings import ApiKey, Settings
from app.store import Store, connect
from bench import docs, servers, traffic
from bench import load as generator
from bench.followers import following
from bench.load import Load, LoadFailed
from bench.measure import USUAL_BATCH, USUAL_CLIENTS, chosen, percentile, tell_stderr
from bench.report import Bar, shown
from bench.servers import APP_ID, NO_LIMIT, Gunicorn, RunningStore
from simulator import payloads

SERVICE, BARE, RAW = "service", "bare Flask", "HGETALL alone"
READ_KEY = "benchmark-read-key"
# Each user is in these: what a user's hash holds.
TRAITS = [payloads.trait_name(f"Cohort {name}", f"c0h0rt{name}") for name in "abc"]
BIG = payloads.trait_name("Everybody", "everybody")
EXPORT = "/api/v1/cohorts/everybody/members.ndjson"
MANY = 1000
_USER_KEYS = f"cohorts:{{{APP_ID}}}:user:"
_FOLLOW = "/api/v1/changes/stream?cursor=latest"
_FILL = 10_000
_LOOK_SECONDS = 0.02
_MOST_LAG_SECONDS = 30.0
_MOST_USERS_PER_SECOND = 350_000


@dataclass(frozen=True)
class Plan:
    """What the run does.

    Attributes:
        users: who are read.
        members: of the cohort that is exported.
        seconds: how long requests are begun in each load.
        repeat: rounds of each load.
        clients: numbers of clients that read one user at a time.
    """

    users: int = 100_000
    members: int = 1_000_000
    seconds: float = 3.0
    repeat: int = 5
    clients: tuple[int, ...] = (4, 64)
    followers: int = 10

    @classmethod
    def quick(cls) -> Plan:
        """A rough picture."""
        return cls(users=10_000, members=100_000, seconds=0.7, repeat=2)


@dataclass(frozen=True)
class Read:
    """One load of reads of one user. CPU is in ms per request."""

    contestant: str
    clients: int
    round: int
    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_server: float
    cpu_store: float


@dataclass(frozen=True)
class Export:
    """One export: members a second, and bytes by which the service's memory grew meanwhile."""

    members_per_second: float
    growth: int


@dataclass(frozen=True)
class Ingest:
    """One load of batches, with so many followers. CPU is in seconds per million users."""

    followers: int
    round: int
    users_per_second: float
    cpu_server: float
    lag_seconds: float


@dataclass(frozen=True)
class Results:
    """What was measured."""

    plan: Plan
    reads: list[Read]
    many_ms: list[float]
    exports: list[Export]
    ingests: list[Ingest]

    def of(self, name: str, clients: int, what: str) -> list[float]:
        """A figure of one contestant, by round."""
        reads = sorted(self.reads, key=lambda read: read.round)
        return [getattr(r, what) for r in reads if (r.contestant, r.clients) == (name, clients)]

    def share(self, clients: int, other: str = BARE) -> float:
        """Requests a second of the service over another's: the median of the rounds' ratios."""
        pairs = zip(
            self.of(SERVICE, clients, "per_second"),
            self.of(other, clients, "per_second"),
            strict=True,
        )
        return median(service / bare for service, bare in pairs)

    def cpu_share(self, clients: int) -> float:
        """Server and store CPU of a request of the bare Flask over the service's."""

        def cpu(name: str) -> float:
            parts = self.of(name, clients, "cpu_server"), self.of(name, clients, "cpu_store")
            return median(map(sum, zip(*parts, strict=True)))

        return cpu(BARE) / cpu(SERVICE)

    def cost(self, what: Callable[[Ingest], float]) -> float:
        """What the followers change, as a part: the median of the rounds' ratios, less 1."""
        by_place = {(i.followers > 0, i.round): what(i) for i in self.ingests}
        ratios = [by_place[True, n] / by_place[False, n] for n in range(self.plan.repeat)]
        return median(ratios) - 1

    def bars(self) -> list[Bar]:
        """The bars, and whether they are reached."""
        fewest = min(export.members_per_second for export in self.exports)
        most = max(export.growth for export in self.exports)
        lost = -self.cost(lambda ingest: ingest.users_per_second)
        return [
            *(
                Bar(f"one user: service / {BARE}, {n} clients", self.share(n), 0.6, True, "x")
                for n in self.plan.clients
            ),
            Bar(f"{MANY:,} users in one call, p50", percentile(self.many_ms, 50), 20, False, " ms"),
            Bar("export, thousand members a second", fewest / 1000, 200, True, "k"),
            Bar("growth of the service's memory by exports", most / 1e6, 50, False, " MB"),
            Bar(f"ingest lost to {self.plan.followers} followers", lost * 100, 10, False, " %"),
        ]

    def followers_table(self) -> str:
        """What followers cost ingest, in Markdown."""
        lines = [
            "| followers | users/s of ingest | beside none | CPU server | behind, s |",
            "|--:|--:|--:|--:|--:|",
        ]
        for followers in (0, self.plan.followers):
            rate, cpu, lag = (
                median(getattr(i, what) for i in self.ingests if i.followers == followers)
                for what in ("users_per_second", "cpu_server", "lag_seconds")
            )
            kept = 1 + self.cost(lambda ingest: ingest.users_per_second) if followers else 1.0
            behind = f"{lag:.2f}" if followers else ""
            lines.append(f"| {followers} | {rate:,.0f} | {kept:.0%} | {cpu:.1f} | {behind} |")
        return "\n".join(lines)

    def text(self) -> str:
        """Everything, for people. The tables are Markdown."""
        lines = [
            "| clients | contestant | requests/s | p50 ms | p99 ms | CPU server | CPU store |",
            "|--:|:--|--:|--:|--:|--:|--:|",
        ]
        for clients in self.plan.clients:
            for name in (SERVICE, BARE, RAW):
                rate, p50, p99, server, store = (
                    median(self.of(name, clients, what))
                    for what in ("per_second", "p50_ms", "p99_ms", "cpu_server", "cpu_store")
                )
                lines.append(
                    f"| {clients} | {name} | {rate:,.0f} | {p50:.1f} | {p99:.1f} "
                    f"| {server:.3f} | {store:.3f} |"
                )
        shares = ", ".join(
            f"{self.cpu_share(clients):.2f} at {clients} clients" for clients in self.plan.clients
        )
        lines += [
            "",
            "One user, who is in three cohorts. CPU is in ms per request. Figures are medians of "
            "the rounds, bars the medians of the rounds' own ratios. "
            f"CPU of a request, {BARE} / {SERVICE}: {shares}.",
            "",
            f"{MANY:,} users in one call, one after the other: p50 "
            f"{percentile(self.many_ms, 50):.1f} ms, p99 {percentile(self.many_ms, 99):.1f} ms.",
            "",
            f"Exports of {self.plan.members:,} members as NDJSON: "
            + "; ".join(
                f"{export.members_per_second:,.0f} a second, memory {export.growth / 1e6:+.1f} MB"
                for export in self.exports
            )
            + ".",
            "",
            self.followers_table(),
        ]
        more = self.cost(lambda ingest: ingest.cpu_server)
        lines += [
            "",
            "CPU is in seconds per million users, of the service; behind is how long after the "
            "last answer all followers had heard of everything. The followers themselves run on "
            "the same machine, and come first in every other round. Figures are medians of the "
            "rounds; what is beside none is the median of the rounds' own ratios, as in the bars. "
            f"CPU of the service with followers: {more:+.0%}.",
            "",
            *shown(self.bars()),
        ]
        return "\n".join(lines)

    def document(self) -> dict[str, Any]:
        """Everything, for a program to read."""
        bars = [{**asdict(bar), "passed": bar.passed} for bar in self.bars()]
        return {**asdict(self), "bars": bars}


def measure(plan: Plan, tell: Callable[[str], None]) -> Results:
    """Run the plan. ``tell`` gets a line now and then, for whoever waits."""
    with ExitStack() as stack:
        store = stack.enter_context(servers.running_store())
        keys = f"{APP_ID}:{READ_KEY}"
        service = stack.enter_context(
            servers.running_service(store.url, NO_LIMIT, READ_API_KEYS=keys)
        )
        bare = stack.enter_context(_running_bare(store.url))
        ids = list(traffic.user_ids(plan.users))
        tell("filling the store")
        _fill(store.url, ids, TRAITS)
        reads = _reads(plan, store, {SERVICE: service, BARE: bare}, ids, tell)
        many = _many(plan, service, ids, tell)
        tell("filling the cohort that is exported")
        _fill(store.url, list(traffic.user_ids(plan.members, plan.users)), [BIG])
        exports = []
        for number in range(2):
            tell(f"export {number + 1}")
            exports.append(_export(plan, service))
        ingests = []
        for number in range(plan.repeat):
            both = (0, plan.followers)
            for followers in both if number % 2 == 0 else both[::-1]:
                tell(f"round {number + 1}: ingest with {followers} followers")
                ingests.append(_ingest(plan, store, service, followers, number))
    return Results(plan, reads, many, exports, ingests)


@contextmanager
def _running_bare(store_url: str) -> Iterator[Gunicorn]:
    with servers.running_gunicorn(
        "bench.bare:app",
        cwd=servers.ROOT,
        REDIS_URL=store_url,
        API_KEYS=f"{APP_ID}:{traffic.KEY}",
        WEB_CONCURRENCY="2",
        USER_KEYS=_USER_KEYS,
    ) as gunicorn:
        yield gunicorn


def _fill(store_url: str, ids: list[str], traits: list[str]) -> None:
    """Let users enter cohorts, by the service's own atomic step."""
    store = Store(connect(Settings(redis_url=store_url, api_keys=(ApiKey(APP_ID, traffic.KEY),))))
    cohorts = [Cohort.from_trait(trait) for trait in traits]
    for start in range(0, len(ids), _FILL):
        part = ids[start : start + _FILL]
        changes = [MembershipChange(cohort, True, part) for cohort in cohorts]
        store.apply(APP_ID, changes, way="identify")


def _get(path: str) -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\n"
        f"Authorization: Bearer {READ_KEY}\r\n\r\n"
    ).encode()


def _reads(
    plan: Plan,
    store: RunningStore,
    gunicorns: dict[str, Gunicorn],
    ids: list[str],
    tell: Callable[[str], None],
) -> list[Read]:
    shuffled = random.Random(1).sample(ids, len(ids))
    requests = [_get(f"/api/v1/users/{user_id}") for user_id in shuffled]

    def load(name: str, clients: int, seconds: float) -> Load:
        if name == RAW:
            return raw(shuffled, seconds)
        address = gunicorns[name].address
        return generator.run(address, cycle(requests), clients=clients, seconds=seconds)

    def cpu(name: str) -> tuple[float, float]:
        server = 0.0 if name == RAW else gunicorns[name].cpu_seconds()
        return server, servers.cpu_seconds(store.process)

    reads = []
    with _raw_clients(store.url, USUAL_CLIENTS) as raw:
        for name in (*gunicorns, RAW):
            load(name, USUAL_CLIENTS, 0.5)  # warm up
        for number in range(plan.repeat):
            for clients in plan.clients:
                for name in (*gunicorns, RAW):
                    tell(f"round {number + 1}: one user, {clients} clients, {name}")
                    before = cpu(name)
                    done = load(name, clients, plan.seconds)
                    if done.unanswered or not done.answered:
                        raise LoadFailed(f"{done.unanswered} requests were not answered")
                    used_server, used_store = (
                        after - earlier for after, earlier in zip(cpu(name), before, strict=True)
                    )
                    reads.append(
                        Read(
                            contestant=name,
                            clients=clients,
                            round=number,
                            per_second=done.answered / done.seconds,
                            p50_ms=percentile(done.latencies, 50) * 1000,
                            p99_ms=percentile(done.latencies, 99) * 1000,
                            cpu_server=used_server * 1000 / done.answered,
                            cpu_store=used_store * 1000 / done.answered,
                        )
                    )
    return reads


def _many(
    plan: Plan, service: Gunicorn, ids: list[str], tell: Callable[[str], None]
) -> list[float]:
    tell(f"{MANY:,} users in one call")
    chosen = random.Random(2)
    requests = []
    for _ in range(50):
        body = json.dumps({"userIds": chosen.sample(ids, MANY)}).encode()
        head = _get("/api/v1/users/query").replace(b"GET", b"POST", 1).removesuffix(b"\r\n")
        length = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        requests.append(head + length.encode() + body)
    done = generator.run(service.address, cycle(requests), clients=1, seconds=plan.seconds)
    return [latency * 1000 for latency in done.latencies]


class _Memory(threading.Thread):
    """Looks at a gunicorn's resident memory, all processes together, and keeps the most."""

    def __init__(self, gunicorn: Gunicorn) -> None:
        super().__init__(daemon=True)
        self._processes = [gunicorn.workers, *gunicorn.workers.children()]
        self._ended = threading.Event()
        self.before = self.most = self._now()

    def _now(self) -> int:
        return sum(process.memory_info().rss for process in self._processes)

    def run(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            self.most = max(self.most, self._now())

    def end(self) -> int:
        """Bytes by which it grew."""
        self._ended.set()
        self.join()
        return max(self.most, self._now()) - self.before


def _export(plan: Plan, service: Gunicorn) -> Export:
    connection = http.client.HTTPConnection(*service.address, timeout=60)
    memory = _Memory(service)
    memory.start()
    began = time.perf_counter()
    connection.request("GET", EXPORT, headers={"Authorization": f"Bearer {READ_KEY}"})
    reply = connection.getresponse()
    lines = 0
    while part := reply.read1(1 << 20):
        lines += part.count(b"\n")
    seconds = time.perf_counter() - began
    growth = memory.end()
    connection.close()
    if (reply.status, lines) != (200, plan.members):
        raise LoadFailed(f"{reply.status}, {lines} of {plan.members} members")
    return Export(lines / seconds, growth)


def _ingest(
    plan: Plan, store: RunningStore, service: Gunicorn, followers: int, number: int
) -> Ingest:
    store.empty()
    batches = max(USUAL_CLIENTS, int(_MOST_USERS_PER_SECOND / USUAL_BATCH * plan.seconds))
    requests = traffic.requests(traffic.IDENTIFY, USUAL_BATCH, batches)
    lag = 0.0
    with ExitStack() as stack:
        heard = None
        if followers:
            heard = stack.enter_context(following(service.address, _get(_FOLLOW), followers))
        before = service.cpu_seconds()
        done = generator.run(service.address, requests, clients=USUAL_CLIENTS, seconds=plan.seconds)
        if heard:
            lag = heard.wait(done.answered, _MOST_LAG_SECONDS)
        used = service.cpu_seconds() - before
    users = done.answered * USUAL_BATCH
    return Ingest(followers, number, users / done.seconds, used / (users / 1e6), lag)


class _Raw:
    """Processes that read hashes with the bare client, one after the other."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = connections

    def __call__(self, user_ids: Sequence[str], seconds: float) -> Load:
        for place, connection in enumerate(self._connections):
            connection.send((user_ids[place :: len(self._connections)], seconds))
        load, began = Load(), time.perf_counter()
        for connection in self._connections:
            load.latencies += connection.recv()
        load.seconds = time.perf_counter() - began
        load.answered = len(load.latencies)
        return load


@contextmanager
def _raw_clients(store_url: str, count: int) -> Iterator[_Raw]:
    with ExitStack() as stack:
        connections = []
        context = multiprocessing.get_context("spawn")
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_read_raw, args=(store_url, theirs), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join, 5)
            connections.append(ours)
        for connection in connections:
            stack.callback(connection.close)
        yield _Raw(connections)


def _read_raw(store_url: str, commands: Connection) -> None:
    client = redis.Redis.from_url(store_url)
    client.ping()
    while True:
        try:
            user_ids, seconds = commands.recv()
        except EOFError:
            return
        latencies = []
        until = time.perf_counter() + seconds
        for user_id in cycle(user_ids):
            began = time.perf_counter()
            if began >= until:
                break
            client.hgetall(_USER_KEYS + user_id)
            latencies.append(time.perf_counter() - began)
        commands.send(latencies)


def main(arguments: list[str]) -> int:
    """Run it. Returns the exit code: 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench reads", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rough picture")
    for name in ("users", "members", "seconds", "repeat"):
        kind = float if name == "seconds" else int
        parser.add_argument(f"--{name}", type=kind, help=f"default {getattr(Plan(), name)}")
    parser.add_argument("--json", metavar="FILE", help="write the figures here as well")
    parser.add_argument("--write-docs", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    results = measure(chosen(Plan.quick() if options.quick else Plan(), options), tell_stderr)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results.document(), file, indent=1)
    return docs.tell("reads", results.text(), results.bars(), options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
