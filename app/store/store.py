"""The store: users' traits, cohorts' members and the change stream."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import redis

from app.cohorts import MembershipChange
from app.store.errors import StoreMisconfigured, translated
from app.store.keys import Keys

# Statements that one script call applies. A thousand new users take the store about 5 ms.
STATEMENTS_PER_CALL = 1000
# What a further cohort in one call costs, counted in users.
_GROUP_COST = 8

_MS_PER_HOUR = 3600 * 1000


@dataclass
class Applied:
    """What a request has done.

    Attributes:
        changed: users whose traits or memberships are different now.
        unknown: users who are not registered, and were left alone.
    """

    changed: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)


class Store:
    """All that the service asks of Redis, or Valkey. Raises StoreError where it can't be had."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        prefix: str = "cohorts",
        partitions: int = 1,
        changes_max_entries: int = 100_000,
        changes_max_age_hours: int = 168,
    ) -> None:
        self._client = client
        self.keys = Keys(prefix, partitions)
        self._limits = (changes_max_entries, changes_max_age_hours * _MS_PER_HOUR)
        self._apply = client.register_script((files("app.store") / "apply.lua").read_text())
        self._layout_checked = False

    def apply(
        self,
        app_id: str,
        changes: Sequence[MembershipChange],
        *,
        at_ms: int | None = None,
        known_only: bool = False,
    ) -> Applied:
        """Apply the changes of one request; may be repeated at will.

        Args:
            changes: each (user, cohort) at most once in all.
            at_ms: when the statements were true, in ms since the epoch; None for now. They are
                ignored for users about whom a newer statement was applied.
            known_only: apply only to registered users.

        Raises:
            StoreError: a part of the changes may have been applied; a repeat completes them.
        """
        applied = Applied()
        options = (int(known_only), "" if at_ms is None else at_ms, *self._limits)
        conflicts: list[bytes] = []
        with translated():
            self._check_layout()
            for partition, groups in self._calls(changes):
                changed, unknown, conflicting = self._apply(
                    keys=[self.keys.changes(app_id, partition)], args=[*options, *groups]
                )
                applied.changed.update(map(bytes.decode, changed))
                applied.unknown.update(map(bytes.decode, unknown))
                conflicts += conflicting
        if conflicts:
            raise StoreMisconfigured(
                f"{len(conflicts)} user keys hold something else than a hash: another program "
                "writes under this prefix."
            )
        return applied

    def _calls(self, changes: Sequence[MembershipChange]) -> Iterator[tuple[int, list[Any]]]:
        """Split changes into calls: the partition of each, and its groups as arguments.

        Calls are bounded so that none holds up the store's other clients for long.
        """
        pending: dict[int, tuple[int, list[Any]]] = {}
        for cohort, member, user_ids in changes:
            value = "true" if member else "false"
            for partition, users in self._by_partition(user_ids):
                start = 0
                while start < len(users):
                    used, groups = pending.pop(partition, (0, []))
                    room = STATEMENTS_PER_CALL - used - _GROUP_COST * bool(used)
                    if room <= 0:
                        yield partition, groups
                        continue
                    part = users[start : start + room]
                    groups += [*cohort, value, len(part), *part]
                    pending[partition] = used + _GROUP_COST * bool(used) + len(part), groups
                    start += len(part)
        for partition, (_, groups) in pending.items():
            yield partition, groups

    def _by_partition(self, user_ids: Sequence[str]) -> Iterable[tuple[int, Sequence[str]]]:
        if self.keys.partitions == 1:
            return [(0, user_ids)]
        split: dict[int, list[str]] = {}
        for user_id in user_ids:
            split.setdefault(self.keys.partition(user_id), []).append(user_id)
        return split.items()

    def _check_layout(self) -> None:
        """Refuse to work on data that was written with another number of partitions."""
        if self._layout_checked:
            return
        partitions = self.keys.partitions
        found = self._client.set(self.keys.layout(), partitions, nx=True, get=True)
        if found is not None and int(found) != partitions:
            raise StoreMisconfigured(
                f"STORE_PARTITIONS is {partitions}, but the stored data has {int(found)}."
            )
        self._layout_checked = True

    def traits(self, app_id: str, user_id: str) -> dict[str, bool]:
        """A user's traits by name; none for a user who was never heard of."""
        with translated():
            found: dict[Any, Any] = self._client.hgetall(self.keys.user(app_id, user_id))
        return {name.decode(): value == b"true" for name, value in found.items()}

    def register_users(self, app_id: str, user_ids: Iterable[str]) -> int:
        """Let users in under ``USER_POLICY=known``. Returns how many were new."""
        added = 0
        with translated():
            self._check_layout()
            for partition, users in self._by_partition(list(user_ids)):
                for start in range(0, len(users), STATEMENTS_PER_CALL):
                    part = users[start : start + STATEMENTS_PER_CALL]
                    added += self._client.sadd(self.keys.registered(app_id, partition), *part)
        return added

    def check(self) -> float:
        """Ask the store whether it works as set up. Returns the seconds that it took."""
        started = time.perf_counter()
        with translated():
            self._client.ping()
            self._check_layout()
        return time.perf_counter() - started
