"""Look up users' traits and cohorts' members."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, takewhile
from typing import Any, NamedTuple, TypeVar

import redis

from app.cohorts import Cohort
from app.cohorts.times import whole_ms
from app.store.connection.calls import Call
from app.store.connection.scripts import call_partitions, load_script
from app.store.errors import store_errors
from app.store.keys import Keys

# A script call reads up to this many users, and none after this many traits: about 2 ms of the
# store's time.
USERS_PER_CALL = 500
TRAITS_PER_CALL = 2000
# Traits in one call for a user with very many: about 1 ms of the store's time.
TRAITS_PER_PIECE = 300
# Decoding a larger page would hold up other requests of the worker.
MEMBERS_PER_CALL = 1000
# Users in one ZMSCORE: about 0.5 ms of the store's time.
SCORES_PER_CALL = 1000

# About 2 ms of this process's time.
_ITEMS_PER_PAUSE = 1000
Item = TypeVar("Item")


def _let_others_work() -> None:
    # Not 0: gevent would run many ready greenlets before it polls for new input.
    time.sleep(1e-6)


# Values in the rows of users.lua; any other is the time at which the user became a member.
_FALSE, _TRUE_BUT_NO_MEMBER, _UNRESOLVED = b"false", b"true", b"?"


class UserRecord(NamedTuple):
    """A user's traits by name, and whether the user is registered or suppressed.

    ``suppressed`` users were erased and are skipped; ``USER_POLICY=known`` adds only
    ``registered`` ones.
    """

    traits: dict[str, bool]
    registered: bool
    suppressed: bool


class Membership(NamedTuple):
    """A cohort that a user is a member of, under the trait name in the user's hash."""

    cohort: Cohort
    since_ms: int


class User(NamedTuple):
    """A user's traits by name, and memberships sorted by cohort id."""

    id: str
    traits: dict[str, bool]
    memberships: list[Membership]


class Member(NamedTuple):
    """A member of a cohort."""

    user_id: str
    since_ms: int


class MemberPosition(NamedTuple):
    """A position in the list of a cohort's members: after this member."""

    partition: int
    score: float
    user_id: str


