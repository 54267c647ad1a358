"""Detect that the store lost data: it is empty, or went back to an earlier state of itself.

Each partition has a mark: an identity, and a position that observers advance. An observer, outside
the store, remembers both. docs/decisions/store-loss.md has the reasons.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator
from enum import StrEnum
from typing import Any, NamedTuple

import redis

from app.store.connection.calls import Call
from app.store.connection.scripts import call_partitions, load_script
from app.store.errors import store_errors
from app.store.freshness import FreshnessStore
from app.store.keys import Keys
from app.store.replication import Replication
from app.store.words import known

# Cohorts in one step: about 3 ms of the store's time.
COHORTS_PER_STEP = 100
LEASE_MS = 10_000


class Partition(NamedTuple):
    """A partition of an app's data."""

    app_id: str
    number: int


class Mark(NamedTuple):
    """What an observer remembers of a partition.

    Attributes:
        position: how far the mark was advanced.
        token: identifies the observer that advanced it there.
    """

    identity: str
    position: int
    token: str


class LossKind(StrEnum):
    """What happened to a store."""

    LOST = "lost"  # it is empty, or holds other data
    SET_BACK = "set_back"  # it is an earlier state of itself


class Loss(NamedTuple):
    """A loss of an app's data in at least one partition.

    Attributes:
        at_ms: when it was last found, in whichever partition. Nothing that was confirmed until
            then is certain.
        acknowledged: an administrator knows of it.
        since_ms: when it was first found; 0 counts as ``at_ms``.
    """

    app_id: str
    kind: LossKind
    at_ms: int
    acknowledged: bool
    since_ms: int = 0

    @property
    def found_ms(self) -> int:
        """When it was first found, which identifies it."""
        return self.since_ms or self.at_ms


class _Record(NamedTuple):
    """The record of a loss in one partition."""

    partition: Partition
    kind: bytes | None
    at: bytes | None
    acknowledged: bytes | None
    examined: bytes | None
    done: bytes | None
    since: bytes | None


