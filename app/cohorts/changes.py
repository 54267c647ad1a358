"""From statements about users to changes of membership."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from app.cohorts.cohort import Cohort


class Identify(NamedTuple):
    """One identify call: a user and, for each trait name, whether the user has it."""

    user_id: str
    traits: Mapping[str, bool]


class MembershipChange(NamedTuple):
    """Users who are said to be in a cohort (``member``) or not in it, all as of one request."""

    cohort: Cohort
    member: bool
    user_ids: tuple[str, ...]


def membership_changes(identifies: Sequence[Identify]) -> list[MembershipChange]:
    """The changes that a request's identify calls ask for, each (user, cohort) once.

    The last statement about a (user, cohort) wins, and so does the last name of a cohort.
    """
    statements: dict[str, dict[str, bool]] = {}  # trait name → user id → member
    for user_id, traits in identifies:
        for trait, member in traits.items():
            users = statements.get(trait)
            if users is None:
                users = statements[trait] = {}
            users[user_id] = member
    if len(statements) > 1:
        statements = _one_name_each(identifies)

    changes = []
    for trait, users in statements.items():
        cohort = Cohort.from_trait(trait)
        entering = tuple([user for user, member in users.items() if member])
        if entering:
            changes.append(MembershipChange(cohort, True, entering))
        if len(entering) < len(users):
            leaving = tuple([user for user, member in users.items() if not member])
            changes.append(MembershipChange(cohort, False, leaving))
    return changes


def _one_name_each(identifies: Sequence[Identify]) -> dict[str, dict[str, bool]]:
    """Statements by trait name, where two names of one cohort are brought under the last."""
    cohorts: dict[str, tuple[str, dict[str, bool]]] = {}  # cohort id → last name, statements
    for user_id, traits in identifies:
        for trait, member in traits.items():
            cohort_id = Cohort.from_trait(trait).id
            users = cohorts[cohort_id][1] if cohort_id in cohorts else {}
            users[user_id] = member
            cohorts[cohort_id] = trait, users
    return dict(cohorts.values())
