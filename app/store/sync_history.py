"""The sync history: what became of each request, and of the requests of each sync."""

from __future__ import annotations

import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson
import redis

from app.cohorts import Rejection, RequestRecord, Sync
from app.cohorts.sync import HASH_BYTES
from app.store.connection.scripts import load_script
from app.store.errors import translated
from app.store.hold import Hold
from app.store.keys import Keys

# Requests, and batches of them, that one script call takes: less than 2 ms of the store's time.
_REQUESTS_PER_CALL, _BATCHES_PER_CALL = 500, 50
# Requests of one sync, source and reason that fail at about the same time: so many are told apart.
_FAILURES_TOLD_APART = 5
# The first requests with problems of a sync that are looked at for what they say in detail.
_LOOKED_AT_FOR_DETAIL = 5
# A batch's requests are close in time, as a sync's are.
_PAUSE_MS = 5 * 60 * 1000

_MS_PER_HOUR = 3600 * 1000
# For how long requests without a good key are counted, in hours.
_UNKNOWN_KEPT = 48

SYNCS, FAILURES, PROBLEMS = "syncs", "failures", "problems"


class SyncGroup(NamedTuple):
    """What requests have in common that are one sync when they are close in time.

    Attributes:
        app_id: whose they are.
        cohort_id: empty for requests that name no cohort, or many.
        other: what they have in common instead: empty for many cohorts.
    """

    app_id: str
    cohort_id: str
    other: str = ""

    @property
    def key(self) -> str:
        return self.cohort_id or f":{self.other}"


@dataclass
class SyncBatch:
    """Requests of one group that are added together."""

    group: SyncGroup
    trait: str = ""
    first_ms: int = 0
    last_ms: int = 0
    slowest_ms: float = 0.0
    sums: Counter[str] = field(default_factory=Counter)
    clean: list[bytes] = field(default_factory=list)
    others: list[bytes] = field(default_factory=list)
    _told_apart: Counter[str] = field(default_factory=Counter)

    def takes(self, record: RequestRecord) -> bool:
        """Whether there is room, and a request is close enough in time to the ones before it."""
        return self.size < _REQUESTS_PER_CALL and (
            not self.last_ms or record.at_ms - self.last_ms <= _PAUSE_MS
        )

    def add(self, record: RequestRecord, reasons: Mapping[str, int]) -> None:
        """Add one request; ``reasons`` count the users who were left out."""
        self.first_ms = min(self.first_ms or record.at_ms, record.at_ms)
        self.last_ms = max(self.last_ms, record.at_ms)
        self.slowest_ms = max(self.slowest_ms, record.took_ms)
        sums = self.sums
        sums["requests"] += 1
        sums["accepted"] += record.accepted
        sums["changed"] += record.changed
        sums["entered"] += record.entered
        sums["left"] += record.left
        sums["took"] += round(record.took_ms * 1000)
        sums[f"way:{record.source}"] += 1  # the name of the stored field
        sums[f"key:{record.key}"] += 1
        if record.repeated:
            sums["repeated"] += 1
        if record.is_clean:
            self.clean.append(orjson.dumps(_trimmed(record)))
            return
        sums["rejected"] += record.rejected
        for reason, users in reasons.items():
            sums[f"reason:{reason}"] += users
        if record.status >= 400:
            sums["failed"] += 1
            sums[f"failure:{record.reason}"] += 1
            self._told_apart[record.reason] += 1
            if self._told_apart[record.reason] > _FAILURES_TOLD_APART:
                return
        self.others.append(orjson.dumps(_trimmed(record)))

    @property
    def size(self) -> int:
        """How many requests there are to keep."""
        return len(self.clean) + len(self.others)

    def arguments(self) -> list[bytes | int]:
        """What the script takes."""
        head = {
            "key": self.group.key,
            "cohort": self.group.cohort_id,
            "index": SYNCS if self.group.cohort_id or not self.group.other else FAILURES,
            "first": self.first_ms,
            "last": self.last_ms,
            "slowest": self.slowest_ms,
            "set": {"trait": self.trait} if self.trait else {},
            "add": {name: value for name, value in self.sums.items() if value},
        }
        return [orjson.dumps(head), len(self.clean), len(self.others), *self.clean, *self.others]


