"""``python -m bench watching``: what the sync history and the metrics together cost ingest.

The service as it is, whose metrics are also asked for, beside the same service without either.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from app.settings import ApiKey, Settings
from app.store import Store, connect
from bench import docs, servers, traffic
from bench import load as generator
from bench.load import Load, LoadFailed
from bench.measure import USUAL_BATCH, USUAL_CLIENTS, chosen, tell_stderr
from bench.report import Bar, shown
from bench.servers import APP_ID, NO_LIMIT, Gunicorn, RunningStore

WATCHED, UNWATCHED = "history and metrics", "neither"
TOKEN = "benchmark-metrics-token"
_COUNTER = b"cohort_receiver_requests_total{"
# What was noted goes to the store every second: answers count from when that has begun.
_LEAD_SECONDS = 1.1
_SETTLE_SECONDS = 20.0
# More than the service can do, by users a request: bodies are made before the clock starts.
_MOST_REQUESTS_PER_SECOND = {1: 6000, USUAL_BATCH: 350}


@dataclass(frozen=True)
class Plan:
    """What the run does.

    Attributes:
        batches: users a request, of each load.
        seconds: how long each load counts.
        repeat: rounds; in each, either contestant gets each load.
    """

    batches: tuple[int, ...] = (1, USUAL_BATCH)
    seconds: float = 4.0
    repeat: int = 9

    @classmethod
    def quick(cls) -> Plan:
        """A rough picture."""
        return cls(seconds=1.0, repeat=3)


@dataclass(frozen=True)
class Sample:
    """One load. CPU is in seconds per million users."""

    contestant: str
    batch: int
    round: int
    users_per_second: float
    cpu_server: float
    cpu_store: float

    @property
    def cpu(self) -> float:
        """Of server and store together."""
        return self.cpu_server + self.cpu_store


@dataclass(frozen=True)
class Results:
    """What was measured."""

    plan: Plan
    samples: list[Sample]

    def of(self, contestant: str, batch: int) -> list[Sample]:
        """The samples of one load on one contestant, by round."""
        found = [s for s in self.samples if (s.contestant, s.batch) == (contestant, batch)]
        return sorted(found, key=lambda sample: sample.round)

    def change(self, batch: int, what: Callable[[Sample], float]) -> float:
        """By which part a figure is larger when watched: the median of the rounds' ratios."""
        pairs = zip(self.of(WATCHED, batch), self.of(UNWATCHED, batch), strict=True)
        return median(what(watched) / what(unwatched) for watched, unwatched in pairs) - 1

    def bars(self) -> list[Bar]:
        """The bars, and whether they are reached."""
        return [
            Bar(
                f"ingest lost to history and metrics, {_name(batch)}",
                -self.change(batch, lambda sample: sample.users_per_second) * 100,
                10,
                False,
                " %",
            )
            for batch in self.plan.batches
        ]

    def text(self) -> str:
        """Everything, for people. The table is Markdown."""
        lines = ["| load | with | users/s | CPU server | CPU store |", "|:--|:--|--:|--:|--:|"]
        for batch in self.plan.batches:
            for name in (WATCHED, UNWATCHED):
                samples = self.of(name, batch)
                rate, server, store = (
                    median(getattr(sample, what) for sample in samples)
                    for what in ("users_per_second", "cpu_server", "cpu_store")
                )
                lines.append(
                    f"| {_name(batch)} | {name} | {rate:,.0f} | {server:.1f} | {store:.1f} |"
                )
        more = ", ".join(
            f"{self.change(batch, lambda sample: sample.cpu):+.1%} with {_name(batch)}"
            for batch in self.plan.batches
        )
        lines += [
            "",
            f"{USUAL_CLIENTS} clients; CPU is in seconds per million users, medians of "
            f"{self.plan.repeat} rounds. CPU of service and store together, the median of the "
            f"rounds' ratios: {more}.",
            "",
            *shown(self.bars()),
        ]
        return "\n".join(lines)


def _name(batch: int) -> str:
    return "single identifies" if batch == 1 else f"batches of {batch:,}"


