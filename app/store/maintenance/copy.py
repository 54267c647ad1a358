"""Copy a store into an empty one, with other partitions, another prefix or on another server.

The source takes no writes during the copy (app/store/hold.py), so each key is read, written and
compared once. docs/decisions/moving.md has the reasons.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from app.settings import Settings
from app.store.connection.scripts import LONGEST_HOLD_MS
from app.store.errors import store_errors
from app.store.hold import HELD, Hold
from app.store.maintenance.key_names import KeyName, Kind
from app.store.maintenance.raw_store import RawStore, in_parts
from app.store.registry import Registry, newness

# Longer than any single call takes; a killed copy leaves its source on hold for this long.
HOLD_MS = LONGEST_HOLD_MS // 2
_RENEW_SECONDS = 10.0
_KEYS_PER_CALL = 500
_COHORTS_PER_CALL = 100
_EXAMPLES = 10

_AS_THEY_ARE = (Kind.WHOLE, Kind.GLOBAL, Kind.LIVE)

# Called with a number of steps done.
Progress = Callable[[int], None]


class CopyRefused(Exception):
    """The copy was not started, because it would overwrite data."""


@dataclass
class CopyReport:
    """The outcome of a copy.

    Attributes:
        compared: number of keys, set elements and cohorts compared, by what they hold.
        different: how many of them differ, or exist in one store only.
        examples: the first different, missing and uncopied keys, as keys of the source, and the
            first surplus keys, as keys of the target.
        not_copied: keys of an unknown form or a wrong type, by what they seem to hold.
        still_held: an operator held the source before the copy, so it is still held.
    """

    compared: Counter[str] = field(default_factory=Counter)
    different: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    not_copied: Counter[str] = field(default_factory=Counter)
    still_held: bool = False
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Both stores have the same content."""
        return not (self.different or self.not_copied)

    def as_dict(self) -> dict[str, Any]:
        """The report as ``--json`` prints it."""
        return {"ok": self.ok, **vars(self)}


