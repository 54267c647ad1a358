"""From statements about users to changes of membership."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, overload

from app.cohorts.cohort import Cohort

# Cohorts that one request may be about. Each costs the store a group of its own, some 50 µs.
MOST_COHORTS = 10_000


class TooManyCohorts(ValueError):
    """A request is about more cohorts than ``MOST_COHORTS``."""


class Statement(Protocol):
    """What a call says of a user: for each trait name, whether the user has it.

    ``at_ms`` is when that was true, in ms since the epoch; None for the time of arrival.
    """

    @property
    def user_id(self) -> str: ...
    @property
    def traits(self) -> Mapping[str, bool]: ...
    @property
    def at_ms(self) -> int | None: ...


class Identify(NamedTuple):
    """One identify call, a statement."""

    user_id: str
    traits: Mapping[str, bool]
    at_ms: int | None = None


class Alike(Sequence[Identify]):
    """Statements that say the same of many users.

    What is the same is held once: to make a thousand statements takes longer than what is then
    done with them.
    """

    def __init__(
        self, user_ids: Sequence[str], traits: Mapping[str, bool], at_ms: int | None = None
    ) -> None:
        self.user_ids = user_ids
        self.traits = traits
        self.at_ms = at_ms

    def __len__(self) -> int:
        return len(self.user_ids)

    @overload
    def __getitem__(self, place: int) -> Identify: ...
    @overload
    def __getitem__(self, place: slice) -> Alike: ...
    def __getitem__(self, place: int | slice) -> Identify | Alike:
        if isinstance(place, slice):
            return Alike(self.user_ids[place], self.traits, self.at_ms)
        return Identify(self.user_ids[place], self.traits, self.at_ms)


class MembershipChange(NamedTuple):
    """Users who are said to be in a cohort (``member``) or not in it, as of one time."""

    cohort: Cohort
    member: bool
    user_ids: list[str]
    at_ms: int | None = None


def membership_changes(statements: Sequence[Statement]) -> list[MembershipChange]:
    """The changes that a request's statements ask for, each (user, cohort) once.

    The last statement about a (user, cohort) wins, or the newest where they carry times; and so
    does the last or newest name of a cohort.

    Raises:
        TooManyCohorts: they are about too many, and were not looked at to their end.
    """
    if not statements:
        return []
    # Amplitude's batches say the same of all their users.
    alike = statements if isinstance(statements, Alike) else _alike(statements)
    if alike and len(alike.traits) == 1:
        ((trait, member),) = alike.traits.items()
        user_ids = list(dict.fromkeys(alike.user_ids))
        return [MembershipChange(Cohort.from_trait(trait), member, user_ids, alike.at_ms)]
    return _of_any(statements)


def _alike(statements: Sequence[Statement]) -> Alike | None:
    traits, at_ms = statements[0].traits, statements[0].at_ms
    same = [said.traits for said in statements].count(traits) == len(statements)
    if same and all(said.at_ms == at_ms for said in statements):
        return Alike([said.user_id for said in statements], traits, at_ms)
    return None


def _of_any(statements: Sequence[Statement]) -> list[MembershipChange]:
    cohorts: dict[str, Cohort] = {}  # by trait name
    named: dict[str, tuple[Cohort, int | None]] = {}  # by id, under the newest name
    last: dict[str, dict[str, tuple[bool, int | None]]] = {}  # cohort id → user id
    for said in statements:
        at_ms = said.at_ms
        for trait, member in said.traits.items():
            cohort = cohorts.get(trait)
            if cohort is None:
                if len(cohorts) == MOST_COHORTS:
                    raise TooManyCohorts
                cohort = cohorts[trait] = Cohort.from_trait(trait)
                last.setdefault(cohort.id, {})
            users = last[cohort.id]
            if said.user_id not in users or not _is_older(at_ms, users[said.user_id][1]):
                users[said.user_id] = member, at_ms
            if cohort.id not in named or not _is_older(at_ms, named[cohort.id][1]):
                named[cohort.id] = cohort, at_ms

    changes: dict[tuple[str, bool, int | None], list[str]] = {}
    for cohort_id, users in last.items():
        for user_id, (member, at_ms) in users.items():
            key = cohort_id, member, at_ms
            if key in changes:
                changes[key].append(user_id)
            else:
                changes[key] = [user_id]
    return [
        MembershipChange(named[cohort_id][0], member, user_ids, at_ms)
        for (cohort_id, member, at_ms), user_ids in changes.items()
    ]


def _is_older(at_ms: int | None, than: int | None) -> bool:
    """Whether a time is before another. None, the time of arrival, is before none."""
    return at_ms is not None and (than is None or at_ms < than)