class Lookups:
    """Reads users and members. Raises StoreError.

    Args:
        breathe: called every few ms while a user with very many traits is read, to let other work
            of this process go on.
    """

    def __init__(
        self, client: redis.Redis, keys: Keys, breathe: Callable[[], None] = _let_others_work
    ) -> None:
        self._breathe = breathe
        self._client = client
        self._keys = keys
        self._users = load_script(client, "users.lua")
        self._traits = load_script(client, "user_traits.lua")
        self._members = load_script(client, "members.lua")

    def user(self, app_id: str, user_id: str) -> User:
        """A user; an unknown one has no traits."""
        return self._complete(app_id, self._rows(app_id, [user_id]))[0]

    def users(self, app_id: str, user_ids: Iterable[str]) -> Iterator[list[User]]:
        """Users, each once, in the order asked for; unknown ones have no traits.

        Yields some at a time, and a user with very many traits alone, to bound the memory in use.
        """
        waiting = list(dict.fromkeys(user_ids))
        while waiting:
            part = waiting[:USERS_PER_CALL]
            rows = self._rows(app_id, part)
            ready = list(takewhile(rows.__contains__, part))
            del waiting[: len(ready)]
            alone = {user_id: user_id for user_id in ready if len(rows[user_id]) == 1}
            for _, some in groupby(ready, alone.get):
                yield self._complete(app_id, {user_id: rows[user_id] for user_id in some})

    def user_record(self, app_id: str, user_id: str) -> UserRecord:
        """A user's traits and status, read at one moment."""
        partition = self._keys.partition(user_id)
        with store_errors(), self._client.pipeline() as pipeline:
            pipeline.hgetall(self._keys.user(app_id, user_id))
            pipeline.sismember(self._keys.registered(app_id, partition), user_id)
            pipeline.sismember(self._keys.suppressed(app_id, partition), user_id)
            found, registered, suppressed = pipeline.execute()
        traits = {name.decode(): value == b"true" for name, value in found.items()}
        return UserRecord(traits, bool(registered), bool(suppressed))

    def since(self, app_id: str, cohort_id: str, user_id: str) -> int | None:
        """When a user became a member, in ms since the epoch; None for other users."""
        partition = self._keys.partition(user_id)
        with store_errors():
            key = self._keys.cohort(app_id, partition, cohort_id, "members")
            score: Any = self._client.zscore(key, user_id)
        return None if score is None else _since_ms(score)

    def members_among(self, app_id: str, cohort_id: str, user_ids: Iterable[str]) -> list[Member]:
        """Those of some users who are members, each once, in the order asked for."""
        asked = list(dict.fromkeys(user_ids))
        parts = [
            (
                self._keys.cohort(app_id, partition, cohort_id, "members"),
                list(wanted[start : start + SCORES_PER_CALL]),
            )
            for partition, wanted in self._keys.by_partition(asked).items()
            for start in range(0, len(wanted), SCORES_PER_CALL)
        ]
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for key, wanted in parts:
                pipeline.zmscore(key, wanted)
            replies = pipeline.execute()
        scores: dict[str, Any] = {}
        for (_, wanted), found in zip(parts, replies, strict=True):
            scores.update(zip(wanted, found, strict=True))
        return [
            Member(user_id, _since_ms(score))
            for user_id in asked
            if (score := scores[user_id]) is not None
        ]

    def members(
        self,
        app_id: str,
        cohort_id: str,
        *,
        after: MemberPosition | None = None,
        since_ms: int | None = None,
        limit: int = MEMBERS_PER_CALL,
    ) -> tuple[list[Member], MemberPosition | None]:
        """Up to ``limit`` members, sorted by partition, time and id; and the position after them.

        A member who stays while somebody pages through the list is listed once; one who leaves and
        enters again may be listed twice, with different times.

        Args:
            after: the position after the previous page.
            since_ms: only those who entered at this time or later, in ms since the epoch.

        Returns:
            The members, and the position after them; None at the end.
        """
        found: list[tuple[str, float]] = []
        for partition in range(after.partition if after else 0, self._keys.partitions):
            last = after if after and after.partition == partition else None
            while len(found) <= limit:
                count = min(limit + 1 - len(found), MEMBERS_PER_CALL)
                page = self._member_page(app_id, partition, cohort_id, count, since_ms, last)
                found += page
                if len(page) < count:
                    break
                last = _position(partition, page)
        here = found[:limit]
        more = len(found) > limit
        position = _position(self._keys.partition(here[-1][0]), here) if more else None
        return _members(here), position

    def all_members(self, app_id: str, cohort_id: str) -> Iterator[list[Member]]:
        """All members of a cohort in the order of :meth:`members`, a thousand at a time."""
        for partition in range(self._keys.partitions):
            last: MemberPosition | None = None
            while page := self._member_page(
                app_id, partition, cohort_id, MEMBERS_PER_CALL, None, last
            ):
                yield _members(page)
                last = _position(partition, page)

    def _member_page(
        self,
        app_id: str,
        partition: int,
        cohort_id: str,
        count: int,
        since_ms: int | None,
        last: MemberPosition | None,
    ) -> list[tuple[str, float]]:
        """The ids and scores of some members of one partition."""
        args: list[str | float] = [cohort_id, count, "" if since_ms is None else since_ms]
        args += [last.score, last.user_id] if last else ["", ""]
        with store_errors():
            flat: list[bytes] = self._members(
                keys=[self._keys.changes(app_id, partition)], args=args
            )
        entries = iter(flat)
        return [(user_id.decode(), float(score)) for user_id, score in zip(entries, entries)]  # noqa: B905

    def _rows(self, app_id: str, user_ids: list[str]) -> dict[str, list[bytes]]:
        """The script's rows by user id; for as many users of each partition as it has read."""
        parts = self._keys.by_partition(user_ids)
        calls = [
            Call(self._keys.changes(app_id, partition), [TRAITS_PER_CALL, *wanted])
            for partition, wanted in parts.items()
        ]
        with store_errors():
            replies = call_partitions(self._users, calls)
        return {
            user_id: row
            for wanted, rows in zip(parts.values(), replies, strict=True)
            for user_id, row in zip(wanted, rows)  # noqa: B905  there may be fewer rows
        }

    def _all_traits(self, app_id: str, user_id: str) -> list[bytes]:
        """The row of a user with very many traits, read in several calls, so not at one moment."""
        stream = self._keys.changes(app_id, self._keys.partition(user_id))
        found: dict[bytes, bytes] = {}
        cursor: bytes = b"0"
        while True:
            cursor, row = self._traits(keys=[stream], args=[user_id, cursor, TRAITS_PER_PIECE])
            found.update(zip(row[::2], row[1::2], strict=True))
            if cursor == b"0":
                return [part for pair in found.items() for part in pair]

    @store_errors()
    def _complete(self, app_id: str, rows: dict[str, list[bytes]]) -> list[User]:
        """Users from the script's rows. Reads what the script could not resolve."""
        users = []
        unresolved: dict[tuple[int, str], list[tuple[User, Cohort]]] = {}
        # Many users have the same traits in the same order, so each order is parsed once.
        parsed: dict[tuple[bytes, ...], tuple[list[str], list[tuple[int, Cohort]]]] = {}
        for user_id, row in rows.items():
            if len(row) == 1:
                row = self._all_traits(app_id, user_id)
            names, values = tuple(row[::2]), row[1::2]
            if names not in parsed:
                parsed[names] = _parse(names, self._pausing)
            traits, cohorts = parsed[names]
            has_trait = [value != _FALSE for value in values]
            user = User(user_id, dict(zip(traits, has_trait, strict=True)), [])
            for place, cohort in self._pausing(cohorts):
                value = values[place]
                if value == _UNRESOLVED:
                    key = self._keys.partition(user_id), cohort.id
                    unresolved.setdefault(key, []).append((user, cohort))
                elif value not in (_FALSE, _TRUE_BUT_NO_MEMBER):
                    user.memberships.append(Membership(cohort, _since_ms(value)))
            users.append(user)
        self._resolve(app_id, unresolved)
        return users

    def _pausing(self, items: Sequence[Item]) -> Iterable[Item]:
        """The items, with a pause after some if there are very many."""
        return items if len(items) <= _ITEMS_PER_PAUSE else self._with_pauses(items)

    def _with_pauses(self, items: Sequence[Item]) -> Iterator[Item]:
        for number, item in enumerate(items):
            if number % _ITEMS_PER_PAUSE == 0:
                self._breathe()
            yield item

    def _resolve(
        self, app_id: str, unresolved: dict[tuple[int, str], list[tuple[User, Cohort]]]
    ) -> None:
        """Add memberships that the script could not resolve; given by partition and cohort id."""
        for (partition, cohort_id), pairs in unresolved.items():
            key = self._keys.cohort(app_id, partition, cohort_id, "members")
            scores: Any = self._client.zmscore(key, [user.id for user, _ in pairs])
            for (user, cohort), score in zip(pairs, scores, strict=True):
                if score is not None:
                    user.memberships.append(Membership(cohort, _since_ms(score)))
                    user.memberships.sort()


def _members(page: list[tuple[str, float]]) -> list[Member]:
    return [Member(user_id, whole_ms(score)) for user_id, score in page]


def _position(partition: int, page: list[tuple[str, float]]) -> MemberPosition:
    """The position after a page."""
    user_id, score = page[-1]
    return MemberPosition(partition, score, user_id)


def _since_ms(score: float | bytes) -> int:
    return whole_ms(float(score))


def _parse(
    names: tuple[bytes, ...], pausing: Callable[[Sequence[bytes]], Iterable[bytes]]
) -> tuple[list[str], list[tuple[int, Cohort]]]:
    """Trait names as text, and each one's place and cohort, sorted by cohort."""
    cohorts = [Cohort.from_trait(name.decode()) for name in pausing(names)]
    by_cohort = sorted(enumerate(cohorts), key=lambda pair: pair[1])
    return [cohort.trait for cohort in cohorts], by_cohort
