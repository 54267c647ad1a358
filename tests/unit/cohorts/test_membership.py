"""From identify calls to membership changes."""

from __future__ import annotations

import pytest

from app.cohorts import Cohort, Identify, MembershipChange, UniformIdentifies, membership_changes


def test_membership_changes__one_cohort__are_grouped_by_direction() -> None:
    calls = [
        Identify("a", {"n:1": True}),
        Identify("b", {"n:1": False}),
        Identify("c", {"n:1": True}),
    ]
    assert membership_changes(calls) == [
        MembershipChange(Cohort("1", "n:1"), True, ["a", "c"]),
        MembershipChange(Cohort("1", "n:1"), False, ["b"]),
    ]


def test_membership_changes__same_user_twice__last_statement_wins() -> None:
    calls = [Identify("a", {"n:1": True}), Identify("a", {"n:1": False})]
    assert membership_changes(calls) == [MembershipChange(Cohort("1", "n:1"), False, ["a"])]


def test_membership_changes__two_names_of_one_cohort__last_name_and_statement_win() -> None:
    calls = [
        Identify("a", {"old: 1": True}),
        Identify("b", {"old: 1": True}),
        Identify("a", {"new: 1": False, "x:2": True}),
    ]
    assert membership_changes(calls) == [
        MembershipChange(Cohort("1", "new: 1"), False, ["a"]),
        MembershipChange(Cohort("1", "new: 1"), True, ["b"]),
        MembershipChange(Cohort("2", "x:2"), True, ["a"]),
    ]


def test_membership_changes__alike__are_as_if_said_one_by_one() -> None:
    one, two = Cohort("1", "n:1"), Cohort("2", "m:2")
    for traits, expected in (
        ({"n:1": True}, [MembershipChange(one, True, ["a", "b"], 7)]),
        (
            {"n:1": False, "m:2": True},
            [
                MembershipChange(one, False, ["a", "b"], 7),
                MembershipChange(two, True, ["a", "b"], 7),
            ],
        ),
        (
            {"n:1": True, "m:1": False},  # the last name of a cohort wins
            [MembershipChange(Cohort("1", "m:1"), False, ["a", "b"], 7)],
        ),
    ):
        alike = UniformIdentifies(["a", "b", "a"], traits, 7)
        one_by_one = [Identify(user, traits, 7) for user in ("a", "b", "a")]
        assert list(alike) == one_by_one
        assert list(alike[1:]) == one_by_one[1:]
        assert membership_changes(alike) == expected
        assert membership_changes(one_by_one) == expected
    assert membership_changes(UniformIdentifies([], {"n:1": True})) == []


def test_membership_changes__nothing_said__is_nothing() -> None:
    assert membership_changes([]) == []


def test_membership_changes__with_times__the_newest_wins_whatever_the_order() -> None:
    calls = [
        Identify("a", {"n:1": True}, 200),
        Identify("a", {"n:1": False}, 100),
        Identify("b", {"n:1": True}, 100),
        Identify("b", {"n:1": False}, 100),
    ]
    assert membership_changes(calls) == [
        MembershipChange(Cohort("1", "n:1"), True, ["a"], 200),
        MembershipChange(Cohort("1", "n:1"), False, ["b"], 100),
    ]


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [(200, 100, "one: 1"), (100, 200, "two: 1"), (100, 100, "two: 1"), (None, 100, "one: 1")],
)
def test_membership_changes__two_names_of_one_cohort_with_times__the_newest_name_wins(
    first: int | None, second: int, name: str
) -> None:
    calls = [Identify("a", {"one: 1": True}, first), Identify("b", {"two: 1": True}, second)]
    assert {change.cohort.trait for change in membership_changes(calls)} == {name}


def test_membership_changes__without_a_time__are_as_of_arrival_and_so_the_newest() -> None:
    calls = [Identify("a", {"n:1": False}), Identify("a", {"n:1": True}, 100)]
    assert membership_changes(calls) == [MembershipChange(Cohort("1", "n:1"), False, ["a"])]
