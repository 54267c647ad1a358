"""The façade of the store: one attribute for each part of it."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any, NamedTuple

import redis

from app.cohorts import CompletenessState, FreshnessState, IncompleteReason
from app.store.api_keys import ApiKeys
from app.store.audit_trail import AuditTrail
from app.store.change_stream import ChangeStream
from app.store.cohort_list import CohortList
from app.store.completeness import CompletenessStore
from app.store.connection.calls import NO_WAIT, Wait
from app.store.connection.sentinel import follow_primary
from app.store.deletion import Deletions
from app.store.erasure import Erasure
from app.store.errors import UNAVAILABLE, StoreFull, StoreReadOnly, store_errors
from app.store.failed_requests import FailedRequests
from app.store.freshness import FreshnessStore
from app.store.hold import Hold
from app.store.jobs import Jobs
from app.store.keys import Keys
from app.store.layout import Layout
from app.store.lookups import Lookups
from app.store.losses import Loss, Losses
from app.store.maintenance.check import Checker
from app.store.memberships import Memberships
from app.store.news import News
from app.store.registered_users import RegisteredUsers
from app.store.registry import Registry
from app.store.replication import Replication
from app.store.resyncs import Resyncs
from app.store.retention import Retention
from app.store.server_info import ServerInfo
from app.store.sessions import SessionStore
from app.store.size_history import SizeHistory
from app.store.sync_history import HistoryLimits, SyncHistory
from app.store.tuning import DEFAULT, Tuning
from app.store.upstream import UpstreamStore

# Readiness probes count freshness every few seconds, so the number of apps is limited.
_APPS_COUNTED = 100

_MS_PER_HOUR = 3600 * 1000


class Availability(NamedTuple):
    """What a check of the store found.

    Attributes:
        seconds: how long it took.
        refuses_writes: the reason if the store can only be read; else None.
    """

    seconds: float
    refuses_writes: str | None


class Store:
    """Everything that the service keeps in Redis or Valkey. Raises StoreError."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        prefix: str = "cohorts",
        partitions: int = 1,
        changes_max_entries: int = 100_000,
        changes_max_age_hours: int = 168,
        history: HistoryLimits = HistoryLimits(),  # noqa: B008
        wait: Wait = NO_WAIT,
        known_only: bool = False,
        tuning: Tuning = DEFAULT,
    ) -> None:
        self._client = client
        self._store_now = tuning.store_now or self._ask_time
        self._apps: list[str] | None = None
        self.keys = keys = Keys(prefix, partitions)
        self.hold = Hold(client, keys)
        self.layout = Layout(client, keys, self.hold, tuning)
        self.registry = Registry(client, keys)
        self.freshness = FreshnessStore(client, keys, self._introduce, tuning)
        self.completeness = CompletenessStore(client, keys, self.freshness)
        self.replication = Replication(client, keys, wait)
        self.losses = Losses(client, keys, self.freshness, self.replication)
        deletions = Deletions(client, keys, changes_max_entries)
        self.memberships = Memberships(
            client,
            keys,
            self.layout,
            self.registry,
            self.freshness,
            deletions,
            stream_limits=(changes_max_entries, changes_max_age_hours * _MS_PER_HOUR),
            wait=wait,
            tuning=tuning,
        )
        self.registered_users = RegisteredUsers(client, keys, self.layout)
        self.lookups = Lookups(client, keys)
        self.cohort_list = CohortList(client, keys, self.registry, tuning)
        self.change_stream = ChangeStream(client, keys, tuning)
        self.sync_history = SyncHistory(
            client, keys, self.layout, self.hold, history, self.now, tuning
        )
        self.failed_requests = FailedRequests(client, keys, self.layout)
        self.size_history = SizeHistory(client, keys, tuning)
        self.retention = Retention(
            client, keys, changes_max_age_hours * _MS_PER_HOUR, self.sync_history
        )
        self.jobs = Jobs(client, keys, self.apps, deletions, self.memberships.spread_name, tuning)
        self.erasure = Erasure(client, keys, self.size_history, self.sync_history)
        self.resyncs = Resyncs(
            client,
            keys,
            self.layout,
            self.registry,
            self.memberships,
            self.freshness,
            self.size_history,
            known_only=known_only,
            completeness=self.completeness,
            failed_requests=self.failed_requests,
            losses=self.losses,
        )
        self.upstream = UpstreamStore(client, keys, self.freshness, self.now)
        self.news = News(client, keys)
        self.checker = Checker(client, keys, self.memberships.spread_name, self._introduce)
        self.api_keys = ApiKeys(client, keys, self.now)
        self.sessions = SessionStore(client, keys)
        self.audit_trail = AuditTrail(client, keys)
        self.server_info = ServerInfo(client)

    def _introduce(self, app_id: str, cohort_id: str, partitions: Collection[int]) -> bool:
        return self.memberships.introduce(app_id, cohort_id, partitions)

    def now(self) -> float:
        """The store's time, in seconds since the epoch."""
        return self._store_now()

    def _ask_time(self) -> float:
        with store_errors():
            seconds, microseconds = self._client.time()
        return int(seconds) + int(microseconds) / 1e6

    def apps(self) -> list[str]:
        """The ids of all apps with stored data.

        While the node with the list is unavailable, those that were read last: the work on their
        data may need other nodes only.
        """
        try:
            with store_errors():
                known: set[Any] = self._client.smembers(self.keys.apps())
        except UNAVAILABLE:
            if self._apps is None:
                raise
        else:
            self._apps = sorted(app_id.decode() for app_id in known)
        return list(self._apps)

    def freshness_counts(self) -> dict[FreshnessState, int]:
        """The number of fresh, late and never received cohorts, of the first hundred apps."""
        return self.freshness.counts(self.apps()[:_APPS_COUNTED])

    def completeness_counts(
        self,
    ) -> tuple[dict[CompletenessState, int], dict[IncompleteReason, int]]:
        """The number of cohorts by state and by open reason, of the first hundred apps."""
        return self.completeness.counts(self.apps()[:_APPS_COUNTED])

    def unacknowledged_losses(self) -> list[Loss]:
        """The losses of the first hundred apps that no administrator has acknowledged."""
        losses = self.losses.of(self.apps()[:_APPS_COUNTED])
        return [loss for loss in losses if not loss.acknowledged]

    def longest_late_ms(self) -> float:
        """How long the most overdue cohort of the first hundred apps has been late."""
        return self.freshness.longest_late_ms(self.apps()[:_APPS_COUNTED])

    def follow_primary(self) -> None:
        """Ask the Sentinels, if there are any, which server is the primary now."""
        follow_primary(self._client)

    def check(self) -> Availability:
        """Check that the store is available and configured as it should be.

        A store that refuses writes (full, read-only) is available: reads and deletions still work.
        """
        started, refuses_writes = time.perf_counter(), None
        with store_errors():
            self._client.ping()
        try:
            self.layout.check_writable()
        except (StoreFull, StoreReadOnly) as error:
            self.layout.check_readable()
            refuses_writes = error.reason
        return Availability(time.perf_counter() - started, refuses_writes)

    def check_readable(self) -> None:
        """Check that the stored data is laid out as configured, at most once a second."""
        self.layout.check_readable()
