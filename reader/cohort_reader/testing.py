"""Readers without a store, for the tests of your application.

    from cohort_reader.testing import InMemoryCohortReader, InMemoryCohorts

    cohorts = InMemoryCohorts({"abc123": ["alice"]})
    reader = InMemoryCohortReader(cohorts)
    assert reader.is_member("alice", "abc123")

They are the readers of this package, including the cache, ``default=`` and ``strict=True``; only
the data is in memory. ``cohort_reader.pytest_plugin`` has fixtures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cohort_reader.answers import Completeness, Freshness, FreshnessState
from cohort_reader.errors import StoreUnavailable
from cohort_reader.lookups import Lookups, MembersPage
from cohort_reader.reader import AsyncCohortReader, CohortReader
from cohort_reader.steps import Steps

__all__ = ["InMemoryAsyncCohortReader", "InMemoryCohortReader", "InMemoryCohorts"]


class InMemoryCohorts:
    """Users and cohorts, as a store has them.

    Args:
        members: user ids by cohort id.

    Attributes:
        is_available: set it to False, and every lookup fails as if the store were down.
    """

    def __init__(self, members: Mapping[str, Iterable[str]] | None = None) -> None:
        self.is_available = True
        self._members: dict[str, dict[str, int]] = {}
        self._traits: dict[str, dict[str, bool]] = {}
        self._names: dict[str, str] = {}
        self._freshness: dict[str, Freshness] = {}
        self._completeness: dict[str, Completeness] = {}
        for cohort_id, user_ids in (members or {}).items():
            self.enter(cohort_id, *user_ids)

    def add_cohort(self, cohort_id: str, trait: str | None = None) -> None:
        """Make a cohort known, with its trait name; by default ``[Amplitude] <id>: <id>``."""
        self._members.setdefault(cohort_id, {})
        self._names.setdefault(cohort_id, trait or f"[Amplitude] {cohort_id}: {cohort_id}")

    def enter(self, cohort_id: str, *user_ids: str, since_ms: int | None = None) -> None:
        """Users enter a cohort, now or at ``since_ms``."""
        since = time.time_ns() // 1_000_000 if since_ms is None else since_ms
        self._receive(cohort_id)
        for user_id in user_ids:
            self._members[cohort_id].setdefault(user_id, since)
            self._traits.setdefault(user_id, {})[self._names[cohort_id]] = True

    def leave(self, cohort_id: str, *user_ids: str) -> None:
        """Users leave a cohort, or were never in it: their trait is false."""
        self._receive(cohort_id)
        for user_id in user_ids:
            self._members[cohort_id].pop(user_id, None)
            self._traits.setdefault(user_id, {})[self._names[cohort_id]] = False

    def set_freshness(self, cohort_id: str, freshness: Freshness) -> None:
        """Set what :meth:`CohortReader.freshness` returns for a cohort."""
        self.add_cohort(cohort_id)
        self._freshness[cohort_id] = freshness

    def set_completeness(self, cohort_id: str, completeness: Completeness) -> None:
        """Set what :meth:`CohortReader.completeness` returns for a cohort."""
        self.add_cohort(cohort_id)
        self._completeness[cohort_id] = completeness

    def _receive(self, cohort_id: str) -> None:
        self.add_cohort(cohort_id)
        now = time.time_ns() // 1_000_000
        self._freshness[cohort_id] = Freshness(FreshnessState.FRESH, now)


class InMemoryCohortReader(CohortReader):
    """A :class:`CohortReader` of :class:`InMemoryCohorts`; takes the same options."""

    def __init__(self, cohorts: InMemoryCohorts | None = None, **options: Any) -> None:
        self.cohorts_in_memory = cohorts or InMemoryCohorts()
        super().__init__(self.cohorts_in_memory, **_OPTIONS | options)

    def _connect(
        self, client: Any, app: str, prefix: str, clock: Callable[[], float]
    ) -> InMemoryLookups:
        return InMemoryLookups(client)


class InMemoryAsyncCohortReader(AsyncCohortReader):
    """An :class:`AsyncCohortReader` of :class:`InMemoryCohorts`; takes the same options."""

    def __init__(self, cohorts: InMemoryCohorts | None = None, **options: Any) -> None:
        self.cohorts_in_memory = cohorts or InMemoryCohorts()
        super().__init__(self.cohorts_in_memory, **_OPTIONS | options)

    def _connect(
        self, client: Any, app: str, prefix: str, clock: Callable[[], float]
    ) -> InMemoryLookups:
        return InMemoryLookups(client)


# The breaker retries immediately, so that a test need not wait after it has set `is_available`.
_OPTIONS: dict[str, Any] = {"breaker_seconds": 1e-9}


class InMemoryLookups(Lookups):
    """Answers what :class:`Lookups` asks the store."""

    def __init__(self, cohorts: InMemoryCohorts) -> None:
        self._cohorts = cohorts

    def member_since(self, cohort_id: str, user_id: str) -> Steps[int | None]:
        (since,) = yield from self.since(cohort_id, [user_id])
        return since

    def since(self, cohort_id: str, user_ids: list[str]) -> Steps[list[int | None]]:
        yield from self._ask()
        members = self._cohorts._members.get(cohort_id, {})
        return [members.get(user_id) for user_id in user_ids]

    def traits(self, user_id: str) -> Steps[dict[str, bool]]:
        yield from self._ask()
        return dict(self._cohorts._traits.get(user_id, {}))

    def member_count(self, cohort_id: str) -> Steps[int]:
        yield from self._ask()
        return len(self._cohorts._members.get(cohort_id, {}))

    def members(self, cohort_id: str, position: tuple[int, int]) -> Steps[MembersPage]:
        yield from self._ask()
        return MembersPage(list(self._cohorts._members.get(cohort_id, {})), None)

    def freshness(self, cohort_id: str) -> Steps[Freshness]:
        yield from self._ask()
        return self._cohorts._freshness.get(cohort_id, Freshness(FreshnessState.NEVER))

    def completeness(self, cohort_id: str) -> Steps[Completeness]:
        yield from self._ask()
        return self._cohorts._completeness.get(cohort_id, Completeness())

    def exists(self, cohort_id: str) -> Steps[bool]:
        yield from self._ask()
        return cohort_id in self._cohorts._members

    def cohort_ids(self) -> Steps[list[str]]:
        yield from self._ask()
        return sorted(self._cohorts._members)

    def whats_missing(self) -> Steps[str | None]:
        yield from self._ask()
        return None if self._cohorts._members else "no cohort was added to InMemoryCohorts"

    def reload_partitions(self) -> Steps[bool]:
        yield from self._ask()
        return False

    def _ask(self) -> Steps[None]:
        if not self._cohorts.is_available:
            raise StoreUnavailable("InMemoryCohorts.is_available is False")
        yield from ()
