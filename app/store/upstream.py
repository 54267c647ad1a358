"""What the service knows of Amplitude's own record, beyond the fields of each cohort.

However many processes there are, only one polls Amplitude's API for an app at a time, and only one
reconciles: the one with the lease. The command ``cohorts upstream`` polls without a lease.
docs/data-model.md describes the keys.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import orjson
import redis

from app.store.connection.scripts import load_script, register_fenced
from app.store.errors import StoreError, store_errors
from app.store.freshness import FreshnessStore
from app.store.keys import Keys

POLL, RECONCILE = "poll", "reconcile"
LEASE_SECONDS = 30.0
_KEPT_MS = 7 * 24 * 3600 * 1000
_REPORT_KEPT_MS = 24 * 3600 * 1000
_USERS_PER_CALL = 1000
# Another process may hold the lease by now.
_END_LEASE = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('UNLINK', KEYS[1]) end
return 0
"""
# Fenced, so that a report that arrives late does not replace a later one.
_SAVE_REPORT = "#!lua\nreturn redis.call('SET', KEYS[1], unpack(ARGV))"


class PollStatus(NamedTuple):
    """How the last polls of an app went. Times are in ms since the epoch.

    Attributes:
        polled_ms: the last successful one; None if there was none, or no poll at all, failed ones
            included, in the last week.
        failed_ms, failure: the last failed one, if it is later, and its reason.
        listed: cohorts that Amplitude lists.
        absent: cohorts that Amplitude syncs but that never arrived here: some of them, each with
            id, name, size, frequency, lastSuccess, lastFailure and targets.
        absent_total: how many there are.
        behind: cohorts here whose sync is overdue.
    """

    polled_ms: int | None = None
    failed_ms: int | None = None
    failure: str | None = None
    listed: int = 0
    absent: Sequence[Mapping[str, Any]] = ()
    absent_total: int = 0
    behind: int = 0


class Verdict(NamedTuple):
    """What follows from Amplitude's record of a cohort until a later poll says otherwise.

    Attributes:
        holds_ms: for how long it decides whether the cohort is late; 0 for no decision.
        behind_ms: since when the sync is overdue; None if it is not.
        differs: identifies the last sync if the counts differ; else None.
    """

    holds_ms: int = 0
    behind_ms: int | None = None
    differs: str | None = None


