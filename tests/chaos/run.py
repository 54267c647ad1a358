"""One run: sync cohorts during faults, and compare them after every sync and at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import redis
import urllib3

from simulator import payloads
from simulator.cohort import Cohort
from simulator.cohort_sync import Attempt, CohortSync, Mode
from simulator.connection import Target
from simulator.expected_state import Comparison, compare
from simulator.faults import FaultRates
from simulator.reader import ReaderError, RedisReader
from tests.chaos.faults import Faults
from tests.chaos.processes import ServiceProcess, StoreProcess
from tests.chaos.stream import Stream
from tests.support.polling import DEADLINE
from tests.support.proxy import Proxy
from tests.support.service import ROOT
from tests.support.stores import reserved_ports

APP, KEY = "chaos", "the-key-of-the-chaos-run"
MISBEHAVIOUR = FaultRates(
    duplicate=0.05, reorder=0.05, drop_reply=0.05, cut=0.05, slow=0.02, late=0.05, slow_seconds=0.5
)
STORE_TIMEOUT = 2.0
AFTER_ALL = 2**62
# All requests are valid, and Amplitude does not retry after a 4xx.
ALLOWED_STATUSES = {200, 503}

# Name, mode, users, users per request. Small requests give more opportunities for a failure.
COHORTS: tuple[tuple[str, Mode, int, int], ...] = (
    ("property", "property", 20_000, 200),
    ("large batches", "property", 30_000, 5000),
    ("single", "single", 300, 1),
    ("list", "list", 20_000, 200),
    ("webhook", "webhook", 20_000, 200),
)

Result = TypeVar("Result")


@dataclass
class Outcome:
    """What happened and what was found; `wrong` lists the reasons why the run failed."""

    seconds: float = 0.0
    partitions: int = 1
    title: str = "faults"
    faults: Counter[str] = field(default_factory=Counter)
    misbehaviour: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    unanswered: int = 0
    requests: int = 0
    retries: int = 0
    syncs: int = 0
    checked_after_syncs: int = 0
    users_checked: int = 0
    users_wrong: int = 0
    users_uncertain: int = 0
    transitions: int = 0
    repeated_transitions: int = 0
    wrong: list[str] = field(default_factory=list)
    unavailable_at: list[float] = field(default_factory=list)
    """When there was a 503, by the monotonic clock."""
    longest_unavailable: float | None = None
    """Seconds from when a new primary, with a replica, served to the last 503 after a failover."""


def run(
    seconds: float,
    seed: int,
    *,
    partitions: int = 1,
    share: float = 1.0,
    kinds: Sequence[str] = (),
    plant: Callable[[redis.Redis], object] | None = None,
) -> Outcome:
    """Sync under faults for about `seconds`, and then until all is delivered; compare all along.

    Args:
        share: makes the cohorts smaller.
        kinds: the faults; all of them by default.
        plant: damages the store before the last comparison, which must notice it.
    """
    outcome = Outcome(partitions=partitions)
    with stage(partitions) as (service, store, proxy, _):
        faults = Faults(service, store, proxy, seed, kinds)
        outcome.faults = faults.done
        sync_during(
            lambda: faults.run(seconds), service, store.url, outcome, seed, share=share, plant=plant
        )
    return outcome


def sync_during(
    faults: Callable[[], None],
    service: ServiceProcess,
    store_url: str,
    outcome: Outcome,
    seed: int,
    *,
    share: float = 1.0,
    plant: Callable[[redis.Redis], object] | None = None,
) -> None:
    """Sync while `faults` runs, and then until all is delivered; compare all along.

    Args:
        store_url: where to read what is stored.
    """
    started, partitions = time.monotonic(), outcome.partitions
    with ExitStack() as stack:
        syncs = [
            stack.enter_context(_sync(service.url, n, seed, share, outcome))
            for n in range(len(COHORTS))
        ]
        reader = RedisReader(store_url, app=APP, partitions=partitions)
        stack.callback(reader.close)
        stream = Stream(store_url)
        stack.callback(stream.close)
        over = threading.Event()
        with ThreadPoolExecutor(len(syncs)) as pool:
            checked = [
                pool.submit(_sync_repeatedly, sync, over, reader, stream, outcome) for sync in syncs
            ]
            try:
                faults()
            finally:
                over.set()
        after_syncs = [checks for each in checked for checks in each.result()]
        outcome.syncs = len(after_syncs)
        outcome.checked_after_syncs = sum(after_syncs)
        _calm_down(syncs, outcome)
        if plant is not None:
            with redis.Redis.from_url(store_url, decode_responses=True) as client:
                plant(client)
        for sync in syncs:
            _compare_at_the_end(sync, reader, stream, outcome)
        for sync in syncs:
            stats = sync.stats
            outcome.requests += stats.requests
            outcome.retries += stats.retries
            outcome.misbehaviour.update(stats.faults)
        _compare_stream(store_url, stream, syncs, outcome)
    check_store(store_url, outcome)
    log = service.log.read_text()
    for status in sorted(outcome.statuses.keys() - ALLOWED_STATUSES):
        outcome.wrong.append(f"{outcome.statuses[status]} responses were a {status}")
    if '"unexpected error"' in log:
        outcome.wrong.append("the service logged an unexpected error")
    outcome.seconds = time.monotonic() - started
    if outcome.wrong:
        kept = Path(tempfile.mkdtemp(prefix="chaos-log-")) / "service.log"
        kept.write_text(log)
        outcome.wrong.append(f"the service's log is in {kept}")


@contextmanager
def stage(
    partitions: int, **env: str
) -> Iterator[tuple[ServiceProcess, StoreProcess, Proxy, Path]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        store_port, service_port = stack.enter_context(reserved_ports(2))
        store = StoreProcess(folder, store_port)
        stack.callback(store.stop)
        store.start()
        proxy = Proxy(("127.0.0.1", store.port))
        stack.callback(proxy.close)
        service = ServiceProcess(
            {
                "REDIS_URL": f"redis://127.0.0.1:{proxy.port}",
                "API_KEYS": f"{APP}:{KEY}",
                "STORE_PARTITIONS": str(partitions),
                "STORE_TIMEOUT_SECONDS": str(STORE_TIMEOUT),
                "RATE_LIMIT": "100000/second",
                **env,
            },
            folder / "service.log",
            service_port,
        )
        service.start()
        stack.callback(service.stop)
        yield service, store, proxy, folder


def _sync(url: str, number: int, seed: int, share: float, outcome: Outcome) -> CohortSync:
    name, mode, users, batch_size = COHORTS[number]
    lock = threading.Lock()

    def count(attempt: Attempt) -> None:
        with lock:
            if attempt.reply.status is None:
                outcome.unanswered += 1
            else:
                outcome.statuses[attempt.reply.status] += 1
            if attempt.reply.status == 503:
                outcome.unavailable_at.append(time.monotonic())

    # All cohorts have the same users, so that they share hashes.
    cohort = Cohort.synthetic(name, f"c{number}", int(users * share), churn=0.2, seed=seed)
    return CohortSync(
        Target(url, KEY, timeout=10.0),
        cohort,
        mode=mode,
        batch_size=batch_size,
        time_scale=0.02,
        seed=seed + number,
        faults=MISBEHAVIOUR,
        settle=STORE_TIMEOUT + 1,
        on_attempt=count,
    )


def _sync_repeatedly(
    sync: CohortSync, over: threading.Event, reader: RedisReader, stream: Stream, outcome: Outcome
) -> list[int]:
    """Sync and compare until `over` is set. Returns the number of certain users after each sync."""
    certain = []
    while not over.is_set():
        sync.sync()
        compared = _compare(sync, reader, stream, outcome, f"sync {len(certain) + 1}")
        certain.append(compared.checked - compared.uncertain)
    return certain


def _compare(
    sync: CohortSync, reader: RedisReader, stream: Stream, outcome: Outcome, when: str
) -> Comparison:
    """Compare the store and the stream with the expected state, user by user.

    No request for this cohort may be in progress. Comparing at the end only would not suffice: the
    next sync overwrites what is lost now.
    """
    expected, cohort = sync.expected, sync.cohort
    compared = _when_available(lambda: compare(expected, reader))
    entered = _when_available(lambda: stream.entered(cohort.cohort_id))
    if compared.wrong:
        found = ", ".join(map(str, compared.examples[:3]))
        outcome.wrong.append(f"{cohort.name}, {when}: {compared.wrong} users are wrong: {found}")
    wrong = sum(
        (user in entered) not in {value is True for value in expected.possible_values(number)}
        for number, user in enumerate(expected.ids)
    )
    if wrong:
        outcome.wrong.append(f"{cohort.name}, {when}: the stream is wrong about {wrong} users")
    return compared


def _when_available(read: Callable[[], Result]) -> Result:
    """Read from the store, retrying while it is unavailable."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            return read()
        except (ReaderError, redis.RedisError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _calm_down(syncs: list[CohortSync], outcome: Outcome) -> None:
    """Without faults, sync each cohort twice more, so that everything is delivered."""
    for sync in syncs:
        for _ in range(2):
            for _ in range(20):
                if sync.sync().succeeded:
                    break
            else:
                outcome.wrong.append(f"{sync.cohort.name}: no sync succeeded after the faults")
        sync.drain()
        _resend_uncertain(sync)


def _resend_uncertain(sync: CohortSync) -> None:
    """Send the users of requests that were given up once more.

    Whether the receiver applied those requests is unknown, and later syncs send only differences,
    which need not include these users.
    """
    expected, http = sync.expected, urllib3.PoolManager(retries=False, timeout=10)
    uncertain = [
        user for user in range(len(expected.ids)) if len(expected.possible_values(user)) > 1
    ]
    for start in range(0, len(uncertain), 1000):
        part = uncertain[start : start + 1000]
        body = payloads.batch([expected.ids[user] for user in part], sync.cohort.trait, True)
        url = f"{sync.target.url}{payloads.COHORT_PATH}"
        reply = http.request("POST", url, json=body, headers={"api_key": KEY})
        assert reply.status == 200, reply.data
        expected.acknowledge(part, True, AFTER_ALL)
    http.clear()


def _compare_at_the_end(
    sync: CohortSync, reader: RedisReader, stream: Stream, outcome: Outcome
) -> None:
    compared = _compare(sync, reader, stream, outcome, "at the end")
    outcome.users_checked += compared.checked
    outcome.users_wrong += compared.wrong
    outcome.users_uncertain += compared.uncertain
    if compared.uncertain:
        outcome.wrong.append(f"{sync.cohort.name}: {compared.uncertain} users are uncertain")


def _compare_stream(
    store_url: str, stream: Stream, syncs: list[CohortSync], outcome: Outcome
) -> None:
    """Each user's transitions must alternate, and the last must agree with the members."""
    cohorts = [sync.cohort.cohort_id for sync in syncs]
    entered = {(cohort, user) for cohort in cohorts for user in stream.entered(cohort)}
    with redis.Redis.from_url(store_url, decode_responses=True) as client:
        members = {
            (key.split(":cohort:")[1].removesuffix(":members"), user)
            for key in client.scan_iter(match="cohorts:*:members", count=10_000)
            for user in client.zrange(key, 0, -1)
        }
    outcome.transitions = stream.transitions
    outcome.repeated_transitions = stream.repeated
    if stream.repeated:
        outcome.wrong.append(f"{stream.repeated} transitions are duplicates")
    if entered != members:
        outcome.wrong.append(f"stream and members differ about {len(entered ^ members)} users")


def check_store(store_url: str, outcome: Outcome) -> None:
    """Run the project's own check of the store."""
    checked = store_command(store_url, outcome.partitions, "check")
    if checked.returncode:
        outcome.wrong.append(f"store check failed: {checked.stdout} {checked.stderr}")


def store_command(store_url: str, partitions: int, name: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the group ``store``."""
    env = {
        "PATH": os.environ.get("PATH", ""),
        "REDIS_URL": store_url,
        "API_KEYS": f"{APP}:{KEY}",
        "STORE_PARTITIONS": str(partitions),
    }
    command = [sys.executable, "-m", "app", "store", name]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
