"""Read the cohorts that Cohort Receiver keeps in Redis or Valkey.

- :class:`CohortReader` looks up whether a user is in a cohort, a user's cohorts and a cohort's
  members, with an optional cache.
- :class:`Follower` passes every membership change to your function, at least once, in any
  number of processes.
- :class:`AsyncCohortReader` and :class:`AsyncFollower` are the same for asyncio.

``docs/python-reader.md`` shows how to use them, ``docs/data-model.md`` describes the keys.

The readers and followers take a ``redis.Redis`` or ``redis.RedisCluster``, or those of
``redis.asyncio``, with ``decode_responses`` on or off; :func:`connect` and :func:`connect_async`
make one with short timeouts. Values named ``…_ms`` are times in ms since the epoch, except
``cadence_ms``, which is a duration; ``…_seconds`` are durations. Errors of the client
(``redis.RedisError``, on a cluster also ``RedisClusterException``) reach the caller unless
documented otherwise.
"""

from cohort_reader.answers import (
    UNSET,
    Completeness,
    CompletenessState,
    Freshness,
    FreshnessState,
    IncompleteReason,
    Membership,
    Profile,
    Unset,
)
from cohort_reader.changes import FailedChange, Lag, MembershipChange
from cohort_reader.connect import connect, connect_async
from cohort_reader.errors import UNAVAILABLE_ERRORS, StoreUnavailable, UnknownApp, UnknownCohort
from cohort_reader.follower import AsyncFollower, Follower
from cohort_reader.keys import cohort_id_from_trait
from cohort_reader.reader import AsyncCohortReader, CohortReader

__all__ = [
    "UNAVAILABLE_ERRORS",
    "UNSET",
    "AsyncCohortReader",
    "AsyncFollower",
    "CohortReader",
    "Completeness",
    "CompletenessState",
    "FailedChange",
    "Follower",
    "Freshness",
    "FreshnessState",
    "IncompleteReason",
    "Lag",
    "Membership",
    "MembershipChange",
    "Profile",
    "StoreUnavailable",
    "UnknownApp",
    "UnknownCohort",
    "Unset",
    "cohort_id_from_trait",
    "connect",
    "connect_async",
]
