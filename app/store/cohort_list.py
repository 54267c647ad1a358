"""List cohorts: filtered, sorted, one page at a time."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import redis

from app.cohorts import CohortSummary, CompletenessState, FreshnessState, IncompleteReason, Status
from app.store.completeness import completeness_of
from app.store.connection.calls import Call
from app.store.connection.scripts import call_partitions, load_script
from app.store.errors import store_errors
from app.store.freshness import freshness_of
from app.store.keys import Keys
from app.store.registry import Registry
from app.store.tuning import DEFAULT, Tuning

# Sort keys in one script call: about 3 ms of the store's time.
SORTED_PER_CALL = 1000

COHORT_SORTS: dict[str, Callable[[CohortSummary], Any]] = {
    "id": lambda cohort: cohort.id,
    "name": lambda cohort: _name(cohort.trait).casefold(),
    "members": lambda cohort: cohort.members,
    "last_received": lambda cohort: cohort.freshness.last_received_ms or 0,
}
# The sorts by a number; the others sort by text.
NUMERIC_SORTS = ("members", "last_received")


def _name(trait: str) -> str:
    """The cohort's name: the trait name without the id that follows the last colon."""
    name, colon, _ = trait.rpartition(":")
    return name if colon else trait


class TooManyToSort(Exception):
    """The app has so many cohorts that they can only be sorted by id."""


class CohortFilter(NamedTuple):
    """What to list; None matches everything."""

    name: str | None = None
    status: Status | None = None
    freshness: FreshnessState | None = None
    completeness: CompletenessState | None = None
    reason: IncompleteReason | None = None

    def matches(self, cohort: CohortSummary, now_ms: int) -> bool:
        """Whether to list a cohort. A name matches any part of the trait name."""
        reasons = (open.reason for open in cohort.completeness.reasons)
        return (
            (self.name is None or self.name.casefold() in cohort.trait.casefold())
            and (self.status is None or self.status == cohort.status)
            and (self.freshness is None or self.freshness == cohort.freshness.state(now_ms))
            and (self.completeness is None or self.completeness == cohort.completeness.state)
            and (self.reason is None or self.reason in reasons)
        )


class CohortPage(NamedTuple):
    """A page of a list, and the position after it: sort key and id of its last cohort.

    ``after`` is None on the last page.
    """

    cohorts: list[CohortSummary]
    after: tuple[Any, str] | None


