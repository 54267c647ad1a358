"""The store: users' traits, cohorts' members and the change stream."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import redis
from redis.commands.core import Script

from app.cohorts import Cohort, FreshnessState, MembershipChange, Moves
from app.store.api_keys import ApiKeys
from app.store.audit_trail import AuditTrail
from app.store.change_stream import Changes
from app.store.cohort_list import Catalog
from app.store.connection.cluster import Call, Wait
from app.store.connection.scripts import NO_WAIT, load_script, together
from app.store.errors import StoreFull, StoreMisconfigured, translated
from app.store.freshness import FreshnessBook
from app.store.hold import Hold
from app.store.jobs import Lifecycle
from app.store.keys import Keys
from app.store.lookups import Reads
from app.store.maintenance.check import Checker
from app.store.registry import Registry
from app.store.server_info import Vitals
from app.store.sessions import SessionBook
from app.store.size_history import Sizes
from app.store.sync_history import History, HistoryLimits

# Statements that one script call applies. A thousand new users take the store about 5 ms.
STATEMENTS_PER_CALL = 1000
# What a further cohort in one call costs, counted in users.
_GROUP_COST = 8
# Characters of ids that cost as much as one more user: the store copies each id a dozen times.
_CHARACTERS_PER_USER = 64
# Earlier names that a partition is told of with a cohort: a late retry may still bring them.
_EARLIER_NAMES = 3

_LAYOUT_CHECK_SECONDS = 1.0
# Apps whose cohorts are counted by freshness: readiness is asked for every few seconds.
_APPS_COUNTED = 100

_MS_PER_HOUR = 3600 * 1000


@dataclass
class Applied:
    """What a request has done.

    Attributes:
        changed: number of users whose traits or memberships are different now.
        unknown: users who are not registered, and were left alone.
        suppressed: users who were erased for good, and were left alone.
        refused: ids of cohorts that are being deleted, and were left alone.
        repeated: the message was applied before, and nothing was done.
        moves: by cohort id, how many users really entered and left.
        not_known: ids of cohorts that were left out, as they are not known.
    """

    changed: int = 0
    unknown: set[str] = field(default_factory=set)
    suppressed: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    repeated: bool = False
    moves: dict[str, Moves] = field(default_factory=dict)
    not_known: set[str] = field(default_factory=set)


class _Part(NamedTuple):
    """A call of the atomic step: for which partition, how, and the groups as arguments."""

    partition: int
    options: list[Any]
    groups: list[Any]

    def renamed(self, names: Mapping[str, str | None]) -> _Part:
        """With only the groups of these cohorts, under these names; None leaves one out."""
        groups, start = [], 0
        while start < len(self.groups):
            cohort_id, _, value, at_ms, count = self.groups[start : start + 5]
            end = start + 5 + count
            if name := names.get(cohort_id):
                groups += [cohort_id, name, value, at_ms, count, *self.groups[start + 5 : end]]
            start = end
        return self._replace(groups=groups)


class _Reply(NamedTuple):
    """The atomic step's reply. ``apply.lua`` describes it.

    Attributes:
        repeated: the message was applied before.
        changed: changed users: how many, or their ids.
        lists: by name; those that are empty are absent.
    """

    repeated: bool
    changed: Any
    lists: dict[bytes, list[Any]]

    @classmethod
    def parse(cls, reply: list[Any]) -> _Reply:
        repeated, changed, *lists = reply
        return cls(bool(repeated), changed, dict(zip(lists[::2], lists[1::2], strict=True)))

    def ids(self, name: bytes) -> list[str]:
        """A list of user or cohort ids."""
        return [item.decode() for item in self.lists.get(name, ())]


class UserRecord(NamedTuple):
    """What is known about a user.

    Attributes:
        traits: by name; none for a user who was never heard of.
        registered: let in under ``USER_POLICY=known``.
        suppressed: erased for good.
    """

    traits: dict[str, bool]
    registered: bool
    suppressed: bool


class Store:
    """All that the service asks of Redis, or Valkey. Raises StoreError where it can't be had."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        prefix: str = "cohorts",
        partitions: int = 1,
        changes_max_entries: int = 100_000,
        changes_max_age_hours: int = 168,
        history: HistoryLimits = HistoryLimits(),  # noqa: B008
        wait: Wait = NO_WAIT,
    ) -> None:
        self._client = client
        self._wait = wait
        self.keys = Keys(prefix, partitions)
        self._limits = (changes_max_entries, changes_max_age_hours * _MS_PER_HOUR)
        self._apply = load_script(client, "apply.lua")
        self._register_users = load_script(client, "register_users.lua")
        self._remove_users = load_script(client, "remove_users.lua")
        self.hold = Hold(client, self.keys)
        self.registry = Registry(client, self.keys)
        self.lifecycle = Lifecycle(client, self.keys, changes_max_entries, self.spread_name)
        self.checker = Checker(client, self.keys, self.spread_name)
        self.reads = Reads(client, self.keys)
        self.changes = Changes(client, self.keys)
        self.catalog = Catalog(client, self.keys, self.registry)
        self.freshness = FreshnessBook(client, self.keys)
        self.api_keys = ApiKeys(client, self.keys)
        self.audit = AuditTrail(client, self.keys)
        self.vitals = Vitals(client)
        self.history = History(client, self.keys, history)
        self.sizes = Sizes(client, self.keys)
        self.sessions = SessionBook(client, self.keys)
        self._checked: dict[str | None, float] = {}
        self._read_checked = -math.inf

    def apply(
        self,
        app_id: str,
        changes: Sequence[MembershipChange],
        *,
        way: str,
        message_id: str = "",
        known_only: bool = False,
        as_known: bool = False,
    ) -> Applied:
        """Apply the changes of one request; may be repeated at will.

        Args:
            changes: each (user, cohort) at most once in all. A statement that is older than the
                last applied one about the same user and cohort is ignored.
            way: how they came in; kept with the cohort.
            message_id: where given, the message is applied once and then recognised for a day.
            known_only: apply only to registered users.
            as_known: the names may be out of date: each cohort gets the one that it has by now.
                Those that are not known are left out.

        Raises:
            StoreError: a part of the changes may have been applied; a repeat completes them.
        """
        applied = Applied()
        # Only with several cohorts can one user be changed by more than one call or group.
        cohort_ids = {change.cohort.id for change in changes}
        one_cohort = len(cohort_ids) <= 1
        options = (
            "known" if known_only else "open",
            "count" if one_cohort else "users",
            *self._limits,
            way,
        )
        changed_users: set[bytes] = set()
        conflicts = 0
        repeats: list[bool] = []
        with translated():
            self._check_layout(app_id)
            calls = [
                _Part(
                    partition,
                    [*options, f"{message_id}:{number}" if message_id else ""],
                    groups,
                )
                for number, (partition, groups) in enumerate(self._calls(changes))
            ]
            for reply in self._apply_all(app_id, calls, as_known, applied.not_known):
                if one_cohort:
                    applied.changed += reply.changed
                else:
                    changed_users.update(reply.changed)
                repeats.append(reply.repeated)
                applied.unknown.update(reply.ids(b"unknown"))
                applied.suppressed.update(reply.ids(b"suppressed"))
                applied.refused.update(reply.ids(b"deleting"))
                conflicts += len(reply.lists.get(b"conflicts", ()))
                _add_moves(applied.moves, reply.lists.get(b"moves", []))
        if conflicts:
            raise StoreMisconfigured(
                f"{conflicts} user keys hold something else than a hash: another program "
                "writes under this prefix."
            )
        applied.changed += len(changed_users)
        applied.repeated = bool(repeats) and all(repeats)
        self.freshness.received(app_id, _received(changes, applied))
        return applied

    def _apply_all(
        self, app_id: str, parts: list[_Part], as_known: bool, not_known: set[str]
    ) -> Iterator[_Reply]:
        """The replies of the atomic step. A part that has left cohorts out is called once more.

        With several partitions, one that meets a cohort is told first by which names the others
        know it: or a late retry's name would pass for the newest, and a new one for the first.
        """
        mode = "as known" if as_known else "named" if self.keys.partitions == 1 else "met"
        again = []
        unmet: dict[str, list[int]] = {}
        for part, reply in zip(parts, self._call(app_id, parts, mode), strict=True):
            yield reply
            if left_out := reply.ids(b"unmet"):
                again.append(part)
                for cohort_id in left_out:
                    unmet.setdefault(cohort_id, []).append(part.partition)
        if as_known:
            names = {cohort_id: self.registry.trait(app_id, cohort_id) for cohort_id in unmet}
            not_known.update(cohort_id for cohort_id, name in names.items() if name is None)
            again = [part.renamed(names) for part in again]
        for cohort_id, partitions in unmet.items():
            self._introduce(app_id, cohort_id, partitions)
        yield from self._call(app_id, again, "named")

    def _call(self, app_id: str, parts: Iterable[_Part], mode: str) -> list[_Reply]:
        calls = [
            Call(self.keys.changes(app_id, part.partition), [*part.options, mode, *part.groups])
            for part in parts
        ]
        return [_Reply.parse(reply) for reply in together(self._apply, calls, self._wait)]

    def _introduce(self, app_id: str, cohort_id: str, partitions: Iterable[int]) -> None:
        """Tell partitions of a cohort that they don't know, by the names that others know."""
        named = self.registry.named(app_id, cohort_id)
        strangers = set(partitions) - set(named)
        if not named or not strangers:
            return
        newest = max(named.values())
        for trait in (*newest.earlier[-_EARLIER_NAMES:], newest.trait):
            self._register(app_id, strangers, Cohort(cohort_id, trait), newest.at_ms)

    def register_cohort(self, app_id: str, cohort: Cohort, *, way: str) -> bool:
        """Make a cohort known, or rename it, without any user; may be repeated.

        Returns:
            False if it is being deleted.
        """
        with translated():
            self._check_layout(app_id)
            parts = self._registrations(range(self.keys.partitions), cohort, way, "")
            replies = self._apply_all(app_id, parts, False, set())
            taken = not any(b"deleting" in reply.lists for reply in replies)
            if taken:
                self.freshness.known(app_id, cohort.id)
        return taken

    def spread_name(self, app_id: str, cohort_id: str) -> str:
        """Tell a cohort's newest name to the partitions that only saw earlier ones. Returns it."""
        with translated():
            named = self.registry.named(app_id, cohort_id)
            if not named:
                return ""
            newest = max(named.values())
            behind = [p for p, name in named.items() if name.trait != newest.trait]
            self._register(app_id, behind, Cohort(cohort_id, newest.trait), newest.at_ms)
            return newest.trait

    def _register(self, app_id: str, partitions: Iterable[int], cohort: Cohort, at_ms: int) -> None:
        self._call(app_id, self._registrations(partitions, cohort, "", at_ms), "named")

    def _registrations(
        self, partitions: Iterable[int], cohort: Cohort, way: str, at_ms: int | str
    ) -> list[_Part]:
        """A group of no users for each partition, which makes the cohort known there."""
        options = ["open", "count", *self._limits, way, ""]
        return [_Part(p, options, [*cohort, "true", at_ms, 0]) for p in partitions]

    def _calls(self, changes: Sequence[MembershipChange]) -> Iterator[tuple[int, list[Any]]]:
        """Split changes into calls: the partition of each, and its groups as arguments.

        Calls are bounded so that none holds up the store's other clients for long.
        """
        pending: dict[int, tuple[int, list[Any]]] = {}
        for cohort, member, user_ids, at_ms in changes:
            head = (*cohort, "true" if member else "false", "" if at_ms is None else at_ms)
            for partition, users in self._by_partition(user_ids):
                start = 0
                while start < len(users):
                    used, groups = pending.pop(partition, (0, []))
                    room = STATEMENTS_PER_CALL - used - _GROUP_COST * bool(used)
                    part, cost = _as_many_as_fit(users[start : start + max(room, 0)], room)
                    if not part:
                        yield partition, groups
                        continue
                    groups += [*head, len(part), *part]
                    pending[partition] = used + _GROUP_COST * bool(used) + cost, groups
                    start += len(part)
        for partition, (_, groups) in pending.items():
            yield partition, groups

    def _by_partition(self, user_ids: Sequence[str]) -> Iterable[tuple[int, Sequence[str]]]:
        if self.keys.partitions == 1:
            return [(0, user_ids)]
        split: dict[int, list[str]] = {}
        for user_id in user_ids:
            split.setdefault(self.keys.partition(user_id), []).append(user_id)
        return split.items()

    def _check_layout(self, app_id: str | None = None) -> None:
        """Refuse to work on data that was written with another number of partitions.

        Also makes ``app_id`` known to the background work of all processes. Again every second:
        a store that lost its data must not stay without either.
        """
        now = time.monotonic()
        if now - self._checked.get(app_id, -math.inf) < _LAYOUT_CHECK_SECONDS:
            return
        partitions = self.keys.partitions
        self._compare_layout(self._client.set(self.keys.layout(), partitions, nx=True, get=True))
        if app_id is not None:
            # In this order: a hold sees the app, or the app sees the hold (app/store/hold.py).
            self._client.sadd(self.keys.apps(), app_id)
            self.hold.check()
        self._checked[app_id] = now

    def check_readable(self) -> None:
        """Refuse to read data that was written with another number of partitions.

        Users would be looked for where they are not, and told to be in nothing. Asks the store
        again every second, and writes nothing: reading goes on where the store is full.
        """
        now = time.monotonic()
        if now - self._read_checked < _LAYOUT_CHECK_SECONDS:
            return
        with translated():
            found: Any = self._client.get(self.keys.layout())
        self._compare_layout(found)
        self._read_checked = now

    def _compare_layout(self, found: Any) -> None:
        if found is not None and int(found) == 0:
            raise StoreMisconfigured("The stored data is an unfinished copy.")
        if found is not None and int(found) != self.keys.partitions:
            raise StoreMisconfigured(
                f"STORE_PARTITIONS is {self.keys.partitions}, but the stored data has {int(found)}."
            )

    def traits(self, app_id: str, user_id: str) -> dict[str, bool]:
        """A user's traits by name; none for a user who was never heard of."""
        with translated():
            found: dict[Any, Any] = self._client.hgetall(self.keys.user(app_id, user_id))
        return {name.decode(): value == b"true" for name, value in found.items()}

    def user(self, app_id: str, user_id: str) -> UserRecord:
        """All that is known about a user, at one moment."""
        partition = self.keys.partition(user_id)
        with translated(), self._client.pipeline() as pipeline:
            pipeline.hgetall(self.keys.user(app_id, user_id))
            pipeline.sismember(self.keys.registered(app_id, partition), user_id)
            pipeline.sismember(self.keys.suppressed(app_id, partition), user_id)
            found, registered, suppressed = pipeline.execute()
        traits = {name.decode(): value == b"true" for name, value in found.items()}
        return UserRecord(traits, bool(registered), bool(suppressed))

    def register_users(self, app_id: str, user_ids: Iterable[str]) -> int:
        """Let users in under ``USER_POLICY=known``. Returns how many were new."""
        return self._for_registered(app_id, user_ids, self._register_users)

    def unregister_users(self, app_id: str, user_ids: Iterable[str]) -> int:
        """Let users in no longer; their traits stay. Returns how many were registered."""
        return self._for_registered(app_id, user_ids, self._remove_users, "registered")

    def _for_registered(
        self, app_id: str, user_ids: Iterable[str], script: Script, *options: str
    ) -> int:
        with translated():
            self._check_layout(app_id)
            calls = [
                Call(
                    self.keys.changes(app_id, partition),
                    [*options, *users[start : start + STATEMENTS_PER_CALL]],
                )
                for partition, users in self._by_partition(list(user_ids))
                for start in range(0, len(users), STATEMENTS_PER_CALL)
            ]
            return sum(together(script, calls))

    def apps(self) -> list[str]:
        """The ids of all apps that anything was stored for."""
        with translated():
            known: set[Any] = self._client.smembers(self.keys.apps())
        return sorted(app_id.decode() for app_id in known)

    def freshness_counts(self) -> dict[FreshnessState, int]:
        """How many cohorts are fresh, late, or never arrived; of all apps, up to a hundred."""
        return self.freshness.counts(self.apps()[:_APPS_COUNTED])

    def longest_late_ms(self) -> float:
        """For how long the most overdue cohort has been late; of all apps, up to a hundred."""
        return self.freshness.longest_late_ms(self.apps()[:_APPS_COUNTED])

    def check(self) -> float:
        """Ask the store whether it works as set up. Returns the seconds that it took."""
        started = time.perf_counter()
        with translated():
            self._client.ping()
            self._check_layout()
        return time.perf_counter() - started

    def check_for_deleting(self) -> None:
        """As :meth:`check`, but a store may be full: deleting is how one makes room."""
        try:
            self.check()
        except StoreFull:
            self.check_readable()


