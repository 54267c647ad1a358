"""Lists of cohorts: filtered, sorted, a page at a time."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import redis

from app.cohorts import CohortSummary, FreshnessState, Status
from app.store.connection.calls import Call
from app.store.connection.scripts import call_partitions, load_script
from app.store.errors import translated
from app.store.freshness import freshness_of
from app.store.keys import Keys
from app.store.registry import Registry

# Cohorts that one script call tells of: about 2 ms of the store's time.
COHORTS_PER_CALL = 250
# Cohorts of which one call tells what they are sorted by: about 3 ms of the store's time.
SORTED_PER_CALL = 1000
# In the order of ids, only so many are looked at for one page; a filter may leave few of them.
LOOKED_AT = 10_000
# In any other order all must be looked at. An app with more can only be listed by id.
SORTED_AT_MOST = 100_000

SORTS: dict[str, Callable[[CohortSummary], Any]] = {
    "id": lambda cohort: cohort.id,
    "name": lambda cohort: _name(cohort.trait).casefold(),
    "members": lambda cohort: cohort.members,
    "last_received": lambda cohort: cohort.freshness.last_received_ms or 0,
}
# Those of them that give a number; the others give a text.
NUMBERS = ("members", "last_received")


def _name(trait: str) -> str:
    """The cohort's name in a trait name: without the id that follows the last colon."""
    name, colon, _ = trait.rpartition(":")
    return name if colon else trait


class TooManyToSort(Exception):
    """The app has more cohorts than can be sorted otherwise than by id."""


class Filter(NamedTuple):
    """Which cohorts; None for whatever."""

    name: str | None = None
    status: Status | None = None
    freshness: FreshnessState | None = None

    def takes(self, cohort: CohortSummary, now_ms: int) -> bool:
        """Whether a cohort is among them. A name is found in any part of the trait name."""
        return (
            (self.name is None or self.name.casefold() in cohort.trait.casefold())
            and (self.status is None or self.status == cohort.status)
            and (self.freshness is None or self.freshness == cohort.freshness.state(now_ms))
        )


class Listing(NamedTuple):
    """A page of a list, and the place of its last cohort; None where it is the last page."""

    cohorts: list[CohortSummary]
    place: tuple[Any, str] | None