class HistoryLimits(NamedTuple):
    """What is kept of each app: no requests means no history at all."""

    requests: int = 100_000
    syncs: int = 10_000
    age_hours: int = 720


class SyncPage(NamedTuple):
    """Some syncs, and the id after which the next ones come; None at the end."""

    syncs: list[Sync]
    after: int | None


class SyncHistory:
    """Keeps and tells the sync history. Raises StoreError."""

    def __init__(self, client: redis.Redis, keys: Keys, limits: HistoryLimits) -> None:
        self._client = client
        self._keys = keys
        self.is_kept = limits.requests > 0
        # What was kept before history was turned off is too old at once.
        self._max_age_ms = limits.age_hours * _MS_PER_HOUR if self.is_kept else 0
        self._limits = (limits.requests, limits.syncs, self._max_age_ms)
        self._script = load_script(client, "history.lua")
        self._trim = load_script(client, "history_trim.lua")

    def add(self, app_id: str, batches: Sequence[SyncBatch], portion: str) -> None:
        """Add one of the portions of :func:`split_batches`; may be repeated with the same name."""
        args = [argument for batch in batches for argument in batch.arguments()]
        with translated():
            # The app may have sent nothing that was stored; then trimming would not know it.
            self._client.sadd(self._keys.apps(), app_id)
            Hold(self._client, self._keys).check()
            self._script(
                keys=[self._keys.history(app_id, SYNCS)], args=[self._limits[0], portion, *args]
            )
        self.trim(app_id)

    def trim(self, app_id: str) -> None:
        """Let go of what is too old or too much, up to fifty syncs of each kind at a time."""
        with translated():
            self._trim(keys=[self._keys.history(app_id, SYNCS)], args=self._limits)

    def syncs(
        self,
        app_id: str,
        *,
        cohort_id: str | None = None,
        problems: bool = False,
        before: int | None = None,
        limit: int = 50,
    ) -> SyncPage:
        """Syncs, the latest begun first. A page may be short and yet not be the last.

        Args:
            cohort_id: only those of this cohort.
            problems: only those with something that went wrong.
            before: only those with a smaller id.
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
        """One sync; None where it is not, or no longer, known."""
        return next(iter(self._read(app_id, [sync_id])), None)

    def requests(
        self, app_id: str, sync_id: int, *, problems: bool = False, skip: int = 0, limit: int = 50
    ) -> list[RequestRecord]:
        """Requests of a sync, in order: the clean ones, or those with ``problems``."""
        key = self._keys.sync(app_id, sync_id, "problems" if problems else "requests")
        with translated():
            rows: Any = self._client.lrange(key, skip, skip + limit - 1)
        return [_record(row) for row in rows]

    def first_details(self, app_id: str, syncs: Iterable[Sync]) -> dict[int, str]:
        """What the first requests that failed said in detail, by the sync's id, where they did."""
        failed = [sync.id for sync in syncs if sync.failed]
        with translated(), self._client.pipeline(transaction=False) as pipeline:
            for sync_id in failed:
                key = self._keys.sync(app_id, sync_id, "problems")
                pipeline.lrange(key, 0, _LOOKED_AT_FOR_DETAIL - 1)
            replies = pipeline.execute()
        details = {}
        for sync_id, rows in zip(failed, replies, strict=True):
            told = (record.detail for record in map(_record, rows) if record.detail)
            details[sync_id] = next(told, "")
        return details

    def count_unknown(self, counts: Mapping[str, int]) -> None:
        """Count requests without a good key, by reason."""
        hour = int(time.time()) // 3600
        key = self._keys.unknown_callers()
        with translated():
            for reason, requests in counts.items():
                self._client.hincrby(key, f"{hour}:{reason}", requests)
            self._client.expire(key, _UNKNOWN_KEPT * 3600)

    def unknown(self, hours: int = 24) -> dict[str, int]:
        """How many requests came without a good key in the last hours, by reason; of all apps."""
        key = self._keys.unknown_callers()
        now = int(time.time()) // 3600
        with translated():
            rows: Any = self._client.hgetall(key)
            counts: Counter[str] = Counter()
            old = []
            for name, requests in rows.items():
                hour, _, reason = name.decode().partition(":")
                if int(hour) > now - hours:
                    counts[reason] += int(requests)
                elif int(hour) <= now - _UNKNOWN_KEPT:
                    old.append(name)
            if old:
                self._client.hdel(key, *old)
        return dict(counts)

    def _newest(self, keys: list[str], start: str, count: int) -> list[int]:
        """The greatest ids below ``start``, in all of some sorted sets of ids."""
        with translated(), self._client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.zrange(key, start, "-inf", desc=True, byscore=True, offset=0, num=count)
            found = {int(row) for rows in pipeline.execute() for row in rows}
        return sorted(found, reverse=True)[:count]

    def _read(self, app_id: str, sync_ids: Iterable[int]) -> list[Sync]:
        """Those of some syncs that are there, and not too old."""
        sync_ids = list(sync_ids)
        if not sync_ids:
            return []
        with translated(), self._client.pipeline(transaction=False) as pipeline:
            for sync_id in sync_ids:
                pipeline.hgetall(self._keys.sync(app_id, sync_id))
                pipeline.llen(self._keys.sync(app_id, sync_id, "requests"))
                pipeline.llen(self._keys.sync(app_id, sync_id, "problems"))
            replies = iter(pipeline.execute())
        rows = zip(sync_ids, replies, replies, replies)  # noqa: B905
        oldest = time.time() * 1000 - self._max_age_ms
        return [sync for row in rows if row[1] if (sync := _sync(*row)).last_ms > oldest]


