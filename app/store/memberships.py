"""The writer: applies changes of membership, and registers and renames cohorts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple

import redis

from app.cohorts import Cohort, MembershipChange, Moves
from app.store.connection.calls import Call, Wait
from app.store.connection.scripts import call_partitions, load_script
from app.store.deletion import Deletions
from app.store.errors import CohortPartlyDeleted, StoreMisconfigured, store_errors
from app.store.freshness import FreshnessStore
from app.store.keys import Keys
from app.store.layout import Layout
from app.store.registry import PartitionName, Registry
from app.store.tuning import DEFAULT, Tuning

# Bounds a script call, so that it doesn't block the store: a thousand new users take about 5 ms.
USERS_PER_CALL = 1000
# What each further cohort in a call costs, in users.
_GROUP_COST = 8
# Characters of user ids that cost as much as a user: the script copies each id a dozen times.
_CHARACTERS_PER_USER = 64
# How many earlier names a partition learns with a cohort: a late retry may bring one of them.
_EARLIER_NAMES = 3
# Noted as the number of confirmations if the store has lost some. It is greater than any real one,
# so the next comparison finds the loss.
_LOST = 2**53


@dataclass
class Applied:
    """The result of applying a request.

    Attributes:
        changed: number of users whose traits or memberships have changed.
        unknown: by cohort id, users skipped because they are not registered.
        suppressed: users skipped because they were erased and suppressed.
        refused: ids of cohorts skipped because they are being deleted.
        repeated: the message had been applied before, and nothing was done.
        moves: how many users entered and left, by cohort id.
        not_known: ids of cohorts skipped because they are unknown.
        created: ids of cohorts that some partition did not know.
    """

    changed: int = 0
    unknown: dict[str, set[str]] = field(default_factory=dict)
    suppressed: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    repeated: bool = False
    moves: dict[str, Moves] = field(default_factory=dict)
    not_known: set[str] = field(default_factory=set)
    created: set[str] = field(default_factory=set)


class _Part(NamedTuple):
    """One call of the atomic step: the partition, and the arguments of apply.lua."""

    partition: int
    options: list[Any]
    groups: list[Any]
    arrived: float | None = None
    import_id: str = ""

    def renamed(self, names: Mapping[str, str | None]) -> _Part:
        """The groups of these cohorts only, under these names; those named None are left out."""
        groups = []
        for start in self._starts():
            cohort_id, _, value, at_ms, count = self.groups[start : start + 5]
            if name := names.get(cohort_id):
                users = self.groups[start + 5 : start + 5 + count]
                groups += [cohort_id, name, value, at_ms, count, *users]
        return self._replace(groups=groups)

    def only(self, cohort_ids: Collection[str]) -> _Part:
        """The groups of these cohorts only."""
        names = {self.groups[start]: self.groups[start + 1] for start in self._starts()}
        return self.renamed({cohort_id: names[cohort_id] for cohort_id in cohort_ids})

    def applied(self, reply: _Reply) -> set[str]:
        """The ids of its cohorts, except those whose users were all skipped."""
        unknown, suppressed = reply.unknown(), set(reply.ids(b"suppressed"))
        found = set()
        for start in self._starts():
            cohort_id, count = self.groups[start], self.groups[start + 4]
            users = self.groups[start + 5 : start + 5 + count]
            if _has_applied(users, suppressed, unknown.get(cohort_id, ())):
                found.add(cohort_id)
        return found

    def _starts(self) -> Iterator[int]:
        start = 0
        while start < len(self.groups):
            yield start
            start += 5 + self.groups[start + 4]


class _Reply(NamedTuple):
    """The reply of the atomic step, as apply.lua describes it.

    Attributes:
        repeated: the message had been applied before.
        changed: number of changed users, or their ids.
        lists: by name; empty ones are absent.
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

    def unknown(self) -> dict[str, set[str]]:
        """The ids of users who were skipped because they are not registered, by cohort id."""
        found: dict[str, set[str]] = {}
        users, counts = iter(self.ids(b"unknown")), self.lists.get(b"unknown in", [])
        for cohort_id, count in zip(counts[::2], counts[1::2], strict=True):
            found.setdefault(cohort_id.decode(), set()).update(islice(users, count))
        return found


