"""How requests are divided into what the sync history stores in one call."""

from __future__ import annotations

from app.store.sync_batches import MAX_LEFT_OUT, SyncBatch, SyncGroup, split_batches

GROUP = SyncGroup("shop", "abc123")


def batch(requests: int, left_out: int = 0) -> SyncBatch:
    made = SyncBatch(GROUP, clean=[b"{}"] * requests)
    made.leave_out(f"user{n}" for n in range(left_out))
    return made


def sizes(*batches: SyncBatch) -> list[int]:
    return [len(portion) for portion in split_batches(batches)]


def test_portion__holds_at_most_500_requests() -> None:
    assert sizes(batch(250), batch(250), batch(1), batch(499), batch(1)) == [2, 2, 1]


def test_portion__holds_at_most_50_batches() -> None:
    assert sizes(*(batch(1) for _ in range(101))) == [50, 50, 1]


def test_portion__holds_at_most_2000_users_left_out() -> None:
    half = MAX_LEFT_OUT // 2
    assert MAX_LEFT_OUT == 2000
    assert sizes(batch(1, half), batch(1, half), batch(1, 1), batch(1, half)) == [2, 2]


def test_batch__larger_than_a_portion__is_one_by_itself() -> None:
    assert sizes(batch(600), batch(1)) == [1, 1]
    assert sizes() == []


def test_left_out__in_one_batch__are_bounded() -> None:
    assert len(batch(0, MAX_LEFT_OUT + 1).left_out) == MAX_LEFT_OUT
