"""The names of all keys in the store. ``docs/data-model.md`` describes their contents.

All keys of a partition have the same hash tag, and so are in the same slot of a cluster.
Applications that read the store directly must not use private keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32


class Keys:
    """Builds key names for a prefix and a number of partitions."""

    def __init__(self, prefix: str, partitions: int) -> None:
        self.prefix = prefix
        self.partitions = partitions

    def tag(self, app_id: str, partition: int) -> str:
        """The hash tag of a partition; with a single one, just the app id."""
        return app_id if self.partitions == 1 else f"{app_id}:{partition}"

    def partition(self, name: str) -> int:
        """The partition of a user, or the home partition of a cohort."""
        return crc32(name.encode()) % self.partitions

    def by_partition(self, names: Sequence[str]) -> dict[int, Sequence[str]]:
        """Names of users or cohorts grouped by :meth:`partition`."""
        if self.partitions == 1:
            return {0: names} if names else {}
        groups: dict[int, list[str]] = {}
        for name in names:
            groups.setdefault(self.partition(name), []).append(name)
        return dict[int, Sequence[str]](groups)

    def partition_of(self, name: bytes) -> int:
        """As :meth:`partition`, for a name in UTF-8."""
        return crc32(name) % self.partitions

    def base(self, app_id: str, partition: int) -> str:
        return f"{self.prefix}:{{{self.tag(app_id, partition)}}}:"

    def user(self, app_id: str, user_id: str) -> str:
        return f"{self.base(app_id, self.partition(user_id))}user:{user_id}"

    def changes(self, app_id: str, partition: int) -> str:
        return f"{self.base(app_id, partition)}changes"

    def last_change(self, app_id: str, partition: int) -> str:
        """Id of the newest entry of the change stream. Private."""
        return f"{self.changes(app_id, partition)}:last"

    def cohort(self, app_id: str, partition: int, cohort_id: str, part: str) -> str:
        """One part of a partition's share of a cohort.

        ``members`` is documented. Private: ``left``, a sorted set of the users whose trait is
        false, by the time of the statement; ``seen``, a sorted set of members who were reported as
        members again, by the time of that statement, covering at most the last day, and
        ``seen-before``, the same for the day before that; ``state``, a hash with names, counts,
        times and work in progress; ``confirmed``, the set of users whom an open resync keeps, and
        ``confirmed-of``, that resync's id; ``lease``, of the process working on a rename or
        deletion; ``resync``, in the home partition, the record of a resync (hash), and
        ``resync-lease``.
        """
        return f"{self.base(app_id, partition)}cohort:{cohort_id}:{part}"

    def freshness(self, app_id: str, cohort_id: str) -> str:
        """A cohort's freshness (hash), in its home partition."""
        return self.cohort(app_id, self.partition(cohort_id), cohort_id, "freshness")

    def due(self, app_id: str, partition: int) -> str:
        """Sorted set of a home partition's cohorts, by the time they become late. Private."""
        return f"{self.base(app_id, partition)}due"

    def completeness(self, app_id: str, partition: int, what: str) -> str:
        """Sorted set of a home partition's cohorts in a state, or with a reason. Private.

        The states and reasons are those of completeness. The score is when it began, in ms since
        the epoch.
        """
        return f"{self.base(app_id, partition)}completeness:{what}"

    def transitions(self, app_id: str, partition: int) -> str:
        """Stream: each change of a cohort's completeness, once. Private."""
        return f"{self.base(app_id, partition)}transitions"

    def notified(self, app_id: str, partition: int) -> str:
        """Hash: what the last notifications were about. Private.

        ``notified:late`` is the set of cohorts that were reported as late.
        """
        return f"{self.base(app_id, partition)}notified"

    def notifier_lease(self, app_id: str) -> str:
        """Exists while a process sends an app's notifications. Private."""
        return f"{self.base(app_id, self.partition(app_id))}notifier-lease"

    def mark(self, app_id: str, partition: int) -> str:
        """Hash: identifies the data of a partition (app/store/losses.py). Private."""
        return f"{self.base(app_id, partition)}mark"

    def loss(self, app_id: str, partition: int) -> str:
        """Hash: the last loss of the app's data. Private."""
        return f"{self.base(app_id, partition)}loss"

    def deleted(self, app_id: str, partition: int) -> str:
        """Sorted set of a home partition's deleted cohorts, by the time of deletion. Private."""
        return f"{self.base(app_id, partition)}deleted"

    def cohorts(self, app_id: str, partition: int) -> str:
        """Sorted set of the ids of all cohorts."""
        return f"{self.base(app_id, partition)}cohorts"

    def jobs(self, app_id: str, partition: int) -> str:
        """Set of the ids of cohorts with unfinished background work. Private."""
        return f"{self.base(app_id, partition)}jobs"

    def resyncs(self, app_id: str, partition: int) -> str:
        """Sorted set of a home partition's cohorts with an unfinished resync, by the time at which
        the background work looks at it. Private."""
        return f"{self.base(app_id, partition)}resyncs"

    def message(self, app_id: str, partition: int, message: str) -> str:
        """Exists for a day if a part of a message was applied. Private."""
        return f"{self.base(app_id, partition)}message:{message}"

    def looked_through(self, app_id: str, partition: int) -> str:
        """Exists for 50 s after a process looked for old data in a partition. Private."""
        return f"{self.base(app_id, partition)}looked-through"

    def registered(self, app_id: str, partition: int) -> str:
        """Set of the users that ``USER_POLICY=known`` accepts. Private."""
        return f"{self.base(app_id, partition)}registered"

    def suppressed(self, app_id: str, partition: int) -> str:
        """Set of the users who were erased and have been skipped since. Private."""
        return f"{self.base(app_id, partition)}suppressed"

    def history(self, app_id: str, kind: str) -> str:
        """A key in the partition that holds an app's sync history. Private.

        Four are sorted sets of sync ids. ``syncs``: those formed by requests that name known
        cohorts; ``failures``: those formed by requests that name none, most of which failed;
        ``problems``: those of either kind with failed requests or rejected users; ``left-out``:
        those whose left-out users are kept.
        """
        return f"{self.base(app_id, self.partition(app_id))}{kind}"

    def failed_requests(self, app_id: str) -> str:
        """Sorted set of failed requests that may be retried, by their last failure. Private."""
        return self.history(app_id, "failed-requests")

    def cohort_syncs(self, app_id: str, cohort_id: str) -> str:
        """Sorted set of the ids of one cohort's syncs. Private."""
        return self.history(app_id, f"cohort:{cohort_id}:syncs")

    def sync(self, app_id: str, sync_id: int, part: str = "") -> str:
        """A sync's totals (hash), or a part of it. Private.

        ``requests`` and ``problems`` are lists of requests as JSON arrays; ``left-out`` is a hash:
        the ids of users who were left out, by their hash.
        """
        return self.history(app_id, f"sync:{sync_id}") + (f":{part}" if part else "")

    def sizes(self, app_id: str, cohort_id: str) -> str:
        """A cohort's sizes over time, packed, in its home partition. Private."""
        return self.cohort(app_id, self.partition(cohort_id), cohort_id, "sizes")

    def upstream(self, app_id: str) -> str:
        """Hash: how the last polls of Amplitude's API went, for one app. Private."""
        return self.history(app_id, "upstream")

    def upstream_exports(self, app_id: str) -> str:
        """Hash: number of exports from Amplitude by month, for one app. Private."""
        return self.history(app_id, "upstream-exports")

    def upstream_lease(self, app_id: str, work: str) -> str:
        """The lease of a process that calls Amplitude's API, or the pause after it. Private."""
        return self.history(app_id, f"upstream-lease:{work}")

    def reconcile(self, app_id: str, cohort_id: str) -> str:
        """The report of a cohort's last reconcile, as JSON, in its home partition. Private."""
        return self.cohort(app_id, self.partition(cohort_id), cohort_id, "reconcile")

    def unknown_callers(self) -> str:
        """Hash: number of requests without a valid key, or to a wrong path or method, by hour and
        reason. Private."""
        return f"{self.prefix}:unknown-callers"

    def session_secret(self) -> str:
        """The secret that signs dashboard sessions. Private."""
        return f"{self.prefix}:session-secret"

    def ended_session(self, session_id: str) -> str:
        """Exists for a session that has ended. Private."""
        return f"{self.prefix}:session:{session_id}:ended"

    def layout(self) -> str:
        """The number of partitions of the stored data."""
        return f"{self.prefix}:layout"

    def apps(self) -> str:
        """Set of all app ids with stored data. Private."""
        return f"{self.prefix}:apps"

    def api_keys(self) -> str:
        """Hash of the API keys created with the CLI: digests, expiry, revocation. Private."""
        return f"{self.prefix}:keys"

    def api_keys_used(self) -> str:
        """Sorted set of API key ids, by the time of their last use. Private."""
        return f"{self.prefix}:keys:used"

    def audit(self) -> str:
        """List of admin actions, as JSON without user ids or keys. Private."""
        return f"{self.prefix}:audit"

    def hold(self) -> str:
        """Exists while writes are on hold (app/store/hold.py). Private."""
        return f"{self.prefix}:hold"

    def partition_hold(self, app_id: str, partition: int) -> str:
        """As :meth:`hold`, for the scripts that write to one partition. Private."""
        return f"{self.base(app_id, partition)}hold"

    def rates(self) -> str:
        """Prefix of the rate limiter's counters. Private."""
        return f"{self.prefix}:rates"
