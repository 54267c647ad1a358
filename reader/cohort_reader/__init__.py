"""Read the cohorts that Cohort Receiver keeps in Redis or Valkey.

Needs nothing but Python 3.11 and the client library ``redis``. ``docs/reading.md`` shows how to use
it, ``docs/data-model.md`` describes the keys.

- :class:`CohortReader` answers "is this user in this cohort?", "which cohorts is the user in?" and
  "who is in this cohort?", with a small cache if you want one.
- :class:`Follower` hands every user who enters or leaves a cohort to a function of yours, at least
  once, also when several processes share the work and some of them die.

Both work on an ordinary ``redis.Redis``, with ``decode_responses`` on or off. Names that end in
``_ms`` are in ms since the epoch, names that end in ``_seconds`` are durations. What the client
raises (``redis.RedisError``) reaches the caller, except where it says so.
"""

from cohort_reader.follow import Change, FailedChange, Follower, Lag
from cohort_reader.keys import UNAVAILABLE, cohort_id_of
from cohort_reader.lookup import CohortReader, Freshness, FreshnessState, Membership, Profile

__all__ = [
    "UNAVAILABLE",
    "Change",
    "CohortReader",
    "FailedChange",
    "Follower",
    "Freshness",
    "FreshnessState",
    "Lag",
    "Membership",
    "Profile",
    "cohort_id_of",
]
