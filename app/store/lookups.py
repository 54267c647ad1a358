"""What applications read over HTTP: users' traits and cohorts' members."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby, takewhile
from typing import Any, NamedTuple

import redis

from app.cohorts import Cohort
from app.store.connection.calls import Call
from app.store.connection.scripts import call_partitions, load_script
from app.store.errors import translated
from app.store.keys import Keys

# Users that one script call is asked for, and traits after which it begins no further user: a
# call takes the store about 2 ms.
USERS_PER_CALL = 500
TRAITS_PER_CALL = 2000
# Of a user with very many, traits that one call reads: about a millisecond.
TRAITS_PER_PIECE = 300
# Members that one script call reads: about 2 ms of the store's time.
MEMBERS_PER_CALL = 5000

_FALSE, _TO_FIND_OUT = b"false", b"?"
_NO_TIME = (_FALSE, b"true")
# Makes a named tuple in half the time of its own constructor.
_new = tuple.__new__


class UserRecord(NamedTuple):
    """A user's traits by name, and whether the user is registered or suppressed.

    ``suppressed`` users were erased permanently; ``USER_POLICY=known`` accepts ``registered`` ones.
    """

    traits: dict[str, bool]
    registered: bool
    suppressed: bool


class Membership(NamedTuple):
    """A cohort that a user is in. ``trait`` is its name as the user's hash has it."""

    cohort: Cohort
    since_ms: int


class User(NamedTuple):
    """A user's traits by name, and the cohorts that the user is in, by id."""

    id: str
    traits: dict[str, bool]
    memberships: list[Membership]


class Member(NamedTuple):
    """A member of a cohort."""

    user_id: str
    since_ms: int


class Position(NamedTuple):
    """A place in the list of a cohort's members: after this member of this partition."""

    partition: int
    score: float
    user_id: str


