"""Runs a group: starts contestants, sends loads, and notes figures of each."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path

from bench import generator, servers
from bench.beside import Finish, Requests
from bench.generator import LoadFailed, Result
from bench.plan import AGAINST, CONTESTANTS, SERVICE, Contestant, Group, Load
from bench.requests import Size, Target, batches, user_ids
from bench.servers import Gunicorn, Store, StoreCallers

# Figure -> heading and format. CPU seconds per million items are microseconds per item.
FIGURES = {
    "per_second": ("per second", ",.0f"),
    "answered": ("answered", ",.0f"),
    "p50_ms": ("p50 ms", ".1f"),
    "p99_ms": ("p99 ms", ".1f"),
    "max_ms": ("longest ms", ".1f"),
    "cpu_server": ("CPU server", ".1f"),
    "cpu_store": ("CPU store", ".1f"),
    "cpu_busiest": ("CPU busiest master", ".1f"),
    "cpu_replicas": ("CPU replicas", ".1f"),
    "cpu_load": ("CPU load", ".1f"),
    "others": ("others", ".2f"),
    "bytes_per_user": ("bytes per user", ".0f"),
    "reply_kb": ("kB", ".0f"),
    "memory_mb": ("memory MB", ".1f"),
    "lag_ms": ("lag ms", ".0f"),
    "outlasted": ("outlasted", ".0f"),
    "flood_per_second": ("its requests/s", ",.0f"),
}

# More than anything here can do: requests are made before the clock starts.
_MAX_ITEMS_PER_SECOND = 350_000
_MAX_REQUESTS_PER_SECOND = 30_000
_STORE_CALLERS = 3
_DATA_SECONDS = 600.0
_WARM_UP_SECONDS = 2.0
# Users of one load are not those of another.
_USERS_APART = 10_000_000


@dataclass(frozen=True)
class Sample:
    """One load on one contestant in one round."""

    load: str
    contestant: str
    round: int
    figures: dict[str, float]


@dataclass
class _Running:
    """A contestant that is running."""

    name: str
    store: Store
    server: Gunicorn | StoreCallers
    owns_store: bool


def measure(group: Group, size: Size, against: Path | None = None) -> list[Sample]:
    """Run all loads of a group; those of the service also on the checkout ``against``."""
    group = _with_against(group) if against else group
    names = tuple(dict.fromkeys(name for load in group.loads for name in load.contestants))
    samples: list[Sample] = []
    for together in [names] if group.side_by_side else [(name,) for name in names]:
        with _running(together, against) as running:
            samples += _Measurement(group, size, running).samples()
    return samples


def _with_against(group: Group) -> Group:
    loads = [
        replace(load, contestants=(SERVICE, AGAINST, *load.contestants[1:]))
        if SERVICE in load.contestants
        else load
        for load in group.loads
    ]
    return replace(group, loads=tuple(loads))


@contextmanager
def _running(names: Sequence[str], against: Path | None) -> Iterator[dict[str, _Running]]:
    service = CONTESTANTS[SERVICE]
    contestants = {**CONTESTANTS, AGAINST: replace(service, root=against or service.root)}
    running: dict[str, _Running] = {}
    with ExitStack() as stack:
        for name in names:
            contestant = contestants[name]
            if contestant.shares:
                store = running[contestant.shares].store
            else:
                new = servers.running_store(contestant.masters, contestant.replicas)
                store = stack.enter_context(new)
            server = stack.enter_context(start(contestant, store))
            running[name] = _Running(name, store, server, not contestant.shares)
        yield running


def start(contestant: Contestant, store: Store) -> AbstractContextManager[Gunicorn | StoreCallers]:
    """Start a contestant on a store."""
    environment = {"REDIS_URL": store.url, **contestant.environment}
    if not contestant.app:
        return servers.running_store_callers(_STORE_CALLERS, environment)
    return servers.running_gunicorn(
        contestant.app, *contestant.options, root=contestant.root, environment=environment
    )


class _Measurement:
    def __init__(self, group: Group, size: Size, running: dict[str, _Running]) -> None:
        self._group, self._size, self._running = group, size, running
        self._loads = 0

    def samples(self) -> Iterator[Sample]:
        if self._group.data:
            self._fill(self._group.data)
        for number, load in product(range(self._size.rounds), self._group.loads):
            # The order alternates: a machine that slows down must not favour one.
            for name in load.contestants[:: -1 if number % 2 else 1]:
                if number < load.rounds and name in self._running:
                    progress(f"round {number + 1}: {load.name}: {name}")
                    figures = self._measure(load, self._running[name])
                    yield Sample(load.name, name, number, figures)

    def _fill(self, data: Requests) -> None:
        for running in self._running.values():
            if running.owns_store and isinstance(running.server, Gunicorn):
                progress(f"filling the store of {running.name}")
                _send_all(running.server, data(Target(running.server.address, self._size)))

    def _measure(self, load: Load, running: _Running) -> dict[str, float]:
        items = load.items(self._size) if callable(load.items) else load.items
        seconds = self._size.seconds * load.longer
        if load.count:
            count, seconds = load.count(self._size), _DATA_SECONDS
        else:
            per_second = min(_MAX_REQUESTS_PER_SECOND, _MAX_ITEMS_PER_SECOND / items)
            count = max(8 * load.clients, math.ceil(per_second * seconds))
        with ExitStack() as stack:
            if isinstance(running.server, StoreCallers):
                send = self._prepare_calls(running.store, running.server, count, items)
                finish: Finish = lambda result: {}  # noqa: E731
            else:
                target, send = self._prepare_requests(
                    load, running.store, running.server, count, items
                )
                finish = stack.enter_context(load.beside(target, running.server))
            before = _usage(running)
            result = send(seconds)
            more = finish(result)
            used = {name: value - before[name] for name, value in _usage(running).items()}
        self._check(load, running, result, count, items)
        if load.count and not self._group.data:  # the same number of users each time
            more = {**more, "bytes_per_user": used["memory"] / (result.answered * items)}
        return {**_figures(result, items, used), **more}

    def _prepare_calls(
        self, store: Store, server: StoreCallers, count: int, items: int
    ) -> Callable[[float], Result]:
        store.restart()
        server.prepare(list(user_ids(1000)), 10)
        server.run(_WARM_UP_SECONDS)
        store.empty()
        server.prepare(list(user_ids(count * items)), items)
        return server.run

    def _prepare_requests(
        self, load: Load, store: Store, server: Gunicorn, count: int, items: int
    ) -> tuple[Target, Callable[[float], Result]]:
        self._loads += 1
        target = Target(server.address, self._size, self._loads * _USERS_APART)
        if self._group.data:
            others = replace(target, start=target.start + _USERS_APART // 2)
            _send_all(
                server, islice(load.requests(others), 1 if load.count else max(4, 200 // items))
            )
        else:
            store.restart()
            _send_all(server, islice(batches(10, target), 100))  # connect again, and warm up
            store.empty()
            _send_all(server, load.setup(target))
        requests = list(islice(load.requests(target), count))

        def send(seconds: float) -> Result:
            return generator.run(
                server.address, requests, clients=load.clients, seconds=seconds, rate=load.rate
            )

        return target, send

    def _check(self, load: Load, running: _Running, result: Result, count: int, items: int) -> None:
        """Raise LoadFailed unless everything was answered, and is in the store."""
        problem = ""
        if result.unanswered or not result.answered:
            problem = f"{result.unanswered} requests were not answered"
        elif not load.count and result.answered == count:
            problem = f"{count} requests did not last"
        elif result.reply_bytes < result.answered * load.bytes_per_member * self._size.members:
            problem = f"the replies have only {result.reply_bytes} bytes"
        elif not self._group.data and running.store.keys() < result.answered * items:
            problem = f"the store has only {running.store.keys()} of the users"
        if problem:
            raise LoadFailed(f"{load.name}, {running.name}: {problem}")


def _usage(running: _Running) -> dict[str, float]:
    """CPU seconds used so far, and bytes of store memory."""
    masters, replicas = running.store.cpu_seconds()
    return {
        "machine": servers.machine_cpu_seconds(),
        "server": running.server.cpu_seconds() if isinstance(running.server, Gunicorn) else 0.0,
        "replicas": replicas,
        "memory": running.store.used_memory(),
        **{f"master {number}": seconds for number, seconds in enumerate(masters)},
    }


def _figures(result: Result, items: int, used: dict[str, float]) -> dict[str, float]:
    masters = [seconds for name, seconds in used.items() if name.startswith("master")]
    ours = used["server"] + sum(masters) + used["replicas"] + result.cpu_seconds
    millions = result.answered * items / 1e6
    return {
        "per_second": result.answered * items / result.seconds,
        "answered": float(result.answered),
        "p50_ms": percentile(result.latencies, 50) * 1000,
        "p99_ms": percentile(result.latencies, 99) * 1000,
        "max_ms": max(result.latencies) * 1000,
        "cpu_server": used["server"] / millions,
        "cpu_store": sum(masters) / millions,
        "cpu_busiest": max(masters) / millions,
        "cpu_replicas": used["replicas"] / millions,
        "cpu_load": result.cpu_seconds / millions,
        "others": max(0.0, used["machine"] - ours) / result.seconds,
        "reply_kb": result.reply_bytes / result.answered / 1000,
    }


def _send_all(server: Gunicorn, requests: Iterator[bytes]) -> None:
    result = generator.run(server.address, requests, clients=4, seconds=_DATA_SECONDS)
    if result.unanswered:
        raise LoadFailed(f"{result.unanswered} requests were not answered")


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def progress(line: str) -> None:
    """One line that the next one overwrites, on a terminal; nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
