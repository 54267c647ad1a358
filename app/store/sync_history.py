"""The sync history: recent requests, and their totals by sync."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import redis

from app.cohorts import RequestRecord, Sync, user_hash
from app.store.connection.scripts import load_script
from app.store.errors import store_errors
from app.store.hold import Hold
from app.store.keys import Keys
from app.store.layout import Layout
from app.store.sync_batches import FAILURES, LEFT_OUT, PROBLEMS, SYNCS, SyncBatch, decode
from app.store.tuning import DEFAULT, Tuning

# How many failed requests of a sync are searched for details and unknown cohorts.
_SEARCHED = 5
_MS_PER_HOUR = 3600 * 1000
_UNKNOWN_CALLERS_KEPT_HOURS = 48


class HistoryLimits(NamedTuple):
    """What is kept for each app. With 0 requests, there is no history.

    ``left_out`` is how many ids of left-out users are kept for each sync.
    """

    requests: int = 100_000
    syncs: int = 10_000
    age_hours: int = 720
    left_out: int = 1000


class SyncPage(NamedTuple):
    """Some syncs, and the id after which the next page begins; None at the end."""

    syncs: list[Sync]
    after: int | None


class FirstProblems(NamedTuple):
    """Details of the first failed or partly rejected requests of a sync.

    Attributes:
        detail: of the first error; empty if none was recorded.
        unknown_cohorts: ids of unknown cohorts that they named.
    """

    detail: str
    unknown_cohorts: list[str]


class SyncHistory:
    """Adds to and reads the sync history. Raises StoreError.

    Args:
        now: the store's time, in seconds since the epoch.
    """

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        layout: Layout,
        hold: Hold,
        limits: HistoryLimits,
        now: Callable[[], float],
        tuning: Tuning = DEFAULT,
    ) -> None:
        self._now = now
        self._store_now = tuning.store_now
        self._client = client
        self._keys = keys
        self._layout = layout
        self._hold = hold
        self.is_kept = limits.requests > 0
        # If history has been turned off, what is stored is removed like anything too old.
        self._max_age_ms = limits.age_hours * _MS_PER_HOUR if self.is_kept else 0
        self._max_left_out = limits.left_out if self.is_kept else 0
        self._limits = (limits.requests, limits.syncs, self._max_age_ms)
        self._script = load_script(client, "history.lua")
        self._trim = load_script(client, "history_trim.lua")

    def add(self, app_id: str, batches: Sequence[SyncBatch], portion: str) -> None:
        """Add batches of :func:`split_batches`. A repeat with the same ``portion`` adds nothing."""
        args = [argument for batch in batches for argument in batch.arguments()]
        with store_errors():
            # This registers the app: trimming must find it even if nothing else is stored for it.
            self._layout.check_writable(app_id)
            self._script(
                keys=[self._keys.history(app_id, SYNCS)],
                args=[self._limits[0], portion, self._max_left_out, *args],
            )
        self.trim(app_id)

    def trim(self, app_id: str) -> bool:
        """Remove what exceeds the limits, up to fifty syncs of each index.

        Returns:
            Whether there may be more to remove.
        """
        with store_errors():
            now = int(self._store_now() * 1000) if self._store_now else ""
            if not self._max_left_out:
                self._forget_left_out(app_id)
            more = self._trim(keys=[self._keys.history(app_id, SYNCS)], args=[*self._limits, now])
        return bool(more)

    def syncs(
        self,
        app_id: str,
        *,
        cohort_id: str | None = None,
        problems: bool = False,
        before: int | None = None,
        limit: int = 50,
    ) -> SyncPage:
        """Syncs, latest first. A page may be short without being the last one.

        Args:
            cohort_id: only syncs of this cohort.
            problems: only syncs with failed requests or rejected users.
            before: only syncs with a smaller id.
        """
        keys = [self._keys.history(app_id, PROBLEMS)]
        if cohort_id is not None:
            keys = [self._keys.cohort_syncs(app_id, cohort_id)]
        elif not problems:
            keys = [self._keys.history(app_id, kind) for kind in (SYNCS, FAILURES)]
        ids = self._newest(keys, "+inf" if before is None else f"({before}", limit + 1)
        found = self._read(app_id, ids[:limit])
        if problems:
            found = [sync for sync in found if sync.has_problems]
        return SyncPage(found, ids[limit - 1] if len(ids) > limit else None)

    def sync(self, app_id: str, sync_id: int) -> Sync | None:
        """One sync; None if there is none with this id."""
        return next(iter(self._read(app_id, [sync_id])), None)

    def latest_ids(self, app_id: str, cohort_ids: Sequence[str]) -> dict[str, int]:
        """The id of the latest sync of each of some cohorts, by cohort id."""
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for cohort_id in cohort_ids:
                key = self._keys.cohort_syncs(app_id, cohort_id)
                # By score: for ranks, redis-py sends ZREVRANGE, which docs/acl/ forbids.
                pipeline.zrange(key, "+inf", "-inf", desc=True, byscore=True, offset=0, num=1)
            replies = pipeline.execute()
        return {one: int(ids[0]) for one, ids in zip(cohort_ids, replies, strict=True) if ids}

    def latest_of(self, app_id: str, cohort_ids: Sequence[str]) -> list[Sync]:
        """The latest sync of each of some cohorts; cohorts without one are left out."""
        return self._read(app_id, self.latest_ids(app_id, cohort_ids).values())

    def requests(
        self, app_id: str, sync_id: int, *, problems: bool = False, skip: int = 0, limit: int = 50
    ) -> list[RequestRecord]:
        """Requests of a sync in order: the clean ones, or those with ``problems``."""
        key = self._keys.sync(app_id, sync_id, "problems" if problems else "requests")
        with store_errors():
            rows: Any = self._client.lrange(key, skip, skip + limit - 1)
        return [decode(row) for row in rows]

    def left_out(self, app_id: str, sync_id: int) -> list[str]:
        """Stored ids of users whom a sync left out because they are not registered, sorted."""
        if not self._max_left_out:
            return []
        with store_errors():
            found: Any = self._client.hgetall(self._keys.sync(app_id, sync_id, LEFT_OUT))
        return sorted(user_id.decode() for user_id in found.values())

    def left_out_by_hash(self, app_id: str, hash_: str) -> str | None:
        """The id of a user who was left out, by :func:`app.cohorts.user_hash`."""
        if not self._max_left_out:
            return None
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for key in self._left_out_keys(app_id):
                pipeline.hget(key, hash_)
            found = next((one for one in pipeline.execute() if one), None)
        return found and found.decode()

    def erase(self, app_id: str, user_id: str) -> None:
        """Remove a user's id from all syncs that left the user out."""
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            self._hold.check_partition(app_id, self._keys.partition(app_id))
            for key in self._left_out_keys(app_id):
                pipeline.hdel(key, user_hash(user_id))
            pipeline.execute()

    def _left_out_keys(self, app_id: str) -> list[str]:
        """The keys with users left out: at most about a hundred."""
        index = self._keys.history(app_id, LEFT_OUT)
        found: Any = self._client.zrange(index, 0, -1)
        return [self._keys.sync(app_id, int(sync_id), LEFT_OUT) for sync_id in found]

    def _forget_left_out(self, app_id: str) -> None:
        """Remove all users left out: keeping them was turned off."""
        if keys := self._left_out_keys(app_id):
            with self._client.pipeline(transaction=False) as pipeline:
                for key in (*keys, self._keys.history(app_id, LEFT_OUT)):
                    pipeline.unlink(key)
                pipeline.execute()

    def first_details(self, app_id: str, syncs: Iterable[Sync]) -> dict[int, str]:
        """The detail of the first error of each of some syncs with failed requests, by sync id."""
        found = self.first_problems(app_id, syncs)
        return {sync_id: problems.detail for sync_id, problems in found.items()}

    def first_problems(self, app_id: str, syncs: Iterable[Sync]) -> dict[int, FirstProblems]:
        """The :class:`FirstProblems` of those syncs that have failed requests, by sync id."""
        failed = [sync.id for sync in syncs if sync.failed]
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for sync_id in failed:
                key = self._keys.sync(app_id, sync_id, "problems")
                pipeline.lrange(key, 0, _SEARCHED - 1)
            replies = pipeline.execute()
        return {
            sync_id: _first_problems(map(decode, rows))
            for sync_id, rows in zip(failed, replies, strict=True)
        }

    def count_unknown_callers(self, counts: Mapping[str, int]) -> None:
        """Count requests without a valid API key, or to a wrong path or method, by reason."""
        hour = self._hour()
        key = self._keys.unknown_callers()
        with store_errors():
            for reason, requests in counts.items():
                self._client.hincrby(key, f"{hour}:{reason}", requests)
            self._client.pexpire(key, _UNKNOWN_CALLERS_KEPT_HOURS * _MS_PER_HOUR)

    def unknown_callers(self, hours: int = 24) -> dict[str, int]:
        """The number of requests that belong to no app in the last hours, by reason.

        They had no valid API key, or a wrong path or method. This covers all apps.
        """
        now = self._hour()
        counts: Counter[str] = Counter()
        for name, requests in self._unknown_callers().items():
            hour, _, reason = name.partition(":")
            if now - hours < int(hour) <= now:
                counts[reason] += int(requests)
        return dict(counts)

    def forget_unknown_callers(self) -> None:
        """Remove old counts of requests that belong to no app.

        Also removes counts with a time in the future, left by a clock that was wrong.
        """
        now = self._hour()
        kept = range(now - _UNKNOWN_CALLERS_KEPT_HOURS + 1, now + 2)
        old = [name for name in self._unknown_callers() if int(name.partition(":")[0]) not in kept]
        if old:
            with store_errors():
                self._client.hdel(self._keys.unknown_callers(), *old)

    def _hour(self) -> int:
        """The hour since the epoch, by the store's clock: this process's may be wrong."""
        return int(self._now()) // 3600

    def _unknown_callers(self) -> dict[str, bytes]:
        with store_errors():
            rows: Any = self._client.hgetall(self._keys.unknown_callers())
        return {name.decode(): requests for name, requests in rows.items()}

    def _newest(self, keys: list[str], start: str, count: int) -> list[int]:
        """The greatest ids below ``start`` in any of some sorted sets."""
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.zrange(key, start, "-inf", desc=True, byscore=True, offset=0, num=count)
            found = {int(row) for rows in pipeline.execute() for row in rows}
        return sorted(found, reverse=True)[:count]

    def _read(self, app_id: str, sync_ids: Iterable[int]) -> list[Sync]:
        """The syncs with these ids; missing and outdated ones are left out."""
        sync_ids = list(sync_ids)
        if not sync_ids:
            return []
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for sync_id in sync_ids:
                pipeline.hgetall(self._keys.sync(app_id, sync_id))
                pipeline.llen(self._keys.sync(app_id, sync_id, "requests"))
                pipeline.llen(self._keys.sync(app_id, sync_id, "problems"))
            replies = iter(pipeline.execute())
        rows = zip(sync_ids, replies, replies, replies)  # noqa: B905
        oldest = time.time() * 1000 - self._max_age_ms
        return [sync for row in rows if row[1] if (sync := _sync(*row)).last_ms > oldest]


