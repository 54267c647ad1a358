"""The change stream of one partition, replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import orjson
from redis.commands.core import Script

from app.store.maintenance.findings import Problem, StreamProof

# Entries that are read at a time: one has up to a thousand users.
_ENTRIES_PER_READ = 30
# Users that are compared at a time: about a millisecond of the store's time.
_USERS_PER_CALL = 500

EntryId = tuple[int, int]
# Called with a problem, cohort id, user id and detail.
Tell = Callable[[Problem, str, str, str], None]


class LastChange(NamedTuple):
    """What one entry of the stream said; all users of the entry share it."""

    entry_id: EntryId
    entered: bool

    def __str__(self) -> str:
        return f"{'entered' if self.entered else 'left'} in {'-'.join(map(str, self.entry_id))}"


class Replay:
    """Follows a stream and compares it with the members, while both go on.

    Holds the last change of every (cohort, user) that the stream tells of: about 200 bytes each.
    """

    def __init__(self, script: Script, stream: str, proof: StreamProof, tell: Tell) -> None:
        self._script = script
        self._stream = stream
        self._proof = proof
        self._tell = tell
        self._position: EntryId = (0, 0)
        self._erased_until: EntryId = (0, 0)
        self._last: dict[str, dict[str, LastChange]] = {}

    def run(self) -> None:
        """Replay the stream to its end, and compare everybody in it with the members."""
        self._catch_up([])
        everybody = [
            (cohort_id, user_id) for cohort_id, users in self._last.items() for user_id in users
        ]
        for start in range(0, len(everybody), _USERS_PER_CALL):
            self._compare(everybody[start : start + _USERS_PER_CALL])

    def check_members(self, members: Sequence[tuple[str, str]]) -> None:
        """See that the stream tells how these (cohort, user) pairs became members."""
        untold = [pair for pair in members if not self._tells_of(pair)]
        if not untold:
            return
        if not self._proof.whole:
            self._proof.members_untold += len(untold)
            return
        scores = self._catch_up(untold)
        for pair, score in zip(untold, scores, strict=True):
            if score is not None and not self._tells_of(pair) and self._proof.whole:
                self._tell(Problem.MEMBER_NOT_IN_STREAM, *pair, "")

    def _tells_of(self, pair: tuple[str, str]) -> bool:
        cohort_id, user_id = pair
        return user_id in self._last.get(cohort_id, ())

    def _compare(self, pairs: Sequence[tuple[str, str]]) -> None:
        # The scores are those of the moment up to which the stream has been read.
        scores = self._catch_up(pairs)
        for (cohort_id, user_id), score in zip(pairs, scores, strict=True):
            last = self._last.get(cohort_id, {}).get(user_id)
            if last is None:
                pass  # forgotten, as entries left the stream faster than they were read
            elif last.entered == (score is not None):
                self._proof.agreeing += 1
            elif last.entry_id <= self._erased_until:
                self._proof.perhaps_erased += 1
            else:
                now = "is a member" if score is not None else "is no member"
                self._tell(Problem.CHANGE_MISSING, cohort_id, user_id, f"{last}, {now}")

    def _catch_up(self, pairs: Sequence[tuple[str, str]]) -> list[bytes | None]:
        """Read the stream to its end; returns since when each pair is a member at that moment."""
        groups: list[Any] = []
        for cohort_id, group in groupby(pairs, key=itemgetter(0)):
            users = [user_id for _, user_id in group]
            groups += [cohort_id, len(users), *users]
        while True:
            after = "-".join(map(str, self._position))
            head, entries, scores = self._script(
                keys=[self._stream], args=[after, _ENTRIES_PER_READ, *groups]
            )
            self._note(*head)
            for entry_id, values in entries:
                self._read(_entry_id(entry_id), values)
            if len(entries) < _ENTRIES_PER_READ:
                return list(scores)

    def _note(
        self, added: int, there: int, first: bytes, last: bytes, erased_until: bytes, erased: int
    ) -> None:
        self._erased_until = _entry_id(erased_until)
        if self._position == (0, 0):
            # What was ever added, is not there and was not removed with an erased user has left by
            # age or length: then a user's first change that is there may be either.
            self._proof.whole = added == there + erased
        elif _entry_id(last) > self._position and (not first or _entry_id(first) > self._position):
            # Entries may have left before they were read: begin anew with those that are there.
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
            where = f"entry {entry_id[0]}-{entry_id[1]}"
            self._tell(Problem.UNREADABLE_ENTRY, "", "", where)
            return
        change = LastChange(entry_id, entered)
        told = self._last.setdefault(cohort_id, {})
        for user_id in users:
            before = told.get(user_id)
            told[user_id] = change
            if before is None:
                # Whoever leaves has entered, unless that has left the stream.
                wrong = not entered and self._proof.whole
                excused = entry_id <= self._erased_until
            else:
                wrong = before.entered == entered
                excused = before.entry_id <= self._erased_until
            if wrong and excused:
                self._proof.perhaps_erased += 1
            elif wrong:
                self._tell(
                    Problem.CHANGE_REPEATED, cohort_id, user_id, f"{before or 'nothing'}, {change}"
                )
        self._proof.transitions += len(users)


def _entry_id(text: bytes) -> EntryId:
    ms, _, number = text.partition(b"-")
    return int(ms), int(number)