class CohortList:
    """Reads lists of cohorts. Raises StoreError."""

    def __init__(self, client: redis.Redis, keys: Keys, registry: Registry) -> None:
        self._keys = keys
        self._registry = registry
        self._script = load_script(client, "cohorts.lua")
        self._order = load_script(client, "order.lua")

    def page(
        self,
        app_id: str,
        which: Filter,
        *,
        sort: str = "id",
        descending: bool = False,
        after: tuple[Any, str] | None = None,
        limit: int = 100,
    ) -> Listing:
        """Up to ``limit`` cohorts after a place.

        In the order of ids a page may be short, or empty, and yet not be the last: only so many
        are looked at. Cohorts that change their place between two pages may be met twice or not.

        Args:
            sort: one of SORTS. ``descending`` is for all but ``id``.

        Raises:
            TooManyToSort: only by id.
        """
        if sort == "id":
            return self._by_id(app_id, which, after[1] if after else "", limit)
        # Of several partitions, the one that knows when a cohort arrived need not list it.
        is_number = sort == "members" or (sort == "last_received" and self._keys.partitions == 1)
        if which == Filter() and is_number:
            return self._by_number(app_id, sort, descending, after, limit)
        now_ms = time.time_ns() // 1_000_000

        def place(cohort: CohortSummary) -> tuple[Any, str]:
            return SORTS[sort](cohort), cohort.id

        def follows(cohort: CohortSummary) -> bool:
            if after is None:
                return True
            return place(cohort) < after if descending else place(cohort) > after

        matching = (
            cohort
            for cohort in self._all(app_id)
            if which.takes(cohort, now_ms) and follows(cohort)
        )
        choose = heapq.nlargest if descending else heapq.nsmallest
        found = choose(limit + 1, matching, key=place)
        more = len(found) > limit
        del found[limit:]
        return Listing(found, place(found[-1]) if more else None)

    def _by_number(
        self,
        app_id: str,
        sort: str,
        descending: bool,
        after: tuple[Any, str] | None,
        limit: int,
    ) -> Listing:
        """Cohorts in the order of a number: that alone is read of all, the rest of a page only."""
        places = ((number, cohort_id) for cohort_id, number in self._numbers(app_id, sort).items())
        if after is not None:
            follows = after.__gt__ if descending else after.__lt__
            places = (place for place in places if follows(place))
        found = (heapq.nlargest if descending else heapq.nsmallest)(limit + 1, places)
        more = len(found) > limit
        del found[limit:]
        summaries = list(self._summaries(app_id, [cohort_id for _, cohort_id in found]))
        return Listing(summaries, found[-1] if more else None)

    def _numbers(self, app_id: str, sort: str) -> dict[str, int]:
        """What all cohorts are sorted by."""
        numbers: dict[bytes, int] = {}
        after: dict[int, bytes | str] = dict.fromkeys(range(self._keys.partitions), "")
        while after:
            calls = [
                Call(self._keys.changes(app_id, partition), [sort, last, SORTED_PER_CALL])
                for partition, last in after.items()
            ]
            with translated():
                shares: list[list[Any]] = call_partitions(self._order, calls)
            for partition, share in zip(list(after), shares, strict=True):
                for cohort_id, number in zip(share[::2], share[1::2], strict=True):
                    numbers[cohort_id] = numbers.get(cohort_id, 0) + number
                if len(share) < 2 * SORTED_PER_CALL:
                    del after[partition]
                else:
                    after[partition] = share[-2]
            if len(numbers) > SORTED_AT_MOST:
                raise TooManyToSort
        return {cohort_id.decode(): number for cohort_id, number in numbers.items()}

    def _by_id(self, app_id: str, which: Filter, after: str, limit: int) -> Listing:
        now_ms = time.time_ns() // 1_000_000
        found: list[CohortSummary] = []
        count = min(COHORTS_PER_CALL, limit + 1) if which == Filter() else COHORTS_PER_CALL
        for _ in range(0, LOOKED_AT, count):
            ids = self._registry.ids(app_id, after=after, limit=count)
            for cohort in self._summaries(app_id, ids):
                if which.takes(cohort, now_ms):
                    if len(found) == limit:
                        return Listing(found, (after, after))
                    found.append(cohort)
                after = cohort.id
            if len(ids) < count:
                return Listing(found, None)
            after = ids[-1]
        return Listing(found, (after, after))

    def _all(self, app_id: str) -> Iterator[CohortSummary]:
        after = ""
        for _ in range(0, SORTED_AT_MOST, COHORTS_PER_CALL):
            ids = self._registry.ids(app_id, after=after, limit=COHORTS_PER_CALL)
            yield from self._summaries(app_id, ids)
            if len(ids) < COHORTS_PER_CALL:
                return
            after = ids[-1]
        if self._registry.ids(app_id, after=after, limit=1):
            raise TooManyToSort

    def _summaries(self, app_id: str, cohort_ids: list[str]) -> Iterator[CohortSummary]:
        if not cohort_ids:
            return
        with translated():
            calls = [
                Call(self._keys.changes(app_id, partition), cohort_ids)
                for partition in range(self._keys.partitions)
            ]
            shares: list[list[list[Any]]] = call_partitions(self._script, calls)
        for cohort_id, *rows in zip(cohort_ids, *shares, strict=True):
            known = [row for row in rows if row[0] is not None]
            if known:
                yield _summary(cohort_id, known, rows[self._keys.partition(cohort_id)][5:])


def _summary(cohort_id: str, rows: list[list[Any]], freshness: list[Any]) -> CohortSummary:
    newest = max(rows, key=lambda row: int(row[1])) if len(rows) > 1 else rows[0]
    status = Status.ACTIVE
    for trait, _, deleting, moving, _, *_ in rows:
        if deleting is not None:
            status = Status.DELETING
            break
        if moving is not None or trait != newest[0]:
            status = Status.RENAMING
    return CohortSummary(
        cohort_id,
        newest[0].decode(),
        status,
        sum(row[4] for row in rows),
        freshness_of(freshness),
    )
