"""Questions about users and cohorts, answered from the store or from a cache."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import redis

from cohort_reader.keys import UNAVAILABLE, Keys, cohort_id_of, text

USERS_PER_COMMAND = 1000
# After the store could not be had, kept answers are given for this long without trying again.
PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Membership:
    """Whether a user is in a cohort; as a condition, true or false.

    Attributes:
        since_ms: since when the user is in; None where the user is not.
        age_seconds: how long ago the store said so; 0 where it was asked just now.
        stale: the store can't be had, and the answer is older than ``cache_seconds``.
    """

    since_ms: int | None
    age_seconds: float = 0.0
    stale: bool = False

    @property
    def member(self) -> bool:
        return self.since_ms is not None

    def __bool__(self) -> bool:
        return self.member


@dataclass(frozen=True, slots=True)
class Profile:
    """All that is known about a user.

    Attributes:
        traits: for each trait name, whether the user has it. Empty for a user never heard of.
        age_seconds, stale: as in :class:`Membership`.
    """

    traits: dict[str, bool]
    age_seconds: float = 0.0
    stale: bool = False

    @property
    def cohorts(self) -> set[str]:
        """The ids of the cohorts that the user is in."""
        return {cohort_id_of(trait) for trait, member in self.traits.items() if member}


class FreshnessState(StrEnum):
    """Whether a cohort still arrives."""

    FRESH = "fresh"
    LATE = "late"  # nothing came for longer than its cadence lets expect
    NEVER = "never"  # no users of it ever came in


@dataclass(frozen=True, slots=True)
class Freshness:
    """When a cohort arrived last, and when it should have. Tells silence from "no change".

    Attributes:
        state: as of now, by the store's clock.
        last_received_ms: when users of it came in last, changed or not; None for never.
        cadence_ms: time from one sync to the next, learned or set; None while it isn't known.
        late_after_ms: from when on it is late; None where that can't be told.
    """

    state: FreshnessState
    last_received_ms: int | None = None
    cadence_ms: int | None = None
    late_after_ms: int | None = None


class Answer(NamedTuple):
    """What the store said, how long ago, and whether that is too long."""

    value: Any
    age_seconds: float = 0.0
    stale: bool = False


class CohortReader:
    """Answers questions about users and cohorts. May be shared by threads.

    Without a cache, which is the default, every answer comes from the store. With one, an answer
    may be ``cache_seconds`` old. While the store can't be had, a kept answer may be older than
    that by ``stale_seconds``, and is marked ``stale``.

    Args:
        client: connects to the store; the reader never closes it.
        app: the app whose cohorts to read, as in the receiver's ``API_KEYS``.
        prefix: the receiver's ``KEY_PREFIX``.
        cache_entries: most answers to keep; 0 keeps none. The least recently used goes first.
            That a user is not in a cohort, or not known, is an answer too.
        cache_seconds: how long a kept answer is given without asking again.
        stale_seconds: how much longer while the store can't be had.
        clock: tells the seconds; for tests.

    Raises:
        ValueError: an argument makes no sense.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        app: str = "default",
        prefix: str = "cohorts",
        cache_entries: int = 0,
        cache_seconds: float = 0.0,
        stale_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if min(cache_entries, cache_seconds, stale_seconds) < 0:
            raise ValueError("cache_entries, cache_seconds and stale_seconds can't be negative")
        if bool(cache_entries) != bool(cache_seconds or stale_seconds):
            raise ValueError("a cache needs cache_entries, and cache_seconds or stale_seconds")
        self._client = client
        self._keys = Keys(client, app, prefix)
        self._cache = _Cache(cache_entries)
        self._cache_seconds = cache_seconds
        self._stale_seconds = stale_seconds
        self._clock = clock
        self._down_until = float("-inf")

    def is_member(self, user_id: str, cohort_id: str) -> bool:
        """Whether the user is in the cohort now. False for a user or cohort never heard of."""
        return self.membership(user_id, cohort_id).member

    def since(self, user_id: str, cohort_id: str) -> int | None:
        """Since when the user is in the cohort, in ms since the epoch; None if not in it."""
        return self.membership(user_id, cohort_id).since_ms

    def membership(self, user_id: str, cohort_id: str) -> Membership:
        """Whether and since when the user is in the cohort, and how old the answer is."""
        (answer,) = self._since(cohort_id, [user_id])
        return Membership(*answer)

    def is_member_many(self, user_ids: Iterable[str], cohort_id: str) -> dict[str, bool]:
        """For each user, whether the user is in the cohort now. One round trip in all."""
        users = list(dict.fromkeys(user_ids))
        answers = self._since(cohort_id, users)
        return {user: answer[0] is not None for user, answer in zip(users, answers, strict=True)}

    def memberships(self, user_ids: Iterable[str], cohort_id: str) -> dict[str, Membership]:
        """For each user, whether and since when the user is in the cohort. One round trip."""
        users = list(dict.fromkeys(user_ids))
        answers = self._since(cohort_id, users)
        return {user: Membership(*answer) for user, answer in zip(users, answers, strict=True)}

    def profile(self, user_id: str) -> Profile:
        """All traits of the user, and how old the answer is."""
        (answer,) = self._answers([user_id], lambda _: [self._traits(user_id)])
        return Profile(dict(answer.value), answer.age_seconds, answer.stale)

    def traits(self, user_id: str) -> dict[str, bool]:
        """For each trait name, whether the user has it. Empty for a user never heard of."""
        return self.profile(user_id).traits

    def cohorts(self, user_id: str) -> set[str]:
        """The ids of the cohorts that the user is in."""
        return self.profile(user_id).cohorts

    def member_count(self, cohort_id: str) -> int:
        """How many users are in the cohort now; 0 for one never heard of. Never cached."""
        with self._client.pipeline(transaction=False) as pipeline:
            for base in self._keys.bases():
                pipeline.zcard(_members(base, cohort_id))
            return sum(pipeline.execute())

    def members(self, cohort_id: str) -> Iterator[str]:
        """The users in the cohort, in no order, a thousand to a round trip. Never cached.

        Whoever is in it all the while is given. A user may be given twice.
        """
        for base in self._keys.bases():
            key = _members(base, cohort_id)
            for user_id, _ in self._client.zscan_iter(key, count=USERS_PER_COMMAND):
                yield text(user_id)

    def freshness(self, cohort_id: str) -> Freshness:
        """When the cohort arrived last, and whether that is long ago for it. Never cached."""
        key = f"{self._keys.base_of(cohort_id)}cohort:{cohort_id}:freshness"
        with self._client.pipeline(transaction=False) as pipeline:
            pipeline.time()
            pipeline.hmget(key, "last_received", "cadence", "late_after")
            (seconds, microseconds), fields = pipeline.execute()
        last, cadence, late = (None if field is None else int(field) for field in fields)
        now = seconds * 1000 + microseconds // 1000
        if last is None:
            return Freshness(FreshnessState.NEVER)
        is_late = late is not None and now > late
        state = FreshnessState.LATE if is_late else FreshnessState.FRESH
        return Freshness(state, last, cadence, late)

    def _answers(
        self, questions: Sequence[Any], ask: Callable[[list[Any]], list[Any]]
    ) -> list[Answer]:
        """The answer to each question: kept, asked for, or stale."""
        if not self._cache.entries:
            return [Answer(value) for value in ask(list(questions))]
        now = self._clock()
        found: dict[Any, Answer] = {}
        outdated: dict[Any, Answer] = {}
        for question in questions:
            kept = self._cache.get(question)
            if kept is None:
                continue
            age = now - kept.at
            if age <= self._cache_seconds:
                found[question] = Answer(kept.value, age)
            elif age <= self._cache_seconds + self._stale_seconds:
                outdated[question] = Answer(kept.value, age, stale=True)

        missing = [question for question in questions if question not in found]
        if not missing:
            return [found[question] for question in questions]
        can_wait = len(outdated) == len(missing)
        if can_wait and now < self._down_until:
            return [found.get(question) or outdated[question] for question in questions]
        try:
            values = ask(missing)
        except UNAVAILABLE:
            self._down_until = self._clock() + PAUSE_SECONDS
            if not can_wait:
                raise
            return [found.get(question) or outdated[question] for question in questions]
        for question, value in zip(missing, values, strict=True):
            # As of the question, not of the reply: what happened in between may not be in it.
            self._cache.put(question, _Kept(now, value))
            found[question] = Answer(value)
        return [found[question] for question in questions]

    def _since(self, cohort_id: str, user_ids: list[str]) -> list[Answer]:
        """Since when each user is in the cohort; the users are different ones."""
        return self._answers(
            [(cohort_id, user_id) for user_id in user_ids],
            lambda questions: self._scores(cohort_id, [user_id for _, user_id in questions]),
        )

    def _scores(self, cohort_id: str, user_ids: list[str]) -> list[int | None]:
        by_base: dict[str, list[str]] = {}
        for user_id in user_ids:
            by_base.setdefault(self._keys.base_of(user_id), []).append(user_id)
        parts = [
            (_members(base, cohort_id), users[start : start + USERS_PER_COMMAND])
            for base, users in by_base.items()
            for start in range(0, len(users), USERS_PER_COMMAND)
        ]
        if len(parts) == 1:
            replies: list[Any] = [self._client.zmscore(*parts[0])]
        else:
            with self._client.pipeline(transaction=False) as pipeline:
                for key, users in parts:
                    pipeline.zmscore(key, users)
                replies = pipeline.execute()
        scores = (None if score is None else int(score) for reply in replies for score in reply)
        if len(by_base) == 1:
            return list(scores)  # in the order that was asked for
        found = dict(zip((user for _, users in parts for user in users), scores, strict=True))
        return [found[user_id] for user_id in user_ids]

    def _traits(self, user_id: str) -> dict[str, bool]:
        fields: Any = self._client.hgetall(f"{self._keys.base_of(user_id)}user:{user_id}")
        return {text(trait): text(value) == "true" for trait, value in fields.items()}


class _Kept(NamedTuple):
    at: float
    value: Any


class _Cache:
    """The answers used last, up to a number of them."""

    def __init__(self, entries: int) -> None:
        self.entries = entries
        self._lock = threading.Lock()
        self._answers: OrderedDict[Hashable, _Kept] = OrderedDict()

    def get(self, question: Hashable) -> _Kept | None:
        with self._lock:
            answer = self._answers.get(question)
            if answer is not None:
                self._answers.move_to_end(question)
            return answer

    def put(self, question: Hashable, answer: _Kept) -> None:
        with self._lock:
            kept = self._answers.get(question)
            if kept is None or kept.at <= answer.at:
                self._answers[question] = answer
            self._answers.move_to_end(question)
            if len(self._answers) > self.entries:
                self._answers.popitem(last=False)


def _members(base: str, cohort_id: str) -> str:
    return f"{base}cohort:{cohort_id}:members"
