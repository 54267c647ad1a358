"""The records of cohorts. Each partition has its share; this merges them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import orjson
import redis

from app.cohorts import CohortRecord, Status
from app.store.errors import store_errors
from app.store.keys import Keys

PAGE = 500
MAX_REMEMBERED = 10_000


class PartitionName(NamedTuple):
    """A cohort's trait name in one partition, and its earlier ones there.

    Compared as tuples, the greatest is the newest: that of the partition with most renames. The
    clocks of nodes may differ, so times only break ties.

    Attributes:
        renames: how many times the cohort was renamed.
        at_ms: time of the newest statement with this name.
    """

    renames: int
    at_ms: int
    trait: str
    earlier: list[str]
    is_deleting: bool = False


class Registry:
    """Reads what apply.lua records about each cohort. Raises StoreError."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        # Results of `trait`, by app and cohort id.
        self._traits: dict[tuple[str, str], str] = {}

    def find(self, app_id: str, cohort_id: str) -> CohortRecord | None:
        """One cohort; None if it is unknown."""
        return next(iter(self.records(app_id, [cohort_id])), None)

    def trait(self, app_id: str, cohort_id: str) -> str | None:
        """The current trait name of a cohort; None if it is unknown."""
        names = self.names(app_id, cohort_id)
        if not names:
            return None
        trait = max(names.values()).trait
        if len(self._traits) >= MAX_REMEMBERED:
            self._traits.clear()
        self._traits[app_id, cohort_id] = trait
        return trait

    def last_trait(self, app_id: str, cohort_id: str) -> str | None:
        """The last result of `trait`, without asking the store; it may be outdated."""
        return self._traits.get((app_id, cohort_id))

    def names(self, app_id: str, cohort_id: str) -> dict[int, PartitionName]:
        """The name of a cohort in each partition that knows it; the greatest is the newest."""
        partitions = range(self._keys.partitions)
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for partition in partitions:
                state = self._keys.cohort(app_id, partition, cohort_id, "state")
                pipeline.hmget(state, "renames", "named", "names", "trait", "deleting")
            shares: list[tuple[bytes | None, ...]] = pipeline.execute()
        found = {}
        for partition, share in zip(partitions, shares, strict=True):
            renames, at, names, trait, deleting = share
            if at and trait:
                earlier = [name["trait"] for name in orjson.loads(names or b"[]")]
                found[partition] = PartitionName(
                    int(renames or 0), int(at), trait.decode(), earlier, deleting is not None
                )
        return found

    def ids(self, app_id: str, *, after: str = "", limit: int = PAGE) -> list[str]:
        """Up to ``limit`` cohort ids after ``after``, sorted."""
        start = f"({after}" if after else "-"
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for partition in range(self._keys.partitions):
                key = self._keys.cohorts(app_id, partition)
                pipeline.zrange(key, start, "+", bylex=True, offset=0, num=limit)
            shares: list[list[bytes]] = pipeline.execute()
        merged = dict.fromkeys(heapq.merge(*shares))
        return [cohort_id.decode() for cohort_id in islice(merged, limit)]

    def page(self, app_id: str, *, after: str = "", limit: int = PAGE) -> list[CohortRecord]:
        """Up to ``limit`` cohorts with ids after ``after``, sorted by id."""
        return list(self.records(app_id, self.ids(app_id, after=after, limit=limit)))

    def all(self, app_id: str) -> Iterator[CohortRecord]:
        """All cohorts, sorted by id."""
        after = ""
        while records := self.page(app_id, after=after):
            yield from records
            after = records[-1].id

    def deleted_ms(self, app_id: str, cohort_ids: Sequence[str]) -> dict[str, float]:
        """When cohorts were deleted, by id, in ms; only those that have not arrived since."""
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for cohort_id in cohort_ids:
                partition = self._keys.partition(cohort_id)
                pipeline.zscore(self._keys.deleted(app_id, partition), cohort_id)
            times = pipeline.execute()
        return {one: at for one, at in zip(cohort_ids, times, strict=True) if at is not None}

    def records(self, app_id: str, cohort_ids: list[str]) -> Iterator[CohortRecord]:
        """The cohorts with these ids; unknown ones are left out."""
        partitions = range(self._keys.partitions)
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for cohort_id in cohort_ids:
                for partition in partitions:
                    pipeline.hgetall(self._keys.cohort(app_id, partition, cohort_id, "state"))
                    pipeline.zcard(self._keys.cohort(app_id, partition, cohort_id, "members"))
            replies = iter(pipeline.execute())
        for cohort_id in cohort_ids:
            shares = [(next(replies), next(replies)) for _ in partitions]
            known = [(state, members) for state, members in shares if b"trait" in state]
            if known:
                yield _merged(cohort_id, known)


def _merged(cohort_id: str, shares: Iterable[tuple[dict[bytes, bytes], int]]) -> CohortRecord:
    states = [state for state, _ in shares]
    newest = max(states, key=newness)
    record = CohortRecord(
        id=cohort_id,
        trait=newest[b"trait"].decode(),
        first_ms=min(int(state[b"first"]) for state in states),
        # Partitions that only know the name have no `last`.
        last_ms=max(
            (int(state[b"last"]) for state in states if b"last" in state),
            default=min(int(state[b"first"]) for state in states),
        ),
        members=sum(members for _, members in shares),
        entered=sum(int(state.get(b"entered", 0)) for state in states),
        left=sum(int(state.get(b"left", 0)) for state in states),
    )
    for name in chain.from_iterable(_names(state) for state in states):
        if name["trait"] != record.trait:
            until = record.earlier_names.get(name["trait"], 0)
            record.earlier_names[name["trait"]] = max(until, int(name["until"]))
    for state in states:
        for field, at in state.items():
            if field.startswith(b"source:"):
                source = field[len(b"source:") :].decode()
                record.sources[source] = max(record.sources.get(source, 0), int(at))
    if any(b"deleting" in state for state in states):
        record.status = Status.DELETING
    elif any(b"moving" in state or state[b"trait"] != newest[b"trait"] for state in states):
        record.status = Status.RENAMING
    return record


def newness(state: Mapping[bytes, bytes]) -> tuple[int, int]:
    """Sort key of partitions' records of a cohort: the greatest has the newest name."""
    return int(state.get(b"renames", 0)), int(state[b"named"])


def _names(state: dict[bytes, bytes]) -> list[dict[str, Any]]:
    names: list[dict[str, Any]] = orjson.loads(state.get(b"names", b"[]"))
    return names
