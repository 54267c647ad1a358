"""Requests on their way into the sync history, and the form in which it stores them."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import orjson

from app.cohorts import Rejection, RequestRecord, user_hash
from app.cohorts.sync import HASH_BYTES

# Limits of one script call: less than 2 ms of the store's time.
_REQUESTS_PER_CALL, _BATCHES_PER_CALL = 500, 50
# Maximum number of left-out users in a batch, and in a call.
MAX_LEFT_OUT = 2000
# Of requests in a batch that fail for the same reason, only the first ones are stored.
_FAILURES_STORED = 5
# A longer pause begins a new batch, as it begins a new sync.
_PAUSE_MS = 5 * 60 * 1000

# The indexes of the history: syncs formed by requests that name known cohorts, syncs formed by
# requests that name none (most of which failed), and all syncs with failed requests or rejected
# users.
SYNCS, FAILURES, PROBLEMS = "syncs", "failures", "problems"
# The index of syncs whose left-out users are kept.
LEFT_OUT = "left-out"


class SyncGroup(NamedTuple):
    """Requests of one group form a sync when they are close in time.

    Attributes:
        cohort_id: empty if the requests name no cohort or many.
        other: what requests that name no cohort have in common; empty if they name many.
    """

    app_id: str
    cohort_id: str
    other: str = ""

    @property
    def key(self) -> str:
        return self.cohort_id or f":{self.other}"


@dataclass
class SyncBatch:
    """Requests of one group to be added to the history in one step.

    ``now_ms`` is the store's time at which they are grouped.
    """

    group: SyncGroup
    trait: str = ""
    now_ms: int = 0
    first_ms: int = 0
    last_ms: int = 0
    slowest_ms: float = 0.0
    sums: Counter[str] = field(default_factory=Counter)
    clean: list[bytes] = field(default_factory=list)
    others: list[bytes] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    _failures: Counter[str] = field(default_factory=Counter)

    def has_room_for(self, record: RequestRecord) -> bool:
        """Whether the batch is not full, and the request close in time to the last one."""
        return self.size < _REQUESTS_PER_CALL and (
            not self.last_ms or record.at_ms - self.last_ms <= _PAUSE_MS
        )

    def add(self, record: RequestRecord, reasons: Mapping[str, int]) -> None:
        """Add a request; ``reasons`` count its rejected users."""
        self.first_ms = min(self.first_ms or record.at_ms, record.at_ms)
        self.last_ms = max(self.last_ms, record.at_ms)
        self.slowest_ms = max(self.slowest_ms, record.took_ms)
        self._add_sums(record, reasons)
        if record.is_clean:
            self.clean.append(encode(record))
            return
        if record.status >= 400:
            self._failures[record.reason] += 1
            if self._failures[record.reason] > _FAILURES_STORED:
                return
        self.others.append(encode(record))

    def leave_out(self, user_ids: Iterable[str]) -> None:
        """Add users who were left out, until there are ``MAX_LEFT_OUT``."""
        for user_id in user_ids:
            if len(self.left_out) >= MAX_LEFT_OUT:
                return
            self.left_out[user_hash(user_id)] = user_id

    def _add_sums(self, record: RequestRecord, reasons: Mapping[str, int]) -> None:
        sums = self.sums
        sums["requests"] += 1
        sums["accepted"] += record.accepted
        sums["changed"] += record.changed
        sums["entered"] += record.entered
        sums["left"] += record.left
        sums["took"] += round(record.took_ms * 1000)
        sums[f"source:{record.source}"] += 1
        sums[f"key:{record.key}"] += 1
        if record.repeated:
            sums["repeated"] += 1
        for reason, users in reasons.items():
            sums[f"reason:{reason}"] += users
        if record.is_clean:
            return
        sums["rejected"] += record.rejected
        if record.status >= 400:
            sums["failed"] += 1
            sums[f"failure:{record.reason}"] += 1

    @property
    def size(self) -> int:
        """The number of requests to store."""
        return len(self.clean) + len(self.others)

    def arguments(self) -> list[bytes | int]:
        """The batch as arguments of history.lua."""
        head = {
            "key": self.group.key,
            "cohort": self.group.cohort_id,
            "index": SYNCS if self.group.cohort_id or not self.group.other else FAILURES,
            "now": self.now_ms or self.last_ms,
            "first": self.first_ms,
            "last": self.last_ms,
            "slowest": self.slowest_ms,
            "set": {"trait": self.trait} if self.trait else {},
            # a list, as an empty JSON object is an array to Lua
            "left_out": list(chain.from_iterable(self.left_out.items())),
            "add": {name: value for name, value in self.sums.items() if value},
        }
        return [orjson.dumps(head), len(self.clean), len(self.others), *self.clean, *self.others]


def split_batches(batches: Iterable[SyncBatch]) -> Iterator[list[SyncBatch]]:
    """Split batches into portions for one script call each."""
    portion: list[SyncBatch] = []
    size = left_out = 0
    for batch in batches:
        if portion and (
            size + batch.size > _REQUESTS_PER_CALL
            or len(portion) == _BATCHES_PER_CALL
            or left_out + len(batch.left_out) > MAX_LEFT_OUT
        ):
            yield portion
            portion, size, left_out = [], 0, 0
        portion.append(batch)
        size += batch.size
        left_out += len(batch.left_out)
    if portion:
        yield portion


# Stands for users without a usable id in place of a hash.
_NO_USER = bytes(HASH_BYTES)

# Default values at the end of a record are not stored.
_DEFAULTS = list(RequestRecord._field_defaults.values())
_REJECTIONS = RequestRecord._fields.index("rejections")
_REQUIRED = len(RequestRecord._fields) - len(_DEFAULTS)


def encode(record: RequestRecord) -> bytes:
    """A record as a JSON array, without default values at its end."""
    values: list[Any] = list(record)
    if record.rejections:
        values[_REJECTIONS] = _by_reason(record.rejections)
    kept = len(values)
    while kept > _REQUIRED and values[kept - 1] == _DEFAULTS[kept - 1 - _REQUIRED]:
        kept -= 1
    return orjson.dumps(values[:kept])


def decode(row: bytes) -> RequestRecord:
    """The record that :func:`encode` was given; ignores values that a later version adds."""
    record = RequestRecord(*orjson.loads(row)[: len(RequestRecord._fields)])
    if record.rejections == ():  # not stored
        return record
    users = {reason: b64decode(text) for reason, text in dict(record.rejections).items()}
    return record._replace(
        rejections=tuple(
            Rejection("" if hash_ == _NO_USER else hash_.hex(), reason)
            for reason, hashes in users.items()
            for start in range(0, len(hashes), HASH_BYTES)
            for hash_ in [hashes[start : start + HASH_BYTES]]
        )
    )


def _by_reason(rejections: Iterable[Rejection]) -> dict[str, str]:
    """The users' concatenated hashes by reason, which take a third of the space of pairs."""
    users: dict[str, bytes] = {}
    for user, reason in rejections:
        users[reason] = users.get(reason, b"") + (bytes.fromhex(user) or _NO_USER)
    return {reason: b64encode(hashes).decode() for reason, hashes in users.items()}