class Copy:
    """Copies the source into the target, then compares the two."""

    def __init__(self, source: Settings, target: Settings) -> None:
        self._source, self._target = RawStore(source), RawStore(target)
        self._hold = Hold(self._source.client, self._source.keys)
        self._hold_value = HELD
        self._hold_ms: int | None = None
        self._renewed = 0.0
        self._app_ids: list[str] = []
        # By app and cohort id, the partitions of the target that have users of the cohort.
        self._cohorts: dict[str, dict[bytes, set[int]]] = defaultdict(lambda: defaultdict(set))
        self._spread: set[KeyName] = set()
        # By app and cohort id, cohorts of which a key was not copied.
        self._incomplete: set[tuple[str, bytes]] = set()
        self._report = CopyReport()

    def size(self) -> int:
        """About how many steps will be reported as progress."""
        with store_errors():
            return 2 * self._source.size()

    def run(
        self, *, progress: Progress = lambda steps: None, notify: Callable[[str], None] = print
    ) -> CopyReport:
        """Hold the source, copy it and compare the content of both stores.

        Args:
            progress: called with a number of steps done, out of ``size``.
            notify: called with a line for people when a stage begins.

        Raises:
            CopyRefused: the target is not empty.
            HoldLost: the source may have been written to.
        """
        started = time.monotonic()
        with store_errors():
            self._prepare_target()
            self._begin_hold()
            try:
                notify("Copying. Writes to this store are on hold.")
                self._copy(progress)
                notify("Comparing.")
                self._compare(progress)
                self._renew_hold(at_once=True)
                if self._report.ok:
                    client, keys = self._target.client, self._target.keys
                    client.set(keys.layout(), keys.partitions)
            finally:
                self._end_hold()
        self._report.seconds = round(time.monotonic() - started, 2)
        return self._report

    # The hold

    def _begin_hold(self) -> None:
        if self._hold.value() != HELD:
            self._hold_value, self._hold_ms = secrets.token_hex(8).encode(), HOLD_MS
        self._report.still_held = self._hold_ms is None
        self._app_ids = self._hold.begin(self._hold_value, self._hold_ms)
        self._renewed = time.monotonic()

    def _renew_hold(self, *, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self._renewed > _RENEW_SECONDS:
            self._hold.renew(self._app_ids, self._hold_value, self._hold_ms)
            self._renewed = time.monotonic()

    def _end_hold(self) -> None:
        if self._hold_ms is not None and self._hold.value() == self._hold_value:
            self._hold.release()

    # Copying

    def _prepare_target(self) -> None:
        """Mark the target as an unfinished copy, which no service uses, and empty it."""
        client, keys = self._target.client, self._target.keys
        layout: Any = client.get(keys.layout())
        unfinished = layout is not None and int(layout) == 0
        if not unfinished and (layout is not None or any(self._target.walk())):
            raise CopyRefused(f"The target holds data under the prefix {keys.prefix}.")
        client.set(keys.layout(), 0)
        if unfinished:
            for names in self._target.walk():
                with client.pipeline(transaction=False) as pipeline:
                    for name in names:
                        if name.key != keys.layout().encode():
                            pipeline.unlink(name.key)
                    pipeline.execute()

    def _copy(self, progress: Progress) -> None:
        for app_id in self._app_ids:
            self._begin_streams(app_id)
        for names in self._walk_source():
            self._renew_hold()
            whole = [name for name in names if name.kind in _AS_THEY_ARE]
            for some in in_parts(whole, _KEYS_PER_CALL):
                self._copy_whole(some)
            for name in names:
                if name.kind is Kind.SPREAD:
                    self._copy_spread(name)
                elif name.kind is Kind.STATE:
                    self._cohorts[name.app_id][name.owner].update()
                elif name.kind is Kind.UNKNOWN:
                    self._leave_out(name, name.what or "unknown")
            progress(len(names))
        for app_id, cohort_ids in self._some_cohorts():
            self._copy_states(app_id, cohort_ids)

    def _walk_source(self) -> Iterator[list[KeyName]]:
        """The source's keys; those of a wrong type count as unknown."""
        for names in self._source.walk():
            types = self._source.types(names)
            yield [
                name
                if not name.expected_type or kind in (b"none", name.expected_type)
                else name._replace(kind=Kind.UNKNOWN, what=f"{name.what} that is a {kind.decode()}")
                for name, kind in zip(names, types, strict=True)
            ]

    def _leave_out(self, name: KeyName, what: str) -> None:
        self._report.not_copied[what] += 1
        self._note_example(name.key)
        self._incomplete.add((name.app_id, name.owner))

    def _begin_streams(self, app_id: str) -> None:
        """Create an app's change streams: empty, but as if entries had been trimmed.

        Followers with a position from the source learn that it is lost, and `store check` does not
        expect the stream to name every member.
        """
        client, keys = self._target.client, self._target.keys
        streams = [keys.changes(app_id, partition) for partition in range(keys.partitions)]
        with client.pipeline(transaction=False) as pipeline:
            for stream in streams:
                pipeline.xadd(stream, {"copied": "1"})
            added = pipeline.execute()
            for stream, last in zip(streams, added, strict=True):
                pipeline.xtrim(stream, maxlen=0, approximate=False)
                pipeline.set(f"{stream}:last", last)
                pipeline.set(f"{stream}:begun", last)
            pipeline.execute()
        client.sadd(keys.apps(), app_id)

    def _copy_whole(self, names: Sequence[KeyName]) -> None:
        values = dict(zip(names, self._source.values(names), strict=True))
        for name, value in list(values.items()):
            if name.what == "user" and value.type != b"hash":
                self._leave_out(name, "user that is not a hash")
                del values[name]
        self._target.write(values)

    def _copy_spread(self, name: KeyName) -> None:
        self._spread.add(name._replace(key=b""))
        has_users = name.what in ("cohort members", "cohort left")
        for parts in self._pages(name):
            with self._target.client.pipeline(transaction=False) as pipeline:
                for partition, part in parts.items():
                    key = name.in_partition(self._target.keys, partition)
                    if name.is_set:
                        pipeline.sadd(key, *part)
                    else:
                        pipeline.zadd(key, part)
                pipeline.execute()
            if has_users:
                self._cohorts[name.app_id][name.owner].update(parts)

    def _pages(self, name: KeyName) -> Iterator[dict[int, dict[bytes, float]]]:
        """A set or sorted set of the source, some elements at a time: by partition of the target,
        the elements with their scores.
        """
        for page in self._source.pages(name):
            self._renew_hold()
            parts: dict[int, dict[bytes, float]] = {}
            for element, score in page:
                parts.setdefault(self._target.keys.partition_of(element), {})[element] = score
            yield parts

    def _some_cohorts(self) -> Iterator[tuple[str, list[bytes]]]:
        """All cohorts, some of one app at a time."""
        for app_id, cohorts in self._cohorts.items():
            whole = sorted(one for one in cohorts if (app_id, one) not in self._incomplete)
            for cohort_ids in in_parts(whole, _COHORTS_PER_CALL):
                self._renew_hold()
                yield app_id, cohort_ids

    def _copy_states(self, app_id: str, cohort_ids: Sequence[bytes]) -> None:
        keys = self._target.keys
        places = []
        shares = self._shares(app_id, cohort_ids)
        for cohort_id, states in zip(cohort_ids, shares, strict=True):
            state = merged(states)
            is_at_work = b"deleting" in state or b"moving" in state
            home = keys.partition_of(cohort_id)
            known = {home, *self._cohorts[app_id][cohort_id]} if state else ()
            left = sum(int(share.get(b"left", 0)) for share in states)
            for partition in range(keys.partitions) if is_at_work else known:
                base = keys.base(app_id, partition).encode()
                left_here = left if partition == home else 0
                places.append((base, cohort_id, state, left_here, is_at_work))
        with self._target.client.pipeline(transaction=False) as pipeline:
            for base, cohort_id, *_ in places:
                pipeline.zcard(base + b"cohort:" + cohort_id + b":members")
            members = pipeline.execute()
            for (base, cohort_id, state, left, is_at_work), count in zip(
                places, members, strict=True
            ):
                fields = {**state, b"entered": left + count, b"left": left}
                pipeline.hset(base + b"cohort:" + cohort_id + b":state", mapping=fields)
                pipeline.zadd(base + b"cohorts", {cohort_id: 0})
                if is_at_work:
                    pipeline.sadd(base + b"jobs", cohort_id)
            pipeline.execute()

    def _shares(
        self, app_id: str, cohort_ids: Sequence[bytes]
    ) -> Iterator[list[dict[bytes, bytes]]]:
        """What each partition of the source keeps about some cohorts."""
        keys = self._source.keys
        bases = [keys.base(app_id, partition).encode() for partition in range(keys.partitions)]
        with self._source.client.pipeline(transaction=False) as pipeline:
            for cohort_id in cohort_ids:
                for base in bases:
                    pipeline.hgetall(base + b"cohort:" + cohort_id + b":state")
            found = pipeline.execute()
        for some in in_parts(found, keys.partitions):
            yield [share for share in some if share]

    # Comparing

    def _compare(self, progress: Progress) -> None:
        for names in self._walk_source():
            self._renew_hold()
            whole = [name for name in names if name.kind in (Kind.WHOLE, Kind.GLOBAL)]
            for some in in_parts(whole, _KEYS_PER_CALL):
                values = (side.values(some) for side in (self._source, self._target))
                for name, ours, theirs in zip(some, *values, strict=True):
                    self._note(name.what, ours == theirs, name.key)
            for name in names:
                if name.kind is Kind.SPREAD:
                    self._compare_spread(name)
            progress(len(names))
        for name in self._spread:
            sizes = [side.elements(name) for side in (self._source, self._target)]
            example = name.in_partition(self._source.keys, 0)
            self._note(f"size of {name.what}", sizes[0] == sizes[1], example)
        for app_id, cohort_ids in self._some_cohorts():
            self._compare_states(app_id, cohort_ids)
        self._find_surplus()

    def _compare_spread(self, name: KeyName) -> None:
        for parts in self._pages(name):
            with self._target.client.pipeline(transaction=False) as pipeline:
                for partition, part in parts.items():
                    key = name.in_partition(self._target.keys, partition)
                    ask = pipeline.smismember if name.is_set else pipeline.zmscore
                    ask(key, list(part))
                replies = pipeline.execute()
            for part, found in zip(parts.values(), replies, strict=True):
                for (element, value), there in zip(part.items(), found, strict=True):
                    self._note(name.what, value == there, name.key + b" " + element)

    def _compare_states(self, app_id: str, cohort_ids: Sequence[bytes]) -> None:
        """Compare cohorts as callers see them: merged from the records of all partitions."""
        ids = [cohort_id.decode() for cohort_id in cohort_ids]
        ours, theirs = (
            {record.id: record for record in Registry(side.client, side.keys).records(app_id, ids)}
            for side in (self._source, self._target)
        )
        for one in ids:
            example = self._source.keys.cohort(app_id, 0, one, "state")
            self._note("cohort", ours.get(one) == theirs.get(one), example.encode())

    def _find_surplus(self) -> None:
        """Find what only the target has."""
        for names in self._target.walk():
            self._renew_hold()
            whole = [name for name in names if name.kind in (Kind.WHOLE, Kind.GLOBAL)]
            with self._source.client.pipeline(transaction=False) as pipeline:
                for name in whole:
                    pipeline.exists(name.in_store(self._source.keys))
                found = pipeline.execute()
            surplus = [name for name, there in zip(whole, found, strict=True) if not there]
            for name in names:
                spread = name.kind is Kind.SPREAD and name._replace(key=b"") not in self._spread
                state = name.kind is Kind.STATE and name.owner not in self._cohorts[name.app_id]
                if spread or state or name.kind is Kind.UNKNOWN:
                    surplus.append(name)
            for name in surplus:
                self._note(f"surplus {name.what}", False, name.key)

    def _note(self, what: str, same: bool, example: bytes) -> None:
        self._report.compared[what] += 1
        if not same:
            self._report.different[what] += 1
            self._note_example(example)

    def _note_example(self, key: bytes) -> None:
        if len(self._report.examples) < _EXAMPLES:
            self._report.examples.append(key.decode(errors="replace"))


def merged(shares: Iterable[dict[bytes, bytes]]) -> dict[bytes, bytes]:
    """The state of a cohort, except its counts, from what each partition keeps of it."""
    shares = list(shares)
    deletions = [share[b"deleting"] for share in shares if b"deleting" in share]
    deletion = {b"deleting": deletions[0]} if deletions else {}
    shares = [share for share in shares if b"trait" in share]
    if not shares:
        return deletion
    newest = max(shares, key=newness)
    state: dict[bytes, bytes] = {
        name: newest[name] for name in (b"trait", b"named", b"renames", b"next") if name in newest
    }
    state[b"first"] = min((share[b"first"] for share in shares), key=int)
    names: dict[str, int] = {}
    unmoved = {share[b"trait"].decode() for share in shares}
    for share in shares:
        for field_name, at in share.items():
            if field_name in (b"last", b"repeated", b"timed") or field_name.startswith(b"source:"):
                state[field_name] = max(state.get(field_name, b"0"), at, key=int)
        for name in _names(share):
            names[name["trait"]] = max(names.get(name["trait"], 0), name["until"])
            if b"moving" in share and not name.get("moved"):
                unmoved.add(name["trait"])
    for share in shares:
        names.setdefault(share[b"trait"].decode(), int(newest[b"named"]))
    del names[newest[b"trait"].decode()]
    if names:
        in_order = sorted(names.items(), key=lambda item: item[1])
        state[b"names"] = orjson.dumps(
            [
                {"trait": trait, "until": until, "moved": trait not in unmoved}
                for trait, until in in_order
            ]
        )
    if any(b"moving" in share or share[b"trait"] != newest[b"trait"] for share in shares):
        state[b"moving"] = b""  # the place of a scan means nothing in another store: start again
    return state | deletion


def _names(share: dict[bytes, bytes]) -> list[dict[str, Any]]:
    names: list[dict[str, Any]] = orjson.loads(share.get(b"names", b"[]"))
    return names