class Memberships:
    """Writes users' traits, cohorts' members and the change stream. Raises StoreError."""

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        layout: Layout,
        registry: Registry,
        freshness: FreshnessStore,
        deletions: Deletions,
        *,
        stream_limits: tuple[int, int],
        wait: Wait,
        tuning: Tuning = DEFAULT,
    ) -> None:
        self._client = client
        self._keys = keys
        self._layout = layout
        self._registry = registry
        self._freshness = freshness
        self._deletions = deletions
        self._stream_limits = stream_limits  # entries, and age in ms
        self._wait = wait
        self._tuning = tuning
        self._script = load_script(client, "apply.lua")
        # By app and partition, the newest entry of the change stream that was acknowledged to this
        # process: time and number. app/server/store_watch.py takes them out.
        self.acknowledged: dict[tuple[str, int], tuple[int, int]] = {}
        # Likewise, the number of changes to who is confirmed in resyncs.
        self.confirmations: dict[tuple[str, int], int] = {}

    def apply(
        self,
        app_id: str,
        changes: Sequence[MembershipChange],
        *,
        source: str,
        message_id: str = "",
        arrived: float | None = None,
        known_only: bool = False,
        as_known: bool = False,
    ) -> Applied:
        """Apply the changes of one request; may be repeated.

        Args:
            changes: each (user, cohort) in one of them at most. A change is ignored if a newer
                one about the same user and cohort was applied.
            source: the name of the source; kept with the cohort.
            message_id: if given, the message is applied once. For a day, it is recognised by this
                id together with the changes, in the same order.
            arrived: when the request arrived, on the monotonic clock; now if not given.
            known_only: skip users who are neither registered nor members of the cohort.
            as_known: trait names may be outdated: use each cohort's current one, and skip unknown
                cohorts.

        Raises:
            StoreError: some of the changes may have been applied; a repeat completes them.
        """
        applied = self._apply(
            app_id,
            changes,
            source=source,
            message_id=message_id,
            arrived=arrived,
            known_only=known_only,
            as_known=as_known,
        )
        self._freshness.record_received(app_id, _received(changes, applied), applied.created)
        return applied

    def enter(
        self,
        app_id: str,
        cohort: Cohort,
        user_ids: list[str],
        at_ms: int,
        *,
        import_id: str,
        known_only: bool,
    ) -> Applied:
        """Let users of an import enter a known cohort as of ``at_ms``; may be repeated.

        Args:
            cohort: its trait name may be outdated.
            import_id: if this import has ended, nobody enters.
        """
        change = MembershipChange(cohort, True, user_ids, at_ms)
        return self._apply(
            app_id, [change], known_only=known_only, as_known=True, import_id=import_id
        )

    def remove_unconfirmed(
        self,
        app_id: str,
        cohort_id: str,
        partition: int,
        resync_id: str,
        user_ids: Sequence[str | bytes],
    ) -> int:
        """Remove members whom a resync has not confirmed; may be repeated.

        Args:
            user_ids: of this partition, :data:`USERS_PER_CALL` at most.

        Returns:
            How many members were removed.
        """
        options = ["open", "count", *self._stream_limits, "", ""]
        groups = [cohort_id, "", "false", "", len(user_ids), *user_ids]
        with store_errors():
            part = _Part(partition, options, groups)
            (reply,) = self._call(app_id, [part], f"resync {resync_id}")
        moves: dict[str, Moves] = {}
        _add_moves(moves, reply.lists.get(b"moves", []))
        return moves[cohort_id].left if moves else 0

    def _apply(
        self,
        app_id: str,
        changes: Sequence[MembershipChange],
        *,
        source: str = "",
        message_id: str = "",
        arrived: float | None = None,
        known_only: bool = False,
        as_known: bool = False,
        import_id: str = "",
    ) -> Applied:
        applied = Applied()
        # Only with several cohorts can several calls or groups change the same user.
        one_cohort = len({change.cohort.id for change in changes}) <= 1
        options = (
            "known" if known_only else "open",
            "count" if one_cohort else "users",
            *self._stream_limits,
            source,
        )
        changed_users: set[bytes] = set()
        conflicts = 0
        repeats: list[bool] = []
        with store_errors():
            self._layout.check_writable(app_id)
            parts = [
                _Part(
                    partition,
                    [*options, _message_key(message_id, groups)],
                    groups,
                    arrived,
                    import_id,
                )
                for partition, groups in self._split(changes)
            ]
            for _, reply in self._apply_all(app_id, parts, as_known, applied):
                if one_cohort:
                    applied.changed += reply.changed
                else:
                    changed_users.update(reply.changed)
                repeats.append(reply.repeated)
                for cohort_id, users in reply.unknown().items():
                    applied.unknown.setdefault(cohort_id, set()).update(users)
                applied.suppressed.update(reply.ids(b"suppressed"))
                applied.created.update(reply.ids(b"created"))
                conflicts += len(reply.lists.get(b"conflicts", ()))
                _add_moves(applied.moves, reply.lists.get(b"moves", []))
        if conflicts:
            raise StoreMisconfigured(
                f"{conflicts} user keys are not hashes: another program writes under this prefix."
            )
        applied.changed += len(changed_users)
        applied.repeated = bool(repeats) and all(repeats)
        return applied

    def register_cohort(self, app_id: str, cohort: Cohort, *, source: str) -> bool:
        """Create or rename a cohort without any users; may be repeated.

        Returns:
            False if the cohort is being deleted.
        """
        with store_errors():
            self._layout.check_writable(app_id)
            parts = self._registrations(range(self._keys.partitions), cohort, source, "")
            applied = Applied()
            for _ in self._apply_all(app_id, parts, False, applied):
                pass  # a group without users changes none
            if applied.refused:
                return False
            self._freshness.record_known(app_id, cohort.id)
        return True

    def spread_name(self, app_id: str, cohort_id: str) -> int:
        """Write a cohort's newest name to the partitions with an earlier one.

        Returns:
            How many times the cohort was renamed.
        """
        with store_errors():
            names = self._registry.names(app_id, cohort_id)
            if not names:
                return 0
            newest = max(names.values())
            behind = [
                partition
                for partition, name in names.items()
                if (name.renames, name.trait) != (newest.renames, newest.trait)
            ]
            self._register(app_id, behind, Cohort(cohort_id, newest.trait), newest)
            return newest.renames

    def _apply_all(
        self, app_id: str, parts: list[_Part], as_known: bool, applied: Applied
    ) -> Iterator[tuple[_Part, _Reply]]:
        """Apply parts; yields each with its reply. Retries those refused by a finished deletion.

        Cohorts that are being deleted are added to ``applied.refused``.

        Raises:
            CohortPartlyDeleted: some parts were applied before the deletion of a cohort began.
        """
        done = []
        for part, reply in self._apply_where_known(app_id, parts, as_known, applied.not_known):
            yield part, reply
            done.append((part, reply))
        refused = {cohort_id for _, reply in done for cohort_id in reply.ids(b"deleting")}
        if not refused:
            return
        over = {one for one in refused if not self._deletions.settle(app_id, one)}
        again = [part.only(over.intersection(reply.ids(b"deleting"))) for part, reply in done]
        again = [part for part in again if part.groups]
        in_progress = refused - over
        for part, reply in self._apply_where_known(app_id, again, as_known, applied.not_known):
            yield part, reply
            in_progress.update(reply.ids(b"deleting"))
        accepted = [
            part
            for part, reply in done
            if in_progress
            & part.applied(reply).difference(reply.ids(b"deleting"), reply.ids(b"unmet"))
        ]
        if accepted:
            # The deletion undoes them, so the sender's repeat must count as new.
            self._forget_message(app_id, accepted)
            raise CohortPartlyDeleted()
        applied.refused.update(in_progress)

    def _forget_message(self, app_id: str, parts: list[_Part]) -> None:
        for part in parts:
            if message := part.options[-1]:
                self._client.unlink(self._keys.message(app_id, part.partition, message))

    def _apply_where_known(
        self, app_id: str, parts: list[_Part], as_known: bool, not_known: set[str]
    ) -> Iterator[tuple[_Part, _Reply]]:
        """The replies of the atomic step. A part that skipped cohorts is called a second time.

        With several partitions, one that doesn't know a cohort first gets the names that the
        others know. Otherwise it would treat the name of a late retry as the newest one, and a
        new name as the first one.
        """
        mode = "as known" if as_known else "named" if self._keys.partitions == 1 else "met"
        again = []
        unmet: dict[str, list[int]] = {}
        for part, reply in zip(parts, self._call(app_id, parts, mode), strict=True):
            yield part, reply
            if skipped := reply.ids(b"unmet"):
                again.append(part)
                for cohort_id in skipped:
                    unmet.setdefault(cohort_id, []).append(part.partition)
        if not again:
            return
        if as_known:
            names = {cohort_id: self._registry.trait(app_id, cohort_id) for cohort_id in unmet}
            not_known.update(cohort_id for cohort_id, name in names.items() if name is None)
            again = [part.renamed(names) for part in again]
        for cohort_id, partitions in unmet.items():
            self.introduce(app_id, cohort_id, partitions)
        yield from zip(again, self._call(app_id, again, "named"), strict=True)

    def _call(self, app_id: str, parts: Sequence[_Part], mode: str) -> list[_Reply]:
        def arguments(part: _Part) -> list[Any]:
            of = f" of {part.import_id}" if part.import_id else ""
            return [*part.options, mode + of, self._waited_ms(part), *part.groups]

        calls = [
            Call(self._keys.changes(app_id, part.partition), partial(arguments, part))
            for part in parts
        ]
        confirmed = self.confirmations.copy()  # empty unless a resync is open
        replies = [
            _Reply.parse(reply) for reply in call_partitions(self._script, calls, self._wait)
        ]
        for part, reply in zip(parts, replies, strict=True):
            place = (app_id, part.partition)
            if moves := reply.lists.get(b"moves"):
                self._note_acknowledged(place, moves[-1])
            if counts := reply.lists.get(b"confirmations"):
                self._note_confirmed(place, counts[-1], confirmed.get(place, 0))
        if self._keys.partitions > 1:
            # At once, so that the next rename is known to be later.
            for cohort_id in {name for reply in replies for name in reply.ids(b"renamed")}:
                self.spread_name(app_id, cohort_id)
        return replies

    def _waited_ms(self, part: _Part) -> int:
        """How long ago the request of a part arrived, in ms; 0 if it was just now."""
        if part.arrived is None:
            return 0
        waited = self._tuning.monotonic() - part.arrived
        return round(waited * 1000) if waited >= self._tuning.waited_seconds else 0

    def _note_acknowledged(self, partition: tuple[str, int], entry: bytes) -> None:
        """Note an acknowledged entry, unless a newer one is noted: requests of a worker overlap."""
        ms, _, number = entry.partition(b"-")
        position = int(ms), int(number)
        if position > self.acknowledged.get(partition, (0, 0)):
            self.acknowledged[partition] = position

    def _note_confirmed(self, partition: tuple[str, int], count: int, before: int) -> None:
        """Note an acknowledged number of confirmations.

        Args:
            before: the number acknowledged before the call began. Unless the store's number is
                greater, the store was set back. By the next comparison, it may have caught up.
        """
        known = self.confirmations.get(partition, 0)
        # `known` is 0 if the store was compared during the call: a setback is not noticed then.
        is_set_back = count <= min(known, before)
        self.confirmations[partition] = _LOST if is_set_back else max(known, count)

    def introduce(self, app_id: str, cohort_id: str, partitions: Iterable[int]) -> bool:
        """Register a cohort in partitions that lack it, with the names that others know.

        Returns:
            False if no partition knows the cohort, except for those that are deleting it.
        """
        names = self._registry.names(app_id, cohort_id)
        living = [name for name in names.values() if not name.is_deleting]
        if not living:
            return False
        if missing := set(partitions) - set(names):
            newest = max(living)
            for trait in (*newest.earlier[-_EARLIER_NAMES:], newest.trait):
                self._register(app_id, missing, Cohort(cohort_id, trait), newest)
        return True

    def _register(
        self, app_id: str, partitions: Iterable[int], cohort: Cohort, newest: PartitionName
    ) -> None:
        """Register a name in partitions that lack it, with the newest one's time and renames."""
        parts = self._registrations(partitions, cohort, "", newest.at_ms)
        self._call(app_id, parts, f"spread {newest.renames}")

    def _registrations(
        self, partitions: Iterable[int], cohort: Cohort, source: str, at_ms: int | str
    ) -> list[_Part]:
        """A group without users for each partition, which registers the cohort there."""
        options = ["open", "count", *self._stream_limits, source, ""]
        return [_Part(p, options, [*cohort, "true", at_ms, 0]) for p in partitions]

    def _split(self, changes: Sequence[MembershipChange]) -> Iterator[tuple[int, list[Any]]]:
        """Split changes into bounded calls: the partition of each, and its groups."""
        pending: dict[int, tuple[int, list[Any]]] = {}
        for cohort, member, user_ids, at_ms in changes:
            head = (*cohort, "true" if member else "false", "" if at_ms is None else at_ms)
            for partition, users in self._keys.by_partition(user_ids).items():
                start = 0
                while start < len(users):
                    used, groups = pending.pop(partition, (0, []))
                    room = USERS_PER_CALL - used - _GROUP_COST * bool(used)
                    part, cost = _as_many_as_fit(users[start : start + max(room, 0)], room)
                    if not part:
                        yield partition, groups
                        continue
                    groups += [*head, len(part), *part]
                    pending[partition] = used + _GROUP_COST * bool(used) + cost, groups
                    start += len(part)
        for partition, (_, groups) in pending.items():
            yield partition, groups


