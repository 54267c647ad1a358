"""Look up users and cohorts, in the store or in a cache."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from redis.exceptions import DataError, RedisError

from cohort_reader.answers import UNSET, Completeness, Freshness, Membership, Profile, Unset
from cohort_reader.breaker import Breaker, Limit
from cohort_reader.cache import Cache, CachedAnswer
from cohort_reader.errors import UNAVAILABLE_ERRORS, UnknownApp, UnknownCohort, describe
from cohort_reader.keys import check_client
from cohort_reader.lookups import Lookups
from cohort_reader.steps import Steps, run, run_async

log = logging.getLogger("cohort_reader")

T = TypeVar("T")

# How many calls of an AsyncCohortReader may wait for the store at the same time.
MAX_CONCURRENT_CALLS = 50
# How long strict=True remembers that a cohort exists.
KNOWN_SECONDS = 60.0
MAX_KNOWN = 10_000
# How often to log a warning while defaults are returned.
WARNING_SECONDS = 10.0


class Answer(NamedTuple):
    """A value from the store or the cache, its age, and whether it is stale."""

    value: Any
    age_seconds: float = 0.0
    stale: bool = False


class _ReaderCore:
    """What :class:`CohortReader` and :class:`AsyncCohortReader` share: all of the logic."""

    _is_async = False

    def __init__(
        self,
        client: Any,
        *,
        app: str = "default",
        prefix: str = "cohorts",
        strict: bool = False,
        cache_entries: int = 0,
        cache_seconds: float = 0.0,
        stale_seconds: float = 0.0,
        breaker_failures: int = 3,
        breaker_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if min(cache_entries, cache_seconds, stale_seconds) < 0:
            raise ValueError("cache_entries, cache_seconds and stale_seconds can't be negative")
        if bool(cache_entries) != bool(cache_seconds or stale_seconds):
            raise ValueError("a cache needs cache_entries, and cache_seconds or stale_seconds")
        if breaker_failures < 1 or breaker_seconds <= 0:
            raise ValueError("breaker_failures must be at least 1, and breaker_seconds positive")
        self._lookups = self._connect(client, app, prefix, clock)
        self._strict = strict
        self._cache = Cache(cache_entries)
        self._cache_seconds = cache_seconds
        self._stale_seconds = stale_seconds
        self._clock = clock
        self._breaker = Breaker(breaker_failures, breaker_seconds, self._new_limit(client))
        self._known: dict[str | None, float] = {}
        self._warned_at = float("-inf")

    def _connect(self, client: Any, app: str, prefix: str, clock: Callable[[], float]) -> Lookups:
        check_client(client, type(self).__name__, is_async=self._is_async)
        return Lookups(client, app, prefix, clock)

    # What differs between the two -----------------------------------------------------------------

    def _new_event(self) -> Any:
        raise NotImplementedError

    def _new_limit(self, client: Any) -> Limit | None:
        return None

    # Steps ----------------------------------------------------------------------------------------

    def _membership(
        self, user_id: str, cohort_id: str, default: Any, *, strict: bool | None = None
    ) -> Steps[Answer | None]:
        """The answer; None stands for the default."""
        if not (self._cache.max_entries or self._strict or strict):
            steps = self._breaker.call(self._lookups.member_since(cohort_id, user_id))
            try:
                return Answer((yield from steps))
            except (RedisError, *UNAVAILABLE_ERRORS) as error:
                self._check_default(error, default)
                return None
        found = yield from self._since(cohort_id, [user_id], default, strict=strict)
        return found[0] if found else None

    def _memberships(
        self, user_ids: Iterable[str], cohort_id: str, default: Any
    ) -> Steps[dict[str, Answer | None]]:
        """The answers by user id; None stands for the default."""
        if isinstance(user_ids, (str, bytes)):
            raise TypeError("user_ids must be an iterable of user ids, not a single one")
        users = list(dict.fromkeys(user_ids))
        if not users:
            return {}
        found = yield from self._since(cohort_id, users, default)
        return dict(zip(users, found, strict=True)) if found else dict.fromkeys(users)

    def _since(
        self, cohort_id: str, user_ids: list[str], default: Any, *, strict: bool | None = None
    ) -> Steps[list[Answer] | None]:
        """When each user entered the cohort. ``user_ids`` must be distinct."""
        if strict is None:
            strict = self._strict

        def ask(questions: list[Any]) -> Steps[list[Any]]:
            return self._lookups.since(cohort_id, [user_id for _, user_id in questions])

        def steps() -> Steps[list[Answer] | None]:
            questions = [(cohort_id, user_id) for user_id in user_ids]
            answers = yield from self._answers(questions, ask)
            unproven = not any(value is not None or stale for value, _, stale in answers)
            if strict and unproven and (yield from self._require(cohort_id)):
                answers = yield from self._answers(questions, ask)
            return answers

        if default is UNSET:
            return (yield from steps())
        return (yield from self._or_default(steps(), None))

    def _profile(self, user_id: str, default: Any) -> Steps[Profile | None]:
        def ask(questions: list[Any]) -> Steps[list[Any]]:
            return [(yield from self._lookups.traits(user_id))]

        def steps() -> Steps[Profile | None]:
            (answer,) = yield from self._answers([user_id], ask)
            unproven = not answer.value and not answer.stale
            if self._strict and unproven and (yield from self._require(None)):
                (answer,) = yield from self._answers([user_id], ask)
            return Profile(dict(answer.value), answer.age_seconds, answer.stale)

        if default is UNSET:
            return (yield from steps())
        return (yield from self._or_default(steps(), None))

    def _member_count(self, cohort_id: str, default: int | Unset) -> Steps[int]:
        def steps() -> Steps[int]:
            count = yield from self._breaker.call(self._lookups.member_count(cohort_id))
            if self._strict and not count and (yield from self._require(cohort_id, now=True)):
                count = yield from self._breaker.call(self._lookups.member_count(cohort_id))
            return count

        return (yield from self._or_default(steps(), default))

    def _members_page(
        self, cohort_id: str, position: tuple[int, int]
    ) -> Steps[tuple[list[str], tuple[int, int] | None]]:
        page = yield from self._breaker.call(self._lookups.members(cohort_id, position))
        if self._strict and not page.user_ids and position == (0, 0):
            yield from self._require(cohort_id, now=True)
        return page.user_ids, page.position

    def _freshness(self, cohort_id: str, default: Freshness | Unset) -> Steps[Freshness]:
        def steps() -> Steps[Freshness]:
            found = yield from self._breaker.call(self._lookups.freshness(cohort_id))
            unproven = found.last_received_ms is None
            if self._strict and unproven and (yield from self._require(cohort_id, now=True)):
                found = yield from self._breaker.call(self._lookups.freshness(cohort_id))
            return found

        return (yield from self._or_default(steps(), default))

    def _completeness(self, cohort_id: str, default: Completeness | Unset) -> Steps[Completeness]:
        def steps() -> Steps[Completeness]:
            found = yield from self._breaker.call(self._lookups.completeness(cohort_id))
            unproven = found == Completeness()
            if self._strict and unproven and (yield from self._require(cohort_id, now=True)):
                found = yield from self._breaker.call(self._lookups.completeness(cohort_id))
            return found

        return (yield from self._or_default(steps(), default))

    def _exists(self, cohort_id: str, default: bool | Unset) -> Steps[bool]:
        def steps() -> Steps[bool]:
            if (yield from self._breaker.call(self._lookups.exists(cohort_id))):
                return True
            if (yield from self._breaker.call(self._lookups.reload_partitions())):
                return (yield from self._breaker.call(self._lookups.exists(cohort_id)))
            return False

        return (yield from self._or_default(steps(), default))

    def _cohort_ids(self, default: list[str] | Unset) -> Steps[list[str]]:
        def steps() -> Steps[list[str]]:
            found = yield from self._breaker.call(self._lookups.cohort_ids())
            if self._strict and not found and (yield from self._require(None)):
                found = yield from self._breaker.call(self._lookups.cohort_ids())
            return found

        return (yield from self._or_default(steps(), default))

    def _or_default(self, steps: Steps[T], default: T | Unset) -> Steps[T]:
        """Run ``steps``; if the store fails, return the default, if there is one."""
        try:
            return (yield from steps)
        except (RedisError, *UNAVAILABLE_ERRORS) as error:
            self._check_default(error, default)
            return _given(default)

    def _check_default(self, error: Exception, default: Any) -> None:
        """Raise ``error``, unless there is a default to return instead."""
        # A DataError is the caller's: an argument of the wrong type.
        if default is UNSET or isinstance(error, DataError):
            raise error
        now = self._clock()
        if now - self._warned_at >= WARNING_SECONDS:
            self._warned_at = now
            log.warning("returning defaults, as the store failed: %s", describe(error))

    def _require(self, cohort_id: str | None, *, now: bool = False) -> Steps[bool]:
        """Check that the cohort is in the store or, if it is None, that the app has any cohort.

        Args:
            now: check again. Frequent lookups rely on an earlier check instead.

        Returns:
            True if the number of partitions has changed, so that the answer was wrong.

        Raises:
            UnknownCohort
        """
        at = self._clock()
        if not now and at < self._known.get(cohort_id, at):
            return False
        changed = yield from self._breaker.call(self._lookups.reload_partitions())
        if cohort_id is not None and (yield from self._remember(cohort_id, at)):
            return changed
        missing = yield from self._breaker.call(self._lookups.whats_missing())
        if missing:
            raise UnknownApp(missing)
        if cohort_id is not None:
            raise UnknownCohort(f"the cohort {str.__str__(cohort_id)!r} is not in the store")
        self._known[None] = at + KNOWN_SECONDS
        return changed

    def _remember(self, cohort_id: str, at: float) -> Steps[bool]:
        found = yield from self._breaker.call(self._lookups.exists(cohort_id))
        if found:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[cohort_id] = at + KNOWN_SECONDS
        else:
            self._known.pop(cohort_id, None)
        return found

    def _answers(
        self, questions: Sequence[Any], ask: Callable[[list[Any]], Steps[list[Any]]]
    ) -> Steps[list[Answer]]:
        """Answer each question from the cache or by ``ask``; if that fails, from stale answers."""
        if not self._cache.max_entries:
            values = yield from self._breaker.call(ask(list(questions)))
            return [Answer(value) for value in values]
        now = self._clock()
        answers, stale = self._cached(questions, now)
        while missing := [question for question in questions if question not in answers]:
            # If the store fails, or the breaker is open, stale answers are used.
            own, others = self._cache.start(missing, self._new_event)
            error: Exception | None = None
            try:
                if own:
                    values = yield from self._breaker.call(ask(list(own)))
                    for (question, flight), value in zip(own.items(), values, strict=True):
                        # Dated when asked: the value may have changed before the reply arrived.
                        flight.answer = CachedAnswer(now, value)
                        self._cache.put(question, flight.answer)
            except (RedisError, *UNAVAILABLE_ERRORS) as failure:
                error = failure
                for flight in own.values():
                    flight.error = failure
            finally:
                self._cache.finish(own)
            for flight in others.values():
                yield flight.landed.wait()
            for question, flight in (own | others).items():
                if flight.answer is not None:
                    age = max(0.0, now - flight.answer.asked_at)
                    answers[question] = Answer(flight.answer.value, age)
                else:
                    error = error or flight.error
            if error is not None:
                missing = [question for question in questions if question not in answers]
                if not isinstance(error, UNAVAILABLE_ERRORS) or not stale.keys() >= set(missing):
                    raise error
                answers |= {question: stale[question] for question in missing}
        return [answers[question] for question in questions]

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

    # A fast path ----------------------------------------------------------------------------------

    def _cached_since(self, user_id: str, cohort_id: str) -> Answer | None:
        """A current answer in the cache. Most lookups end here, so this is a fast path."""
        if not self._cache_seconds:
            return None
        cached = self._cache.get((cohort_id, user_id))
        if cached is None or (cached.value is None and self._strict):
            return None
        age = self._clock() - cached.asked_at
        return Answer(cached.value, age) if age <= self._cache_seconds else None


class CohortReader(_ReaderCore):
    """Looks up users and cohorts. Thread-safe.

    Without a cache, which is the default, every answer comes from the store. With one, an answer
    may be up to ``cache_seconds`` old. While the store is unavailable, it may be older than that by
    up to ``stale_seconds`` and is marked ``stale``.

    If ``breaker_failures`` calls in a row fail because the store is unavailable, further ones fail
    immediately with :class:`StoreUnavailable`, and one of them per ``breaker_seconds`` tries again.

    Every lookup but :meth:`members` takes a ``default``, to return if the store fails. Without
    one, it raises ``redis.RedisError``; on a cluster also ``RedisClusterException``.

    Args:
        client: connects to the store, see :func:`connect`; the reader never closes it.
        app: the app whose cohorts to read, as in the receiver's ``API_KEYS``.
        prefix: the receiver's ``KEY_PREFIX``.
        strict: raise :class:`UnknownCohort` for cohorts that are not in the store, and
            :class:`UnknownApp` if nothing was received for the app.
        cache_entries: how many answers to cache, "not a member" included; 0 for no cache. The least
            recently used is evicted first.
        cache_seconds: how long a cached answer is used.
        stale_seconds: how much longer while the store is unavailable.
        breaker_failures, breaker_seconds: see above.
        clock: returns seconds; for tests.

    Raises:
        TypeError: ``client`` is one of ``redis.asyncio``, or no client.
        ValueError: an argument is invalid.
    """

    def _new_event(self) -> threading.Event:
        return threading.Event()

    def is_member(self, user_id: str, cohort_id: str, *, default: bool | Unset = UNSET) -> bool:
        """Whether the user is in the cohort. False for an unknown user or cohort."""
        answer = self._cached_since(user_id, cohort_id) or run(
            self._membership(user_id, cohort_id, default)
        )
        return _is_member(answer, default)

    def member_since(
        self, user_id: str, cohort_id: str, *, default: int | Unset | None = UNSET
    ) -> int | None:
        """When the user entered the cohort, in ms since the epoch; None if not in it."""
        answer = run(self._membership(user_id, cohort_id, default))
        return _since_ms(answer, default)

    def membership(
        self, user_id: str, cohort_id: str, *, default: Membership | Unset = UNSET
    ) -> Membership:
        """Whether the user is in the cohort and since when, and the age of the answer."""
        answer = self._cached_since(user_id, cohort_id) or run(
            self._membership(user_id, cohort_id, default)
        )
        return _membership(answer, default)

    def are_members(
        self, user_ids: Iterable[str], cohort_id: str, *, default: bool | Unset = UNSET
    ) -> dict[str, bool]:
        """Like :meth:`is_member` for many users, by user id, in one round trip."""
        found = run(self._memberships(user_ids, cohort_id, default))
        return {user: _is_member(answer, default) for user, answer in found.items()}

    def memberships(
        self, user_ids: Iterable[str], cohort_id: str, *, default: Membership | Unset = UNSET
    ) -> dict[str, Membership]:
        """Like :meth:`membership` for many users, by user id, in one round trip."""
        found = run(self._memberships(user_ids, cohort_id, default))
        return {user: _membership(answer, default) for user, answer in found.items()}

    def profile(self, user_id: str, *, default: Profile | Unset = UNSET) -> Profile:
        """All traits of the user, and the age of the answer."""
        found = run(self._profile(user_id, default))
        return _given(default) if found is None else found

    def traits(self, user_id: str, *, default: dict[str, bool] | Unset = UNSET) -> dict[str, bool]:
        """Whether the user has each trait, by trait name. Empty for an unknown user."""
        found = run(self._profile(user_id, default))
        return _given(default) if found is None else found.traits

    def cohorts(self, user_id: str, *, default: set[str] | Unset = UNSET) -> set[str]:
        """The ids of the cohorts that the user is in."""
        found = run(self._profile(user_id, default))
        return _given(default) if found is None else found.cohorts

    def member_count(self, cohort_id: str, *, default: int | Unset = UNSET) -> int:
        """How many users are in the cohort; 0 for an unknown one. Never cached."""
        return run(self._member_count(cohort_id, default))

    def members(self, cohort_id: str) -> Iterator[str]:
        """Iterate over the users in the cohort, unordered, about 1,000 per round trip.

        Never cached. Users who are members throughout the iteration are returned, unless the store
        restarts or fails over meanwhile: then some may be missing. A user may be returned more than
        once. Takes no default, as it may fail half way.
        """
        position: tuple[int, int] | None = (0, 0)
        while position:
            users, position = run(self._members_page(cohort_id, position))
            yield from users

    def freshness(self, cohort_id: str, *, default: Freshness | Unset = UNSET) -> Freshness:
        """When the cohort was last received, and whether it is late. Never cached."""
        return run(self._freshness(cohort_id, default))

    def completeness(
        self, cohort_id: str, *, default: Completeness | Unset = UNSET
    ) -> Completeness:
        """Whether the members are known to be right: none missing, none stale. Never cached."""
        return run(self._completeness(cohort_id, default))

    def exists(self, cohort_id: str, *, default: bool | Unset = UNSET) -> bool:
        """Whether the cohort is in the store. Never cached."""
        return run(self._exists(cohort_id, default))

    def cohort_ids(self, *, default: list[str] | Unset = UNSET) -> list[str]:
        """The ids of all cohorts, sorted. Never cached."""
        return run(self._cohort_ids(default))


class AsyncCohortReader(_ReaderCore):
    """:class:`CohortReader` for asyncio; ``client`` is one of ``redis.asyncio``.

    Any number of tasks may share it. At most 50 query the store at a time, or as many as the
    client's pool has connections, if that is fewer; the others wait their turn.
    """

    _is_async = True

    def _new_event(self) -> asyncio.Event:
        return asyncio.Event()

    def _new_limit(self, client: Any) -> Limit:
        pool = getattr(client, "connection_pool", None)
        connections = getattr(pool, "max_connections", MAX_CONCURRENT_CALLS)
        return Limit(min(connections, MAX_CONCURRENT_CALLS))

    async def is_member(
        self, user_id: str, cohort_id: str, *, default: bool | Unset = UNSET
    ) -> bool:
        """As :meth:`CohortReader.is_member`."""
        answer = self._cached_since(user_id, cohort_id) or await run_async(
            self._membership(user_id, cohort_id, default)
        )
        return _is_member(answer, default)

    async def member_since(
        self, user_id: str, cohort_id: str, *, default: int | Unset | None = UNSET
    ) -> int | None:
        """As :meth:`CohortReader.member_since`."""
        answer = await run_async(self._membership(user_id, cohort_id, default))
        return _since_ms(answer, default)

    async def membership(
        self, user_id: str, cohort_id: str, *, default: Membership | Unset = UNSET
    ) -> Membership:
        """As :meth:`CohortReader.membership`."""
        answer = self._cached_since(user_id, cohort_id) or await run_async(
            self._membership(user_id, cohort_id, default)
        )
        return _membership(answer, default)

    async def are_members(
        self, user_ids: Iterable[str], cohort_id: str, *, default: bool | Unset = UNSET
    ) -> dict[str, bool]:
        """As :meth:`CohortReader.are_members`."""
        found = await run_async(self._memberships(user_ids, cohort_id, default))
        return {user: _is_member(answer, default) for user, answer in found.items()}

    async def memberships(
        self, user_ids: Iterable[str], cohort_id: str, *, default: Membership | Unset = UNSET
    ) -> dict[str, Membership]:
        """As :meth:`CohortReader.memberships`."""
        found = await run_async(self._memberships(user_ids, cohort_id, default))
        return {user: _membership(answer, default) for user, answer in found.items()}

    async def profile(self, user_id: str, *, default: Profile | Unset = UNSET) -> Profile:
        """As :meth:`CohortReader.profile`."""
        found = await run_async(self._profile(user_id, default))
        return _given(default) if found is None else found

    async def traits(
        self, user_id: str, *, default: dict[str, bool] | Unset = UNSET
    ) -> dict[str, bool]:
        """As :meth:`CohortReader.traits`."""
        found = await run_async(self._profile(user_id, default))
        return _given(default) if found is None else found.traits

    async def cohorts(self, user_id: str, *, default: set[str] | Unset = UNSET) -> set[str]:
        """As :meth:`CohortReader.cohorts`."""
        found = await run_async(self._profile(user_id, default))
        return _given(default) if found is None else found.cohorts

    async def member_count(self, cohort_id: str, *, default: int | Unset = UNSET) -> int:
        """As :meth:`CohortReader.member_count`."""
        return await run_async(self._member_count(cohort_id, default))

    async def members(self, cohort_id: str) -> AsyncIterator[str]:
        """As :meth:`CohortReader.members`."""
        position: tuple[int, int] | None = (0, 0)
        while position:
            users, position = await run_async(self._members_page(cohort_id, position))
            for user_id in users:
                yield user_id

    async def freshness(self, cohort_id: str, *, default: Freshness | Unset = UNSET) -> Freshness:
        """As :meth:`CohortReader.freshness`."""
        return await run_async(self._freshness(cohort_id, default))

    async def completeness(
        self, cohort_id: str, *, default: Completeness | Unset = UNSET
    ) -> Completeness:
        """As :meth:`CohortReader.completeness`."""
        return await run_async(self._completeness(cohort_id, default))

    async def exists(self, cohort_id: str, *, default: bool | Unset = UNSET) -> bool:
        """As :meth:`CohortReader.exists`."""
        return await run_async(self._exists(cohort_id, default))

    async def cohort_ids(self, *, default: list[str] | Unset = UNSET) -> list[str]:
        """As :meth:`CohortReader.cohort_ids`."""
        return await run_async(self._cohort_ids(default))


def _given(default: T | Unset) -> T:
    """The default. Called only if the caller gave one."""
    if default is UNSET:
        raise AssertionError("an error should have been raised")
    return default


def _is_member(answer: Answer | None, default: bool | Unset) -> bool:
    return _given(default) if answer is None else answer.value is not None


def _since_ms(answer: Answer | None, default: int | Unset | None) -> int | None:
    since: int | None = _given(default) if answer is None else answer.value
    return since


def _membership(answer: Answer | None, default: Membership | Unset) -> Membership:
    return _given(default) if answer is None else Membership(*answer)
