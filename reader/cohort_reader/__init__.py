"""Read the cohorts that Cohort Receiver keeps in Redis or Valkey.

- :class:`CohortReader` looks up whether a user is in a cohort, a user's cohorts and a cohort's
  members, with an optional cache.
- :class:`Follower` passes every membership change to a function of yours, at least once, in any
  number of processes.

``docs/reading.md`` shows how to use them, ``docs/data-model.md`` describes the keys.

Both take a plain ``redis.Redis``, with ``decode_responses`` on or off. Values named ``…_ms`` are
times in ms since the epoch, except ``cadence_ms``, which is a duration; ``…_seconds`` are
durations. Errors of the client (``redis.RedisError``) reach the caller unless documented otherwise.
"""

from cohort_reader.changes import FailedChange, Lag, MembershipChange
from cohort_reader.follower import Follower
from cohort_reader.keys import UNAVAILABLE_ERRORS, cohort_id_from_trait
from cohort_reader.reader import CohortReader, Freshness, FreshnessState, Membership, Profile

__all__ = [
    "UNAVAILABLE_ERRORS",
    "CohortReader",
    "FailedChange",
    "Follower",
    "Freshness",
    "FreshnessState",
    "Lag",
    "Membership",
    "MembershipChange",
    "Profile",
    "cohort_id_from_trait",
]
