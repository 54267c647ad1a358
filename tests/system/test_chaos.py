"""A brief chaos test; `make chaos` is the full one."""

from __future__ import annotations

import pytest
import redis

from simulator.faults import FAULT_KINDS
from tests.chaos import failovers, losses
from tests.chaos.run import run
from tests.support.effort import thorough


@thorough
def test_chaos__every_fault__loses_nothing() -> None:
    outcome = run(10, seed=7, partitions=3, share=0.05)
    assert outcome.wrong == []
    assert len(outcome.faults) == 8
    assert {kind.replace("-", "_") for kind in outcome.misbehaviour} == set(FAULT_KINDS)
    assert outcome.statuses[503] > 0
    assert outcome.checked_after_syncs > 1000
    assert outcome.users_checked > 1000


@thorough
def test_chaos__one_member_and_one_trait_lost__says_so() -> None:
    lost: list[str] = []

    def lose(client: redis.Redis) -> None:
        key = next(client.scan_iter(match="cohorts:*:cohort:c1:members", count=1000))
        lost.extend(client.zpopmin(key, 1)[0][:1])
        user = next(client.scan_iter(match="cohorts:*:user:*", count=1000))
        client.delete(user)

    kinds = ["connections to the store broken"]
    outcome = run(0, seed=7, share=0.02, kinds=kinds, plant=lose)
    assert outcome.faults.keys() == set(kinds)
    wrong = "\n".join(outcome.wrong)
    assert "users are wrong" in wrong
    assert "stream and members differ about 1 users" in wrong
    assert "store check failed" in wrong


@thorough
def test_losses__of_each_kind__are_found_and_repaired() -> None:
    outcome = losses.run(0, seed=7, partitions=2, share=0.1)
    assert outcome.wrong == []
    assert {"store emptied", "store set back to an earlier state"} <= outcome.faults.keys()
    assert outcome.faults["repaired by reconcile"] == outcome.faults["repaired by resync"] == 3
    assert outcome.users_checked > 3000


@thorough
@pytest.mark.parametrize("behind_sentinels", [False, True], ids=["one address", "Sentinels"])
def test_failovers__lose_nothing_and_end_soon(behind_sentinels: bool) -> None:
    outcome = failovers.run(0, seed=7, behind_sentinels=behind_sentinels, share=0.05)
    assert outcome.wrong == []
    assert outcome.faults.total() == 1 + behind_sentinels
    if behind_sentinels:  # behind one address, no request may meet the moment of the change
        assert outcome.statuses[503] > 0
    assert outcome.checked_after_syncs > 1000
