"""What is measured: contestants, loads and limits, declared in groups.

A new load is one more :class:`Load` in a group; a :class:`Limit` on one of its figures makes it a
requirement. Figures are listed in :data:`bench.runner.FIGURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median

from bench import beside, requests
from bench.beside import Beside, Requests
from bench.requests import ADMIN_KEY, APP, COHORT_ID, KEY, NOISY_KEY, QUIET_KEY, Size, Target
from bench.servers import ROOT
from simulator import payloads

SIZES = {
    "full": Size(1.5, 7, 100_000, 1_000_000, 10_000, 10_000_000),
    "quick": Size(0.5, 2, 20_000, 100_000, 1000, 500_000),
    "tiny": Size(0.1, 1, 2000, 2000, 60, 20_000),  # to see that everything works
}


@dataclass(frozen=True)
class Contestant:
    """What gets a load: a gunicorn, or processes that call the store directly.

    Attributes:
        app: what gunicorn runs, in ``root``; empty for processes that call the atomic step.
        masters: of the store, with ``replicas`` for each; 0 for a single server.
        shares: the contestant whose store it uses, instead of one of its own.
    """

    app: str = ""
    root: Path = ROOT
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    masters: int = 0
    replicas: int = 0
    shares: str = ""


SERVICE, AGAINST, AFTERNOON, BARE, STORE = (
    "service",
    "against",
    "afternoon",
    "bare view",
    "store alone",
)
SERVICE_ENVIRONMENT = {
    "API_KEYS": f"{APP}:{KEY}",
    "ADMIN_API_KEYS": f"{APP}:{ADMIN_KEY},quiet:{QUIET_KEY},noisy:{NOISY_KEY}",
    "RATE_LIMIT": "1000000/second",  # the limiter works, and lets everything through
}


def _cluster(masters: int, replicas: int = 0, partitions: int = 12, **more: str) -> Contestant:
    environment = {"STORE_PARTITIONS": str(partitions), "STORE_CLUSTER": str(masters > 0).lower()}
    return Contestant(environment={**environment, **more}, masters=masters, replicas=replicas)


CONTESTANTS: dict[str, Contestant] = {
    SERVICE: Contestant("wsgi:app", environment=SERVICE_ENVIRONMENT),
    # What anyone would write first, on two of gunicorn's default workers.
    AFTERNOON: Contestant(
        "bench.afternoon:app",
        options=(
            *("--config", "/dev/null"),  # not the service's gunicorn.conf.py
            *("--workers", "2", "--bind", "127.0.0.1:0", "--no-control-socket"),
        ),
        environment={"API_KEY": KEY},
    ),
    # One HGETALL of the service's own data, on the service's own kind of gunicorn.
    BARE: Contestant(
        "bench.bare:app",
        options=("--config", "bench/bare_gunicorn.py"),
        environment={**SERVICE_ENVIRONMENT, "USER_KEYS": f"cohorts:{{{APP}}}:user:"},
        shares=SERVICE,
    ),
    STORE: Contestant(),
    "12 partitions": _cluster(0),
    "1 master": _cluster(1),
    "2 masters": _cluster(2),
    "3 masters": _cluster(3),
    "3 masters, replicated": _cluster(3, 1),
    "3 masters, WAIT 1": _cluster(3, 1, STORE_WAIT_REPLICAS="1"),
    "3 masters, WAITAOF 1 1": _cluster(3, 1, STORE_WAIT_REPLICAS="1", STORE_WAIT_FSYNC="true"),
}
_RATE, _CPU = ("per_second", "p50_ms", "p99_ms"), ("cpu_server", "cpu_store")
STORES = (STORE, *list(CONTESTANTS)[4:])


@dataclass(frozen=True)
class Load:
    """What clients send to each of its contestants.

    Attributes:
        items: what a request counts as, e.g. the users that it names.
        count: exactly so many requests; by default as many as are answered in time.
        rate: requests per second; by default each client sends as fast as it is answered.
        setup: requests that come first.
        beside: what else happens at that time.
        longer: this many times as long as other loads.
        rounds: at most.
        bytes_per_member: replies must have at least so many for each of ``size.members``.
    """

    name: str
    requests: Requests
    items: Callable[[Size], int] | int = 1
    clients: int = 4
    contestants: tuple[str, ...] = (SERVICE,)
    count: Callable[[Size], int] | None = None
    rate: float | None = None
    setup: Requests = lambda target: iter(())
    beside: Beside = beside.nothing
    longer: float = 1
    rounds: int = 99
    bytes_per_member: int = 0


@dataclass(frozen=True)
class Limit:
    """A requirement on a figure of a load, or on its ratio to another contestant or load.

    Attributes:
        than: what the figure is divided by, round by round: a contestant or a load.
        over: how the rounds are put together.
    """

    load: str
    figure: str
    at_least: float | None = None
    at_most: float | None = None
    than: str = ""
    of: str = SERVICE
    over: Callable[[Sequence[float]], float] = median

    def divisor(self) -> tuple[str, str]:
        """The contestant and the load that the figure is divided by."""
        return (
            (self.than, self.load) if self.than in (*CONTESTANTS, AGAINST) else (self.of, self.than)
        )


def at_least(value: float, load: str, than: str, of: str = SERVICE) -> Limit:
    """Items per second, as a multiple."""
    return Limit(load, "per_second", at_least=value, than=than, of=of)


@dataclass(frozen=True)
class Group:
    """Loads that are measured together, side by side on all their contestants.

    Attributes:
        columns: the figures in its table.
        data: requests that fill the store first. Without them, each load gets an empty store.
        side_by_side: whether contestants take turns in each round, or run one after the other.
    """

    loads: tuple[Load, ...]
    columns: tuple[str, ...]
    limits: tuple[Limit, ...] = ()
    data: Callable[[Target], Iterator[bytes]] | None = None
    side_by_side: bool = True


def _sync_requests(size: Size) -> int:
    return size.users // 1000


def _batch(batch: int, clients: int, contestants: tuple[str, ...], rounds: int = 99) -> Load:
    name = f"{'single identifies' if batch == 1 else f'batches of {batch:,}'}, {clients} clients"
    requests_ = partial(requests.batches, batch)
    return Load(name, requests_, batch, clients, contestants, rounds=rounds)


_BATCHES, _SINGLES = "batches of 1,000, 4 clients", "single identifies, 4 clients"
_MANY_BATCHES, _MANY_SINGLES = "batches of 1,000, 64 clients", "single identifies, 64 clients"
_LISTS, _WEBHOOKS = "lists of 1,000, 4 clients", "webhooks of 1,000, 4 clients"
_SYNC, _TWICE = "a full sync", "the same full sync twice"
_ALL, _BOTH = (SERVICE, AFTERNOON, STORE), (SERVICE, AFTERNOON)

_SPEED = Group(
    loads=(
        _batch(1, 4, _ALL),
        _batch(1, 64, _BOTH),
        _batch(100, 4, _ALL, rounds=3),
        _batch(1000, 4, _ALL),
        _batch(1000, 64, _BOTH),
        _batch(10_000, 4, _ALL, rounds=3),
        Load(_LISTS, partial(requests.lists, 1000), 1000, setup=requests.list_creation),
        Load(_WEBHOOKS, partial(requests.webhooks, 1000), 1000),
        Load(_SYNC, requests.sync, 1000, contestants=_BOTH, count=_sync_requests, rounds=1),
        # Each user counts once.
        Load(_TWICE, requests.twice, 500, count=lambda size: 2 * _sync_requests(size), rounds=1),
    ),
    columns=(*_RATE, *_CPU, "cpu_load", "others", "bytes_per_user"),
    limits=(
        at_least(4, _BATCHES, AFTERNOON),
        at_least(4, _MANY_BATCHES, AFTERNOON),
        at_least(0.85, _BATCHES, STORE),
        at_least(1, _SINGLES, AFTERNOON),
        at_least(1, _MANY_SINGLES, AFTERNOON),
        at_least(0.9, _LISTS, _BATCHES),
        at_least(0.9, _WEBHOOKS, _BATCHES),
        Limit(_BATCHES, "p99_ms", at_most=150),
        Limit(_MANY_BATCHES, "p99_ms", at_most=1000),
        Limit(_SYNC, "bytes_per_user", at_most=300),
        Limit(_TWICE, "bytes_per_user", at_most=300),
    ),
)

_READ_LOADS = ("one user, 4 clients", "one user, 64 clients")
_BULK, _EXPORT = "1,000 users per request", "export of a cohort"
_EXPORT_PATH = f"/api/v1/cohorts/{COHORT_ID}/members.ndjson"
_READS = Group(
    data=requests.read_data,
    loads=(
        Load(_READ_LOADS[0], requests.reads, contestants=(SERVICE, BARE)),
        Load(_READ_LOADS[1], requests.reads, clients=64, contestants=(SERVICE, BARE)),
        Load(_BULK, partial(requests.bulk_reads, 1000), 1000, clients=1),
        Load(
            _EXPORT,
            partial(requests.gets, _EXPORT_PATH),
            items=lambda size: size.members,
            clients=1,
            count=lambda size: 1,
            rounds=3,
            beside=beside.memory_samples,
            bytes_per_member=24,
        ),
    ),
    columns=(*_RATE, *_CPU, "memory_mb"),
    limits=(
        *(at_least(0.6, load, BARE) for load in _READ_LOADS),
        Limit(_BULK, "p50_ms", at_most=20),
        Limit(_EXPORT, "per_second", at_least=200_000, over=min),
        Limit(_EXPORT, "memory_mb", at_most=50, over=max),
    ),
)

_FOLLOWED, _UNFOLLOWED = "batches with 10 followers", "batches without followers"
_INGEST = Load(_UNFOLLOWED, partial(requests.batches, 1000), 1000, longer=2)
_FOLLOWERS = Group(
    loads=(_INGEST, replace(_INGEST, name=_FOLLOWED, beside=partial(beside.followers, 10))),
    columns=(*_RATE, *_CPU, "lag_ms"),
    limits=(at_least(0.9, _FOLLOWED, _UNFOLLOWED),),
)

_ALONE = Load("nobody else", partial(requests.batches, 1), longer=2, rounds=2)
_SLOW_CLIENTS: dict[str, Beside] = {
    "200 stalled senders": partial(beside.stalled_senders, 200),
    "200 clients that read nothing": partial(beside.idle_readers, 200),
}
_SLOW = Group(
    data=requests.read_data,
    loads=(_ALONE, *(replace(_ALONE, name=n, beside=b) for n, b in _SLOW_CLIENTS.items())),
    columns=(*_RATE, "max_ms"),
    limits=tuple(Limit(name, "max_ms", at_most=1000, over=max) for name in _SLOW_CLIENTS),
)

NOISY_CLIENTS = 64
_MEMBERS_PATH = f"/api/v1/cohorts/{COHORT_ID}/members?limit=10000"
_NOISE: dict[str, Requests] = {
    "batches of 1,000": beside.noisy_batches,
    "single identifies": beside.noisy_singles,
    "pages of 10,000 members": partial(requests.gets, _MEMBERS_PATH, key=NOISY_KEY),
}
_QUIET = replace(
    _ALONE, requests=partial(requests.batches, 1, key=QUIET_KEY), clients=64, rate=25, rounds=3
)
_APPS = Group(
    data=partial(requests.batches, 1000, key=NOISY_KEY, limit=30_000),
    loads=(
        _QUIET,
        *(
            replace(_QUIET, name=name, beside=partial(beside.flood, noise, NOISY_CLIENTS))
            for name, noise in _NOISE.items()
        ),
    ),
    columns=("flood_per_second", "answered", "p50_ms", "p99_ms", "max_ms"),
    limits=tuple(Limit(name, "p99_ms", at_most=250) for name in _NOISE),
)

_NEXT = r'href="([^"]+)" rel="next"'
_PAGE_PATHS = {
    "cohorts": ("/", ""),
    "cohorts, second page": ("/", _NEXT),
    "cohorts with 9 in their name": ("/?name=9&sort=id", ""),
    "cohorts by name": ("/?sort=name", ""),
    "cohorts, largest first": ("/?sort=-members", ""),
    "late cohorts": ("/?freshness=late", ""),
    "cohorts, a name that none has": ("/?name=nobody", ""),
    "one cohort": ("/cohort?id=c00001", ""),
    "syncs": ("/syncs", ""),
    "syncs, second page": ("/syncs", _NEXT),
    "syncs with problems": ("/syncs?problems=true", ""),
    "one sync": ("/syncs", r'href="(/sync\?[^"]+)"'),
    "one user": ("/users?id=u1", ""),
    "health": ("/health", ""),
}
_PAGES = Group(
    data=requests.page_data,
    loads=tuple(
        Load(name, partial(requests.pages, *page), clients=1, count=lambda size: 15, rounds=1)
        for name, page in _PAGE_PATHS.items()
    ),
    columns=("p50_ms", "max_ms", "reply_kb"),
    limits=tuple(Limit(name, "p50_ms", at_most=200) for name in _PAGE_PATHS),
)

_OTHER_COHORT = payloads.trait_name("Other", "other")
_STEADY = Load(
    "batches at a fixed rate",
    partial(requests.batches, 1000, traits=(_OTHER_COHORT,)),
    1000,
    clients=16,
    rate=20,
    longer=10,
    rounds=3,
)
_RENAMED = "the same, while a cohort is renamed"
_RENAME = Group(
    data=requests.read_data,
    loads=(_STEADY, replace(_STEADY, name=_RENAMED, beside=beside.renaming)),
    columns=("answered", "p50_ms", "p99_ms", "max_ms", "outlasted"),
    limits=(
        Limit(_RENAMED, "p99_ms", at_most=2, than=_STEADY.name),
        Limit(_RENAMED, "outlasted", at_least=1, over=min),
    ),
)

_STORE_BATCHES = replace(_INGEST, name="batches of 1,000", contestants=STORES, rounds=3)
_CLUSTER = Group(
    side_by_side=False,
    loads=(
        _STORE_BATCHES,
        replace(
            _STORE_BATCHES, name="single users", requests=partial(requests.batches, 1), items=1
        ),
    ),
    columns=("per_second", "p50_ms", "cpu_store", "cpu_busiest", "cpu_replicas", "cpu_load"),
    limits=(
        Limit("batches of 1,000", "cpu_store", at_most=1.3, of="3 masters", than="12 partitions"),
    ),
)

GROUPS = {
    "speed": _SPEED,
    "reads": _READS,
    "followers": _FOLLOWERS,
    "slow": _SLOW,
    "apps": _APPS,
    "pages": _PAGES,
    "rename": _RENAME,
    "cluster": _CLUSTER,
}
# What ``python -m bench`` measures by default.
DEFAULT = (*(name for name in GROUPS if name not in ("rename", "cluster")), "reader", "replace")
