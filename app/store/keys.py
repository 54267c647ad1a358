"""The names of all keys in the store. ``docs/data-model.md`` says what each one holds.

Everything about one user has the same tag, and so lies in the same slot of a cluster.
"""

from __future__ import annotations

from zlib import crc32


class Keys:
    """Builds key names for one prefix and number of partitions."""

    def __init__(self, prefix: str, partitions: int) -> None:
        self.prefix = prefix
        self.partitions = partitions

    def tag(self, app_id: str, partition: int) -> str:
        """The hash tag of a partition: the app id alone where there is only one."""
        return app_id if self.partitions == 1 else f"{app_id}:{partition}"

    def partition(self, user_id: str) -> int:
        """The partition that holds everything about a user."""
        return crc32(user_id.encode()) % self.partitions

    def base(self, app_id: str, partition: int) -> str:
        return f"{self.prefix}:{{{self.tag(app_id, partition)}}}:"

    def user(self, app_id: str, user_id: str) -> str:
        return f"{self.base(app_id, self.partition(user_id))}user:{user_id}"

    def members(self, app_id: str, partition: int, cohort_id: str) -> str:
        return f"{self.base(app_id, partition)}cohort:{cohort_id}:members"

    def changes(self, app_id: str, partition: int) -> str:
        return f"{self.base(app_id, partition)}changes"

    def registered(self, app_id: str, partition: int) -> str:
        """Set of the users that ``USER_POLICY=known`` lets in. Private."""
        return f"{self.base(app_id, partition)}registered"

    def layout(self) -> str:
        """The number of partitions that the data was written with. Private."""
        return f"{self.prefix}:layout"

    def rates(self) -> str:
        """Prefix of the rate limiter's counters. Private."""
        return f"{self.prefix}:rates"
