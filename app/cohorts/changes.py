"""From statements about users to changes of membership."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from app.cohorts.cohort import Cohort


class Identify(NamedTuple):
    """One identify call: a user and, for each trait name, whether the user has it.

    ``at_ms`` is when that was true, in ms since the epoch; None for the time of arrival.
    """

    user_id: str
    traits: Mapping[str, bool]
    at_ms: int | None = None


class MembershipChange(NamedTuple):
    """Users who are said to be in a cohort (``member``) or not in it, as of one time."""

    cohort: Cohort
    member: bool
    user_ids: list[str]
    at_ms: int | None = None


def membership_changes(identifies: Sequence[Identify]) -> list[MembershipChange]:
    """The changes that a request's identify calls ask for, each (user, cohort) once.

    The last statement about a (user, cohort) wins, or the newest where they carry times; and so
    does the last name of a cohort.
    """
    changes = _of_one_trait(identifies)
    return _of_any(identifies) if changes is None else changes


def _of_one_trait(identifies: Sequence[Identify]) -> list[MembershipChange] | None:
    """The changes where all calls are about the same trait at the same time, as Amplitude's are.

    None where they are not.
    """
    if not identifies:
        return []
    ((trait, _),) = islice(identifies[0].traits.items(), 1)
    at_ms = identifies[0].at_ms
    users: dict[str, bool] = {}
    for user_id, traits, at in identifies:
        member = traits.get(trait)
        if member is None or at != at_ms or len(traits) != 1:
            return None
        users[user_id] = member
    cohort = Cohort.from_trait(trait)
    changes = (
        MembershipChange(cohort, member, [u for u, said in users.items() if said is member], at_ms)
        for member in (True, False)
    )
    return [change for change in changes if change.user_ids]


def _of_any(identifies: Sequence[Identify]) -> list[MembershipChange]:
    cohorts: dict[str, Cohort] = {}  # by trait name
    named: dict[str, Cohort] = {}  # by id, under the last name
    statements: dict[str, dict[str, tuple[bool, int | None]]] = {}  # cohort id → user id
    for user_id, traits, at_ms in identifies:
        for trait, member in traits.items():
            cohort = cohorts.get(trait)
            if cohort is None:
                cohort = cohorts[trait] = Cohort.from_trait(trait)
                statements.setdefault(cohort.id, {})
            users = statements[cohort.id]
            if at_ms is not None and (users.get(user_id, (False, None))[1] or at_ms) > at_ms:
                continue
            users[user_id] = member, at_ms
            named[cohort.id] = cohort

    changes: dict[tuple[str, bool, int | None], list[str]] = {}
    for cohort_id, users in statements.items():
        for user_id, (member, at_ms) in users.items():
            key = cohort_id, member, at_ms
            if key in changes:
                changes[key].append(user_id)
            else:
                changes[key] = [user_id]
    return [
        MembershipChange(named[cohort_id], member, user_ids, at_ms)
        for (cohort_id, member, at_ms), user_ids in changes.items()
    ]
