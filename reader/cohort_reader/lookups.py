"""Queries of the store, as steps. Only the number of partitions is cached."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from redis import RedisCluster
from redis.asyncio import RedisCluster as AsyncRedisCluster

from cohort_reader.answers import (
    COMPLETENESS_FIELDS,
    Completeness,
    Freshness,
    completeness_of,
    freshness_at,
)
from cohort_reader.keys import Keys, prefix_for, text
from cohort_reader.steps import Steps

ITEMS_PER_COMMAND = 1000
# A store that was emptied may be filled again with another number of partitions.
LAYOUT_SECONDS = 60.0


class MembersPage(NamedTuple):
    """Some members of a cohort, and where to continue: partition and cursor; None at the end."""

    user_ids: list[str]
    position: tuple[int, int] | None


class Lookups:
    """Queries the store for one app."""

    def __init__(self, client: Any, app: str, prefix: str, clock: Callable[[], float]) -> None:
        self._client = client
        self._keys = Keys(client, app, prefix)
        self._clock = clock
        self._layout_until = float("-inf")

    def member_since(self, cohort_id: str, user_id: str) -> Steps[int | None]:
        """As :meth:`since`, for one user."""
        prefixes = self._current_prefixes() or (yield from self._prefixes())
        key = _members(prefix_for(user_id, prefixes), cohort_id)
        score = yield self._client.zscore(key, user_id)
        return None if score is None else int(score)

    def since(self, cohort_id: str, user_ids: list[str]) -> Steps[list[int | None]]:
        """When each user entered the cohort, in ms since the epoch; None if not in it."""
        prefixes = yield from self._prefixes()
        if len(prefixes) == 1 and len(user_ids) <= ITEMS_PER_COMMAND:
            scores = yield self._client.zmscore(_members(prefixes[0], cohort_id), user_ids)
            return [None if score is None else int(score) for score in scores]
        by_prefix: dict[str, list[str]] = {}
        for user_id in user_ids:
            by_prefix.setdefault(prefix_for(user_id, prefixes), []).append(user_id)
        commands = [
            (_members(prefix, cohort_id), users[start : start + ITEMS_PER_COMMAND])
            for prefix, users in by_prefix.items()
            for start in range(0, len(users), ITEMS_PER_COMMAND)
        ]
        if len(commands) == 1:
            replies = [(yield self._client.zmscore(*commands[0]))]
        else:
            pipeline = self._client.pipeline(transaction=False)
            for key, users in commands:
                pipeline.zmscore(key, users)
            replies = yield pipeline.execute()
        found = (None if score is None else int(score) for reply in replies for score in reply)
        asked = (user for _, users in commands for user in users)
        by_user = dict(zip(asked, found, strict=True))
        return [by_user[user_id] for user_id in user_ids]

    def traits(self, user_id: str) -> Steps[dict[str, bool]]:
        """The user's traits. Their names are interned, as many users have the same ones."""
        prefix = prefix_for(user_id, (yield from self._prefixes()))
        fields = yield self._client.hgetall(prefix + "user:" + user_id)
        return {sys.intern(text(trait)): text(value) == "true" for trait, value in fields.items()}

    def member_count(self, cohort_id: str) -> Steps[int]:
        """How many users are in the cohort."""
        prefixes = yield from self._prefixes()
        pipeline = self._client.pipeline(transaction=False)
        for prefix in prefixes:
            pipeline.zcard(_members(prefix, cohort_id))
        return sum((yield pipeline.execute()))

    def members(self, cohort_id: str, position: tuple[int, int]) -> Steps[MembersPage]:
        """About 1,000 members, from a position: (0, 0) at first."""
        partition, cursor = position
        prefixes = yield from self._prefixes()
        cursor, page = yield self._client.zscan(
            _members(prefixes[partition], cohort_id), cursor, count=ITEMS_PER_COMMAND
        )
        users = [text(user_id) for user_id, _ in page]
        if cursor:
            return MembersPage(users, (partition, cursor))
        following = partition + 1
        return MembersPage(users, (following, 0) if following < len(prefixes) else None)

    def freshness(self, cohort_id: str) -> Steps[Freshness]:
        """When the cohort was last received, and whether it is late by the clock of the store."""
        fields = yield from self._freshness_fields(
            cohort_id, "last_received", "cadence", "late_after"
        )
        now = yield from self._now_ms(cohort_id)
        return freshness_at(now, *(None if field is None else int(field) for field in fields))

    def completeness(self, cohort_id: str) -> Steps[Completeness]:
        """Whether the members are known to be right: none missing, none stale."""
        fields = yield from self._freshness_fields(cohort_id, *COMPLETENESS_FIELDS)
        return completeness_of([None if field is None else text(field) for field in fields])

    def exists(self, cohort_id: str) -> Steps[bool]:
        """Whether the cohort is in the store."""
        prefixes = yield from self._prefixes()
        pipeline = self._client.pipeline(transaction=False)
        for prefix in prefixes:
            pipeline.zscore(prefix + "cohorts", cohort_id)
        return any(score is not None for score in (yield pipeline.execute()))

    def cohort_ids(self) -> Steps[list[str]]:
        """The ids of all cohorts, sorted."""
        found: set[str] = set()
        for prefix in (yield from self._prefixes()):
            start = "-"
            while True:
                page = yield self._client.zrange(
                    prefix + "cohorts", start, "+", bylex=True, offset=0, num=ITEMS_PER_COMMAND
                )
                found.update(map(text, page))
                if len(page) < ITEMS_PER_COMMAND:
                    break
                start = "(" + text(page[-1])
        return sorted(found)

    def whats_missing(self) -> Steps[str | None]:
        """Why the store has nothing for the app; None if it has something."""
        if (yield from self._keys.load_partitions()) is None:
            return (
                f"the store has no {self._keys.layout}: wrong prefix, database or store, "
                "or nothing was received yet"
            )
        pipeline = self._client.pipeline(transaction=False)
        for prefix in (yield from self._prefixes()):
            pipeline.zcard(prefix + "cohorts")
        if not any((yield pipeline.execute())):
            return f"nothing was ever received for the app {self._keys.app!r}"
        return None

    def reload_partitions(self) -> Steps[bool]:
        """Read the number of partitions again. True if it has changed."""
        before = self._keys.known_prefixes
        yield from self._keys.load_partitions()
        return before != self._keys.known_prefixes

    def _current_prefixes(self) -> list[str]:
        """The prefixes, without a call to the store; [] if one is needed."""
        return self._keys.known_prefixes if self._clock() <= self._layout_until else []

    def _prefixes(self) -> Steps[list[str]]:
        if known := self._current_prefixes():
            return known
        now = self._clock()
        yield from self._keys.load_partitions()
        self._layout_until = now + LAYOUT_SECONDS
        return self._keys.known_prefixes or self._keys.assumed_prefixes()

    def _freshness_fields(self, cohort_id: str, *names: str) -> Steps[list[Any]]:
        prefix = prefix_for(cohort_id, (yield from self._prefixes()))
        fields: list[Any] = yield self._client.hmget(
            prefix + "cohort:" + cohort_id + ":freshness", names
        )
        return fields

    def _now_ms(self, cohort_id: str) -> Steps[int]:
        """The time on the node that holds the cohort's freshness."""
        options = {}
        if isinstance(self._client, (RedisCluster, AsyncRedisCluster)):
            prefix = prefix_for(cohort_id, (yield from self._prefixes()))
            options["target_nodes"] = self._client.get_node_from_key(prefix)
        reply = yield self._client.time(**options)
        if isinstance(reply, dict):  # by node
            (reply,) = reply.values()
        seconds, microseconds = reply
        return int(seconds) * 1000 + int(microseconds) // 1000


def _members(prefix: str, cohort_id: str) -> str:
    # Not an f-string, which would render a member of an enum by its name.
    return prefix + "cohort:" + cohort_id + ":members"
