"""Copies a store while it is written to. docs/decisions/moving.md says how and why."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from importlib.resources import files
from itertools import zip_longest
from typing import Any, NamedTuple, cast

import orjson
import redis
from redis.commands.core import Script

from app.cohorts import Cohort
from app.settings import Settings
from app.store.change_stream import EntryId
from app.store.connection.client import connect
from app.store.connection.cluster import Call, ClusterClient
from app.store.connection.scripts import together
from app.store.copying.names import Kind, Name, name_of
from app.store.copying.report import CopyReport
from app.store.copying.watch import Watch
from app.store.errors import translated
from app.store.keys import Keys

# Users that go together: about a millisecond of either store's time for each partition of them.
_USERS = 1000
# Of these, so many in one script call.
_USERS_PER_CALL = 250
# Users' traits and cohorts in one script call: Lua takes no more than some thousand arguments.
_PAIRS_PER_CALL = 1500
# A user with so many is read and put part by part, in parts of this size.
_VERY_MANY = 1000
_PART = 250
_KEYS_PER_SCAN = 1000
_IDS_PER_CALL = 1000
# A statement that comes late brings a time of its own; older ones wait for the next run.
_LATE_MS = 10 * 60 * 1000
# What stands for the place of a walk that has come to its end.
_DONE = b"done"
# Rounds after which the copy no longer hopes that the source will rest.
_ROUNDS = 20

# Called with what is done now, and a number of steps.
Progress = Callable[[int], None]


class CopyRefused(Exception):
    """The copy was not begun, as it could have done harm. Says why."""


class Side(NamedTuple):
    """A store, and how it is laid out."""

    client: redis.Redis
    keys: Keys

    def nodes(self) -> list[redis.Redis]:
        """A client of each node that takes writes."""
        if isinstance(self.client, ClusterClient):
            return self.client.primaries()
        return [self.client]

    def script(self, name: str) -> Script:
        return self.client.register_script((files("app.store.copying") / name).read_text())


def side(settings: Settings) -> Side:
    """The store of some settings."""
    return Side(connect(settings), Keys(settings.key_prefix, settings.store_partitions))


class _Dirty(NamedTuple):
    """What changed at the source."""

    users: dict[str, set[bytes]]
    cohorts: dict[str, set[bytes]]
    # of which cohorts the sets of one partition changed, in which users can't be told by key
    sets: set[Name]
    others: set[bytes]


class Copier:
    """Makes the target what the source is, and keeps it so while it runs. Raises StoreError.

    It may be stopped at any moment and run again: it goes on where it was.
    """

    def __init__(self, source: Side, target: Side) -> None:
        self._source, self._target = source, target
        self._prefix = source.keys.prefix
        self._marker = target.keys.copy_marker()
        self._read, self._scores = source.script("read.lua"), source.script("scores.lua")
        self._missing = source.script("missing.lua")
        self._put, self._drop = target.script("put.lua"), target.script("drop.lua")
        self._put_cohort = target.script("cohort.lua")
        self._cohorts: set[tuple[str, bytes]] = set()
        self._report = CopyReport()

    def size(self) -> int:
        """About how many steps will be reported as progress."""
        with translated():
            walks = 1 if self._is_walked() else 2
            return walks * sum(int(node.dbsize()) for node in self._source.nodes())

    def run(
        self,
        *,
        progress: Progress = lambda steps: None,
        follow_seconds: float = 0.0,
        tell: Callable[[str], None] = lambda line: None,
    ) -> CopyReport:
        """Copy, and prove that both agree.

        Args:
            progress: called with a number of steps done, out of ``size``.
            follow_seconds: go on until the source has rested for so long.
            tell: called with a line for people when something begins.

        Raises:
            CopyRefused: the target holds something else, or has been written to since.
        """
        started = time.monotonic()
        with translated():
            self._prepare()
            with Watch(self._source.nodes(), self._prefix) as watch:
                if not self._is_walked():
                    self._walk(progress, resume=True)
                    self._target.client.hset(self._marker, "walked", 1)
                tell("Comparing …")
                self._report = CopyReport()
                self._cohorts.clear()
                self._report.different = self._walk(progress, resume=False, watch=watch)
                self._take_out_vanished()
                self._put_cohorts(self._cohorts)
                self._finish(watch, follow_seconds, tell)
                self._join_streams()
                self._count()
        self._report.seconds = round(time.monotonic() - started, 2)
        return self._report

    # Before anything is written

    def _prepare(self) -> None:
        source, target = self._source, self._target
        source.client.set(source.keys.store_id(), secrets.token_hex(16), nx=True)
        identity: Any = source.client.get(source.keys.store_id())
        if target.client.get(target.keys.store_id()) == identity:
            raise CopyRefused("The target is the source.")
        marker: dict[Any, Any] = target.client.hgetall(self._marker)
        if not marker:
            if target.client.exists(target.keys.layout()):
                raise CopyRefused(
                    "The target holds data that is no copy of this store. Copy to an empty one."
                )
            target.client.hset(self._marker, "source", identity)
        elif marker[b"source"] != identity:
            raise CopyRefused("The target is a copy of another store. Copy to an empty one.")
        layout: Any = target.client.set(
            target.keys.layout(), target.keys.partitions, nx=True, get=True
        )
        if layout is not None and int(layout) != target.keys.partitions:
            raise CopyRefused(f"The copy was begun with {int(layout)} partitions.")
        self._check_untouched(marker)

    def _check_untouched(self, marker: dict[bytes, bytes]) -> None:
        """See that no service has written to the target: the copy would undo what it did."""
        for field, first in marker.items():
            is_stream, app_id, partition = _stream(field)
            if not is_stream:
                continue
            last: Any = self._target.client.get(self._target.keys.last_change(app_id, partition))
            if (last or b"") not in first.split(b","):
                raise CopyRefused(
                    "A service has written to the target since it was copied. Copy to an empty one."
                )

    def _open_app(self, app_id: str) -> None:
        """Begin an app's change streams.

        They begin anew, with ids of their own. They tell that there was something before, so that
        nobody takes them for whole: not a reader with a place from the source, and not a check.
        """
        keys, client = self._target.keys, self._target.client
        if client.sismember(keys.apps(), app_id):
            return
        for partition in range(keys.partitions):
            begun: Any = client.hget(self._marker, f"stream:{app_id}:{partition}")
            if begun and b"," not in begun:
                continue
            stream = keys.changes(app_id, partition)
            with client.pipeline(transaction=True) as pipeline:
                pipeline.xadd(stream, {"copied": "1"})
                pipeline.xtrim(stream, maxlen=0, approximate=False)
                added = pipeline.execute()[0]
            self._begin_stream(app_id, partition, added)
        client.sadd(keys.apps(), app_id)

    def _begin_stream(self, app_id: str, partition: int, last: bytes) -> None:
        """Let an empty stream follow on this entry."""
        keys, client = self._target.keys, self._target.client
        field = f"stream:{app_id}:{partition}"
        before: Any = client.hget(self._marker, field) or b""
        client.hset(self._marker, field, before + b"," + last)  # whichever it is after a crash
        with client.pipeline(transaction=True) as pipeline:
            pipeline.set(keys.last_change(app_id, partition), last)
            pipeline.set(f"{keys.changes(app_id, partition)}:begun", last)
            pipeline.execute()
        client.hset(self._marker, field, last)

    def _join_streams(self) -> None:
        """Let each change stream follow on its source's, where the partitions are the same.

        Whoever has read the one to its end goes on with the other, and misses nothing.
        """
        keys, client = self._target.keys, cast(Any, self._target.client)
        if keys.partitions != self._source.keys.partitions:
            return
        apps = client.smembers(keys.apps())
        for app_id in sorted(app.decode() for app in apps):
            for partition in range(keys.partitions):
                last: Any = self._source.client.get(keys.last_change(app_id, partition))
                mine = client.get(keys.last_change(app_id, partition))
                if last is None or last == mine:
                    continue
                if EntryId.parse(last) > EntryId.parse(mine):
                    stream = keys.changes(app_id, partition)
                    client.execute_command("XSETID", stream, last)
                self._begin_stream(app_id, partition, last)

    def _is_walked(self) -> bool:
        return bool(self._target.client.hexists(self._marker, "walked"))

    # The walk through all keys of the source

    def _walk(self, progress: Progress, *, resume: bool, watch: Watch | None = None) -> int:
        """Bring everything over. Returns how many users were otherwise at the target."""
        different = 0
        for node in self._source.nodes():
            place = f"cursor:{_run_id(node)}"
            cursor: Any = (resume and self._target.client.hget(self._marker, place)) or 0
            if cursor == _DONE:
                continue
            users: dict[str, list[bytes]] = {}
            while True:
                scanned: Any = node.scan(
                    int(cursor), match=f"{self._prefix}:*", count=_KEYS_PER_SCAN
                )
                cursor, keys = scanned
                for name in (name_of(key, self._prefix) for key in keys):
                    if name.kind is Kind.USER:
                        users.setdefault(name.app_id, []).append(name.id)
                    else:
                        self._bring(name)
                waiting = sum(map(len, users.values()))
                if waiting >= _USERS or not int(cursor):
                    for app_id, ids in users.items():
                        different += self._copy_users(app_id, ids)
                    self._report.users += waiting
                    users.clear()
                    if resume:
                        self._target.client.hset(self._marker, place, int(cursor) or _DONE)
                    if watch:
                        self._catch_up(watch, rounds=1)
                progress(len(keys))
                if not int(cursor):
                    break
        if resume:
            self._put_cohorts(self._cohorts)
        return different

    def _bring(self, name: Name) -> None:
        """Bring a key that is no user's."""
        if name.kind is Kind.UNKNOWN:
            form = re.sub(r"[^:]*\d[^:]*", "…", name.rest.decode(errors="replace"))
            self._report.left_behind[form] += 1
        elif name.kind is Kind.COHORT:
            self._cohorts.add((name.app_id, name.id))
            self._open_app(name.app_id)
        elif name.kind is Kind.USERS:
            self._copy_ids(name)
        elif name.kind is not Kind.MADE:
            self._copy_whole(name)

    # Users

    def _copy_users(self, app_id: str, user_ids: Iterable[bytes]) -> int:
        """Make some users at the target what they are at the source; those who are gone go.

        Returns how many were otherwise.
        """
        self._open_app(app_id)
        ids = list(dict.fromkeys(user_ids))
        if not ids:
            return 0
        rows = self._rows(app_id, ids)
        times = self._times(app_id, rows)
        different = 0
        places: list[tuple[int, list[bytes]]] = []
        puts: list[Call] = []
        large = [user_id for user_id in ids if len(rows[user_id]) >= _VERY_MANY]
        others = [user_id for user_id in ids if len(rows[user_id]) < _VERY_MANY]
        for partition, users in _by_partition(self._target.keys, others).items():
            for some in _by_weight(users, lambda user: 1 + len(rows[user])):
                args: list[Any] = [_VERY_MANY]
                for user_id in some:
                    args += _put_args(
                        user_id, rows[user_id].items(), times.get(user_id, {}).items()
                    )
                places.append((partition, some))
                puts.append(Call(self._target.keys.changes(app_id, partition), args))
        for (partition, some), (changed, stale, left_alone) in zip(
            places, together(self._put, puts), strict=True
        ):
            alone = {some[place - 1] for place in left_alone}
            large += alone
            different += len({some[place - 1] for place in changed} - alone)
            drops: list[bytes] = []
            for place, field in zip(stale[::2], stale[1::2], strict=True):
                user_id, cohort_id = some[place - 1], _cohort_id(field)
                if cohort_id not in times.get(user_id, {}):
                    drops += [cohort_id, user_id]
            self._drop_pairs(app_id, partition, drops)
        for user_id in large:
            different += self._put_large(app_id, user_id, rows[user_id], times.get(user_id, {}))
        return different

    def _rows(self, app_id: str, user_ids: Sequence[bytes]) -> dict[bytes, dict[bytes, bytes]]:
        """The source's hashes of some users; empty for who is not there."""
        keys, rows = self._source.keys, {}
        waiting = _by_partition(keys, user_ids)
        while waiting:
            parts = [(p, users[:_USERS_PER_CALL]) for p, users in waiting.items()]
            calls = [
                Call(keys.changes(app_id, p), [_PAIRS_PER_CALL, _VERY_MANY, *some])
                for p, some in parts
            ]
            for (partition, some), reply in zip(parts, together(self._read, calls), strict=True):
                for user_id, flat in zip(some, reply, strict=False):
                    if len(flat) == 1:
                        key = keys.base(app_id, partition).encode() + b"user:" + user_id
                        rows[user_id] = dict(self._source.client.hscan_iter(key, count=_PART))
                    else:
                        rows[user_id] = dict(zip(flat[::2], flat[1::2], strict=True))
                waiting[partition] = waiting[partition][len(reply) :]
                if not waiting[partition]:
                    del waiting[partition]
        return rows

    def _put_large(
        self,
        app_id: str,
        user_id: bytes,
        row: dict[bytes, bytes],
        times: dict[bytes, list[bytes]],
    ) -> bool:
        """Make a user of very many fields what is wanted. Returns whether that changed anything."""
        partition = self._target.keys.partition_of(user_id)
        stream = self._target.keys.changes(app_id, partition)
        key = self._target.keys.base(app_id, partition).encode() + b"user:" + user_id
        there: Any = self._target.client.hscan_iter(key, count=_PART)
        stale = list({field for field, _ in there} - row.keys())
        for some in _in_parts(stale, _PART):
            self._target.client.hdel(key, *some)
            gone = {_cohort_id(field) for field in some} - times.keys()
            self._drop_pairs(app_id, partition, [x for c in gone for x in (c, user_id)])
        changed = bool(stale)
        parts = zip_longest(
            _in_parts(list(row.items()), _PART), _in_parts(list(times.items()), _PART), fillvalue=()
        )
        for fields, cohorts in parts:
            args = ["part", *_put_args(user_id, fields, cohorts)]
            different, _, _ = self._put(keys=[stream], args=args)
            changed = changed or bool(different)
        return changed

    def _drop_pairs(self, app_id: str, partition: int, pairs: Sequence[bytes]) -> None:
        """Forget what the target keeps about pairs: cohort id, user id, and so on."""
        stream = self._target.keys.changes(app_id, partition)
        for some in _in_parts(pairs, 2 * _PART):
            self._drop(keys=[stream], args=some)

    def _times(
        self, app_id: str, rows: dict[bytes, dict[bytes, bytes]]
    ) -> dict[bytes, dict[bytes, list[bytes]]]:
        """For each user and each of the user's cohorts: the times of the three sorted sets."""
        wanted: dict[tuple[int, bytes], list[bytes]] = {}
        for user_id, row in rows.items():
            partition = self._source.keys.partition_of(user_id)
            for cohort_id in {_cohort_id(field) for field in row}:
                wanted.setdefault((partition, cohort_id), []).append(user_id)
        calls: dict[int, list[list[tuple[bytes, list[bytes]]]]] = {}
        for (partition, cohort_id), users in wanted.items():
            batches = calls.setdefault(partition, [[]])
            for some in _in_parts(users, _USERS_PER_CALL):
                if sum(len(group[1]) + 1 for group in batches[-1]) > _USERS_PER_CALL:
                    batches.append([])
                batches[-1].append((cohort_id, list(some)))
        flat = [(p, groups) for p, batches in calls.items() for groups in batches]
        replies = together(
            self._scores,
            [
                Call(
                    self._source.keys.changes(app_id, p),
                    [arg for cohort, users in groups for arg in (cohort, len(users), *users)],
                )
                for p, groups in flat
            ],
        )
        found: dict[bytes, dict[bytes, list[bytes]]] = {}
        for (_, groups), reply in zip(flat, replies, strict=True):
            scores = iter(reply)
            for cohort_id, users in groups:
                for user_id in users:
                    found.setdefault(user_id, {})[cohort_id] = [
                        _score(next(scores)) for _ in range(3)
                    ]
        return found

    def _take_out_vanished(self) -> None:
        """Take out of the target what is no longer at the source."""
        others: set[Name] = set()
        for node in self._target.nodes():
            users: dict[str, list[bytes]] = {}
            for key in node.scan_iter(match=f"{self._prefix}:*", count=_KEYS_PER_SCAN):
                name = name_of(key, self._prefix)
                if name.kind is Kind.USER:
                    users.setdefault(name.app_id, []).append(name.id)
                    if len(users[name.app_id]) == _USERS:
                        self._take_out(name.app_id, users.pop(name.app_id))
                elif name.kind is Kind.COHORT:
                    others.add(name._replace(partition=0, rest=b""))
                else:
                    others.add(name)
            for app_id, ids in users.items():
                self._take_out(app_id, ids)
        for name in others:
            self._take_out_other(name)

    def _take_out_other(self, name: Name) -> None:
        if name.kind is Kind.COHORT:
            if (name.app_id, name.id) not in self._cohorts:
                self._put_one_cohort(name.app_id, name.id)
        elif name.kind is Kind.USERS:
            for partition in range(self._source.keys.partitions):
                self._copy_ids(name._replace(partition=partition))
        elif name.kind not in (Kind.MADE, Kind.UNKNOWN) and not self._source.client.exists(
            self._key_of(name, self._source)
        ):
            self._target.client.delete(self._key_of(name, self._target))

    def _take_out(self, app_id: str, user_ids: list[bytes]) -> None:
        keys = self._source.keys
        parts = _by_partition(keys, user_ids)
        calls = [Call(keys.changes(app_id, p), users) for p, users in parts.items()]
        replies = together(self._missing, calls)
        gone = [
            users[place - 1]
            for users, places in zip(parts.values(), replies, strict=True)
            for place in places
        ]
        self._report.vanished += len(gone)
        self._copy_users(app_id, gone)

    # Cohorts

    def _put_cohorts(self, cohorts: Iterable[tuple[str, bytes]]) -> None:
        for app_id, cohort_id in sorted(cohorts):
            self._put_one_cohort(app_id, cohort_id)

    def _put_one_cohort(self, app_id: str, cohort_id: bytes) -> None:
        keys = self._source.keys
        home = keys.partition_of(cohort_id)
        with self._source.client.pipeline(transaction=False) as pipeline:
            for partition in range(keys.partitions):
                base = keys.base(app_id, partition).encode()
                pipeline.hgetall(base + b"cohort:" + cohort_id + b":state")
            pipeline.zscore(keys.due(app_id, home), cohort_id)
            *shares, due = pipeline.execute()
        states = [share for share in shares if share]
        state = _merged([share for share in states if b"trait" in share])
        deleting = [share[b"deleting"] for share in states if b"deleting" in share]
        target = self._target.keys
        target_home = target.partition_of(cohort_id)
        calls = []
        for partition in range(target.partitions):
            where = "home" if partition == target_home else "elsewhere"
            fields = dict(state)
            if deleting:
                fields[b"deleting"] = deleting[0]
            work = bool(deleting) or b"moving" in fields
            if not fields:
                where = "gone"
            left = sum(int(share.get(b"left", 0)) for share in states)
            args: list[Any] = [cohort_id, where, left, "" if due is None else _number(due)]
            args += [int(work), *(item for pair in fields.items() for item in pair)]
            calls.append(Call(target.changes(app_id, partition), args))
        together(self._put_cohort, calls)

    # Sets of users, and keys that come as they are

    def _copy_ids(self, name: Name) -> None:
        """Bring the ids that one partition's set has, and take out those that it hasn't."""
        self._open_app(name.app_id)
        source, target = self._source, self._target
        kind = name.rest.decode()
        key = source.keys.base(name.app_id, name.partition) + kind
        for ids in _pages(source.client.sscan_iter(key, count=_IDS_PER_CALL)):
            with target.client.pipeline(transaction=False) as pipeline:
                for partition, some in _by_partition(target.keys, ids).items():
                    pipeline.sadd(target.keys.base(name.app_id, partition) + kind, *some)
                pipeline.execute()
        for partition in range(target.keys.partitions):
            copied = target.keys.base(name.app_id, partition) + kind
            for ids in _pages(target.client.sscan_iter(copied, count=_IDS_PER_CALL)):
                mine = [i for i in ids if source.keys.partition_of(i) == name.partition]
                there: Any = source.client.smismember(key, mine) if mine else []
                gone = [i for i, is_there in zip(mine, there, strict=True) if not is_there]
                if gone:
                    target.client.srem(copied, *gone)

    def _copy_whole(self, name: Name) -> None:
        """Bring a key as it is."""
        if (
            name.kind is Kind.MESSAGE
            and self._source.keys.partitions != self._target.keys.partitions
        ):
            return  # which part of a message it stands for depends on the partitions
        here, there = (self._key_of(name, side) for side in (self._source, self._target))
        self._report.others += 1
        _copy_key(self._source.client, here, self._target.client, there)

    @staticmethod
    def _key_of(name: Name, side: Side) -> bytes:
        """The name that a key has in one of the stores."""
        if name.kind is Kind.ALONE:
            return name.rest
        partition = name.partition
        if name.kind is Kind.AT_APP:
            partition = side.keys.partition(name.app_id)
        elif name.kind is Kind.AT_COHORT:
            partition = side.keys.partition_of(name.id)
        return side.keys.base(name.app_id, partition).encode() + name.rest

    # What changes meanwhile

    def _catch_up(self, watch: Watch, rounds: int = _ROUNDS) -> int:
        """Bring what has changed. Returns how many users and cohorts had, in the last round."""
        changed = 0
        for _ in range(rounds):
            before, changed = changed, self._bring_dirty(self._sorted(watch.take()))
            if not changed or changed > before > 0:
                break  # nothing is left, or more comes in than can be brought
        return changed

    def _sorted(self, changed: set[bytes]) -> _Dirty:
        dirty = _Dirty({}, {}, set(), set())
        for key in changed:
            name = name_of(key, self._prefix)
            if name.kind is Kind.USER:
                dirty.users.setdefault(name.app_id, set()).add(name.id)
            elif name.kind is Kind.COHORT:
                dirty.cohorts.setdefault(name.app_id, set()).add(name.id)
                dirty.sets.add(name)
            elif name.kind not in (Kind.MADE, Kind.UNKNOWN):
                dirty.others.add(key)
            elif name.rest == b"due" or name.kind is Kind.UNKNOWN:
                pass  # comes with the cohort; is told of by the walk
        return dirty

    def _bring_dirty(self, dirty: _Dirty) -> int:
        since = time.time_ns() // 1_000_000 - _LATE_MS
        for name in dirty.sets:
            if name.rest.endswith((b":left", b":seen")):
                base = self._source.keys.base(name.app_id, name.partition).encode()
                told: Any = self._source.client.zrange(
                    base + name.rest, str(since), "+inf", byscore=True
                )
                dirty.users.setdefault(name.app_id, set()).update(told)
        count = 0
        for app_id, users in dirty.users.items():
            for some in _in_parts(list(users), _USERS):
                self._copy_users(app_id, some)
            count += len(users)
        self._report.again += count
        for app_id, cohorts in dirty.cohorts.items():
            self._put_cohorts((app_id, cohort_id) for cohort_id in cohorts)
            self._cohorts.update((app_id, cohort_id) for cohort_id in cohorts)
            count += len(cohorts)
        for key in dirty.others:
            self._bring(name_of(key, self._prefix))
        return count

    def _finish(self, watch: Watch, follow_seconds: float, tell: Callable[[str], None]) -> None:
        """Catch up until nothing is left, or for as long as the source is followed."""
        self._report.behind = self._catch_up(watch)
        if not follow_seconds:
            return
        tell(f"Following until nothing has changed for {follow_seconds:g} s …")
        rested = time.monotonic()
        while time.monotonic() - rested < follow_seconds:
            if self._catch_up(watch, rounds=1):
                rested = time.monotonic()
            else:
                time.sleep(0.05)
        self._report.behind = 0

    def _count(self) -> None:
        """Compare how many members each cohort has in both."""
        self._report.cohorts = len(self._cohorts)
        for app_id, cohort_id in sorted(self._cohorts):
            ours = [_members(side, app_id, cohort_id) for side in (self._source, self._target)]
            self._report.members += ours[1]
            if ours[0] != ours[1] and not self._report.behind:
                self._report.disagreeing.append(cohort_id.decode(errors="replace"))