def _as_many_as_fit(user_ids: Sequence[str], room: int) -> tuple[Sequence[str], int]:
    """The first of some users, whom there is room for, and what they cost."""
    cost = max(len(user_ids), sum(map(len, user_ids)) // _CHARACTERS_PER_USER)
    if cost <= room:
        return user_ids, cost
    cost = 0
    for number, user_id in enumerate(user_ids):
        more = 1 + len(user_id) // _CHARACTERS_PER_USER
        if cost + more > room:
            return user_ids[:number], cost
        cost += more
    return user_ids, cost


def _received(changes: Sequence[MembershipChange], applied: Applied) -> set[str]:
    """The ids of cohorts that users came in of. Those who were left out did not."""
    left_out = applied.unknown | applied.suppressed
    return {
        change.cohort.id
        for change in changes
        if not (left_out and change.user_ids) or not left_out.issuperset(change.user_ids)
    } - (applied.refused | applied.not_known)


def _add_moves(moves: dict[str, Moves], reply: list[Any]) -> None:
    """Add what one call replied: cohort id, direction, number of users, over and over."""
    for start in range(0, len(reply), 3):
        cohort, value, users = reply[start : start + 3]
        cohort_id = cohort.decode()
        entered, left = moves.get(cohort_id, (0, 0))
        if value == b"true":
            moves[cohort_id] = Moves(entered + users, left)
        else:
            moves[cohort_id] = Moves(entered, left + users)
