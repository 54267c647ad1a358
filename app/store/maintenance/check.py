"""Check that users' hashes, cohorts' members and records, and the change stream agree.

A check may run concurrently with requests: each comparison is a single script call, so no request
can come between its parts and cause a false alarm.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import redis

from app.cohorts import Cohort
from app.store.connection.script import StoreScript
from app.store.connection.scripts import load_script
from app.store.errors import store_errors
from app.store.keys import Keys
from app.store.maintenance.findings import MEANINGS, CheckReport, Finding, Problem, StreamProof
from app.store.maintenance.key_names import KeyName, parse
from app.store.maintenance.replay import Replay

# About 1 ms of the store's time.
USERS_PER_CALL = 250
# A call examines no further user after this many fields; a user with more is read in parts.
_FIELDS_PER_CALL = 1000
_COHORTS_PER_CALL = 100
# The clocks of two servers, before and after a failover, may differ by this much; see apply.lua.
_SKEW_MS = 2 * 60 * 1000
_KEYS_PER_PAGE = 1000
# Members whose fields are searched for the lost name of a cohort.
_NAME_SAMPLE = 100

Progress = Callable[[int], None]


class Pair(NamedTuple):
    """A user and a cohort; when walking users' hashes, also the field with the cohort's trait."""

    cohort_id: bytes
    user_id: bytes
    field: bytes = b""


class AppPartition(NamedTuple):
    """One partition of one app."""

    app_id: str
    partition: int


class Checker:
    """Walks the store. Raises StoreError; finished repairs stay.

    Keeps in memory: a page of users, the ids of all cohorts, and one partition's Replay.
    """

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        spread_name: Callable[[str, str], int],
        introduce: Callable[[str, str, Collection[int]], bool],
    ) -> None:
        self._client = client
        self._keys = keys
        self._spread_name = spread_name
        self._introduce = introduce
        self._cohort_script = self._script("check_cohort.lua")
        self._users_script = self._script("check_users.lua")
        self._fields_script = self._script("check_fields.lua")
        self._changes_script = self._script("check_changes.lua")
        self._repair_cohort = self._script("repair_cohort.lua")
        self._repair_times = self._script("repair_times.lua")
        self._repair_user = self._script("repair_user.lua")

    def _script(self, name: str) -> StoreScript:
        return load_script(self._client, name, "maintenance")

    def size(self, app_ids: Iterable[str]) -> int:
        """The approximate number of steps that a check will report as progress."""
        total = 0
        with store_errors():
            for app_id in app_ids:
                for place, cohort_ids in self._survey(app_id).cohorts.items():
                    for some in _in_pages(sorted(cohort_ids), _COHORTS_PER_CALL):
                        with self._client.pipeline(transaction=False) as pipeline:
                            for cohort_id in some:
                                pipeline.zcard(self._part(place, cohort_id, "members"))
                                pipeline.zcard(self._part(place, cohort_id, "left"))
                            sizes = pipeline.execute(raise_on_error=False)
                        total += sum(size for size in sizes if isinstance(size, int))
        return 2 * total  # each membership is checked once as a member and once as a field

    def run(
        self, app_ids: Sequence[str], *, repair: bool = False, progress: Progress | None = None
    ) -> CheckReport:
        """Check some apps; ``repair`` what is unambiguous, assuming that the members are right.

        Args:
            progress: called with the number of steps done since the last call, see :meth:`size`.
        """
        started = time.monotonic()
        report = CheckReport(list(app_ids))
        walk = _Walk(report, repair, progress or (lambda steps: None))
        with store_errors():
            for name, kind in self.wrong_global_keys():
                walk.report.add(_wrong_type(name, kind))
            for app_id in app_ids:
                survey = self._survey(app_id)
                for place, name, kind in survey.wrong:
                    walk.report.add(_wrong_type(name, kind, *place))
                places = survey.cohorts
                all_ids = sorted(set().union(*places.values()))
                report.cohorts += len(all_ids)
                for place in places:
                    self._walk_partition(walk, survey, place)
                if self._keys.partitions > 1 and not survey.is_wrong("jobs"):
                    wrong = set().union(*map(survey.wrong_cohorts, places))
                    sound = [cohort_id for cohort_id in all_ids if cohort_id not in wrong]
                    for some in _in_pages(sound, _COHORTS_PER_CALL):
                        self._check_names(walk, list(places), some)
                self._walk_fields(walk, survey, app_id)
        report.seconds = round(time.monotonic() - started, 2)
        return report

    def wrong_global_keys(self) -> list[tuple[KeyName, bytes]]:
        """The keys outside any app that have a wrong type, with that type."""
        names = [self._keys.layout(), self._keys.apps(), self._keys.hold(), self._keys.audit()]
        names += [self._keys.api_keys(), self._keys.api_keys_used(), self._keys.session_secret()]
        names += [self._keys.unknown_callers()]
        with store_errors():
            return list(self._of_wrong_type(name.encode() for name in names))

    def _of_wrong_type(self, keys: Iterable[bytes]) -> Iterator[tuple[KeyName, bytes]]:
        names = [parse(key, self._keys.prefix) for key in keys]
        with self._client.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.type(name.key)
            types = pipeline.execute()
        for name, kind in zip(names, types, strict=True):
            if kind not in (b"none", name.expected_type) and name.expected_type:
                yield name, kind

    def _survey(self, app_id: str) -> _Survey:
        """The ids of an app's cohorts, including those missing from the list of cohorts, and its
        keys of a wrong type. Users' hashes are not read.
        """
        places = [AppPartition(app_id, p) for p in range(self._keys.partitions)]
        survey = _Survey({place: set() for place in places})
        of_cohort = re.compile(
            rb"cohort:(.+):(?:members|left|seen|state|freshness|sizes)", re.DOTALL
        )
        page: list[tuple[AppPartition, bytes]] = []
        for place, rest in self._scan_without_users(app_id):
            if match := of_cohort.fullmatch(rest):
                survey.cohorts[place].add(match[1])
            page.append((place, rest))
            if len(page) >= _KEYS_PER_PAGE:
                self._note_wrong_types(survey, page)
                page.clear()
        self._note_wrong_types(survey, page)
        for place in places:
            for part in ("cohorts", "due"):
                if not survey.is_wrong(part, place):
                    key = f"{self._keys.base(*place)}{part}"
                    listed = self._client.zscan_iter(key, count=USERS_PER_CALL)
                    survey.cohorts[place].update(cohort_id for cohort_id, _ in listed)
            if not survey.is_wrong("jobs", place):
                key = self._keys.jobs(*place)
                with_jobs: Any = self._client.sscan_iter(key, count=USERS_PER_CALL)
                survey.cohorts[place].update(with_jobs)
        return survey

    def _scan_without_users(self, app_id: str) -> Iterator[tuple[AppPartition, bytes]]:
        yield from self._scan(app_id, "", but="u")
        for place, rest in self._scan(app_id, "upstream"):
            yield place, b"upstream" + rest

    def _note_wrong_types(self, survey: _Survey, page: list[tuple[AppPartition, bytes]]) -> None:
        keys = {self._keys.base(*place).encode() + rest: place for place, rest in page}
        for name, kind in self._of_wrong_type(keys):
            survey.wrong.append((keys[name.key], name, kind))

    def _scan(self, app_id: str, kind: str, but: str = "") -> Iterator[tuple[AppPartition, bytes]]:
        """The app's keys of one kind: the partition, and the rest of the name after the kind.

        Args:
            but: leave out names whose rest begins with this character.
        """
        heads = {
            f"{self._keys.base(app_id, p)}{kind}".encode(): AppPartition(app_id, p)
            for p in range(self._keys.partitions)
        }
        tag = app_id if self._keys.partitions == 1 else f"{app_id}:*"
        pattern = f"{self._keys.prefix}:{{{tag}}}:{kind}{f'[^{but}]' if but else ''}*"
        for key in self._client.scan_iter(match=pattern, count=1000):
            head = key[: key.index(b"}:") + 2 + len(kind)]
            if place := heads.get(head):
                yield place, key[len(head) :]

    def _walk_partition(self, walk: _Walk, survey: _Survey, place: AppPartition) -> None:
        cohort_ids = sorted(survey.cohorts[place] - survey.wrong_cohorts(place))
        if not any(survey.is_wrong(key, place) for key in ("cohorts", "jobs", "due")):
            for some in _in_pages(cohort_ids, _COHORTS_PER_CALL):
                self._check_records(walk, place, some)
        proof = StreamProof(*place)
        walk.report.streams.append(proof)

        def notify(problem: Problem, cohort_id: str, user_id: str, detail: str) -> None:
            walk.report.add(Finding(problem, *place, cohort_id, user_id, detail))

        not_compared = {_text(one) for one in survey.wrong_cohorts(place)}
        replay = Replay(
            self._changes_script, self._keys.changes(*place), proof, notify, not_compared
        )
        if any(survey.is_wrong(key, place) for key in ("changes", "erased")):
            proof.whole = False
        else:
            replay.run()
        for part in ("members", "left"):
            for pairs in self._pages(place, cohort_ids, part):
                self._check_pairs(walk, place, part, pairs)
                if part == "members":
                    replay.check_members([(_text(c), _text(u)) for c, u, _ in pairs])
                walk.report.memberships += len(pairs)
                walk.progress(len(pairs))

    def _check_records(self, walk: _Walk, place: AppPartition, cohort_ids: Sequence[bytes]) -> None:
        """Check what a partition records about cohorts."""
        stream = self._keys.changes(*place)
        with self._client.pipeline(transaction=False) as pipeline:
            for cohort_id in cohort_ids:
                self._cohort_script(keys=[stream], args=[cohort_id, _SKEW_MS], client=pipeline)
            replies = pipeline.execute()
        for cohort_id, reply in zip(cohort_ids, replies, strict=True):
            if not reply:
                continue
            if walk.repair:
                if self._keys.partitions > 1 and place.partition == self._home(cohort_id):
                    # The records may be those of a cohort that only other partitions know.
                    self._introduce(place.app_id, _text(cohort_id), [place.partition])
                name = self._lost_name(place, cohort_id)
                self._repair_cohort(keys=[stream], args=[cohort_id, name])
                if Problem.TIME_AHEAD.encode() in reply[::2]:
                    args = [cohort_id, _SKEW_MS, USERS_PER_CALL]
                    while self._repair_times(keys=[stream], args=args):
                        pass
            for problem, detail in zip(reply[::2], reply[1::2], strict=True):
                walk.report.add(
                    Finding(
                        Problem(problem.decode()),
                        *place,
                        _text(cohort_id),
                        detail=_text(detail),
                        repaired=walk.repair,
                    )
                )

    def _home(self, cohort_id: bytes) -> int:
        return self._keys.partition_of(cohort_id)

    def _check_names(
        self, walk: _Walk, places: list[AppPartition], cohort_ids: Sequence[bytes]
    ) -> None:
        # A rename is in progress while it has a job. Names are read before and after the jobs: a
        # rename that finishes in between has reached all partitions by the second time.
        before = self._names(places, cohort_ids)
        with_jobs = set[bytes]()
        for place in places:
            jobs: Any = self._client.smismember(self._keys.jobs(*place), list(cohort_ids))
            with_jobs.update(one for one, has in zip(cohort_ids, jobs, strict=True) if has)
        for cohort_id, names in self._names(places, cohort_ids).items():
            known = {name for name in names if name is not None}
            if len(known) < 2 or names != before[cohort_id] or cohort_id in with_jobs:
                continue
            app_id = places[0].app_id
            if walk.repair:
                self._spread_name(app_id, _text(cohort_id))
            detail = ", ".join(sorted(map(_text, known)))
            finding = Finding(
                Problem.NAMES_DISAGREE, app_id, 0, _text(cohort_id), "", detail, walk.repair
            )
            walk.report.add(finding)

    def _names(
        self, places: list[AppPartition], cohort_ids: Sequence[bytes]
    ) -> dict[bytes, list[bytes | None]]:
        """The trait name of each cohort in each partition."""
        with self._client.pipeline(transaction=False) as pipeline:
            for cohort_id in cohort_ids:
                for place in places:
                    pipeline.hget(self._part(place, cohort_id, "state"), "trait")
            replies = pipeline.execute()
        return dict(zip(cohort_ids, _in_pages(replies, len(places)), strict=True))

    def _lost_name(self, place: AppPartition, cohort_id: bytes) -> str:
        """A cohort's trait name from its users' hashes; failing that, one made from its id."""
        for part in ("members", "left"):
            key = self._part(place, cohort_id, part)
            users: Any = self._client.zrange(key, 0, _NAME_SAMPLE - 1)
            for user_id in users:
                user = self._keys.base(*place).encode() + b"user:" + user_id
                if self._client.type(user) != b"hash":
                    continue
                fields: Any = self._client.hkeys(user)
                for name in fields:
                    if _cohort_id(name) == cohort_id:
                        return _text(name)
        return f"{_text(cohort_id)}: {_text(cohort_id)}"

    def _pages(
        self, place: AppPartition, cohort_ids: Sequence[bytes], part: str
    ) -> Iterator[list[Pair]]:
        """The users in one sorted set of each cohort, ``USERS_PER_CALL`` at a time."""
        page: list[Pair] = []
        for some in _in_pages(cohort_ids, _COHORTS_PER_CALL):
            # Most cohorts are small, so the first part of each is read in one round trip.
            with self._client.pipeline(transaction=False) as pipeline:
                for cohort_id in some:
                    pipeline.zscan(self._part(place, cohort_id, part), 0, count=USERS_PER_CALL)
                firsts = pipeline.execute()
            for cohort_id, (cursor, users) in zip(some, firsts, strict=True):
                while True:
                    page += [Pair(cohort_id, user_id) for user_id, _ in users]
                    while len(page) >= USERS_PER_CALL:
                        yield page[:USERS_PER_CALL]
                        page = page[USERS_PER_CALL:]
                    if not int(cursor):
                        break
                    key = self._part(place, cohort_id, part)
                    cursor, users = self._client.zscan(key, cursor, count=USERS_PER_CALL)
        if page:
            yield page

    def _walk_fields(self, walk: _Walk, survey: _Survey, app_id: str) -> None:
        wrong = {place: survey.wrong_cohorts(place) for place in survey.cohorts}
        pages: dict[AppPartition, list[bytes]] = {}
        for place, user_id in self._scan(app_id, "user:"):
            users = pages.setdefault(place, [])
            users.append(user_id)
            if len(users) >= USERS_PER_CALL:
                self._check_page(walk, place, pages.pop(place), wrong[place])
        for place, users in pages.items():
            self._check_page(walk, place, users, wrong[place])

    def _check_page(
        self, walk: _Walk, place: AppPartition, users: list[bytes], left_out: set[bytes]
    ) -> None:
        """Check the fields of some users, except those of cohorts that are left out."""
        stream = self._keys.changes(*place)
        while users:
            args: list[int | bytes] = [_FIELDS_PER_CALL, _FIELDS_PER_CALL, *users]
            examined, no_hashes, large, *fields = self._fields_script(keys=[stream], args=args)
            for where in no_hashes:
                user_id = _text(users[where - 1])
                walk.report.add(Finding(Problem.NOT_A_HASH, *place, "", user_id))
            pairs = [
                Pair(_cohort_id(name), users[where - 1], name)
                for name, positions in zip(fields[::2], fields[1::2], strict=True)
                for where in positions
            ]
            self._check_fields_of(walk, place, pairs, left_out)
            for where in large:
                self._check_large_user(walk, place, users[where - 1], left_out)
            walk.report.users += examined
            users = users[examined:]

    def _check_large_user(
        self, walk: _Walk, place: AppPartition, user_id: bytes, left_out: set[bytes]
    ) -> None:
        """Check the fields of a user with too many for one call."""
        hash_key = self._keys.base(*place).encode() + b"user:" + user_id
        scanned = self._client.hscan_iter(hash_key, count=USERS_PER_CALL)
        # A set, as a scan may return a field twice.
        fields = {field for field, _ in scanned}
        pairs = [Pair(_cohort_id(f), user_id, f) for f in fields]
        self._check_fields_of(walk, place, pairs, left_out)

    def _check_fields_of(
        self, walk: _Walk, place: AppPartition, pairs: list[Pair], left_out: set[bytes]
    ) -> None:
        pairs = [pair for pair in pairs if pair.cohort_id not in left_out]
        for some in _in_pages(pairs, USERS_PER_CALL):
            self._check_pairs(walk, place, "fields", some)
            walk.report.fields += len(some)
            walk.progress(len(some))

    def _check_pairs(
        self, walk: _Walk, place: AppPartition, part: str, pairs: Sequence[Pair]
    ) -> None:
        """Report, and optionally repair, pairs whose hash and sorted sets disagree."""
        stream = self._keys.changes(*place)
        args: list[Any] = [part]
        for cohort_id, group in groupby(pairs, key=attrgetter("cohort_id")):
            users = list(group)
            args += [cohort_id, len(users)]
            for pair in users:
                args += pair[1:] if part == "fields" else pair[1:2]
        reply = self._users_script(keys=[stream], args=args)
        for where, name, detail in zip(reply[::3], reply[1::3], reply[2::3], strict=True):
            pair, problem = pairs[where - 1], Problem(name.decode())
            cohort_id = "" if problem in _WITHOUT_COHORT else _text(pair.cohort_id)
            finding = Finding(problem, *place, cohort_id, _text(pair.user_id), _text(detail))
            if walk.repair and MEANINGS[problem].repairable:
                done = self._repair_user(keys=[stream], args=pair)
                finding = replace(finding, repaired=bool(done))
            walk.report.add(finding)

    def _part(self, place: AppPartition, cohort_id: bytes, part: str) -> bytes:
        return b"%bcohort:%b:%b" % (self._keys.base(*place).encode(), cohort_id, part.encode())


@dataclass
class _Survey:
    """What a check reads before it compares anything.

    Attributes:
        cohorts: the ids of all cohorts, by partition.
        wrong: keys of a wrong type, with that type.
    """

    cohorts: dict[AppPartition, set[bytes]]
    wrong: list[tuple[AppPartition, KeyName, bytes]] = field(default_factory=list)

    def is_wrong(self, key: str, place: AppPartition | None = None) -> bool:
        """Whether a key has a wrong type in a partition; in any, without ``place``."""
        return any(
            name.rest == key.encode() and place in (None, where) for where, name, _ in self.wrong
        )

    def wrong_cohorts(self, place: AppPartition) -> set[bytes]:
        """The cohorts with a key of a wrong type in a partition; they are not checked."""
        return {
            name.owner for where, name, _ in self.wrong if where == place and _is_of_cohort(name)
        }


class _Walk(NamedTuple):
    """The state of one run."""

    report: CheckReport
    repair: bool
    progress: Progress


# Problems with fields that belong to no cohort.
_WITHOUT_COHORT = {Problem.FIELD_OF_UNKNOWN_COHORT, Problem.FOREIGN_FIELD}


def _is_of_cohort(name: KeyName) -> bool:
    # A cohort's syncs belong to the history, which is not checked.
    return name.what.startswith("cohort ") and name.what != "cohort syncs"


def _wrong_type(name: KeyName, kind: bytes, app_id: str = "", partition: int = 0) -> Finding:
    cohort_id = _text(name.owner) if _is_of_cohort(name) else ""
    expected = (name.expected_type or b"").decode()
    detail = f"{_text(name.key)} is a {kind.decode()}, not a {expected}"
    return Finding(Problem.WRONG_TYPE, app_id, partition, cohort_id, "", detail)


def _cohort_id(field: bytes) -> bytes:
    return Cohort.from_trait(_text(field)).id.encode()


def _text(data: bytes) -> str:
    """Decode; data of other programs may not be UTF-8, and must not stop a check."""
    return data.decode(errors="replace")


def _in_pages(items: Sequence[Any], size: int) -> Iterator[Any]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