class UpstreamStore:
    """Keeps what polls and exports found. Raises StoreError.

    Args:
        now: the store's time, in seconds since the epoch.
    """

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        freshness: FreshnessStore,
        now: Callable[[], float],
    ) -> None:
        self._client = client
        self._keys = keys
        self._freshness = freshness
        self._now = now
        self._lease = load_script(client, "lease.lua")
        self._script = load_script(client, "upstream.lua")
        self._end_lease = register_fenced(client, _END_LEASE)
        self._save_report = register_fenced(client, _SAVE_REPORT)

    # Leases

    @contextmanager
    def lease(self, app_id: str, work: str) -> Iterator[bool]:
        """Hold a lease during the block, renewed by a thread; False if another process has it."""
        key, token = self._keys.upstream_lease(app_id, work), secrets.token_hex(8)
        if not self._renew(key, token):
            yield False
            return
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(LEASE_SECONDS / 3):
                try:
                    self._renew(key, token)
                except StoreError:
                    continue  # it may still be valid when the store is back

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield True
        finally:
            ended.set()
            with store_errors():
                self._end_lease(keys=[key], args=[token])

    def _renew(self, key: str, token: str) -> bool:
        with store_errors():
            return bool(self._lease(keys=[key], args=[token, int(LEASE_SECONDS * 1000)]))

    def take_turn(self, app_id: str, work: str, seconds: float) -> bool:
        """Claim work that only one process does, at most once in ``seconds``."""
        key = self._keys.upstream_lease(app_id, f"{work}-turn")
        with store_errors():
            return bool(self._lease(keys=[key], args=[secrets.token_hex(8), int(seconds * 1000)]))

    def end_turn(self, app_id: str, work: str) -> None:
        """Let the work be claimed again now."""
        with store_errors():
            self._client.unlink(self._keys.upstream_lease(app_id, f"{work}-turn"))

    def is_turn_taken(self, app_id: str, work: str, seconds: float) -> bool:
        """Whether :meth:`take_turn` would return False."""
        return self._is_held(self._keys.upstream_lease(app_id, f"{work}-turn"), seconds)

    def is_leased(self, app_id: str, work: str) -> bool:
        """Whether some process has the lease."""
        return self._is_held(self._keys.upstream_lease(app_id, work), LEASE_SECONDS)

    def _is_held(self, key: str, seconds: float) -> bool:
        """Whether a lease of this many seconds would be refused."""
        with store_errors():
            left_ms: Any = self._client.pttl(key)
        return bool(0 <= left_ms <= 2000 * seconds)  # as in lease.lua

    # Polls

    def note_poll(
        self,
        app_id: str,
        *,
        listed: int,
        absent: Sequence[Mapping[str, Any]],
        total: int,
        behind: int,
    ) -> None:
        """Record a successful poll."""
        found = orjson.dumps(list(absent))
        self._call(app_id, "polled", self._now_ms(), listed, total, found, behind, _KEPT_MS)

    def note_failure(self, app_id: str, reason: str) -> None:
        """Record a failed poll."""
        self._call(app_id, "failed", self._now_ms(), reason, _KEPT_MS)

    def poll_status(self, app_id: str) -> PollStatus:
        """How the last polls went."""
        with store_errors():
            found: Any = self._client.hgetall(self._keys.upstream(app_id))
        fields = {name.decode(): value for name, value in found.items()}
        return PollStatus(
            int(fields["polled"]) if "polled" in fields else None,
            int(fields["failed"]) if "failed" in fields else None,
            fields["failure"].decode() if "failure" in fields else None,
            int(fields.get("listed", 0)),
            orjson.loads(fields.get("absent", b"[]")),
            int(fields.get("total", 0)),
            int(fields.get("behind", 0)),
        )

    def judge(self, app_id: str, cohort_id: str, verdict: Verdict) -> None:
        """Store what follows from Amplitude's record of a cohort."""
        text = orjson.dumps(
            {"holds": verdict.holds_ms, "behind": verdict.behind_ms, "differs": verdict.differs}
        ).decode()
        self._freshness.call(app_id, "judge", [cohort_id], text)

    def differed(self, app_id: str, cohort_ids: Sequence[str]) -> list[str | None]:
        """``Verdict.differs`` of each cohort at the last poll."""
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for cohort_id in cohort_ids:
                pipeline.hget(self._keys.freshness(app_id, cohort_id), "count_differed")
            return [found and found.decode() for found in pipeline.execute()]

    # Exports

    def count_anonymous(self, app_id: str, cohort_id: str, anonymous: int, excluded: int) -> None:
        """Store how many users of an export are never members here.

        Args:
            anonymous: without a user id.
            excluded: suppressed, with an id that is not accepted, or listed twice.
        """
        self._freshness.call(app_id, "anonymous", [cohort_id], str(excluded), anonymous)

    def excluded(self, app_id: str, cohort_ids: Sequence[str]) -> list[int]:
        """``excluded`` of each cohort's last export, as given to :meth:`count_anonymous`."""
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for cohort_id in cohort_ids:
                pipeline.hget(self._keys.freshness(app_id, cohort_id), "excluded")
            return [int(found or 0) for found in pipeline.execute()]

    def spend_export(self, app_id: str, most: int) -> bool:
        """Count an export, unless there were ``most`` this month."""
        return bool(self._call(app_id, "spend", self._month(), most))

    def exports(self, app_id: str) -> int:
        """The exports of this month (in UTC)."""
        with store_errors():
            found: Any = self._client.hget(self._keys.upstream_exports(app_id), self._month())
        return int(found or 0)

    def not_accepted(
        self, app_id: str, user_ids: Sequence[str], *, known_only: bool
    ) -> tuple[set[str], set[str]]:
        """Which users are suppressed and, with ``known_only``, which others are not registered."""
        suppressed, unknown = set(), set()
        for partition, users in self._keys.by_partition(user_ids).items():
            for start in range(0, len(users), _USERS_PER_CALL):
                part = list(users[start : start + _USERS_PER_CALL])
                with store_errors(), self._client.pipeline(transaction=False) as pipeline:
                    pipeline.smismember(self._keys.suppressed(app_id, partition), part)
                    if known_only:
                        pipeline.smismember(self._keys.registered(app_id, partition), part)
                    erased, *registered = pipeline.execute()
                suppressed |= {user for user, found in zip(part, erased, strict=True) if found}
                for known in registered:
                    unknown |= {user for user, found in zip(part, known, strict=True) if not found}
        return suppressed, unknown - suppressed

    # Reports

    def save_report(self, app_id: str, cohort_id: str, report: Mapping[str, Any]) -> None:
        """Keep the report of a reconcile for a day: it names users."""
        key = self._keys.reconcile(app_id, cohort_id)
        with store_errors():
            self._save_report(keys=[key], args=[orjson.dumps(report), "PX", _REPORT_KEPT_MS])

    def report(self, app_id: str, cohort_id: str) -> dict[str, Any] | None:
        """The report of the last reconcile."""
        with store_errors():
            found: Any = self._client.get(self._keys.reconcile(app_id, cohort_id))
        return None if found is None else dict(orjson.loads(found))

    def _call(self, app_id: str, action: str, *args: Any) -> Any:
        stream = self._keys.changes(app_id, self._keys.partition(app_id))
        with store_errors():
            return self._script(keys=[stream], args=[action, *args])

    def _now_ms(self) -> int:
        return int(self._now() * 1000)

    def _month(self) -> str:
        return time.strftime("%Y-%m", time.gmtime(self._now()))
