"""The formula for the store's memory, held against what a store really uses."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

from app.cohorts import Cohort, MembershipChange, Rejection, RequestRecord, user_hash
from app.settings import Settings
from app.store import Store, SyncBatch, SyncGroup, connect, split_batches
from tests.support.effort import thorough
from tests.support.stores import running_store, store_program

PAGE = Path(__file__).resolve().parents[3] / "docs" / "operations.md"
# Less recent stores keep more beside each key and member.
REDIS_7_FACTOR = 1.3


class Load(NamedTuple):
    """What is stored: all users are in all cohorts, and a part of them has left each again."""

    users: int
    cohorts: int
    id_bytes: int
    trait_bytes: int
    leave: bool = False


@pytest.fixture
def empty_store() -> Iterator[str]:
    """A store that has held nothing yet: one that was emptied still has room it does not need."""
    with running_store() as url:
        yield url


def estimate(load: Load) -> float:
    """The formula in the documentation, worked out."""
    formula = re.search(
        r"^users . \((\d+) \+ I\) \+ memberships . \((\d+) \+ I \+ T\)"
        r" \+ changes . \((\d+) \+ I\)$",
        PAGE.read_text(),
        re.M,
    )
    assert formula
    per_user, per_membership, per_change = map(int, formula.groups())
    memberships = load.users * load.cohorts
    return (
        load.users * (per_user + load.id_bytes)
        + memberships * (per_membership + load.id_bytes + load.trait_bytes)
        + memberships * (1 + load.leave) * (per_change + load.id_bytes)
    )


def fill(store: Store, load: Load) -> None:
    ids = [f"{number:0{load.id_bytes}d}" for number in range(load.users)]
    for number in range(load.cohorts):
        cohort_id = f"c{number:03}"
        trait = f"{'x' * (load.trait_bytes - len(cohort_id) - 1)}:{cohort_id}"
        cohort = Cohort.from_trait(trait)
        for member in (True, False)[: 1 + load.leave]:
            for start in range(0, load.users, 1000):
                change = MembershipChange(cohort, member, ids[start : start + 1000])
                store.memberships.apply("shop", [change], source="identify")


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(Load(20_000, 1, 24, 40, leave=True), marks=thorough),
        pytest.param(Load(20_000, 1, 24, 40), marks=thorough),
        pytest.param(Load(20_000, 1, 60, 40), marks=thorough),
        pytest.param(Load(10_000, 5, 24, 60), marks=thorough),
        Load(2_000, 50, 36, 40),
    ],
    ids=str,
)
def test_formula__beside_what_a_store_uses__is_within_a_tenth(load: Load, empty_store: str) -> None:
    with redis.Redis.from_url(empty_store) as client:
        before = client.info("memory")["used_memory"]
        fill(Store(connect(Settings(redis_url=empty_store))), load)
        used = client.info("memory")["used_memory"] - before
    expected = estimate(load) * (REDIS_7_FACTOR if "redis" in store_program() else 1)
    assert used == pytest.approx(expected, rel=0.1)


CLEAN = RequestRecord(
    time.time_ns() // 1_000_000, 1.5, 200, "identify", "ingest-9f86d081", "0" * 32, 1, 1, 1
)
SOME_LEFT_OUT = CLEAN._replace(
    accepted=980,
    changed=980,
    entered=980,
    rejected=20,
    rejections=tuple(Rejection(user_hash(str(n)), "unknown_user") for n in range(20)),
)
# A request's id and what is told of its error have at most 200 characters; escaped, six bytes each.
LARGEST = SOME_LEFT_OUT._replace(
    request_id="r" * 200, key="k" * 60, status=404, reason="unknown_user", detail="\x01" * 200
)


@thorough
@pytest.mark.parametrize(
    ("record", "words"),
    [
        (CLEAN, r"(\d+) bytes per request"),
        (SOME_LEFT_OUT, r"or (\d+) if users were rejected"),
        (LARGEST, r"at most ([\d,]+) with a long"),
    ],
    ids=["clean", "some left out", "largest"],
)
def test_history__beside_what_a_store_uses__takes_what_is_said(
    record: RequestRecord, words: str, empty_store: str
) -> None:
    said = re.search(words, PAGE.read_text())
    assert said
    requests, cohorts = 20_000, 500
    batches = []
    for number in range(cohorts):
        batch = SyncBatch(SyncGroup("shop", str(number)), f"[Amplitude] some cohort: {number}")
        for _ in range(requests // cohorts):
            batch.add(record._replace(status=200), {"unknown_user": record.rejected})
        batches.append(batch)
    with redis.Redis.from_url(empty_store) as client:
        before = client.info("memory")["used_memory"]
        history = Store(connect(Settings(redis_url=empty_store))).sync_history
        for number, portion in enumerate(split_batches(batches)):
            history.add("shop", portion, str(number))
        used = client.info("memory")["used_memory"] - before
    share = used / requests / int(said[1].replace(",", ""))
    assert 0.9 <= share <= 1.1 * (REDIS_7_FACTOR if "redis" in store_program() else 1)
