"""Look up users and cohorts, in the store or in a cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import redis

from cohort_reader.cache import Cache, CachedAnswer
from cohort_reader.keys import UNAVAILABLE_ERRORS, Keys, cohort_id_from_trait, text

USERS_PER_COMMAND = 1000
# While the store is unavailable, it is tried again this often.
RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Membership:
    """Whether a user is in a cohort. Its truth value is ``is_member``.

    Attributes:
        since_ms: since when the user is a member; None if the user isn't.
        age_seconds: the age of the answer; 0 if it comes from the store.
        stale: the store is unavailable and the answer older than ``cache_seconds``.
    """

    since_ms: int | None
    age_seconds: float = 0.0
    stale: bool = False

    @property
    def is_member(self) -> bool:
        return self.since_ms is not None

    def __bool__(self) -> bool:
        return self.is_member


@dataclass(frozen=True, slots=True)
class Profile:
    """The traits of a user.

    Attributes:
        traits: whether the user has each trait, by trait name. Empty for an unknown user.
        age_seconds, stale: as in :class:`Membership`.
    """

    traits: dict[str, bool]
    age_seconds: float = 0.0
    stale: bool = False

    @property
    def cohorts(self) -> set[str]:
        """The ids of the cohorts that the user is in."""
        return {cohort_id_from_trait(trait) for trait, member in self.traits.items() if member}


class FreshnessState(StrEnum):
    """Whether a cohort is still being received."""

    FRESH = "fresh"
    LATE = "late"  # nothing received for longer than its cadence allows
    NEVER = "never"  # no users of it received yet


@dataclass(frozen=True, slots=True)
class Freshness:
    """When a cohort was last received, and when it was due. Distinguishes silence from "no change".

    Attributes:
        state: as of now, by the store's clock.
        last_received_ms: when users of it were last received, changed or not; None if never.
        cadence_ms: time between syncs, learned or set; None if unknown.
        late_after_ms: when it becomes late; None if unknown.
    """

    state: FreshnessState
    last_received_ms: int | None = None
    cadence_ms: int | None = None
    late_after_ms: int | None = None


class Answer(NamedTuple):
    """A value from the store or the cache, its age, and whether it is stale."""

    value: Any
    age_seconds: float = 0.0
    stale: bool = False


class CohortReader:
    """Looks up users and cohorts. Thread-safe.

    Without a cache, which is the default, every answer comes from the store. With one, an answer
    may be up to ``cache_seconds`` old. While the store is unavailable, it may be older than that by
    up to ``stale_seconds`` and is marked ``stale``.

    Args:
        client: connects to the store; the reader never closes it.
        app: the app whose cohorts to read, as in the receiver's ``API_KEYS``.
        prefix: the receiver's ``KEY_PREFIX``.
        cache_entries: how many answers to cache, "not a member" included; 0 for no cache. The least
            recently used is evicted first.
        cache_seconds: how long a cached answer is used.
        stale_seconds: how much longer while the store is unavailable.
        clock: returns seconds; for tests.

    Raises:
        ValueError: an argument is invalid.
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
        self._cache = Cache(cache_entries)
        self._cache_seconds = cache_seconds
        self._stale_seconds = stale_seconds
        self._clock = clock
        self._retry_at = float("-inf")

    def is_member(self, user_id: str, cohort_id: str) -> bool:
        """Whether the user is in the cohort. False for an unknown user or cohort."""
        return self.membership(user_id, cohort_id).is_member

    def member_since(self, user_id: str, cohort_id: str) -> int | None:
        """Since when the user is in the cohort, in ms since the epoch; None if not in it."""
        return self.membership(user_id, cohort_id).since_ms

    def membership(self, user_id: str, cohort_id: str) -> Membership:
        """Whether and since when the user is in the cohort, and the age of the answer."""
        (answer,) = self._since(cohort_id, [user_id])
        return Membership(*answer)

    def are_members(self, user_ids: Iterable[str], cohort_id: str) -> dict[str, bool]:
        """Like :meth:`is_member` for many users, by user id, in one round trip."""
        users = list(dict.fromkeys(user_ids))
        answers = self._since(cohort_id, users)
        return {user: answer[0] is not None for user, answer in zip(users, answers, strict=True)}

    def memberships(self, user_ids: Iterable[str], cohort_id: str) -> dict[str, Membership]:
        """Like :meth:`membership` for many users, by user id, in one round trip."""
        users = list(dict.fromkeys(user_ids))
        answers = self._since(cohort_id, users)
        return {user: Membership(*answer) for user, answer in zip(users, answers, strict=True)}

    def profile(self, user_id: str) -> Profile:
        """All traits of the user, and the age of the answer."""
        (answer,) = self._answers([user_id], lambda _: [self._traits(user_id)])
        return Profile(dict(answer.value), answer.age_seconds, answer.stale)

    def traits(self, user_id: str) -> dict[str, bool]:
        """Whether the user has each trait, by trait name. Empty for an unknown user."""
        return self.profile(user_id).traits

    def cohorts(self, user_id: str) -> set[str]:
        """The ids of the cohorts that the user is in."""
        return self.profile(user_id).cohorts

    def member_count(self, cohort_id: str) -> int:
        """How many users are in the cohort; 0 for an unknown one. Never cached."""
        with self._client.pipeline(transaction=False) as pipeline:
            for prefix in self._keys.partition_prefixes():
                pipeline.zcard(_members_key(prefix, cohort_id))
            return sum(pipeline.execute())

    def members(self, cohort_id: str) -> Iterator[str]:
        """Iterate over the users in the cohort, unordered, about 1,000 per round trip.

        Never cached. Users who are members throughout the iteration are returned; a user may be
        returned more than once.
        """
        for prefix in self._keys.partition_prefixes():
            key = _members_key(prefix, cohort_id)
            for user_id, _ in self._client.zscan_iter(key, count=USERS_PER_COMMAND):
                yield text(user_id)

    def freshness(self, cohort_id: str) -> Freshness:
        """When the cohort was last received, and whether it is late. Never cached."""
        key = f"{self._keys.prefix_for(cohort_id)}cohort:{cohort_id}:freshness"
        with self._client.pipeline(transaction=False) as pipeline:
            pipeline.time()
            pipeline.hmget(key, "last_received", "cadence", "late_after")
            (seconds, microseconds), fields = pipeline.execute()
        last, cadence, late_after = (None if field is None else int(field) for field in fields)
        now = seconds * 1000 + microseconds // 1000
        if last is None:
            return Freshness(FreshnessState.NEVER)
        is_late = late_after is not None and now > late_after
        state = FreshnessState.LATE if is_late else FreshnessState.FRESH
        return Freshness(state, last, cadence, late_after)

    def _answers(
        self, questions: Sequence[Any], ask: Callable[[list[Any]], list[Any]]
    ) -> list[Answer]:
        """Answer each question from the cache or by ``ask``; if that fails, from stale answers."""
        if not self._cache.max_entries:
            return [Answer(value) for value in ask(list(questions))]
        now = self._clock()
        answers, stale = self._cached(questions, now)
        missing = [question for question in questions if question not in answers]
        if not missing:
            return [answers[question] for question in questions]
        can_use_stale = len(stale) == len(missing)
        if not (can_use_stale and now < self._retry_at):
            try:
                values = ask(missing)
            except UNAVAILABLE_ERRORS:
                self._retry_at = self._clock() + RETRY_SECONDS
                if not can_use_stale:
                    raise
            else:
                for question, value in zip(missing, values, strict=True):
                    # Dated when asked, as the value may have changed before the reply arrived.
                    self._cache.put(question, CachedAnswer(now, value))
                    answers[question] = Answer(value)
                return [answers[question] for question in questions]
        return [answers.get(question) or stale[question] for question in questions]

    def _cached(
        self, questions: Sequence[Any], now: float
    ) -> tuple[dict[Any, Answer], dict[Any, Answer]]:
        """The cached answers by question: those that are current, and those that are stale."""
        current: dict[Any, Answer] = {}
        stale: dict[Any, Answer] = {}
        for question in questions:
            cached = self._cache.get(question)
            if cached is None:
                continue
            age = now - cached.asked_at
            if age <= self._cache_seconds:
                current[question] = Answer(cached.value, age)
            elif age <= self._cache_seconds + self._stale_seconds:
                stale[question] = Answer(cached.value, age, stale=True)
        return current, stale

    def _since(self, cohort_id: str, user_ids: list[str]) -> list[Answer]:
        """Since when each user is in the cohort. ``user_ids`` must be distinct."""
        return self._answers(
            [(cohort_id, user_id) for user_id in user_ids],
            lambda questions: self._scores(cohort_id, [user_id for _, user_id in questions]),
        )

    def _scores(self, cohort_id: str, user_ids: list[str]) -> list[int | None]:
        by_prefix: dict[str, list[str]] = {}
        for user_id in user_ids:
            by_prefix.setdefault(self._keys.prefix_for(user_id), []).append(user_id)
        commands = [
            (_members_key(prefix, cohort_id), users[start : start + USERS_PER_COMMAND])
            for prefix, users in by_prefix.items()
            for start in range(0, len(users), USERS_PER_COMMAND)
        ]
        if len(commands) == 1:
            replies: list[Any] = [self._client.zmscore(*commands[0])]
        else:
            with self._client.pipeline(transaction=False) as pipeline:
                for key, users in commands:
                    pipeline.zmscore(key, users)
                replies = pipeline.execute()
        scores = (None if score is None else int(score) for reply in replies for score in reply)
        if len(by_prefix) == 1:
            return list(scores)  # already in the order of user_ids
        by_user = dict(zip((user for _, users in commands for user in users), scores, strict=True))
        return [by_user[user_id] for user_id in user_ids]

    def _traits(self, user_id: str) -> dict[str, bool]:
        fields: Any = self._client.hgetall(f"{self._keys.prefix_for(user_id)}user:{user_id}")
        return {text(trait): text(value) == "true" for trait, value in fields.items()}


def _members_key(prefix: str, cohort_id: str) -> str:
    return f"{prefix}cohort:{cohort_id}:members"