def _stream(field: bytes) -> tuple[bool, str, int]:
    """What a field of the marker says about a stream: whether it does, app id, partition."""
    head, _, rest = field.decode().partition(":")
    app_id, _, partition = rest.rpartition(":")
    return head == "stream", app_id, int(partition) if head == "stream" else 0


def _run_id(node: redis.Redis) -> str:
    """A scan's cursor means nothing to a server that was started since."""
    return str(node.info("server")["run_id"])


def _members(side: Side, app_id: str, cohort_id: bytes) -> int:
    with side.client.pipeline(transaction=False) as pipeline:
        for partition in range(side.keys.partitions):
            base = side.keys.base(app_id, partition).encode()
            pipeline.zcard(base + b"cohort:" + cohort_id + b":members")
        return sum(pipeline.execute())


def _merged(shares: Sequence[dict[bytes, bytes]]) -> dict[bytes, bytes]:
    """The state of a cohort, of what the source's partitions keep of it."""
    if not shares:
        return {}

    def age(share: dict[bytes, bytes]) -> tuple[int, int]:
        return int(share[b"named"]), len(orjson.loads(share.get(b"names", b"[]")))

    newest = max(shares, key=age)
    state = {b"trait": newest[b"trait"], b"named": newest[b"named"]}
    state[b"first"] = min((share[b"first"] for share in shares), key=int)
    for share in shares:
        for field, at in share.items():
            if field == b"last" or field.startswith(b"way:"):
                state[field] = max(state.get(field, b"0"), at, key=int)
    names: dict[str, int] = {}
    for share in shares:
        for name in orjson.loads(share.get(b"names", b"[]")):
            names[name["trait"]] = max(names.get(name["trait"], 0), name["until"])
        if share[b"trait"] != newest[b"trait"]:
            names.setdefault(share[b"trait"].decode(), int(newest[b"named"]))
    names.pop(newest[b"trait"].decode(), None)
    if names:
        in_order = sorted(names.items(), key=lambda item: item[1])
        state[b"names"] = orjson.dumps([{"trait": t, "until": u} for t, u in in_order])
        if any(b"moving" in s or s[b"trait"] != newest[b"trait"] for s in shares):
            state[b"moving"] = b""  # begins again: a scan's place means nothing elsewhere
    return state