def _as_many_as_fit(user_ids: Sequence[str], room: int) -> tuple[Sequence[str], int]:
    """The first users that there is room for, and their cost."""
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


def _message_key(message_id: str, groups: list[Any]) -> str:
    """What identifies a part of a message in its partition; "" without a message id.

    Senders reuse ids, and a template may hold a constant: an id alone would make other statements
    look like repeats.
    """
    if not message_id:
        return ""
    # No value contains NUL.
    content = "\0".join(map(str, (message_id, *groups)))
    return blake2b(content.encode(), digest_size=16, person=b"message").hexdigest()


def _received(changes: Sequence[MembershipChange], applied: Applied) -> set[str]:
    """The ids of cohorts that count as received: not all of their users were skipped."""
    found = set()
    for cohort, _, user_ids, _ in changes:
        if _has_applied(user_ids, applied.suppressed, applied.unknown.get(cohort.id, ())):
            found.add(cohort.id)
    return found - (applied.refused | applied.not_known)


def _has_applied(
    user_ids: Sequence[str], suppressed: Collection[str], unknown: Collection[str]
) -> bool:
    """Whether not all users of a change were skipped; a change without users skips nobody."""
    return not user_ids or any(u not in suppressed and u not in unknown for u in user_ids)


def _add_moves(moves: dict[str, Moves], reply: list[Any]) -> None:
    """Add the moves of one call, a flat list: cohort id, direction, number of users, entry id."""
    for start in range(0, len(reply), 4):
        cohort, value, users = reply[start : start + 3]
        cohort_id = cohort.decode()
        entered, left = moves.get(cohort_id, (0, 0))
        if value == b"true":
            moves[cohort_id] = Moves(entered + users, left)
        else:
            moves[cohort_id] = Moves(entered, left + users)