class CohortList:
    """Lists cohorts. Raises StoreError."""

    def __init__(
        self, client: redis.Redis, keys: Keys, registry: Registry, tuning: Tuning = DEFAULT
    ) -> None:
        self._tuning = tuning
        self._keys = keys
        self._registry = registry
        self._script = load_script(client, "cohorts.lua")
        self._order = load_script(client, "order.lua")

    def page(
        self,
        app_id: str,
        which: CohortFilter,
        *,
        sort: str = "id",
        descending: bool = False,
        after: tuple[Any, str] | None = None,
        limit: int = 100,
    ) -> CohortPage:
        """Up to ``limit`` cohorts.

        Sorted by id, a page may be short or empty without being the last one. Cohorts whose sort
        key changes between two pages may be listed twice or not at all.

        Args:
            sort: one of COHORT_SORTS.
            descending: for all sorts but ``id``.
            after: position after the previous page.

        Raises:
            TooManyToSort
        """
        if sort == "id":
            return self._by_id(app_id, which, after[1] if after else "", limit)
        # With several partitions, a cohort's freshness may be in one that doesn't list the cohort.
        is_number = sort == "members" or (sort == "last_received" and self._keys.partitions == 1)
        if which == CohortFilter() and is_number:
            return self._by_number(app_id, sort, descending, after, limit)
        now_ms = time.time_ns() // 1_000_000

        def position(cohort: CohortSummary) -> tuple[Any, str]:
            return COHORT_SORTS[sort](cohort), cohort.id

        def follows(cohort: CohortSummary) -> bool:
            if after is None:
                return True
            return position(cohort) < after if descending else position(cohort) > after

        matching = (
            cohort
            for cohort in self._all(app_id)
            if which.matches(cohort, now_ms) and follows(cohort)
        )
        choose = heapq.nlargest if descending else heapq.nsmallest
        found = choose(limit + 1, matching, key=position)
        more = len(found) > limit
        del found[limit:]
        return CohortPage(found, position(found[-1]) if more else None)

    def _by_number(
        self,
        app_id: str,
        sort: str,
        descending: bool,
        after: tuple[Any, str] | None,
        limit: int,
    ) -> CohortPage:
        """Cohorts sorted by a number: reads all numbers, and the summaries of one page only."""
        positions = [
            (number, cohort_id) for cohort_id, number in self._numbers(app_id, sort).items()
        ]
        if after is not None:
            positions = [p for p in positions if (p < after if descending else p > after)]
        found = (heapq.nlargest if descending else heapq.nsmallest)(limit + 1, positions)
        more = len(found) > limit
        del found[limit:]
        summaries = list(self._summaries(app_id, [cohort_id for _, cohort_id in found]))
        return CohortPage(summaries, found[-1] if more else None)

    def _numbers(self, app_id: str, sort: str) -> dict[str, int]:
        """The sort keys of all cohorts, by id."""
        numbers: dict[bytes, int] = {}
        after: dict[int, bytes | str] = dict.fromkeys(range(self._keys.partitions), "")
        while after:
            calls = [
                Call(self._keys.changes(app_id, partition), [sort, last, SORTED_PER_CALL])
                for partition, last in after.items()
            ]
            with store_errors():
                shares: list[list[Any]] = call_partitions(self._order, calls)
            for partition, share in zip(list(after), shares, strict=True):
                for cohort_id, number in zip(share[::2], share[1::2], strict=True):
                    numbers[cohort_id] = numbers.get(cohort_id, 0) + number
                if len(share) < 2 * SORTED_PER_CALL:
                    del after[partition]
                else:
                    after[partition] = share[-2]
            if len(numbers) > self._tuning.cohorts_sorted:
                raise TooManyToSort
        return {cohort_id.decode(): number for cohort_id, number in numbers.items()}

    def _by_id(self, app_id: str, which: CohortFilter, after: str, limit: int) -> CohortPage:
        now_ms = time.time_ns() // 1_000_000
        found: list[CohortSummary] = []
        count = self._tuning.cohorts_per_call
        if which == CohortFilter():
            count = min(count, limit + 1)
        for _ in range(0, self._tuning.cohorts_examined, count):
            ids = self._registry.ids(app_id, after=after, limit=count)
            for cohort in self._summaries(app_id, ids):
                if which.matches(cohort, now_ms):
                    if len(found) == limit:
                        return CohortPage(found, (after, after))
                    found.append(cohort)
                after = cohort.id
            if len(ids) < count:
                return CohortPage(found, None)
            after = ids[-1]
        return CohortPage(found, (after, after))

    def _all(self, app_id: str) -> Iterator[CohortSummary]:
        after, count = "", self._tuning.cohorts_per_call
        for _ in range(0, self._tuning.cohorts_sorted, count):
            ids = self._registry.ids(app_id, after=after, limit=count)
            yield from self._summaries(app_id, ids)
            if len(ids) < count:
                return
            after = ids[-1]
        if self._registry.ids(app_id, after=after, limit=1):
            raise TooManyToSort

    def _summaries(self, app_id: str, cohort_ids: list[str]) -> Iterator[CohortSummary]:
        if not cohort_ids:
            return
        with store_errors():
            calls = [
                Call(self._keys.changes(app_id, partition), cohort_ids)
                for partition in range(self._keys.partitions)
            ]
            shares: list[list[list[Any]]] = call_partitions(self._script, calls)
        for cohort_id, *rows in zip(cohort_ids, *shares, strict=True):
            known = [row for row in rows if row[0] is not None]
            if known:
                yield _summary(cohort_id, known, rows[self._keys.partition(cohort_id)][6:])


def _summary(cohort_id: str, rows: list[list[Any]], home: list[Any]) -> CohortSummary:
    newest = max(rows, key=_newness) if len(rows) > 1 else rows[0]
    status = Status.ACTIVE
    for trait, _, _, deleting, moving, _, *_ in rows:
        if deleting is not None:
            status = Status.DELETING
            break
        if moving is not None or trait != newest[0]:
            status = Status.RENAMING
    return CohortSummary(
        cohort_id,
        newest[0].decode(),
        status,
        sum(row[5] for row in rows),
        freshness_of(home[:4]),
        completeness_of(home[4:]),
    )


def _newness(row: list[Any]) -> tuple[int, int]:
    """A sort key: the row of the partition with the newest name has the highest."""
    return int(row[2] or 0), int(row[1])
