"""Turn identify calls into changes of membership."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple, overload

from app.cohorts.cohort import MAX_USER_ID_BYTES, Cohort, text_problem

# Each cohort costs the store about 50 µs.
MAX_COHORTS_PER_REQUEST = 10_000
# Floats, which some senders use for all numbers, are exact up to this.
MAX_WHOLE_ID = 2**53

_user_id = itemgetter(0)


class TooManyCohortsInRequest(ValueError):
    """A request names more than ``MAX_COHORTS_PER_REQUEST`` cohorts."""


class Identify(NamedTuple):
    """An identify call: for each trait name, whether the user has the trait.

    ``user_id`` is "" if the call has no usable one. ``at_ms`` is the time of the statement in ms
    since the epoch; None for the time of arrival.
    """

    user_id: str
    traits: Mapping[str, bool]
    at_ms: int | None = None


class UniformIdentifies(Sequence[Identify]):
    """Identify calls that differ in the user id alone.

    The common part is held once: creating an object per user would take longer than processing
    them.
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
    def __getitem__(self, place: slice) -> UniformIdentifies: ...
    def __getitem__(self, place: int | slice) -> Identify | UniformIdentifies:
        if isinstance(place, slice):
            return UniformIdentifies(self.user_ids[place], self.traits, self.at_ms)
        return Identify(self.user_ids[place], self.traits, self.at_ms)


def usable_user_id(value: object) -> str:
    """The user id in a decoded JSON value; "" if the value is not usable as one.

    A usable id is a string of 1 to 1,024 bytes of UTF-8 that is not blank and contains no NUL, or a
    whole number of up to 2^53 in absolute value, which becomes its digits.
    """
    if type(value) is str:
        if not value or value.isspace() or "\0" in value:
            return ""
        if value.isascii() and len(value) <= MAX_USER_ID_BYTES:
            return value
        return "" if text_problem(value, MAX_USER_ID_BYTES) else value
    if type(value) is int and abs(value) <= MAX_WHOLE_ID:
        return str(value)
    return ""


def all_have_users(identifies: Sequence[Identify]) -> bool:
    """Whether each call has a usable user id."""
    if isinstance(identifies, UniformIdentifies):
        return "" not in identifies.user_ids
    return all(map(_user_id, identifies))


class MembershipChange(NamedTuple):
    """Users who are in a cohort (``member``) or not, as of one point in time."""

    cohort: Cohort
    member: bool
    user_ids: list[str]
    at_ms: int | None = None


def membership_changes(identifies: Sequence[Identify]) -> list[MembershipChange]:
    """The changes that identify calls ask for, with each (user, cohort) once.

    The last call about a (user, cohort) wins, or the newest if they carry times; likewise the
    last or newest name of a cohort. A cohort that is only in calls without a usable user id has a
    change without users.

    Raises:
        TooManyCohortsInRequest
    """
    if not identifies:
        return []
    # In Amplitude's batches, all calls have the same traits.
    uniform = identifies if isinstance(identifies, UniformIdentifies) else _uniform(identifies)
    if uniform and len(uniform.traits) == 1:
        ((trait, member),) = uniform.traits.items()
        user_ids = dict.fromkeys(uniform.user_ids)
        user_ids.pop("", None)
        return [MembershipChange(Cohort.from_trait(trait), member, list(user_ids), uniform.at_ms)]
    return _mixed(identifies)


def _uniform(identifies: Sequence[Identify]) -> UniformIdentifies | None:
    traits, at_ms = identifies[0].traits, identifies[0].at_ms
    same = [call.traits for call in identifies].count(traits) == len(identifies)
    if same and all(call.at_ms == at_ms for call in identifies):
        return UniformIdentifies([call.user_id for call in identifies], traits, at_ms)
    return None


def _mixed(identifies: Sequence[Identify]) -> list[MembershipChange]:
    cohorts: dict[str, Cohort] = {}  # by trait name
    named: dict[str, tuple[Cohort, int | None]] = {}  # by id, under the newest name
    last: dict[str, dict[str, tuple[bool, int | None]]] = {}  # cohort id → user id
    for call in identifies:
        at_ms = call.at_ms
        for trait, member in call.traits.items():
            cohort = cohorts.get(trait)
            if cohort is None:
                if len(cohorts) == MAX_COHORTS_PER_REQUEST:
                    raise TooManyCohortsInRequest
                cohort = cohorts[trait] = Cohort.from_trait(trait)
                last.setdefault(cohort.id, {})
            if not call.user_id:
                continue
            users = last[cohort.id]
            if call.user_id not in users or not _is_older(at_ms, users[call.user_id][1]):
                users[call.user_id] = member, at_ms
            if cohort.id not in named or not _is_older(at_ms, named[cohort.id][1]):
                named[cohort.id] = cohort, at_ms

    for cohort in cohorts.values():
        named.setdefault(cohort.id, (cohort, None))
    changes: dict[tuple[str, bool, int | None], list[str]] = {}
    for cohort_id, users in last.items():
        if not users:
            changes[cohort_id, False, None] = []
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
    """Whether a time is before another. None, the time of arrival, is later than any."""
    return at_ms is not None and (than is None or at_ms < than)
