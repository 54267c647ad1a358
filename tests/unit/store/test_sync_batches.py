"""How requests are divided into what the sync history stores in one call, and its form."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from app.cohorts import Rejection, RequestRecord, user_hash
from app.store.sync_batches import (
    MAX_LEFT_OUT,
    SyncBatch,
    SyncGroup,
    decode,
    encode,
    split_batches,
)

GROUP = SyncGroup("shop", "abc123")
PAUSE_MS = 300_000
REQUIRED = [5000, 0.25, 200, "list", "a-key", "an-id"]
RECORD = RequestRecord(*REQUIRED)  # type: ignore[arg-type]
FAILED = RECORD._replace(status=400, reason="invalid_json")


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


def head(batch: SyncBatch) -> Any:
    return orjson.loads(batch.arguments()[0])


def test_batch__has_room_until_it_is_full_or_after_a_pause() -> None:
    assert batch(499).has_room_for(RECORD)
    assert not batch(500).has_room_for(RECORD)
    made = SyncBatch(GROUP)
    made.add(RECORD, {})
    assert made.has_room_for(RECORD._replace(at_ms=RECORD.at_ms + PAUSE_MS))
    assert not made.has_room_for(RECORD._replace(at_ms=RECORD.at_ms + PAUSE_MS + 1))


def test_batch__of_several_requests__is_stored_with_their_times_and_sums() -> None:
    made = SyncBatch(GROUP, "a trait", now_ms=9000)
    made.add(RECORD._replace(accepted=4, changed=3, entered=2, left=1, repeated=True), {})
    made.add(
        RECORD._replace(at_ms=4000, took_ms=0.75, accepted=1, rejected=2, key="other"),
        {"unknown_user": 2, "suppressed_user": 1},
    )
    made.add(FAILED._replace(at_ms=4500, took_ms=0.5), {})
    made.leave_out(["ann", "bob"])
    first, clean, others, *rows = made.arguments()
    assert (clean, others, len(rows)) == (1, 2, 3)
    assert orjson.loads(first) == {
        "key": "abc123",
        "cohort": "abc123",
        "index": "syncs",
        "now": 9000,
        "first": 4000,
        "last": 5000,
        "slowest": 0.75,
        "set": {"trait": "a trait"},
        "left_out": [user_hash("ann"), "ann", user_hash("bob"), "bob"],
        "add": {
            "requests": 3,
            "accepted": 5,
            "changed": 3,
            "entered": 2,
            "left": 1,
            "rejected": 2,
            "repeated": 1,
            "failed": 1,
            "took": 1500,
            "source:list": 3,
            "key:a-key": 2,
            "key:other": 1,
            "reason:unknown_user": 2,
            "reason:suppressed_user": 1,
            "failure:invalid_json": 1,
        },
    }


@pytest.mark.parametrize(
    ("group", "key", "index"),
    [
        (SyncGroup("shop", ""), ":", "syncs"),
        (SyncGroup("shop", "", "list:invalid_json"), ":list:invalid_json", "failures"),
    ],
    ids=["many cohorts", "no cohort"],
)
def test_batch__without_a_single_cohort__has_its_own_group(
    group: SyncGroup, key: str, index: str
) -> None:
    made = SyncBatch(group)
    made.add(RECORD, {})
    found = head(made)
    assert (found["key"], found["cohort"], found["index"]) == (key, "", index)
    assert (found["now"], found["set"], found["left_out"]) == (RECORD.at_ms, {}, [])


def test_failures__for_the_same_reason__are_all_counted_and_five_are_stored() -> None:
    made = SyncBatch(GROUP)
    for _ in range(7):
        made.add(FAILED, {})
    made.add(FAILED._replace(reason="invalid_payload"), {})
    made.add(RECORD._replace(rejected=1), {})
    assert made.size == len(made.others) == 5 + 1 + 1
    assert head(made)["add"]["failed"] == 8


USER = Rejection(user_hash("ann"), "unknown_user")
NOBODY = Rejection("", "invalid_user_id")


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        RECORD._replace(left=1),
        FAILED._replace(detail="The body is empty.", unknown_cohort="abc123"),
        RECORD._replace(rejections=(USER, USER._replace(user=user_hash("bob")), NOBODY)),
    ],
    ids=["shortest", "with defaults within", "failed", "rejected"],
)
def test_record__that_was_encoded__is_decoded_to_the_same(record: RequestRecord) -> None:
    assert decode(encode(record)) == record


def test_record__is_stored_without_defaults_at_its_end() -> None:
    assert orjson.loads(encode(RECORD)) == REQUIRED
    assert orjson.loads(encode(RECORD._replace(left=1))) == [*REQUIRED, 0, 0, 0, 1]


def test_record__of_a_later_version__is_read_without_what_is_new() -> None:
    row = orjson.loads(encode(FAILED._replace(unknown_cohort="abc123")))
    assert decode(orjson.dumps([*row, "new"])).unknown_cohort == "abc123"