class Losses:
    """Finds losses, marks the cohorts concerned, and keeps the records. Raises StoreError."""

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        freshness: FreshnessStore,
        replication: Replication,
    ) -> None:
        self._client = client
        self._keys = keys
        self._freshness = freshness
        self._replication = replication
        self._mark = load_script(client, "mark.lua")
        self._record = load_script(client, "loss.lua")
        self._lease = load_script(client, "lease.lua")

    def partitions(self, app_ids: Collection[str]) -> list[Partition]:
        """All partitions of some apps."""
        return [Partition(app, n) for app in app_ids for n in range(self._keys.partitions)]

    def compare(
        self,
        partition: Partition,
        mark: Mark | None,
        newest: tuple[int, int] | None,
        token: str,
        *,
        advance: bool,
        confirmations: int | None = None,
    ) -> tuple[LossKind | None, Mark | None]:
        """Compare a partition with what is remembered of it, and record a loss.

        Args:
            newest: the newest entry of the change stream that was acknowledged; None if unknown.
            token: the observer's.
            advance: whether to advance the mark.
            confirmations: the acknowledged count of calls that changed who is confirmed in resyncs;
                None if unknown.

        Returns:
            The loss that this call found, if any; and what to remember from now on, None if the
            partition has no data yet.
        """
        known = mark or ("", "", "")
        entry = "{}-{}".format(*newest) if newest else ""
        what = "advance" if advance else ""
        confirmed = "" if confirmations is None else confirmations
        args = [*known, entry, token, what, secrets.token_hex(8), confirmed]
        call = Call(self._stream(partition), args)
        with store_errors():
            ((found, identity, *position),) = call_partitions(self._mark, [call])
            if found == b"empty":
                return None, None
            loss = None if found == b"same" else LossKind(found.decode())
            # Without a loss, remember only what replicas have: a failover may lose a position
            # without losing an acknowledged write.
            if position and (loss or self._replication.has_reached(*partition)):
                mark = Mark(identity.decode(), position[0], token)
        return loss, mark

    def of(self, app_ids: Collection[str]) -> list[Loss]:
        """The last loss of each app that had one in the last 90 days."""
        losses: dict[str, Loss] = {}
        for record in self._records(app_ids):
            kind = known(LossKind, record.kind)
            if record.at and kind:
                app_id, at_ms = record.partition.app_id, int(record.at)
                last = losses.get(app_id)
                if last is None or at_ms > last.at_ms:
                    acknowledged, since_ms = bool(record.acknowledged), int(record.since or 0)
                    losses[app_id] = Loss(app_id, kind, at_ms, acknowledged, since_ms)
                elif at_ms == last.at_ms and record.acknowledged:
                    losses[app_id] = last._replace(acknowledged=True)
        return list(losses.values())

    def spread(self, loss: Loss) -> None:
        """Record an app's loss in all its partitions, so that it also marks later cohorts."""
        with store_errors():
            # The list of apps may have been lost as well.
            self._client.sadd(self._keys.apps(), loss.app_id)
        self._call(loss.app_id, "spread", loss.at_ms, loss.kind, loss.found_ms)
        if loss.acknowledged:
            self._call(loss.app_id, "acknowledge")

    def unfinished(self, app_ids: Collection[str]) -> list[Loss]:
        """Losses after which not all existing cohorts have been marked yet."""
        last = {loss.app_id: loss for loss in self.of(app_ids)}
        apps = {
            record.partition.app_id
            for record in self._records(list(last))
            if not record.done or int(record.at or 0) != last[record.partition.app_id].at_ms
        }
        return [last[app_id] for app_id in sorted(apps)]

    def lease(self, app_id: str, token: str) -> bool:
        """Acquire or renew the right to mark an app's cohorts."""
        key = f"{self._keys.base(app_id, 0)}loss:lease"
        with store_errors():
            return bool(self._lease(keys=[key], args=[token, LEASE_MS]))

    def mark_cohorts(self, loss: Loss) -> Iterator[int]:
        """Mark the cohorts that exist after a loss; yields how many in each step.

        An interrupted run can be repeated, and continues where it left off.
        """
        self.spread(loss)
        for record in self._records([loss.app_id]):
            if record.done or record.at is None:
                continue
            partition, after = record.partition, (record.examined or b"").decode()
            while cohort_ids := self._cohorts(partition, after):
                self._freshness.call(loss.app_id, "known", cohort_ids)
                self._freshness.call(loss.app_id, "loss", cohort_ids)
                after = cohort_ids[-1]
                self._examined(partition, loss, after)
                yield len(cohort_ids)
            self._examined(partition, loss, "")

    def acknowledge(self, app_ids: Collection[str]) -> list[Loss]:
        """Acknowledge losses; cohorts stay incomplete. Returns the newly acknowledged losses."""
        found = [loss for loss in self.of(app_ids) if not loss.acknowledged]
        for loss in found:
            self.spread(loss)
            self._call(loss.app_id, "acknowledge")
        return found

    def forgive(self, app_ids: Collection[str]) -> Iterator[int]:
        """Forget intended losses, so that cohorts are no longer incomplete because of them.

        Yields how many cohorts each step has cleared.
        """
        for app_id in app_ids:
            self._call(app_id, "forget")
            for partition in self.partitions([app_id]):
                for kind in LossKind:
                    key = self._keys.completeness(*partition, f"store_{kind}")
                    before: list[str] = []
                    while (cohort_ids := self._first(key)) and cohort_ids != before:
                        self._freshness.call(app_id, "forgive", cohort_ids)
                        yield len(cohort_ids)
                        before = cohort_ids

    def _records(self, app_ids: Collection[str]) -> list[_Record]:
        partitions = self.partitions(app_ids)
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for partition in partitions:
                pipeline.hmget(self._keys.loss(*partition), *_Record._fields[1:])
            rows: list[Any] = pipeline.execute()
        return [_Record(place, *row) for place, row in zip(partitions, rows, strict=True)]

    def _first(self, key: str) -> list[str]:
        with store_errors():
            found: Any = self._client.zrange(key, 0, COHORTS_PER_STEP - 1)
        return [cohort_id.decode() for cohort_id in found]

    def _cohorts(self, partition: Partition, after: str) -> list[str]:
        """The ids of the next cohorts in one partition."""
        key = self._keys.cohorts(*partition)
        start = f"({after}" if after else "-"
        with store_errors():
            found: Any = self._client.zrange(
                key, start, "+", bylex=True, offset=0, num=COHORTS_PER_STEP
            )
        return [cohort_id.decode() for cohort_id in found]

    def _examined(self, partition: Partition, loss: Loss, cohort_id: str) -> None:
        call = Call(self._stream(partition), ["examined", loss.at_ms, cohort_id])
        with store_errors():
            call_partitions(self._record, [call])

    def _call(self, app_id: str, action: str, *args: int | str) -> None:
        calls = [
            Call(self._stream(partition), [action, *args])
            for partition in self.partitions([app_id])
        ]
        with store_errors():
            call_partitions(self._record, calls)

    def _stream(self, partition: Partition) -> str:
        return self._keys.changes(*partition)
