"""The store's atomic step, called directly: all that the benchmark imports of the service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.cohorts import Cohort, MembershipChange
from app.settings import Settings
from app.store import Store, connect, wait_for
from bench.requests import APP, TRAIT

Call = list[MembershipChange]


class AtomicStep:
    """Adds users to a cohort, on the store that the settings in ``environment`` name."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        settings = Settings.from_environ(environment)
        partitions = settings.store_partitions
        self._store = Store(connect(settings), partitions=partitions, wait=wait_for(settings))

    def connect(self) -> None:
        """Connect, so that no measured call has to."""
        self._store.check()

    def prepare(self, user_ids: Sequence[str]) -> Call:
        """The arguments of a call."""
        return [MembershipChange(Cohort.from_trait(TRAIT), True, list(user_ids))]

    def apply(self, call: Call) -> None:
        """Make the call."""
        self._store.memberships.apply(APP, call, source="identify")