def split_batches(batches: Iterable[SyncBatch]) -> Iterator[list[SyncBatch]]:
    """Batches in the portions that one script call takes."""
    portion: list[SyncBatch] = []
    size = 0
    for batch in batches:
        if portion and (
            size + batch.size > _REQUESTS_PER_CALL or len(portion) == _BATCHES_PER_CALL
        ):
            yield portion
            portion, size = [], 0
        portion.append(batch)
        size += batch.size
    if portion:
        yield portion


# The values that may be left out at the end of a record, in their order.
_DEFAULTS = list(RequestRecord._field_defaults.values())
_NEEDED = len(RequestRecord._fields) - len(_DEFAULTS)


def _trimmed(record: RequestRecord) -> list[Any]:
    """A record's values, without those at the end that are as by default."""
    values: list[Any] = list(record)
    if record.rejections:
        values[-1] = _by_reason(record.rejections)
    kept = len(values)
    while kept > _NEEDED and values[kept - 1] == _DEFAULTS[kept - 1 - _NEEDED]:
        kept -= 1
    return values[:kept]


def _record(row: bytes) -> RequestRecord:
    record = RequestRecord(*orjson.loads(row))
    if not record.rejections:
        return record
    users = {reason: b64decode(text) for reason, text in dict(record.rejections).items()}
    return record._replace(
        rejections=tuple(
            Rejection(hashes[start : start + HASH_BYTES].hex(), reason)
            for reason, hashes in users.items()
            for start in range(0, len(hashes), HASH_BYTES)
        )
    )


def _by_reason(rejections: Iterable[Rejection]) -> dict[str, str]:
    """The users' hashes, one after the other, by reason: a third of what pairs would take."""
    users: dict[str, bytes] = {}
    for user, reason in rejections:
        users[reason] = users.get(reason, b"") + bytes.fromhex(user)
    return {reason: b64encode(hashes).decode() for reason, hashes in users.items()}


_SUMS = ("requests", "failed", "repeated", "accepted", "changed", "entered", "left", "rejected")
_LABELLED = {"reason": "reasons", "failure": "failures", "way": "sources", "key": "keys"}


def _sync(sync_id: int, fields: dict[bytes, bytes], kept: int, kept_problems: int) -> Sync:
    told = {name.decode(): value.decode() for name, value in fields.items()}
    sums: dict[str, Any] = {name: int(told.get(name, 0)) for name in _SUMS}
    sync = Sync(
        id=sync_id,
        cohort_id=told["cohort"],
        trait=told.get("trait", ""),
        began_ms=int(told["began"]),
        last_ms=int(told["last"]),
        took_ms=int(told.get("took", 0)) / 1000,
        slowest_ms=float(told.get("slowest", 0)),
        kept=kept,
        kept_problems=kept_problems,
        **sums,
    )
    for name, value in told.items():
        kind, colon, label = name.partition(":")
        if colon and kind in _LABELLED:
            getattr(sync, _LABELLED[kind])[label] = int(value)
    return sync
