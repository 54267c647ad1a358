"""A cohort as Amplitude sees it: who is in it, and what changed since the last successful sync."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from . import payloads

# What JSON must escape inside a string.
_UNSAFE = re.compile(r'[\x00-\x1f"\\]')


class BadIds(ValueError):
    """A file of user ids can't be used; the text names the place."""


def read_ids(path: str | Path) -> list[str]:
    """Read user ids from a file, one a line, UTF-8 (with or without a byte order mark); empty lines
    and repeats are left out.

    Raises `BadIds` for a file without an id or with a line that is not UTF-8.
    """
    ids: dict[str, None] = {}
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                encoding = "utf-8-sig" if number == 1 else "utf-8"
                user_id = line.decode(encoding).rstrip("\r\n")
            except UnicodeDecodeError:
                raise BadIds(f"{path}, line {number}: not UTF-8") from None
            if user_id:
                ids[user_id] = None
    if not ids:
        raise BadIds(f"{path}: no user id in it")
    return list(ids)


def json_text(text: str) -> str:
    """Return `text` as it stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1] if _UNSAFE.search(text) else text


class Cohort:
    """Users, membership and its changes.

    `ids` is everybody who can ever be in the cohort; users are known by their index in it. The
    first `size` of them are the cohort of the first sync. With each further sync, `churn` times
    `size` members leave and as many others enter, among them people who were in before.
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
        self._started = False
        self._synced = False
        self._changed: dict[int, bool] = {}

    @classmethod
    def synthetic(
        cls, name: str, cohort_id: str, size: int, *, churn: float = 0.05, seed: int = 0
    ) -> Cohort:
        """Make a cohort of `size` synthetic users, with others outside who enter later."""
        outside = round(size * churn * 2)
        ids = payloads.user_ids(size + outside, seed)
        return cls(name, cohort_id, ids, size=size, churn=churn, seed=seed)

    @property
    def members(self) -> list[int]:
        """The indexes of the users who are in the cohort now."""
        return self._members

    def advance(self) -> tuple[Sequence[int], Sequence[int]]:
        """Let time pass until the next sync and return what it has to say: (entered, left).

        Until a sync has succeeded (`succeeded`), that is everybody who is in, and nobody left.
        Afterwards it is the difference from the last successful sync, as Amplitude does it:
        somebody who came and went since then is not mentioned, whatever a failed sync has said
        about them.
        """
        if self._started:
            self._move()
        self._started = True
        if not self._synced:
            return list(self._members), []
        entered = [user for user, member in self._changed.items() if member]
        left = [user for user, member in self._changed.items() if not member]
        return entered, left

    def succeeded(self) -> None:
        """Take the present membership as what the receiver has been told."""
        self._synced = True
        self._changed.clear()

    def _move(self) -> None:
        count = round(self.churn * self.size)
        leaving = self._draw(self._members, count)
        entering = self._draw(self._outside, count)
        self._members += entering
        self._outside += leaving
        if self._synced:
            self._note(leaving, False)
            self._note(entering, True)

    def _note(self, users: Iterable[int], member: bool) -> None:
        for user in users:
            if user in self._changed:
                del self._changed[user]  # back to what the receiver was told last
            else:
                self._changed[user] = member

    def _draw(self, pool: list[int], count: int) -> list[int]:
        drawn = []
        for _ in range(min(count, len(pool))):
            at = self._random.randrange(len(pool))
            pool[at], pool[-1] = pool[-1], pool[at]
            drawn.append(pool.pop())
        return drawn
