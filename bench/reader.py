"""How fast the Python reader is, beside the bare client: `python -m bench.reader`.

One process, one connection, a store of its own on a Unix socket. Each figure is the middle one of
the rounds. Numbers are per second; users are 36 bytes long.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import redis

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "reader"))

from app.cohorts import Cohort, MembershipChange  # noqa: E402
from app.settings import Settings  # noqa: E402
from app.store import Store, connect  # noqa: E402
from cohort_reader import CohortReader, Follower  # noqa: E402
from simulator import payloads  # noqa: E402
from tests.conftest import running_store  # noqa: E402

USERS = 100_000
COHORT = Cohort.from_trait(payloads.trait_name("Power users", "abc123"))
ROUNDS, SECONDS = 5, 0.4
CHANGES = 5000


def rate(call: Callable[[int], object], size: int = 1) -> int:
    """How many answers a second, where each call gives ``size``."""
    found = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for number in count(1):
            call(number)
            elapsed = time.perf_counter() - started
            if elapsed > SECONDS:
                found.append(number * size / elapsed)
                break
    return round(statistics.median(found))


def follow(url: str, client: redis.Redis, partitions: int, ordered: bool, size: int) -> int:
    """Users followed a second, where each change names ``size``."""
    client.flushall()
    store = Store(connect(Settings(redis_url=url)), partitions=partitions)
    users = payloads.user_ids(CHANGES * size)
    for start in range(0, len(users), size):
        change = MembershipChange(COHORT, True, users[start : start + size])
        store.apply("default", [change], way="bench")
    follower = Follower(client, "bench", start="all", ordered=ordered)
    started = time.perf_counter()
    heard: list[str] = []
    while follower.poll(lambda change: heard.extend(change.user_ids)):
        pass
    assert sorted(heard) == sorted(users)
    return round(len(users) / (time.perf_counter() - started))


def measure(url: str, partitions: int) -> list[tuple[str, int]]:
    """What is measured, and how much of it a second."""
    client = redis.Redis.from_url(url)
    client.flushall()
    store = Store(connect(Settings(redis_url=url)), partitions=partitions)
    users = payloads.user_ids(USERS)
    store.apply("default", [MembershipChange(COHORT, True, users[::2])], way="bench")
    reader = CohortReader(client)
    cached = CohortReader(client, cache_entries=USERS, cache_seconds=3600)
    cached.are_members(users, COHORT.id)

    def user(number: int) -> str:
        return users[number % USERS]

    def thousand(number: int) -> list[str]:
        start = number * 1000 % USERS
        return users[start : start + 1000]

    base = reader._keys.prefix_for(users[0])
    key = f"{base}cohort:{COHORT.id}:members"
    return [
        ("ZSCORE, bare client", rate(lambda n: client.zscore(key, user(n)))),
        ("is_member", rate(lambda n: reader.is_member(user(n), COHORT.id))),
        (
            "is_member_many, 1,000 a call",
            rate(lambda n: reader.are_members(thousand(n), COHORT.id), 1000),
        ),
        ("is_member, cached", rate(lambda n: cached.is_member(user(n), COHORT.id))),
        ("HGETALL, bare client", rate(lambda n: client.hgetall(f"{base}user:{user(n)}"))),
        ("traits", rate(lambda n: reader.traits(user(n)))),
        ("members", rate(lambda n: list(reader.members(COHORT.id)), USERS // 2)),
        ("follow, 1 user a change, ordered", follow(url, client, partitions, True, 1)),
        ("follow, 1 user a change, unordered", follow(url, client, partitions, False, 1)),
        ("follow, 100 users a change, ordered", follow(url, client, partitions, True, 100)),
    ]


def main() -> None:
    """Measure and print a table."""
    with running_store() as url:
        columns = [measure(url, partitions) for partitions in (1, 3)]
    print(f"{'per second':<38}{'1 partition':>14}{'3 partitions':>14}")
    for (name, one), (_, three) in zip(*columns, strict=True):
        print(f"{name:<38}{one:>14,}{three:>14,}")


if __name__ == "__main__":
    main()
