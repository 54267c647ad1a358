"""A cohort as Amplitude sees it: its members, and the changes since the last successful sync."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from . import payloads


class InvalidIdFile(ValueError):
    """A file of user ids is empty or not UTF-8."""


def read_ids(path: str | Path) -> list[str]:
    """Read user ids from a UTF-8 file, one per line, skipping empty lines and duplicates.

    A byte order mark is allowed. Raises `InvalidIdFile`.
    """
    ids: dict[str, None] = {}
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                encoding = "utf-8-sig" if number == 1 else "utf-8"
                user_id = line.decode(encoding).rstrip("\r\n")
            except UnicodeDecodeError:
                raise InvalidIdFile(f"{path}, line {number}: not UTF-8") from None
            if user_id:
                ids[user_id] = None
    if not ids:
        raise InvalidIdFile(f"{path}: no user ids")
    return list(ids)


class Cohort:
    """A cohort whose membership changes from sync to sync.

    `ids` are all users who can ever be members; elsewhere users are indexes into it. The first
    `size` of them are the members at the first sync. Before each later sync, `churn` times `size`
    members leave and as many other users enter, or all others if there are fewer. Users who enter
    may be former members.
    """

    def __init__(
        self,
        name: str,
        cohort_id: str,
        ids: Sequence[str],
        *,
        size: int | None = None,
        churn: float = 0.05,
        seed: int = 0,
    ) -> None:
        self.name = name
        self.cohort_id = cohort_id
        self.trait = payloads.trait_name(name, cohort_id)
        self.ids = ids
        self.size = len(ids) if size is None else size
        self.churn = churn
        self._random = random.Random(f"cohort {cohort_id} {seed}")
        self._members = list(range(self.size))
        self._outside = list(range(self.size, len(ids)))
        self._entered_later: set[int] = set()
        self._started = False
        self._synced = False
        self._changed: dict[int, bool] = {}

    @classmethod
    def synthetic(
        cls, name: str, cohort_id: str, size: int, *, churn: float = 0.05, seed: int = 0
    ) -> Cohort:
        """Create a cohort of `size` synthetic users, and more users who can enter it later."""
        outside = round(size * churn * 2)
        ids = payloads.user_ids(size + outside, seed)
        return cls(name, cohort_id, ids, size=size, churn=churn, seed=seed)

    @property
    def members(self) -> list[int]:
        """The current members."""
        return self._members

    @property
    def users_so_far(self) -> int:
        """How many users are or were members, as of the last `advance`."""
        return self.size + len(self._entered_later) if self._started else 0

    def advance(self) -> tuple[Sequence[int], Sequence[int]]:
        """Change the membership and return what the next sync has to send: (entered, left).

        Until a sync has succeeded (`mark_synced`), that is every member. After that it is the
        difference from the last successful sync, as at Amplitude: users who entered and left since
        then are not in it, even if a failed sync sent them.
        """
        if self._started:
            self._move()
        self._started = True
        if not self._synced:
            return list(self._members), []
        entered = [user for user, member in self._changed.items() if member]
        left = [user for user, member in self._changed.items() if not member]
        return entered, left

    def mark_synced(self) -> None:
        """Make the current membership the base of the next difference."""
        self._synced = True
        self._changed.clear()

    def _move(self) -> None:
        count = round(self.churn * self.size)
        leaving = self._draw(self._members, count)
        entering = self._draw(self._outside, count)
        self._members += entering
        self._entered_later.update(user for user in entering if user >= self.size)
        self._outside += leaving
        if self._synced:
            self._record(leaving, False)
            self._record(entering, True)

    def _record(self, users: Iterable[int], member: bool) -> None:
        for user in users:
            if user in self._changed:
                del self._changed[user]  # back to the last synced value
            else:
                self._changed[user] = member

    def _draw(self, pool: list[int], count: int) -> list[int]:
        drawn = []
        for _ in range(min(count, len(pool))):
            at = self._random.randrange(len(pool))
            pool[at], pool[-1] = pool[-1], pool[at]
            drawn.append(pool.pop())
        return drawn