def _copy_key(source: redis.Redis, here: bytes, target: redis.Redis, there: bytes) -> None:
    """Make a key what it is at the source, of whatever type, with its time to live."""
    kind: Any = source.type(here)
    ttl: Any = source.pttl(here)
    with target.pipeline(transaction=True) as pipeline:
        pipeline.delete(there)
        if kind == b"string":
            pipeline.set(there, _or_empty(source.get(here)))
        elif kind == b"hash":
            found: Any = source.hgetall(here)
            if found:
                pipeline.hset(there, mapping=found)
        elif kind == b"set":
            members: Any = source.smembers(here)
            if members:
                pipeline.sadd(there, *members)
        elif kind == b"zset":
            scored: Any = source.zrange(here, 0, -1, withscores=True)
            if scored:
                pipeline.zadd(there, dict(map(tuple, scored)))
        elif kind == b"list":
            items: Any = source.lrange(here, 0, -1)
            if items:
                pipeline.rpush(there, *items)
        if ttl > 0:
            pipeline.pexpire(there, ttl)
        pipeline.execute()


def _or_empty(value: Any) -> Any:
    return b"" if value is None else value


def _cohort_id(field: bytes) -> bytes:
    return Cohort.from_trait(field.decode(errors="replace")).id.encode()


def _score(value: Any) -> Any:
    return b"" if value is None else _number(value)