_SUMS = ("requests", "failed", "repeated", "accepted", "changed", "entered", "left", "rejected")
# By the prefix of stored fields, the attribute of Sync that holds their values by label.
_LABELLED = {"reason": "reasons", "failure": "failures", "source": "sources", "key": "keys"}


def _first_problems(records: Iterable[RequestRecord]) -> FirstProblems:
    found = list(records)
    detail = next((record.detail for record in found if record.detail), "")
    unknown = [record.unknown_cohort for record in found if record.unknown_cohort]
    return FirstProblems(detail, list(dict.fromkeys(unknown)))


def _sync(sync_id: int, fields: dict[bytes, bytes], kept: int, kept_problems: int) -> Sync:
    values = {name.decode(): value.decode() for name, value in fields.items()}
    sums: dict[str, Any] = {name: int(values.get(name, 0)) for name in _SUMS}
    sync = Sync(
        id=sync_id,
        cohort_id=values["cohort"],
        trait=values.get("trait", ""),
        began_ms=int(values["began"]),
        last_ms=int(values["last"]),
        took_ms=int(values.get("took", 0)) / 1000,
        slowest_ms=float(values.get("slowest", 0)),
        kept=kept,
        kept_problems=kept_problems,
        **sums,
    )
    for name, value in values.items():
        prefix, colon, label = name.partition(":")
        if colon and prefix in _LABELLED:
            getattr(sync, _LABELLED[prefix])[label] = int(value)
    return sync