def measure(plan: Plan, tell: Callable[[str], None]) -> Results:
    """Run the plan. ``tell`` gets a line now and then, for whoever waits."""
    samples = []
    with ExitStack() as stack:
        store = stack.enter_context(servers.running_store())
        contestants = {
            WATCHED: stack.enter_context(
                servers.running_service(store.url, NO_LIMIT, METRICS_TOKEN=TOKEN)
            ),
            UNWATCHED: stack.enter_context(
                servers.running_service(
                    store.url,
                    NO_LIMIT,
                    app="bench.unwatched:app",
                    METRICS_TOKEN=TOKEN,
                    HISTORY_MAX_REQUESTS="0",
                )
            ),
        }
        for batch in plan.batches:
            tell(f"making {_name(batch)}")
            seconds = plan.seconds + _LEAD_SECONDS
            count = int(_MOST_REQUESTS_PER_SECOND[batch] * seconds)
            requests = traffic.requests(traffic.IDENTIFY, batch, count)
            for name, gunicorn in contestants.items():  # warm up
                _load(store, name, gunicorn, requests[: count // 5], 1.0)
            for number in range(plan.repeat):
                # Who is first takes turns: a machine that grows slower must not favour one.
                for name in sorted(contestants, reverse=bool(number % 2)):
                    tell(f"round {number + 1}: {_name(batch)}, {name}")
                    gunicorn = contestants[name]
                    samples.append(_sample(store, name, gunicorn, requests, batch, number, seconds))
        _check_metrics(contestants)
    return Results(plan, samples)


def _sample(
    store: RunningStore,
    name: str,
    gunicorn: Gunicorn,
    requests: Sequence[bytes],
    batch: int,
    number: int,
    seconds: float,
) -> Sample:
    before = gunicorn.cpu_seconds(), servers.cpu_seconds(store.process)
    done, began = _load(store, name, gunicorn, requests, seconds)
    server = gunicorn.cpu_seconds() - before[0]
    of_store = servers.cpu_seconds(store.process) - before[1]
    ends = [at + took - began for at, took in zip(done.moments, done.latencies, strict=True)]
    counted = sum(_LEAD_SECONDS <= end <= seconds for end in ends)
    if max(ends) < seconds * 0.95:
        raise LoadFailed("the bodies did not last")
    millions = done.answered * batch / 1e6
    rate = counted * batch / (seconds - _LEAD_SECONDS)
    return Sample(name, batch, number, rate, server / millions, of_store / millions)


def _load(
    store: RunningStore, name: str, gunicorn: Gunicorn, requests: Sequence[bytes], seconds: float
) -> tuple[Load, float]:
    """Send for some seconds, and wait until all is noted. Returns also when it began."""
    store.empty()
    scrape = threading.Timer(_LEAD_SECONDS + 0.1, _metrics, [gunicorn])
    if name == WATCHED:
        scrape.start()  # Prometheus asks every 15 s; here it is once in each load
    try:
        began = time.perf_counter()
        done = generator.run(gunicorn.address, requests, clients=USUAL_CLIENTS, seconds=seconds)
    finally:
        scrape.cancel()
    if scrape.ident:
        scrape.join()
    if done.unanswered or not done.answered:
        raise LoadFailed(f"{done.unanswered} requests were not answered")
    expected = done.answered if name == WATCHED else 0
    deadline = time.monotonic() + _SETTLE_SECONDS
    while (noted := _noted(store.url)) != expected:
        if noted > expected or time.monotonic() > deadline:
            raise LoadFailed(f"the history tells of {noted} requests, not of {expected}")
        time.sleep(0.05)
    return done, began


def _noted(store_url: str) -> int:
    """How many requests the sync history knows."""
    settings = Settings(redis_url=store_url, api_keys=(ApiKey(APP_ID, traffic.KEY),))
    with connect(settings) as client:
        return sum(sync.requests for sync in Store(client).history.syncs(APP_ID).syncs)


def _metrics(gunicorn: Gunicorn) -> bytes:
    connection = http.client.HTTPConnection(*gunicorn.address, timeout=30)
    try:
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        reply = connection.getresponse()
        if reply.status != 200:
            raise LoadFailed(f"/metrics was answered with {reply.status}")
        return reply.read()
    finally:
        connection.close()


def _check_metrics(contestants: dict[str, Gunicorn]) -> None:
    """See that what was compared is what it is called."""
    for name, gunicorn in contestants.items():
        if (_COUNTER in _metrics(gunicorn)) != (name == WATCHED):
            raise LoadFailed(f"the metrics of the service with {name} are not as they should be")


def main(arguments: list[str]) -> int:
    """Run it. Returns the exit code: 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench watching", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rough picture")
    parser.add_argument("--seconds", type=float, help=f"of each load; default {Plan().seconds}")
    parser.add_argument("--repeat", type=int, help=f"rounds; default {Plan().repeat}")
    parser.add_argument("--write-docs", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    results = measure(chosen(Plan.quick() if options.quick else Plan(), options), tell_stderr)
    return docs.tell("watching", results.text(), results.bars(), options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
