"""The proof under faults, in short. `make chaos` is the whole of it."""

from __future__ import annotations

import pytest

from simulator.faults import FAULT_KINDS
from tests.chaos.run import run


@pytest.mark.parametrize("partitions", [3])
def test_chaos__some_seconds_of_every_fault__loses_nothing(partitions: int) -> None:
    outcome = run(8, seed=7, partitions=partitions, share=0.05)
    assert outcome.wrong == []
    assert len(outcome.faults) == 8
    assert {kind.replace("-", "_") for kind in outcome.misbehaviour} == set(FAULT_KINDS)
    assert outcome.statuses[503] > 0
    assert outcome.checked_after_syncs > 1000
    assert outcome.users_checked > 1000
