"""The names of all keys in the store. ``docs/data-model.md`` says what each one holds.

Everything about one user has the same tag, and so lies in the same slot of a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32


class Keys:
    """Builds key names for one prefix and number of partitions."""

    def __init__(self, prefix: str, partitions: int) -> None:
        self.prefix = prefix
        self.partitions = partitions

    def tag(self, app_id: str, partition: int) -> str:
        """The hash tag of a partition: the app id alone where there is only one."""
        return app_id if self.partitions == 1 else f"{app_id}:{partition}"

    def partition(self, name: str) -> int:
        """The partition that holds everything about a user; the home partition of a cohort."""
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
        """The same, of a name in UTF-8."""
        return crc32(name) % self.partitions

    def base(self, app_id: str, partition: int) -> str:
        return f"{self.prefix}:{{{self.tag(app_id, partition)}}}:"

    def user(self, app_id: str, user_id: str) -> str:
        return f"{self.base(app_id, self.partition(user_id))}user:{user_id}"

    def changes(self, app_id: str, partition: int) -> str:
        return f"{self.base(app_id, partition)}changes"

    def last_change(self, app_id: str, partition: int) -> str:
        """Id of the entry that was added last to the change stream. Private."""
        return f"{self.changes(app_id, partition)}:last"

    def cohort(self, app_id: str, partition: int, cohort_id: str, part: str) -> str:
        """One part of what a partition keeps about a cohort.

        ``members`` is the contract's. Private are ``left`` (sorted set of users with the trait at
        false, by when that was said), ``seen`` (sorted set of members who were told again that
        they are in, by when), ``state`` (hash: names, counts, times, work in progress).
        """
        return f"{self.base(app_id, partition)}cohort:{cohort_id}:{part}"

    def freshness(self, app_id: str, cohort_id: str) -> str:
        """How fresh a cohort is (hash), in its home partition: the one that its id gives."""
        return self.cohort(app_id, self.partition(cohort_id), cohort_id, "freshness")

    def due(self, app_id: str, partition: int) -> str:
        """Sorted set of the cohorts at home in a partition, by when they will be late. Private."""
        return f"{self.base(app_id, partition)}due"

    def cohorts(self, app_id: str, partition: int) -> str:
        """Sorted set of the ids of all cohorts. Private."""
        return f"{self.base(app_id, partition)}cohorts"

    def jobs(self, app_id: str, partition: int) -> str:
        """Set of the ids of cohorts with background work to do. Private."""
        return f"{self.base(app_id, partition)}jobs"

    def registered(self, app_id: str, partition: int) -> str:
        """Set of the users that ``USER_POLICY=known`` lets in. Private."""
        return f"{self.base(app_id, partition)}registered"

    def suppressed(self, app_id: str, partition: int) -> str:
        """Set of the users who were erased for good. Private."""
        return f"{self.base(app_id, partition)}suppressed"

    def history(self, app_id: str, kind: str) -> str:
        """Part of an app's sync history; all of it is in the partition that the app id gives.

        Private. ``syncs``, ``failures`` and ``problems`` are sorted sets of syncs' ids: of those
        for cohorts, of failed requests that name none, and of all with something that went wrong.
        """
        return f"{self.base(app_id, self.partition(app_id))}{kind}"

    def cohort_syncs(self, app_id: str, cohort_id: str) -> str:
        """Sorted set of the ids of one cohort's syncs. Private."""
        return self.history(app_id, f"cohort:{cohort_id}:syncs")

    def sync(self, app_id: str, sync_id: int, part: str = "") -> str:
        """A hash: the sums over one sync. Private.

        Its parts ``requests`` and ``problems`` are lists of requests, as JSON arrays.
        """
        return self.history(app_id, f"sync:{sync_id}") + (f":{part}" if part else "")

    def sizes(self, app_id: str, cohort_id: str) -> str:
        """A cohort's size over time, packed, in the partition that its id gives. Private."""
        return self.cohort(app_id, self.partition(cohort_id), cohort_id, "sizes")

    def unknown_callers(self) -> str:
        """Hash: requests without a good key, by hour and reason. Private."""
        return f"{self.prefix}:unknown-callers"

    def session_secret(self) -> str:
        """What the dashboard's sessions are signed with. Private."""
        return f"{self.prefix}:session-secret"

    def ended_session(self, session_id: str) -> str:
        """There for a session that was ended. Private."""
        return f"{self.prefix}:session:{session_id}:ended"

    def layout(self) -> str:
        """The number of partitions that the data was written with. Private."""
        return f"{self.prefix}:layout"

    def apps(self) -> str:
        """Set of all app ids that have sent anything. Private."""
        return f"{self.prefix}:apps"

    def api_keys(self) -> str:
        """Hash of the API keys that were made by command: their digests and ends. Private."""
        return f"{self.prefix}:keys"

    def api_keys_used(self) -> str:
        """Sorted set of API keys' names, by when they were last used. Private."""
        return f"{self.prefix}:keys:used"

    def audit(self) -> str:
        """List of what operators have done, as JSON. Names no user and no key. Private."""
        return f"{self.prefix}:audit"

    def hold(self) -> str:
        """There while the store takes no writes (app/store/hold.py). Private."""
        return f"{self.prefix}:hold"

    def partition_hold(self, app_id: str, partition: int) -> str:
        """The same, for the scripts that write to one partition. Private."""
        return f"{self.base(app_id, partition)}hold"

    def rates(self) -> str:
        """Prefix of the rate limiter's counters. Private."""
        return f"{self.prefix}:rates"