def _number(value: Any) -> str:
    """A score as it goes into a command: exact, and without an exponent where it is whole."""
    number = float(value)
    return str(int(number)) if number.is_integer() else repr(number).replace("inf", "+inf")


def _put_args(
    user_id: bytes,
    fields: Collection[tuple[bytes, bytes]],
    cohorts: Collection[tuple[bytes, list[bytes]]],
) -> list[Any]:
    """What put.lua takes about a user."""
    args: list[Any] = [user_id, len(fields)]
    for pair in fields:
        args += pair
    args.append(len(cohorts))
    for cohort_id, scores in cohorts:
        args += [cohort_id, *scores]
    return args


def _by_partition(keys: Keys, ids: Iterable[bytes]) -> dict[int, list[bytes]]:
    parts: dict[int, list[bytes]] = {}
    for one in ids:
        parts.setdefault(keys.partition_of(one), []).append(one)
    return parts


def _by_weight(users: Sequence[bytes], weight: Callable[[bytes], int]) -> Iterator[list[bytes]]:
    """Users in parts of a bounded weight; one who is too heavy goes alone."""
    part: list[bytes] = []
    total = 0
    for user in users:
        if part and (total + weight(user) > _PAIRS_PER_CALL or len(part) == _USERS_PER_CALL):
            yield part
            part, total = [], 0
        part.append(user)
        total += weight(user)
    if part:
        yield part


def _in_parts(items: Sequence[Any], size: int) -> Iterator[Any]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _pages(items: Iterable[Any]) -> Iterator[list[Any]]:
    page: list[Any] = []
    for item in items:
        page.append(item)
        if len(page) == _IDS_PER_CALL:
            yield page
            page = []
    if page:
        yield page
