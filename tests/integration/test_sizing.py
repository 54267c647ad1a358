"""The formula for the store's memory, held against what a store really uses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

from app.cohorts import Cohort, MembershipChange
from app.settings import Settings
from app.store import Store, connect
from tests.conftest import running_store, store_program

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
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
                store.apply("shop", [change], way="identify")


@pytest.mark.parametrize(
    "load",
    [
        Load(20_000, 1, 24, 40),
        Load(20_000, 1, 60, 40),
        Load(20_000, 1, 24, 40, leave=True),
        Load(10_000, 5, 24, 60),
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
