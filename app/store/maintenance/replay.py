"""Replay the change stream of one partition, and compare it with the members."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import orjson

from app.store.change_stream import EntryId
from app.store.connection.script import StoreScript
from app.store.maintenance.findings import Problem, StreamProof

# An entry has up to a thousand users.
_ENTRIES_PER_READ = 30
# About 1 ms of the store's time.
_USERS_PER_CALL = 500

_BEGINNING = EntryId(0, 0)

# Called with a problem, cohort id, user id and detail.
Notify = Callable[[Problem, str, str, str], None]


class LastChange(NamedTuple):
    """The last change of a user; shared by all users of the entry."""

    entry_id: EntryId
    entered: bool

    def __str__(self) -> str:
        return f"{'entered' if self.entered else 'left'} in {self.entry_id}"


class Replay:
    """Follows a stream and compares it with the members, while requests change both.

    Holds the last change of every (cohort, user) in the stream: about 200 bytes each.
    """

    def __init__(
        self,
        script: StoreScript,
        stream: str,
        proof: StreamProof,
        notify: Notify,
        not_compared: Collection[str] = (),
    ) -> None:
        self._not_compared = not_compared  # cohorts whose members can't be read
        self._script = script
        self._stream = stream
        self._proof = proof
        self._notify = notify
        self._position = _BEGINNING
        self._erased_until = _BEGINNING
        self._last: dict[str, dict[str, LastChange]] = {}

    def run(self) -> None:
        """Replay the stream to its end, and compare all users in it with the members."""
        self._catch_up([])
        pairs = [
            (cohort_id, user_id) for cohort_id, users in self._last.items() for user_id in users
        ]
        for start in range(0, len(pairs), _USERS_PER_CALL):
            self._compare(pairs[start : start + _USERS_PER_CALL])

    def check_members(self, members: Sequence[tuple[str, str]]) -> None:
        """Check that the stream has an entry for these (cohort, user) pairs."""
        missing = [pair for pair in members if not self._has(pair)]
        if not missing:
            return
        if not self._proof.whole:
            self._proof.members_unverified += len(missing)
            return
        scores = self._catch_up(missing)
        for pair, score in zip(missing, scores, strict=True):
            if score is not None and not self._has(pair) and self._proof.whole:
                self._notify(Problem.MEMBER_NOT_IN_STREAM, *pair, "")

    def _has(self, pair: tuple[str, str]) -> bool:
        cohort_id, user_id = pair
        return user_id in self._last.get(cohort_id, ())

    def _compare(self, pairs: Sequence[tuple[str, str]]) -> None:
        # Scores and stream are of the same moment.
        scores = self._catch_up(pairs)
        for (cohort_id, user_id), score in zip(pairs, scores, strict=True):
            last = self._last.get(cohort_id, {}).get(user_id)
            if last is None:
                pass  # dropped by _note, as entries were trimmed before they were read
            elif last.entered == (score is not None):
                self._proof.agreeing += 1
            elif last.entry_id <= self._erased_until:
                self._proof.perhaps_erased += 1
            else:
                now = "is a member" if score is not None else "is not a member"
                self._notify(Problem.CHANGE_MISSING, cohort_id, user_id, f"{last}, {now}")

    def _catch_up(self, pairs: Sequence[tuple[str, str]]) -> list[bytes | None]:
        """Read the stream to its end; returns the scores of the pairs at that moment."""
        groups: list[Any] = []
        for cohort_id, group in groupby(pairs, key=itemgetter(0)):
            users = [user_id for _, user_id in group]
            groups += [cohort_id, len(users), *users]
        while True:
            head, entries, scores = self._script(
                keys=[self._stream], args=[str(self._position), _ENTRIES_PER_READ, *groups]
            )
            self._note(*head)
            for entry_id, values in entries:
                self._read(EntryId.parse(entry_id), values)
            if len(entries) < _ENTRIES_PER_READ:
                return list(scores)

    def _note(
        self, added: int, there: int, first: bytes, last: bytes, erased_until: bytes, erased: int
    ) -> None:
        """Find out from the stream's counters whether entries were trimmed."""
        self._erased_until = EntryId.parse(erased_until)
        if self._position == _BEGINNING:
            # Entries that are neither there nor removed with erased users were trimmed. In
            # that case, the first change that remains of a user may be entering or leaving.
            self._proof.whole = added == there + erased
        elif EntryId.parse(last) > self._position and (
            not first or EntryId.parse(first) > self._position
        ):
            # Entries may have been trimmed before they were read: start again with what is there.
            self._proof.whole = False
            self._last.clear()

    def _read(self, entry_id: EntryId, values: list[bytes]) -> None:
        self._position = entry_id
        fields = dict(zip(values[::2], values[1::2], strict=False))
        try:
            cohort_id = fields[b"cohort"].decode()
            entered = {b"entered": True, b"left": False}[fields[b"change"]]
            users: list[str] = orjson.loads(fields[b"users"])
        except (KeyError, ValueError):
            self._notify(Problem.UNREADABLE_ENTRY, "", "", f"entry {entry_id}")
            return
        if cohort_id in self._not_compared:
            return
        change = LastChange(entry_id, entered)
        for user_id in users:
            self._follow(cohort_id, user_id, change)
        self._proof.transitions += len(users)

    def _follow(self, cohort_id: str, user_id: str, change: LastChange) -> None:
        """Compare a change of a user with the one before it."""
        last = self._last.setdefault(cohort_id, {})
        before = last.get(user_id)
        last[user_id] = change
        if before is None:
            # Before leaving, a user must have entered, unless that entry was trimmed.
            wrong = not change.entered and self._proof.whole
            excused = change.entry_id <= self._erased_until
        else:
            wrong = before.entered == change.entered
            excused = before.entry_id <= self._erased_until
        if wrong and excused:
            self._proof.perhaps_erased += 1
        elif wrong:
            detail = f"{before or 'nothing'}, {change}"
            self._notify(Problem.CHANGE_REPEATED, cohort_id, user_id, detail)
