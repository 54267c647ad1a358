"""From identify calls to membership changes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cohorts import (
    Cohort,
    Identify,
    MembershipChange,
    UniformIdentifies,
    all_have_users,
    membership_changes,
    usable_user_id,
)


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


users = st.sampled_from(["", "a", "b", "c"])
said = st.dictionaries(
    st.sampled_from(["n:1", "m:1", "o: 2", "no id"]), st.booleans(), min_size=1, max_size=3
)
times = st.sampled_from([None, 1, 2, 3])


def as_said_one_by_one(
    calls: Sequence[Identify],
) -> tuple[dict[str, str], dict[tuple[str, str], tuple[bool, int | None]]]:
    """The names of cohorts, and the last statement about each (cohort, user): call after call."""

    def newness(at_ms: int | None) -> float:
        return math.inf if at_ms is None else at_ms

    names: dict[str, tuple[str, int | None]] = {}
    statements: dict[tuple[str, str], tuple[bool, int | None]] = {}
    for call in calls:
        if not call.user_id:
            continue
        for trait, member in call.traits.items():
            cohort_id = Cohort.from_trait(trait).id
            pair = cohort_id, call.user_id
            if pair not in statements or newness(call.at_ms) >= newness(statements[pair][1]):
                statements[pair] = member, call.at_ms
            if cohort_id not in names or newness(call.at_ms) >= newness(names[cohort_id][1]):
                names[cohort_id] = trait, call.at_ms
    return {cohort_id: name for cohort_id, (name, _) in names.items()}, statements


def check(calls: Sequence[Identify]) -> None:
    changes = membership_changes(calls)
    names, statements = as_said_one_by_one(calls)
    assert {c.cohort.id: c.cohort.trait for c in changes if c.user_ids} == names
    found = [((c.cohort.id, user), (c.member, c.at_ms)) for c in changes for user in c.user_ids]
    assert len(found) == len(dict(found))
    assert dict(found) == statements
    named = {Cohort.from_trait(trait).id for call in calls for trait in call.traits}
    assert {c.cohort.id for c in changes} == named
    assert all_have_users(calls) == all(call.user_id for call in calls)


@given(st.lists(st.builds(Identify, users, said, times), min_size=1, max_size=6))
def test_membership_changes__of_any_calls__are_as_said_one_by_one(calls: list[Identify]) -> None:
    check(calls)


@given(st.lists(users, min_size=1, max_size=6), said, times)
def test_membership_changes__alike__are_as_said_one_by_one(
    user_ids: list[str], traits: dict[str, bool], at_ms: int | None
) -> None:
    alike = UniformIdentifies(user_ids, traits, at_ms)
    one_by_one = [Identify(user, traits, at_ms) for user in user_ids]
    assert list(alike) == one_by_one
    assert list(alike[1:]) == one_by_one[1:]
    check(alike)
    check(one_by_one)


@pytest.mark.parametrize(
    ("value", "user_id"),
    [
        *[(value, value) for value in ("a", " a ", "0", "x" * 1024, "é" * 512, "🎉" * 256, "a\nb")],
        *[(0, "0"), (7, "7"), (-5, "-5"), (2**53, str(2**53)), (-(2**53), str(-(2**53)))],
        *[(value, "") for value in ("", " ", "\t\n", "\u00a0", "\u3000 ", "\0", "a\0b", "\ud800")],
        *[(value, "") for value in ("x" * 1025, "é" * 513, "🎉" * 257)],
        *[(value, "") for value in (None, True, False, 1.0, 1e22, 2**53 + 1, -(2**53) - 1)],
        *[(value, "") for value in ([], ["a"], {}, {"a": 1}, b"a")],
    ],
)
def test_usable_user_id__of_every_kind_of_value(value: object, user_id: str) -> None:
    assert usable_user_id(value) == user_id


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
