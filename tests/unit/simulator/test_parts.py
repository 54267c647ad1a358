"""The parts of a sync: cohort, encoder, expected state, faults, statistics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import payloads
from simulator.cohort import Cohort, InvalidIdFile, read_ids
from simulator.connection import (
    CLOSED,
    CUT,
    TIMEOUT,
    Reply,
)
from simulator.encode import Encoder
from simulator.expected_state import ExpectedState
from simulator.faults import FAULT_KINDS, FaultRates, parse_faults
from simulator.reader import Value
from simulator.replies import excerpt
from simulator.stats import Stats, percentile

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


# Cohort


def test_advance__first__is_everybody_then_the_difference() -> None:
    cohort = Cohort.synthetic("n", "1", 100, churn=0.1)
    assert cohort.advance() == (list(range(100)), [])
    cohort.mark_synced()
    members = set(range(100))
    for _ in range(10):
        entered, left = cohort.advance()
        assert len(entered) == len(left) == 10
        assert set(left) <= members
        assert not set(entered) & members
        members = members - set(left) | set(entered)
        assert set(cohort.members) == members
        cohort.mark_synced()


def test_advance__after_a_failed_sync__is_the_difference_from_the_last_successful_one() -> None:
    cohort = Cohort.synthetic("n", "1", 100, churn=0.5)
    cohort.advance()
    cohort.mark_synced()
    cohort.advance()  # fails
    entered, left = cohort.advance()
    assert set(left) == set(range(100)) - set(cohort.members)
    assert set(entered) == set(cohort.members) - set(range(100))


def test_advance__until_a_sync_succeeds__is_full() -> None:
    cohort = Cohort.synthetic("n", "1", 100, churn=0.5)
    cohort.advance()
    entered, left = cohort.advance()
    assert sorted(entered) == sorted(cohort.members)
    assert left == []


def test_advance__all_ids_in__users_leave_and_come_back() -> None:
    cohort = Cohort("n", "1", list("abcdefghij"), churn=0.2)
    cohort.advance()
    cohort.mark_synced()
    entered, left = cohort.advance()
    assert (len(entered), len(left)) == (0, 2)
    cohort.mark_synced()
    again, _ = cohort.advance()
    assert set(again) == set(left)


def test_read_ids__file__is_read_without_empty_lines_and_repeats(tmp_path: Path) -> None:
    path = tmp_path / "ids"
    path.write_bytes("a\r\nb c\n\nünï\na\n".encode())
    assert read_ids(path) == ["a", "b c", "ünï"]


def test_read_ids__byte_order_mark__is_not_part_of_an_id(tmp_path: Path) -> None:
    path = tmp_path / "ids"
    path.write_text("a\nb\n", encoding="utf-8-sig")
    assert read_ids(path) == ["a", "b"]


@pytest.mark.parametrize(("content", "said"), [(b"a\n\xff\n", "line 2"), (b"\n\n", "no user id")])
def test_read_ids__unusable__says_where(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "ids"
    path.write_bytes(content)
    with pytest.raises(InvalidIdFile, match=said):
        read_ids(path)


# Encoder


@given(st.lists(TEXT, min_size=1, unique=True), TEXT, TEXT, st.booleans())
def test_encoder__any_names__says_the_same_as_payloads(
    ids: list[str], name: str, cohort_id: str, member: bool
) -> None:
    cohort = Cohort(name, cohort_id, ids)
    encoder, users = Encoder(cohort), range(len(ids))
    trait = payloads.trait_name(name, cohort_id)
    assert json.loads(encoder.batch(users, member)) == payloads.batch(ids, trait, member)
    assert json.loads(encoder.identify(0, member)) == payloads.identify(ids[0], trait, member)
    assert json.loads(encoder.list_users(users)) == payloads.list_users(ids)
    assert json.loads(encoder.list_create()) == payloads.list_create(trait)
    assert json.loads(encoder.webhook(users, member, 17, "m")) == payloads.webhook(
        name, cohort_id, ids, member, computed_time=17, message_id="m"
    )


# ExpectedState


def test_expected_state__acknowledged_updates__highest_order_wins_whatever_comes_last() -> None:
    expected = ExpectedState("t", ["a", "b"])
    expected.acknowledge([0], False, order=20)
    expected.acknowledge([0, 1], True, order=10)
    assert expected.values() == [False, True]
    expected.acknowledge([0], True, order=20)
    assert expected.values() == [True, True]


def test_expected_state__unanswered_update__is_uncertain_until_one_is_acknowledged() -> None:
    expected = ExpectedState("t", ["a"])
    expected.mark_uncertain([0], True, order=5)
    expected.acknowledge([0], False, order=4)
    assert expected.possible_values(0) == {True, False}
    assert expected.uncertain_users == 1
    expected.acknowledge([0], True, order=5)
    assert expected.possible_values(0) == {True}
    expected.mark_uncertain([0], False, order=4)  # the receiver ignores it as too old
    assert expected.possible_values(0) == {True}


def test_expected_state__assumed__is_what_was_there_before() -> None:
    expected = ExpectedState("t", ["a", "b", "c"])
    expected.set_initial([True, None, False])
    assert expected.values() == [True, None, False]
    assert expected.member_count() == 1


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.booleans(), st.sampled_from(["lost", "acked", "unknown"]))
    ),
    st.randoms(use_true_random=False),
)
def test_expected_state__any_history_of_timed_updates__holds_what_a_correct_receiver_holds(
    history: list[tuple[int, bool, str]], random: object
) -> None:
    expected = ExpectedState("t", ["a"])
    time, held = (
        -1,
        None,
    )  # a receiver that orders by time; one value per time
    value: Value
    for order, _, fate in history:
        value = order % 2 == 0
        applied = fate == "acked" or (fate == "unknown" and random.random() < 0.5)  # type: ignore[attr-defined]
        if applied and order >= time:
            time, held = order, value
        if fate == "acked":
            expected.acknowledge([0], value, order)
        elif fate == "unknown":
            expected.mark_uncertain([0], value, order)
        assert held in expected.possible_values(0)
    if all(fate != "unknown" for _, _, fate in history):
        assert expected.possible_values(0) == {held}


# FaultRates


def test_parse__all_and_single_kinds__single_ones_win() -> None:
    assert parse_faults("all") == FaultRates(*[0.05] * 6)
    assert parse_faults("late=0.5, all=0.1") == FaultRates(0.1, 0.1, 0.1, 0.1, 0.1, late=0.5)
    assert parse_faults("drop-reply,slow-seconds=0.1") == FaultRates(
        drop_reply=0.05, slow_seconds=0.1
    )
    assert not parse_faults("")
    assert all(FaultRates(**{kind: 0.1}) for kind in FAULT_KINDS)


@pytest.mark.parametrize("text", ["nonsense", "late=x", "late=2", "late=-1", "slow-seconds", "=1"])
def test_parse__wrong__is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"none of|not a number|between 0 and 1"):
        parse_faults(text)


def test_on_attempt__last_two_attempts__are_left_alone() -> None:
    faults = FaultRates(drop_reply=1)
    assert [faults.draw("s", left) for left in (3, 2, 1, 0)] == [
        "drop-reply",
        "drop-reply",
        None,
        None,
    ]


# Statistics


def test_percentile__nearest_rank() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
    assert percentile([7.0], 0.99) == 7
    assert percentile([], 0.5) is None


def test_stats__attempts__are_counted_and_faulty_ones_not_timed() -> None:
    stats = Stats()
    stats.record_attempt(10, False, Reply(200, b"", 1.5), None)
    stats.record_attempt(10, True, Reply(200, b"", 9.0), "slow")
    stats.record_attempt(10, True, Reply(503, b"bu\x00sy", 2.5), None)
    stats.record_attempt(10, True, Reply(None, b"", 0.1, TIMEOUT, "t"), None)
    stats.record_attempt(10, True, Reply(None, b"", 0.1, CUT, ""), "cut")
    found = stats.as_dict()
    assert found["requests"] == 5
    assert found["retries"] == 4
    assert found["changes_sent"] == 50
    assert found["statuses"] == {"200": 2, "503": 1}
    assert found["errors"] == {"timeout": 1}
    assert found["faults"] == {"cut": 1, "slow": 1}
    assert (found["latency_p50"], found["latency_max"]) == (1.5, 2.5)
    assert (found["replies_over_1s"], found["replies_over_2s"]) == (2, 1)


def test_stats__no_reply_in_time__counts_as_late() -> None:
    stats = Stats()
    stats.record_attempt(10, False, Reply(None, b"", 2.1, TIMEOUT, "t"), None)
    stats.record_attempt(10, True, Reply(None, b"", 2.1, TIMEOUT, "t"), "slow")
    stats.record_attempt(10, True, Reply(None, b"", 2.1, CLOSED, "c"), None)
    stats.record_attempt(10, True, Reply(200, b"", 1.5), None)
    found = stats.as_dict()
    assert (found["replies_over_1s"], found["replies_over_2s"]) == (2, 1)
    assert found["latency_max"] == 1.5


def test_short__long_or_unprintable__is_one_short_line() -> None:
    assert excerpt(b"a\n\x1b[31m b") == "a ?[31m b"
    assert len(excerpt(b"x" * 5000)) == 200


def test_excerpt__problem_document__has_the_detail_and_the_first_error() -> None:
    errors = [{"place": f"batch.{at}.userId", "message": "Must not be empty."} for at in (3, 9)]
    problem = {"status": 400, "detail": "See errors.", "errors": errors}
    assert excerpt(json.dumps(problem).encode()) == "See errors. batch.3.userId: Must not be empty."
    for others in ([], ["batch.3"], [{"message": "x"}], {"batch": "x"}, None):
        assert excerpt(json.dumps({**problem, "errors": others}).encode()) == "See errors."