class Lookups:
    """Reads users and members. Raises StoreError."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._users = load_script(client, "users.lua")
        self._traits = load_script(client, "user_traits.lua")
        self._members = load_script(client, "members.lua")

    def user(self, app_id: str, user_id: str) -> User:
        """A user; without traits where never heard of."""
        return self._complete(app_id, self._rows(app_id, [user_id]))[0]

    def users(self, app_id: str, user_ids: Iterable[str]) -> Iterator[list[User]]:
        """Users, each once, in the order asked for. Raises no error for those never heard of.

        They come some at a time, and one with very many traits alone: what is held is bounded.
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
        with translated(), self._client.pipeline() as pipeline:
            pipeline.hgetall(self._keys.user(app_id, user_id))
            pipeline.sismember(self._keys.registered(app_id, partition), user_id)
            pipeline.sismember(self._keys.suppressed(app_id, partition), user_id)
            found, registered, suppressed = pipeline.execute()
        traits = {name.decode(): value == b"true" for name, value in found.items()}
        return UserRecord(traits, bool(registered), bool(suppressed))

    def since(self, app_id: str, cohort_id: str, user_id: str) -> int | None:
        """Since when a user is in a cohort, in ms since the epoch; None for who is not."""
        partition = self._keys.partition(user_id)
        with translated():
            key = self._keys.cohort(app_id, partition, cohort_id, "members")
            score: Any = self._client.zscore(key, user_id)
        return None if score is None else _since_ms(score)

    def members(
        self,
        app_id: str,
        cohort_id: str,
        *,
        after: Position | None = None,
        since_ms: int | None = None,
        limit: int = MEMBERS_PER_CALL,
    ) -> tuple[list[Member], Position | None]:
        """Up to ``limit`` members, by partition, since when, and id; and where to go on.

        A member who stays for as long as somebody pages is met once. One who leaves and enters
        again may be met twice, as of two times.

        Args:
            after: where the last call ended.
            since_ms: only who entered at this time or later, in ms since the epoch.

        Returns:
            the members; and the place to go on from, or None at the end.
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
        """All members of a cohort in the order of :meth:`members`, some thousands at a time."""
        for partition in range(self._keys.partitions):
            last: Position | None = None
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
        last: Position | None,
    ) -> list[tuple[str, float]]:
        """Some members and their scores."""
        args: list[str | float] = [cohort_id, count, "" if since_ms is None else since_ms]
        args += [last.score, last.user_id] if last else ["", ""]
        with translated():
            flat: list[bytes] = self._members(
                keys=[self._keys.changes(app_id, partition)], args=args
            )
        entries = iter(flat)
        return [(user_id.decode(), float(score)) for user_id, score in zip(entries, entries)]  # noqa: B905

    def _rows(self, app_id: str, user_ids: list[str]) -> dict[str, list[bytes]]:
        """The script's rows about the first users of each partition, by id."""
        parts: dict[int, list[str]] = {}
        for user_id in user_ids:
            parts.setdefault(self._keys.partition(user_id), []).append(user_id)
        calls = [
            Call(self._keys.changes(app_id, partition), [TRAITS_PER_CALL, *wanted])
            for partition, wanted in parts.items()
        ]
        with translated():
            told = call_partitions(self._users, calls)
        return {
            user_id: row
            for wanted, rows in zip(parts.values(), told, strict=True)
            for user_id, row in zip(wanted, rows)  # noqa: B905  fewer rows where they are long
        }

    def _all_traits(self, app_id: str, user_id: str) -> list[bytes]:
        """The row of a user with very many traits, read some at a time and so not at one moment."""
        stream = self._keys.changes(app_id, self._keys.partition(user_id))
        found: dict[bytes, bytes] = {}
        cursor: bytes = b"0"
        while True:
            cursor, row = self._traits(keys=[stream], args=[user_id, cursor, TRAITS_PER_PIECE])
            found.update(zip(row[::2], row[1::2], strict=True))
            if cursor == b"0":
                return [part for pair in found.items() for part in pair]

    @translated()
    def _complete(self, app_id: str, rows: dict[str, list[bytes]]) -> list[User]:
        """Users from the script's rows. Asks for what the script could not tell."""
        users = []
        open_ends: dict[tuple[int, str], list[tuple[User, Cohort]]] = {}
        # Most users have the same traits as others, in the same order.
        known: dict[tuple[bytes, ...], tuple[list[str], list[tuple[int, Cohort]]]] = {}
        for user_id, row in rows.items():
            if len(row) == 1:
                row = self._all_traits(app_id, user_id)
            names, told = tuple(row[::2]), row[1::2]
            found = known.get(names)
            if found is None:
                found = known[names] = _by_cohort(names)
            traits, by_cohort = found
            memberships: list[Membership] = []
            user = User(
                user_id, dict(zip(traits, map(_FALSE.__ne__, told), strict=True)), memberships
            )
            for place, cohort in by_cohort:
                since = told[place]
                if since == _TO_FIND_OUT:
                    place_of = self._keys.partition(user_id), cohort.id
                    open_ends.setdefault(place_of, []).append((user, cohort))
                elif since not in _NO_TIME:
                    memberships.append(_new(Membership, (cohort, _since_ms(since))))
            users.append(user)
        for (partition, cohort_id), pairs in open_ends.items():
            key = self._keys.cohort(app_id, partition, cohort_id, "members")
            scores: Any = self._client.zmscore(key, [user.id for user, _ in pairs])
            for (user, cohort), score in zip(pairs, scores, strict=True):
                if score is not None:
                    user.memberships.append(Membership(cohort, _since_ms(score)))
        for pairs in open_ends.values():
            for user, _ in pairs:
                user.memberships.sort()
        return users


def _members(page: list[tuple[str, float]]) -> list[Member]:
    return [_new(Member, (user_id, int(score))) for user_id, score in page]


def _position(partition: int, page: list[tuple[str, float]]) -> Position:
    """The place after the last member of a page."""
    user_id, score = page[-1]
    return Position(partition, score, user_id)


def _since_ms(score: float | bytes) -> int:
    """Since when a member is in: a score may have a fraction of a ms, see apply.lua."""
    return int(float(score))


def _by_cohort(names: tuple[bytes, ...]) -> tuple[list[str], list[tuple[int, Cohort]]]:
    """Trait names as text; and their places, by the cohorts that they stand for."""
    cohorts = [_cohort(name) for name in names]
    order = sorted(range(len(cohorts)), key=cohorts.__getitem__)
    return [cohort.trait for cohort in cohorts], [(place, cohorts[place]) for place in order]


@lru_cache(maxsize=4096)
def _cohort(trait: bytes) -> Cohort:
    return Cohort.from_trait(trait.decode())
