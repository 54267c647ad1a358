"""The run: which contestants there are, which loads each gets, and what is noted of each load."""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from bench import load as generator
from bench import servers, traffic
from bench.load import Load, LoadFailed
from bench.servers import Gunicorn, RunningStore, StoreClients
from bench.traffic import Way

AnyPlan = TypeVar("AnyPlan", bound=Any)

SERVICE, AFTERNOON, STORE = "service", "afternoon", "store alone"

# The load at which ways in are compared with each other: Amplitude's own, and its batch size.
USUAL_CLIENTS, USUAL_BATCH = 4, 1000

# More than any contestant can do: bodies are made before the clock starts, and must last.
_MOST_USERS_PER_SECOND = 350_000
_MOST_REQUESTS_PER_SECOND = 10_000

# The sizes of requests that bars are about get all rounds. Of the others three must do, and one of
# loads with so many users in flight that they take long.
_JUDGED = (1, USUAL_BATCH)
_OTHERS_ROUNDS = 3
_HEAVY = 200_000


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        seconds: how long requests are begun in each load.
        repeat: rounds; a round is each load on each contestant in turn.
        store_clients: processes that call the store alone.
        memory_users: how many users the store's memory is measured with.
    """

    clients: tuple[int, ...] = (4, 64)
    batches: tuple[int, ...] = (1, 100, 1000, 10_000)
    seconds: float = 1.5
    repeat: int = 7
    store_clients: int = 3
    memory_users: int = 100_000
    rate_limit: str = servers.NO_LIMIT
    appendonly: str = "yes"
    appendfsync: str = "everysec"
    heavy: bool = True

    def loads(self, round_number: int) -> Iterator[tuple[int, int]]:
        """The loads of a round, as clients and users a request."""
        for batch in self.batches:
            for clients in self.clients:
                rounds = self.repeat if batch in _JUDGED else min(_OTHERS_ROUNDS, self.repeat)
                if clients * batch >= _HEAVY:
                    rounds = int(self.heavy)
                if round_number < rounds:
                    yield clients, batch


@dataclass(frozen=True)
class Sample:
    """One load on one contestant, in one round. CPU seconds are per million users.

    ``store_busy`` is the part of one core that the store used, ``others`` how many cores were
    used by what is no part of the benchmark.
    """

    contestant: str
    clients: int
    batch: int
    round: int
    requests: int
    seconds: float
    users_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_server: float
    cpu_store: float
    cpu_load: float
    store_busy: float
    others: float


@dataclass(frozen=True)
class Memory:
    """Bytes of store memory per user with one cohort, for one contestant."""

    contestant: str
    bytes_per_user: float


@dataclass
class Contestant:
    """Who is measured: a server with a store of its own, and the way in that is used."""

    name: str
    store: RunningStore
    server: Gunicorn | StoreClients
    way: Way
    requests: Sequence[bytes] = ()

    def prepare(self, batch: int, count: int) -> None:
        """Begin with a fresh store, and make ``count`` requests of ``batch`` new users.

        A server that was emptied again and again has its memory in pieces: after a dozen loads it
        was a quarter slower than one that has only grown, as a store does.
        """
        self.store.restart()
        self._make(batch=10, count=100)
        self.run(clients=4, seconds=2)  # connect again, and warm up
        self.store.empty()
        self._make(batch, count)

    def _make(self, batch: int, count: int) -> None:
        if isinstance(self.server, StoreClients):
            self.server.prepare(list(traffic.user_ids(count * batch)), batch)
            return
        if self.way.setup:
            setup = traffic.request(*self.way.setup)
            generator.run(self.server.address, [setup], clients=1, seconds=10)
        self.requests = traffic.requests(self.way, batch, count)

    def run(self, clients: int, seconds: float) -> Load:
        """Send what is prepared, for ``seconds`` at most."""
        if isinstance(self.server, StoreClients):
            return self.server.run(seconds)
        return generator.run(self.server.address, self.requests, clients=clients, seconds=seconds)

    def check(self, done: Load, batch: int) -> None:
        """Raise LoadFailed unless all requests were answered and all users are in the store."""
        if done.unanswered:
            raise LoadFailed(f"{done.unanswered} requests were not answered")
        if self.store.users() < done.answered * batch:
            raise LoadFailed("the store holds fewer users than were answered for")

    def cpu_seconds(self) -> float:
        """What its server has used so far. The store alone has none."""
        return self.server.cpu_seconds() if isinstance(self.server, Gunicorn) else 0.0


def measure(plan: Plan, tell: Callable[[str], None]) -> tuple[list[Sample], list[Memory]]:
    """Run the plan. ``tell`` gets a line now and then, for whoever waits."""
    samples = []
    with contestants(plan) as entrants:
        memory = [_memory(plan, entrant) for entrant in entrants]
        for number in range(plan.repeat):
            for clients, batch in plan.loads(number):
                for entrant in entrants:
                    usual = (clients, batch) == (USUAL_CLIENTS, USUAL_BATCH)
                    if entrant.way is not traffic.IDENTIFY and not usual:
                        continue
                    tell(f"round {number + 1}: {clients} x {batch:,} {entrant.name}")
                    samples.append(_sample(plan, entrant, clients, batch, number))
    return samples, memory


@contextmanager
def contestants(plan: Plan) -> Iterator[list[Contestant]]:
    """All contestants, started, each with a fresh store."""
    with ExitStack() as stack:

        def store() -> RunningStore:
            return stack.enter_context(servers.running_store(plan.appendonly, plan.appendfsync))

        first = store()
        service = stack.enter_context(servers.running_service(first.url, plan.rate_limit))
        second = store()
        afternoon = stack.enter_context(servers.running_afternoon(second.url))
        third = store()
        alone = stack.enter_context(servers.running_store_clients(third.url, plan.store_clients))
        yield [
            Contestant(SERVICE, first, service, traffic.IDENTIFY),
            Contestant(AFTERNOON, second, afternoon, traffic.IDENTIFY),
            Contestant(STORE, third, alone, traffic.IDENTIFY),
            *(
                Contestant(f"{SERVICE}, {way.name}", first, service, way)
                for way in traffic.WAYS
                if way is not traffic.IDENTIFY
            ),
        ]


def _memory(plan: Plan, entrant: Contestant) -> Memory:
    entrant.prepare(USUAL_BATCH, plan.memory_users // USUAL_BATCH)
    before = entrant.store.used_memory()
    entrant.check(entrant.run(USUAL_CLIENTS, seconds=60), USUAL_BATCH)
    used = entrant.store.used_memory() - before
    return Memory(entrant.name, used / plan.memory_users)


def _sample(plan: Plan, entrant: Contestant, clients: int, batch: int, number: int) -> Sample:
    most = min(_MOST_REQUESTS_PER_SECOND, _MOST_USERS_PER_SECOND / batch) * plan.seconds
    count = max(clients, math.ceil(most))
    entrant.prepare(batch, count)
    before = _cpu(entrant)
    done = entrant.run(clients, plan.seconds)
    cpu_machine, cpu_server, cpu_store = (
        after - earlier for after, earlier in zip(_cpu(entrant), before, strict=True)
    )
    entrant.check(done, batch)
    millions = done.answered * batch / 1e6
    return Sample(
        contestant=entrant.name,
        clients=clients,
        batch=batch,
        round=number,
        requests=done.answered,
        seconds=done.seconds,
        users_per_second=done.answered * batch / done.seconds,
        p50_ms=percentile(done.latencies, 50) * 1000,
        p99_ms=percentile(done.latencies, 99) * 1000,
        cpu_server=cpu_server / millions,
        cpu_store=cpu_store / millions,
        cpu_load=done.cpu_seconds / millions,
        store_busy=cpu_store / done.seconds,
        others=max(0.0, cpu_machine - cpu_server - cpu_store - done.cpu_seconds) / done.seconds,
    )


def _cpu(entrant: Contestant) -> tuple[float, float, float]:
    """What the machine, the contestant's server and its store have used so far, in seconds."""
    return (
        servers.machine_cpu_seconds(),
        entrant.cpu_seconds(),
        servers.cpu_seconds(entrant.store.process),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def chosen(plan: AnyPlan, options: Namespace) -> AnyPlan:
    """A plan with what the command line says instead of its own."""
    said = {part.name: getattr(options, part.name, None) for part in fields(plan)}
    return replace(plan, **{name: value for name, value in said.items() if value})


def tell_stderr(line: str) -> None:
    """One line that the next one overwrites, on a terminal; nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
